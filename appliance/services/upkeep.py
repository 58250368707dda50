"""What has to be done between runs: debts of dead processes, thaws that are owed, exports that nobody serves any more.

The rule: nothing here waits for a person or decides anything new; it may run at any time, beside anything, and twice.
What fails is told, and keeps nothing else from being tried. A debt that hurts a guest is never given up: who loses
patience hands it to the supervisor, which has no end.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from appliance.catalog.errors import CatalogError
from appliance.services import spawning
from appliance.services.cleaning import CleaningService, attempted
from appliance.services.exports import ExportService

if TYPE_CHECKING:
    from appliance.bootstrap import Appliance

_PATIENCE_S = 600.0


class UpkeepService:
    """Borrows the appliance."""

    def __init__(self, appliance: Appliance) -> None:
        self._appliance = appliance
        self._cleaning = CleaningService(appliance)

    def once(self) -> tuple[str, ...]:
        """Settle what can be settled now; returns what could not be, as sentences."""
        return (*self._cleaning.settle(), *self._sweep())

    def here(self) -> tuple[str, ...]:
        """As `once`, without asking a host: what dead processes hold of the repository and of this machine."""
        return (*self._cleaning.settle_here(), *self._sweep())

    def _sweep(self) -> tuple[str, ...]:
        return attempted("exports", ExportService(self._appliance).sweep)

    def until_paid(
        self, stop: threading.Event, tell: Callable[[str], None], patience_s: float = _PATIENCE_S
    ) -> tuple[str, ...]:
        """As `once`, and again as long as a debt hurts a guest, until `stop`; when patience ends, a supervisor goes on.

        Each problem is told when it comes up. Returns what is left.
        """
        clock = self._appliance.clock
        deadline = clock.monotonic_s() + patience_s
        told: set[str] = set()
        while True:
            problems = self.once()
            for problem in problems:
                if problem not in told:
                    tell(problem)
            told |= set(problems)
            if not self.guest_hurt():
                return problems
            if clock.monotonic_s() >= deadline:
                spawning.ensure_supervisor(self._appliance)
                return problems
            if stop.wait(self._appliance.settings.agent.thaw_retry_s):
                return problems

    def guest_hurt(self) -> bool:
        """Whether a debt that hurts a guest is left. What the catalog does not tell may be one, while it exists."""
        try:
            return self._cleaning.hurts_guests()
        except CatalogError:
            settings = self._appliance.settings
            return settings.home.exists() if settings.catalog.url else settings.catalog_file.exists()
