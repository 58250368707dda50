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
from appliance.policy.keeping import keep
from appliance.policy.policies import Policy
from appliance.policy.retention import Candidate

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


@dataclass(frozen=True, slots=True)
class _Kept:
    candidate: Candidate
    stored_bytes: int
    full: bool


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
    for history, habit in zip(histories, habits, strict=True):
        for number, (kept, made, count) in enumerate(_machine(history, habit, now_utc, ends, policies(history))):
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
    history: History, habit: Habit | None, now_utc: datetime, ends: Sequence[datetime], policies: Sequence[Policy]
) -> list[tuple[int, int, int]]:
    """At each end: how much more the kept points stored than those of now, how much was stored at all, how many points
    are kept."""
    kept = [
        _Kept(Candidate(point.id, point.generation, point.created_utc), point.stored_bytes, point.full)
        for point in history.points
    ]
    before = sum(each.stored_bytes for each in kept)
    made, gone_full = 0, 0
    generation = kept[-1].candidate.generation + 1 if kept else 0
    at = max(kept[-1].candidate.created_utc, now_utc) if kept else now_utc
    found = []
    for end in ends:
        if habit is not None:
            interval = max(habit.interval, _MONTH / _POINTS_A_MONTH)
            while at + interval <= end:
                at += interval
                kept.append(_Kept(Candidate(f"planned-{generation}", generation, at), habit.stored_bytes, False))
                generation += 1
                made += habit.stored_bytes
        if policies:
            staying = {
                verdict.candidate.id for verdict in keep(policies, [each.candidate for each in kept]) if verdict.kept
            }
            gone_full += sum(each.stored_bytes for each in kept if each.full and each.candidate.id not in staying)
            kept = [each for each in kept if each.candidate.id in staying]
        found.append((sum(each.stored_bytes for each in kept) + gone_full - before, made, len(kept)))
    return found
