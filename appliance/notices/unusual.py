"""What is out of the ordinary: a large backup, many points gone, a clock that was set. Pure.

The rule: unusual is told by comparison with what this appliance has seen, and from too little nothing is concluded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from statistics import median
from typing import Final

_EARLIER_MIN: Final = 5
_CLOCK_OFF: Final = timedelta(minutes=5)
_DAY: Final = timedelta(days=1)


def usual_bytes(stored_bytes: int, earlier: Sequence[int], times: int, least_bytes: int) -> int | None:
    """What the earlier incremental backups of a machine stored, as a rule, if this one is unusually large beside it;
    None: it is not, or there are too few to tell."""
    if len(earlier) < _EARLIER_MIN or stored_bytes < least_bytes:
        return None
    usual = int(median(earlier))
    return usual if stored_bytes > times * usual else None


@dataclass(frozen=True, slots=True)
class ClockSeen:
    utc: datetime
    monotonic_s: float | None  # None: it was seen by another process


def clock_jump(before: ClockSeen, now: ClockSeen) -> timedelta | None:
    """By how much the clock was set since, forward or back; None: by little. Of another process' look only that is
    known that time does not go back."""
    went = now.utc - before.utc
    if before.monotonic_s is None or now.monotonic_s is None:
        return went if went < -_CLOCK_OFF else None
    jump = went - timedelta(seconds=now.monotonic_s - before.monotonic_s)
    return jump if abs(jump) > _CLOCK_OFF else None


@dataclass(frozen=True, slots=True)
class Gone:
    utc: datetime
    points: int


@dataclass(frozen=True, slots=True)
class PointCount:
    """How many points there are, and how many went, when, within the last day."""

    points: int
    gone: tuple[Gone, ...] = ()

    @property
    def gone_in_a_day(self) -> int:
        return sum(each.points for each in self.gone)


def count_points(before: PointCount | None, points: int, made: int, now_utc: datetime) -> PointCount:
    """`made`: points that were made since `before`; what is missing beside them was deleted."""
    if before is None:
        return PointCount(points)
    missing = before.points + made - points
    gone = tuple(each for each in before.gone if now_utc - _DAY < each.utc <= now_utc)
    return PointCount(points, (*gone, Gone(now_utc, missing)) if missing > 0 else gone)


def many_gone(count: PointCount, least: int, percent: int) -> bool:
    gone = count.gone_in_a_day
    return gone >= least and 100 * gone >= percent * (count.points + gone)
