"""The calendar of a machine's restore points: months of weeks that begin on Monday. Pure."""

from __future__ import annotations

import calendar
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from typing import Final

from appliance.services.browsing import Day, TimePoint

SHOWN: Final = 3


@dataclass(frozen=True, slots=True)
class Cell:
    """A day of the month; `kind` says how its newest point fares: "good" (verified), "bad" (damaged) or ""."""

    number: int
    points: tuple[TimePoint, ...] = ()
    stored_bytes: int = 0
    kind: str = ""

    @property
    def words(self) -> str:
        count = len(self.points)
        return f"{count} restore point{'s' if count != 1 else ''}"


@dataclass(frozen=True, slots=True)
class Month:
    """`blanks`: days of the first week that are another month's."""

    name: str
    blanks: int
    cells: tuple[Cell, ...]


def months(days: Sequence[Day], today: date) -> tuple[Month, ...]:
    """The last ones, newest first, up to this one."""
    known = {day.day: day for day in days}
    found = []
    year, month = today.year, today.month
    for _ in range(SHOWN):
        blanks, count = calendar.monthrange(year, month)
        cells = tuple(_cell(number, known.get(date(year, month, number))) for number in range(1, count + 1))
        found.append(Month(f"{calendar.month_name[month]} {year}", blanks, cells))
        year, month = (year, month - 1) if month > 1 else (year - 1, 12)
    return tuple(found)


def _cell(number: int, day: Day | None) -> Cell:
    if day is None:
        return Cell(number)
    return Cell(number, day.points, day.stored_bytes, kind_of(day.points[-1]))


def kind_of(each: TimePoint) -> str:
    if each.checked.damaged:
        return "bad"
    return "good" if each.checked.verified_utc else ""
