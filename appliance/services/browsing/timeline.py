"""The restore points of a machine by day, as a calendar shows them. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date, tzinfo

from appliance.models import PointRecord
from appliance.proofs import Checked, Verification, checking


@dataclass(frozen=True, slots=True)
class TimePoint:
    point: PointRecord
    checked: Checked


@dataclass(frozen=True, slots=True)
class Day:
    """`points`: oldest first."""

    day: date
    points: tuple[TimePoint, ...]

    @property
    def stored_bytes(self) -> int:
        return sum(each.point.stored_bytes for each in self.points)

    @property
    def read_bytes(self) -> int:
        return sum(each.point.read_bytes for each in self.points)


def with_checks(points: Iterable[PointRecord], verifications: Sequence[Verification]) -> tuple[TimePoint, ...]:
    """`verifications`: newest first."""
    said = checking(verifications)
    return tuple(TimePoint(point, said(point.id, point.created_utc)) for point in points)


def by_day(points: Iterable[TimePoint], zone: tzinfo) -> tuple[Day, ...]:
    """The days that have any, by the calendar of `zone`, oldest first."""
    days: dict[date, list[TimePoint]] = defaultdict(list)
    for each in sorted(points, key=lambda each: (each.point.created_utc, each.point.id)):
        days[each.point.created_utc.astimezone(zone).date()].append(each)
    return tuple(Day(day, tuple(days[day])) for day in sorted(days))
