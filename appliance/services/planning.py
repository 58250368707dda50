"""Planning from the fleet's real history.

The rule: everything is reckoned from the catalog, so no plan needs a host or reads the repository; what a retention
would free at once is asked of the repository only if somebody wants it to the byte. Who may see some machines only has
a plan of those, in which nothing is of the others: not what the repository holds, nor how it grows.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Final
from zoneinfo import ZoneInfo

from appliance.planning.habits import History, Points
from appliance.planning.plans import Numbers, Plan, Room, plan, room_of, typed
from appliance.policy.retention import Rules
from appliance.progress import SILENT, Progress
from appliance.services.browsing.fleet import Standing
from appliance.services.browsing.service import BrowsingService, MaySee
from appliance.services.maintenance import MaintenanceService
from appliance.services.policies.service import PolicyService

if TYPE_CHECKING:
    from appliance.bootstrap import Appliance

_REMEMBERED_S: Final = 60.0


class PlanningService:
    """Borrows the appliance. Worth keeping: it remembers for a minute what points there are, for one who tries this and
    that. Safe to use from threads."""

    def __init__(self, appliance: Appliance) -> None:
        self._appliance = appliance
        self._browsing = BrowsingService(appliance)
        self._lock = threading.Lock()
        self._points: Mapping[str, Points] = {}
        self._until_s = float("-inf")

    def plan(
        self,
        *,
        months: int,
        rules: Rules | None = None,
        window_s: float | None = None,
        restore_bytes_s: float | None = None,
        exact: bool = False,
        progress: Progress = SILENT,
        may_see: MaySee | None = None,
    ) -> Plan:
        """`exact`: with `rules`, ask the repository which points they would let go at once and what that frees, for who
        may see all. ImagingError then; CatalogError."""
        assert may_see is None or not exact
        histories = self.histories(may_see)
        made = plan(
            histories, self._room() if may_see is None else room_of(histories), self._appliance.clock.now_utc(),
            months=months, rules=rules, window_s=window_s, restore_bytes_s=restore_bytes_s,
        )  # fmt: skip
        if made.change is None or rules is None or not exact:
            return made
        pruned = MaintenanceService(self._appliance).plan_prune((), rules, zone=ZoneInfo("UTC"), progress=progress)
        # Both of the same points: without them, bytes would be freed by points that were not counted.
        return replace(made, change=replace(made.change, going=len(pruned.going), freed_bytes=pruned.freed_bytes))

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

    def histories(self, may_see: MaySee | None = None) -> tuple[History, ...]:
        """Of the machines and images that have restore points and are still there, by name."""
        policies = {each.name: each.policy for each in PolicyService(self._appliance).list().readable}
        points = self._made_points()
        found = []
        for row in self._browsing.fleet(may_see).rows:
            mine = points.get(row.series or "")
            if row.standing is not Standing.PROTECTED or mine is None:
                continue
            selecting = tuple(policies[name] for name in row.policies if name in policies)
            instant = None if row.proof is None else row.proof.took_ms
            found.append(
                History(row.machine.name, row.machine.host, mine[-1].size_bytes, mine, selecting, 1, instant)
            )  # fmt: skip
        return tuple(found)

    def _made_points(self) -> Mapping[str, Points]:
        clock = self._appliance.clock
        with self._lock:
            if clock.monotonic_s() >= self._until_s:
                self._points = self._appliance.catalog.history.made_points()
                self._until_s = clock.monotonic_s() + _REMEMBERED_S
            return self._points

    def _room(self) -> Room:
        growth = self._browsing.growth()
        used = growth.used_bytes
        if used is None:  # nobody has looked yet: what points stored is the next best
            _, used = self._appliance.catalog.browsing.totals()
        return Room(used, growth.free_bytes, growth.day_bytes if growth.basis == "sizes" else None)
