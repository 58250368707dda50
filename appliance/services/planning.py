"""Planning from the fleet's real history.

The rule: everything is reckoned from the catalog, so no plan needs a host or reads the repository; what a retention
would free at once is asked of the repository only if somebody wants it to the byte.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo

from appliance.planning.habits import History, MadePoint
from appliance.planning.plans import Numbers, Plan, Room, plan, typed
from appliance.policy.retention import Rules
from appliance.progress import SILENT, Progress
from appliance.services.browsing.fleet import Standing
from appliance.services.browsing.service import BrowsingService
from appliance.services.maintenance import MaintenanceService
from appliance.services.policies.service import PolicyService

if TYPE_CHECKING:
    from appliance.bootstrap import Appliance


class PlanningService:
    """Borrows the appliance."""

    def __init__(self, appliance: Appliance) -> None:
        self._appliance = appliance

    def plan(
        self,
        *,
        months: int,
        rules: Rules | None = None,
        window_s: float | None = None,
        restore_bytes_s: float | None = None,
        exact: bool = False,
        progress: Progress = SILENT,
    ) -> Plan:
        """`exact`: with `rules`, ask the repository what they would free at once. ImagingError then; CatalogError."""
        made = plan(
            self.histories(), self._room(), self._appliance.clock.now_utc(), months=months, rules=rules,
            window_s=window_s, restore_bytes_s=restore_bytes_s,
        )  # fmt: skip
        if made.change is None or rules is None or not exact:
            return made
        pruned = MaintenanceService(self._appliance).plan_prune((), rules, zone=ZoneInfo("UTC"), progress=progress)
        return replace(made, change=replace(made.change, freed_bytes=pruned.freed_bytes))

    def plan_typed(
        self,
        numbers: Numbers,
        rules: Rules,
        *,
        months: int,
        window_s: float | None = None,
        restore_bytes_s: float | None = None,
    ) -> Plan:
        """Of a fleet that is not there yet."""
        now = self._appliance.clock.now_utc()
        histories, habits, room = typed(numbers, rules, now)
        return plan(
            histories, room, now, months=months, window_s=window_s,
            restore_bytes_s=restore_bytes_s or numbers.read_bytes_s, found=habits,
        )  # fmt: skip

    def histories(self) -> tuple[History, ...]:
        """Of the machines and images that have restore points and are still there, by name."""
        catalog = self._appliance.catalog
        policies = {each.name: each.policy for each in PolicyService(self._appliance).list().readable}
        points: dict[str, list[MadePoint]] = defaultdict(list)
        for series, point in catalog.history.made_points():
            points[series].append(point)
        found = []
        for row in BrowsingService(self._appliance).fleet().rows:
            if row.standing is not Standing.PROTECTED or row.series is None or not points[row.series]:
                continue
            mine = points[row.series]
            selecting = tuple(policies[name] for name in row.policies)
            instant = None if row.proof is None else row.proof.took_ms
            found.append(
                History(row.machine.name, row.machine.host, mine[-1].size_bytes, tuple(mine), selecting, 1, instant)
            )  # fmt: skip
        return tuple(found)

    def _room(self) -> Room:
        growth = BrowsingService(self._appliance).growth()
        used = growth.used_bytes
        if used is None:  # nobody has looked yet: what points stored is the next best
            _, used = self._appliance.catalog.browsing.totals()
        return Room(used, growth.free_bytes, growth.day_bytes if growth.basis == "sizes" else None)
