"""Instant recovery."""

from appliance.services.recovery.service import RecoveryService, Resumed
from appliance.services.recovery.supervisor import Supervisor

__all__ = ["RecoveryService", "Resumed", "Supervisor"]
