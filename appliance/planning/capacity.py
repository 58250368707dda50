"""How large the repository will be, month by month. Pure.

Rules: points are made on as they are made now, and kept by the same decisions that prune them. What a point that goes
gives back cannot be known beforehand: all that it stored, if that was overwritten since, or nothing, if it was added.
So there are two cases, and fleets lie between them: `low` gives all of it back, `high` nothing. What full reads stored
stays in both, as later points need most of it. Between them, the repository goes on as it was seen to grow.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from appliance.planning.habits import Habit, History
from appliance.planning.staying import Staying
from appliance.policy.policies import Policy

MONTHS_MAX: Final = 120
_POINTS_A_MONTH: Final = 3000  # of one machine: more often than every quarter of an hour is reckoned as that
_MONTH: Final = timedelta(days=365.25 / 12)


@dataclass(frozen=True, slots=True)
class MonthSize:
    """At `end_utc`: between `low_bytes` and `high_bytes`; `trend_bytes`: as it was seen to grow, within these; None: it
    was not seen for long enough. `points`: restore points that are kept."""

    end_utc: datetime
    low_bytes: int
    high_bytes: int
    trend_bytes: int | None
    points: int


def project(
    histories: Sequence[History],
    habits: Sequence[Habit | None],
    used_bytes: int,
    day_bytes: int | None,
    now_utc: datetime,
    months: int,
    policies: Callable[[History], Sequence[Policy]] = lambda history: history.policies,
) -> tuple[MonthSize, ...]:
    """The next months, first `months` of 30.4 days each. `policies`: which keep a machine's points; none: all stay.
    A machine whose habit is None stays as it is."""
    ends = [now_utc + number * _MONTH for number in range(1, months + 1)]
    low, high, points = [used_bytes] * months, [used_bytes] * months, [0] * months
    staying = Staying()
    for history, habit in zip(histories, habits, strict=True):
        told = _machine(history, habit, now_utc, ends, policies(history), staying)
        for number, (kept, made, count) in enumerate(told):
            low[number] += kept * history.count
            high[number] += made * history.count
            points[number] += count * history.count
    found = []
    for number, end in enumerate(ends):
        trend = None
        if day_bytes is not None:
            grown = used_bytes + round(day_bytes * ((end - now_utc) / timedelta(days=1)))
            trend = min(max(grown, low[number]), high[number])
        found.append(MonthSize(end, max(0, low[number]), high[number], trend, points[number]))
    return tuple(found)


def _machine(
    history: History,
    habit: Habit | None,
    now_utc: datetime,
    ends: Sequence[datetime],
    policies: Sequence[Policy],
    staying: Staying,
) -> list[tuple[int, int, int]]:
    """At each end: how much more the kept points stored than those of now, how much was stored at all, how many points
    are kept."""
    points = history.points
    at_s, stored, full = list(points.at_s), list(points.stored_bytes), list(points.full)
    before = sum(stored)
    made, gone_full = 0, 0
    pruned = bool(policies) and not any(policy.retention.empty for policy in policies)
    now_s = now_utc.timestamp()
    last_s = max(at_s[-1], now_s) if at_s else now_s
    interval_s = max(habit.interval, _MONTH / _POINTS_A_MONTH).total_seconds() if habit is not None else 0.0
    found = []
    for end in ends:
        if habit is not None:
            count = max(0, int((end.timestamp() - last_s) / interval_s))
            at_s += [last_s + number * interval_s for number in range(1, count + 1)]
            stored += [habit.stored_bytes] * count
            full += [0] * count
            last_s += count * interval_s
            made += count * habit.stored_bytes
        stay = staying.numbers(policies, at_s) if pruned else None
        if stay is not None and len(stay) < len(at_s):
            gone_full += sum(stored[number] for number in range(len(at_s)) if full[number] and number not in stay)
            kept = sorted(stay)
            at_s = [at_s[number] for number in kept]
            stored = [stored[number] for number in kept]
            full = [full[number] for number in kept]
        found.append((sum(stored) + gone_full - before, made, len(at_s)))
    return found
