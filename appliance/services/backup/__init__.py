"""Backup runs."""

from appliance.services.backup.service import BackupService, RunResult

__all__ = ["BackupService", "RunResult"]
