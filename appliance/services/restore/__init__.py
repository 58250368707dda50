"""Restore: a disk to a file, a machine to a host."""

from appliance.services.restore.service import DiskRestored, MachineRestored, RestoredDisk, RestoreService

__all__ = ["DiskRestored", "MachineRestored", "RestoreService", "RestoredDisk"]
