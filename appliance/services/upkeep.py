"""What has to be done between runs: debts of dead processes, thaws that are owed, exports that nobody serves any more.

The rule: nothing here waits for a person or decides anything new; it may run at any time, beside anything, and twice.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from appliance.services.cleaning import CleaningService
from appliance.services.exports import ExportService

if TYPE_CHECKING:
    from appliance.bootstrap import Appliance

_PATIENCE_S = 600.0


class UpkeepService:
    """Borrows the appliance."""

    def __init__(self, appliance: Appliance) -> None:
        self._appliance = appliance

    def once(self) -> tuple[str, ...]:
        """Settle what can be settled now; returns what could not be, as sentences."""
        return (*CleaningService(self._appliance).settle(), *ExportService(self._appliance).sweep())

    def until_thawed(self, stop: threading.Event, patience_s: float = _PATIENCE_S) -> tuple[str, ...]:
        """As `once`, and again as long as a thaw is owed, until `stop` or patience ends. Returns what is left."""
        clock = self._appliance.clock
        deadline = clock.monotonic_s() + patience_s
        problems = self.once()
        while self._appliance.catalog.thaws.list() and clock.monotonic_s() < deadline:
            if stop.wait(self._appliance.settings.agent.thaw_retry_s):
                break
            problems = self.once()
        return problems
