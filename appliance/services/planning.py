"""Planning from the fleet's real history.

The rule: everything is reckoned from the catalog, so no plan needs a host or reads the repository; what a retention
would free at once is asked of the repository only if somebody wants it to the byte. Who may see some machines only has
a plan of those, in which nothing is of the others: not what the repository holds, nor how it grows. Months are reckoned
from the beginning of this hour on: within it, the same question about the same points has the same answer.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo

from appliance.planning.capacity import Reckoning
from appliance.planning.habits import History
from appliance.planning.plans import Numbers, Plan, Room, plan, room_of, typed
from appliance.policy.retention import Rules
from appliance.progress import SILENT, Progress
from appliance.services.browsing.fleet import Standing
from appliance.services.browsing.service import BrowsingService, MaySee
from appliance.services.made_points import MadePoints
from appliance.services.maintenance import MaintenanceService
from appliance.services.policies.service import PolicyService

if TYPE_CHECKING:
    from appliance.bootstrap import Appliance


class PlanningService:
    """Borrows the appliance. Worth keeping: it remembers what points there are, for as long as they are so. Safe to use
    from threads."""

    def __init__(self, appliance: Appliance) -> None:
        self._appliance = appliance
        self._browsing = BrowsingService(appliance)
        self._points = MadePoints(appliance)
        self._reckoning = Reckoning()

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
        histories, now = self.histories(may_see), self._appliance.clock.now_utc()
        hour = now.replace(minute=0, second=0, microsecond=0)
        made = plan(
            histories, self._room() if may_see is None else room_of(histories), now, months=months, rules=rules,
            window_s=window_s, restore_bytes_s=restore_bytes_s, since_utc=hour, reckoning=self._reckoning,
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
        points = self._points.all()
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

    def _room(self) -> Room:
        growth = self._browsing.growth()
        used = growth.used_bytes
        if used is None:  # nobody has looked yet: what points stored is the next best
            _, used = self._appliance.catalog.browsing.totals()
        return Room(used, growth.free_bytes, growth.day_bytes if growth.basis == "sizes" else None)
