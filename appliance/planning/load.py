"""What reading the fleet takes of hosts and networks, and whether the time for it is enough. Pure.

Rules: a host has to read in its window what its machines read in a day; where no policy has a window, there are 24
hours. How long it takes is by what the runs took, so many at a time as the policies allow.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import Final

from appliance.planning.habits import Habit, History
from appliance.policy.policies import Policy
from appliance.policy.windows import Window

_DAY_S: Final = 86_400.0


@dataclass(frozen=True, slots=True)
class HostLoad:
    """`host`: None: images of the appliance. In a day: `read_bytes` from machines, `stored_bytes` into the repository,
    in `window_s`. `needed_bytes_s`: to read it in that time; `busy_s`: what the runs take, side by side."""

    host: str | None
    machines: int
    read_bytes: int
    stored_bytes: int
    window_s: float
    needed_bytes_s: float
    busy_s: float

    @property
    def fits(self) -> bool:
        return self.busy_s <= self.window_s


def loads(
    histories: Sequence[History], habits: Sequence[Habit | None], window_s: float | None = None
) -> tuple[HostLoad, ...]:
    """By host. `window_s`: of a day, for all of them; None: as policies have it."""
    hosts: dict[str | None, list[tuple[History, Habit]]] = defaultdict(list)
    for history, habit in zip(histories, habits, strict=True):
        if habit is not None:
            hosts[history.host].append((history, habit))
    return tuple(
        _load(host, hosts[host], window_s) for host in sorted(hosts, key=lambda each: (each is not None, each))
    )


def _load(host: str | None, machines: Sequence[tuple[History, Habit]], window_s: float | None) -> HostLoad:
    policies = [policy for history, _ in machines for policy in history.policies]
    span = window_s if window_s is not None else min((_open_s(policy) for policy in policies), default=_DAY_S)
    at_once = min((policy.per_host for policy in policies), default=1)
    read = sum(habit.read_bytes * habit.runs_a_day * history.count for history, habit in machines)
    busy = sum(habit.duration_s * habit.runs_a_day * history.count for history, habit in machines)
    return HostLoad(
        host=host,
        machines=sum(history.count for history, _ in machines),
        read_bytes=round(read),
        stored_bytes=round(sum(habit.stored_bytes * habit.runs_a_day * history.count for history, habit in machines)),
        window_s=span,
        needed_bytes_s=read / span,
        busy_s=busy / at_once,
    )


def _open_s(policy: Policy) -> float:
    return _DAY_S if policy.window is None else open_s(policy.window)


def open_s(window: Window) -> float:
    """On the shortest of the days on which it opens."""
    opened: dict[int, float] = defaultdict(float)
    day = date(2026, 1, 1)
    for span in window.spans:
        length = datetime.combine(day, span.ends) - datetime.combine(day, span.begins)
        if length <= timedelta(0):
            length += timedelta(days=1)
        for number in span.days:
            opened[number] += length.total_seconds()
    return min(_DAY_S, *opened.values()) if len(opened) > 1 else min(_DAY_S, next(iter(opened.values())))


@dataclass(frozen=True, slots=True)
class RecoveryTime:
    """`instant_s`: until it runs out of the repository; `own`: as it was measured with this machine, else the middle of
    the others; None: nobody has tried. `restore_s`: until all of it is written back; None: no speed is known."""

    name: str
    host: str | None
    size_bytes: int
    instant_s: float | None
    own: bool
    restore_s: float | None
