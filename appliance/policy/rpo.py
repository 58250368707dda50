"""Which machines have no restore point as young as their policies want. Pure.

The rule: of several policies the shortest RPO counts. The age is that of the newest point, or, without one, the time
since the machine is to be protected. A point from the future proves nothing. A pause explains a miss and hides none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from appliance.policy.selectors import Machine
from appliance.policy.states import MachineState, PolicyState, newest


@dataclass(frozen=True, slots=True)
class Watched:
    """`since_utc`: the newest point, or when protection began; the RPO is missed from `misses_utc` on."""

    machine: Machine
    policy: str
    rpo: timedelta
    since_utc: datetime
    has_point: bool
    paused: bool

    @property
    def misses_utc(self) -> datetime:
        return self.since_utc + self.rpo


def watch(state: MachineState, policies: Sequence[PolicyState], now_utc: datetime) -> Watched | None:
    """`policies` are those that select the machine. None: none of them wants an RPO."""
    wanted = [(each.policy.rpo, each.policy.name, each) for each in policies if each.policy.rpo is not None]
    if not wanted:
        return None
    rpo, name, strictest = min(wanted, key=lambda each: each[:2])
    point = newest([state.point_utc], now_utc)
    began = newest([max(strictest.since_utc, state.known_utc)], now_utc)
    if began is None or (point is None and state.point_utc is not None):
        # Its times are of a clock that was wrong: nothing says that it is protected.
        began = now_utc - rpo
    since = point or began
    return Watched(state.machine, name, rpo, since, point is not None, strictest.paused or state.paused)
