"""How a repository grows, and the day on which it is full. Pure.

The rule: the forecast goes by how large the repository really was, day by day, so that what collecting gives back is
in it; only while there are too few days for that, by what restore points stored, which no collection has made
less: then it is on the safe side, and says so. The middle of all slopes between two days (Theil and Sen) is not led
astray by one night of a full read, or of a large collection.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from enum import StrEnum
from typing import Final

from appliance.proofs import RepositorySize

DAYS: Final = 30  # that the forecast looks back
STORED_DAYS: Final = 14
_STORED_LEAST: Final = 7  # of these days the newest tell: retention may have taken points of the others already
_DAYS_LEAST: Final = 7  # between the first and the last size
_FAR_DAYS: Final = 3650  # beyond, it is no forecast


class Basis(StrEnum):
    SIZES = "sizes"  # of the repository, day by day
    POINTS = "points"  # what restore points stored; nothing that was given back since


@dataclass(frozen=True, slots=True)
class Growth:
    """`used_bytes` None: nobody has looked yet. `free_bytes` None: its storage has no end, or nobody has looked.
    `day_bytes`: how much it grows in a day, less than 0 if it shrinks; None: nothing tells. `full`: the day on which it
    is full if that goes on; None: it is not within ten years, or that cannot be said. `stored`: what points stored, by
    day, oldest first, up to now."""

    used_bytes: int | None
    free_bytes: int | None
    endless: bool
    day_bytes: int | None
    basis: Basis | None
    full: date | None
    sizes: tuple[RepositorySize, ...]
    stored: tuple[int, ...]

    @property
    def full_in_days(self) -> int | None:
        return None if self.full is None or not self.sizes else (self.full - self.sizes[-1].day).days


def growth(sizes: Sequence[RepositorySize], stored: Sequence[int]) -> Growth:
    """`sizes`: of the last days, oldest first, one for each day that has one; `stored`: as `Growth` has it."""
    last = sizes[-1] if sizes else None
    day_bytes, basis = _slope(sizes), Basis.SIZES
    if day_bytes is None:
        day_bytes, basis = _mean(stored), Basis.POINTS
    free = None if last is None else last.free_bytes
    return Growth(
        used_bytes=None if last is None else last.used_bytes,
        free_bytes=free,
        endless=last is not None and free is None,
        day_bytes=day_bytes,
        basis=None if day_bytes is None else basis,
        full=None if last is None or day_bytes is None else _full(last.day, free, day_bytes),
        sizes=tuple(sizes),
        stored=tuple(stored),
    )


def _slope(sizes: Sequence[RepositorySize]) -> int | None:
    if not sizes or (sizes[-1].day - sizes[0].day).days < _DAYS_LEAST:
        return None
    slopes = [
        (later.used_bytes - earlier.used_bytes) / (later.day - earlier.day).days
        for number, earlier in enumerate(sizes)
        for later in sizes[number + 1 :]
    ]
    return round(statistics.median(slopes))


def _mean(stored: Sequence[int]) -> int | None:
    """Of the newest days since the first point; the first of them, with its full reads, tells nothing of the others."""
    stored = stored[-_STORED_LEAST - 1 :]
    first = next((number for number, count in enumerate(stored) if count), None)
    if first is None:
        return None
    days = stored[first + 1 :] if first > 0 else stored
    return round(statistics.mean(days)) if days else None


def _full(day: date, free_bytes: int | None, day_bytes: int) -> date | None:
    if free_bytes is None or day_bytes <= 0:
        return None
    days = free_bytes // day_bytes
    return day + timedelta(days=days) if days <= _FAR_DAYS else None
