"""What machines do, as their restore points show it, or as somebody types it in. Pure.

Rules: what a machine does is the middle of its last points (time between two, speed), or their mean where it is summed
up (bytes). Of a machine with too few points, the fleet's share of changed bytes is assumed, and that is said.
"""

from __future__ import annotations

import itertools
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from statistics import fmean, median
from typing import Final, overload

from appliance.policy.policies import Policy

_LAST: Final = 30  # incremental points that a mean is of
_INTERVALS: Final = 14
_LEAST: Final = 2  # incremental points: fewer tell nothing
_DAY: Final = timedelta(days=1)
_SPEED_BYTES_MIN: Final = 64 << 20  # read, in a run whose speed counts


@dataclass(frozen=True, slots=True)
class SeriesSpan:
    """Of a series' points that are there: how many were made in a span, how many before its end, and when the oldest
    and the newest of these."""

    made: int = 0
    kept: int = 0
    oldest_utc: datetime | None = None
    newest_utc: datetime | None = None


@dataclass(frozen=True, slots=True)
class MadePoint:
    """What making a restore point took; `size_bytes`: of the machine's disks then."""

    created_utc: datetime
    full: bool
    size_bytes: int
    read_bytes: int
    stored_bytes: int
    duration_ms: int


class Points(Sequence[MadePoint]):
    """Of one machine, oldest first, in columns: a fleet has hundreds of thousands, of 41 bytes each. `at_s`: seconds
    since 1970."""

    __slots__ = ("_duration_ms", "_own", "_read_bytes", "_size_bytes", "_speeds", "at_s", "full", "stored_bytes")

    def __init__(self, made: Iterable[MadePoint] = ()) -> None:
        self.at_s, self.full, self.stored_bytes = array("d"), array("b"), array("q")
        self._size_bytes, self._read_bytes, self._duration_ms = array("q"), array("q"), array("q")
        self._own: tuple[Habit | None] | None = None
        self._speeds: tuple[float, ...] | None = None
        for point in made:
            self.add(point.created_utc, point.full, point.size_bytes, point.read_bytes, point.stored_bytes,
                     point.duration_ms)  # fmt: skip

    def add(
        self, created_utc: datetime, full: bool, size_bytes: int, read_bytes: int, stored_bytes: int, duration_ms: int
    ) -> None:
        """The next one."""
        self.at_s.append(created_utc.timestamp())
        self.full.append(full)
        self._size_bytes.append(size_bytes)
        self._read_bytes.append(read_bytes)
        self.stored_bytes.append(stored_bytes)
        self._duration_ms.append(duration_ms)
        self._own = self._speeds = None

    @property
    def last_s(self) -> float:
        """When the last one was made; before all times, if there is none."""
        return self.at_s[-1] if self.at_s else float("-inf")

    def span(self, begin: datetime, end: datetime) -> SeriesSpan:
        begin_s, end_s = begin.timestamp(), end.timestamp()
        before = [at for at in self.at_s if at < end_s]
        if not before:
            return SeriesSpan()
        oldest, newest = datetime.fromtimestamp(min(before), UTC), datetime.fromtimestamp(max(before), UTC)
        return SeriesSpan(sum(at >= begin_s for at in before), len(before), oldest, newest)

    @property
    def habit(self) -> Habit | None:
        """Of the machine; None: it has too few points. Worked out once, as `reading_speeds`."""
        if self._own is None:
            self._own = (_own(self),)
        return self._own[0]

    @property
    def reading_speeds(self) -> tuple[float, ...]:
        """Of the full reads, in bytes a second, as far as any can be told."""
        if self._speeds is None:
            fulls = (self[number] for number, full in enumerate(self.full) if full)
            self._speeds = tuple(speed for point in fulls if (speed := _speed(point)))
        return self._speeds

    def __len__(self) -> int:
        return len(self.at_s)

    @overload
    def __getitem__(self, at: int) -> MadePoint: ...

    @overload
    def __getitem__(self, at: slice) -> Sequence[MadePoint]: ...

    def __getitem__(self, at: int | slice) -> MadePoint | Sequence[MadePoint]:
        if isinstance(at, slice):
            return [self[number] for number in range(*at.indices(len(self)))]
        return MadePoint(
            datetime.fromtimestamp(self.at_s[at], UTC), bool(self.full[at]), self._size_bytes[at],
            self._read_bytes[at], self.stored_bytes[at], self._duration_ms[at],
        )  # fmt: skip


NO_POINTS: Final = Points()


@dataclass(frozen=True, slots=True)
class History:
    """A machine, or `count` that are alike. `policies`: that select it; none: nothing is pruned."""

    name: str
    host: str | None
    size_bytes: int
    points: Points = NO_POINTS
    policies: tuple[Policy, ...] = ()
    count: int = 1
    instant_ms: int | None = None  # what its last instant recovery took


@dataclass(frozen=True, slots=True)
class Habit:
    """Of one machine. `assumed`: by the fleet's, as it has too few points of its own. `speed_bytes_s`: of reading it;
    None: nothing that was read tells."""

    interval: timedelta
    read_bytes: int
    stored_bytes: int
    duration_s: float
    speed_bytes_s: float | None
    assumed: bool = False

    @property
    def runs_a_day(self) -> float:
        return _DAY / self.interval


def habits(histories: Sequence[History]) -> tuple[Habit | None, ...]:
    """One for each; None: nothing can be said, as no machine of the fleet has points enough."""
    own = [each.points.habit for each in histories]
    known = [(habit, each) for habit, each in zip(own, histories, strict=True) if habit is not None]
    size = sum(each.size_bytes for _, each in known)
    if not size:
        return tuple(own)
    assumed = Habit(
        interval=timedelta(seconds=median(habit.interval.total_seconds() for habit, _ in known)),
        read_bytes=sum(habit.read_bytes for habit, _ in known),
        stored_bytes=sum(habit.stored_bytes for habit, _ in known),
        duration_s=fmean(habit.duration_s for habit, _ in known),
        speed_bytes_s=None,
        assumed=True,
    )
    return tuple(
        habit
        if habit is not None
        else replace(
            assumed,
            read_bytes=assumed.read_bytes * each.size_bytes // size,
            stored_bytes=assumed.stored_bytes * each.size_bytes // size,
        )
        for habit, each in zip(own, histories, strict=True)
    )


def reading_speed(histories: Sequence[History]) -> float | None:
    """Bytes a second of full reads in the middle: what reading whole machines was measured to take."""
    speeds = [speed for each in histories for speed in each.points.reading_speeds]
    return median(speeds) if speeds else None


def _own(points: Points) -> Habit | None:
    last = [points[number] for number in [number for number, full in enumerate(points.full) if not full][-_LAST:]]
    if len(last) < _LEAST:
        return None
    between = [after - before for before, after in itertools.pairwise(points.at_s[-_INTERVALS:]) if after > before]
    if not between:
        return None
    speeds = [speed for point in last if (speed := _speed(point))]
    return Habit(
        interval=timedelta(seconds=max(60.0, median(between))),
        read_bytes=round(fmean(point.read_bytes for point in last)),
        stored_bytes=round(fmean(point.stored_bytes for point in last)),
        duration_s=fmean(point.duration_ms for point in last) / 1000,
        speed_bytes_s=median(speeds) if speeds else None,
    )


def _speed(point: MadePoint) -> float | None:
    if point.read_bytes < _SPEED_BYTES_MIN or point.duration_ms <= 0:
        return None
    return point.read_bytes / (point.duration_ms / 1000)
