"""How every machine and image is protected now: by which policies, since when it has a point, whether that is enough.

The rule: it is told from the catalog alone, of all that policies could select, protected or not; no host is asked.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from appliance.policy.policies import Policy, assign
from appliance.policy.rpo import Watched, watch
from appliance.policy.selectors import Machine
from appliance.policy.states import MachineState
from appliance.services.policies.known import known_machines, machine_of
from appliance.services.policies.service import PolicyService

if TYPE_CHECKING:
    from appliance.bootstrap import Appliance

_BEGINNING: Final = datetime.min.replace(tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Protection:
    """`series`: of its restore points. `watched`: None: no policy wants an RPO."""

    machine: Machine
    policies: tuple[Policy, ...]
    series: tuple[str, ...]
    last_point_utc: datetime | None
    watched: Watched | None

    @property
    def protected(self) -> bool:
        return self.last_point_utc is not None

    def missed(self, now_utc: datetime) -> bool:
        return self.watched is not None and self.watched.misses_utc <= now_utc


def survey(appliance: Appliance, now_utc: datetime) -> tuple[Protection, ...]:
    """By name. Policies that cannot be read count for nothing. CatalogError."""
    states = {each.name: each.state for each in PolicyService(appliance).list().readable}
    paused = {each.machine for each in appliance.catalog.policies.pauses()}
    machines = known_machines(appliance)
    known = {each.machine.key: each.seen.known_utc for each in appliance.catalog.inventory.machines(own=False)}
    series: dict[str, list[str]] = {}
    newest: dict[str, datetime] = {}
    for record in appliance.catalog.points.machines():
        key = machine_of(record).key
        if record.last_point_utc is not None:
            series.setdefault(key, []).append(record.series)
            newest[key] = max(newest.get(key, _BEGINNING), record.last_point_utc)
    assigned = assign((state.policy for state in states.values()), machines)
    found = []
    for machine in machines:
        mine = [states[name] for name in assigned[machine.key]]
        state = MachineState(
            machine, known.get(machine.key, _BEGINNING), point_utc=newest.get(machine.key), paused=machine.key in paused
        )
        found.append(
            Protection(
                machine, tuple(each.policy for each in mine), tuple(series.get(machine.key, ())),
                newest.get(machine.key), watch(state, mine, now_utc),
            )
        )  # fmt: skip
    return tuple(sorted(found, key=lambda each: (each.machine.name, each.machine.key)))
