"""Restore: a disk to a file, a machine to a host."""

from appliance.services.restore.parts import RestoredDisk
from appliance.services.restore.service import DiskRestored, MachineRestored, RestoreService

__all__ = ["DiskRestored", "MachineRestored", "RestoreService", "RestoredDisk"]
