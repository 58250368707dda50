"""What damage reaches, told as byte ranges of a disk: compact, merged, and never more than a bounded number of them.

Rules: what is told is never less than what is damaged; where ranges are too many, those that lie nearest to each other
are taken together, and that is said. What the ranges hold (files, say) is named by whoever can read that: nothing here
knows file systems.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol, overload

import numpy as np

from imaging.extents import ByteRange

if TYPE_CHECKING:
    from imaging.manifest import DiskEntry, FileEntry
    from imaging.points import Point

RANGES_MAX: Final = 10_000
NAMES_MAX: Final = 1_000
_SHOWN_RANGES: Final = 3


class Ranges(Sequence[ByteRange]):
    """Sorted byte ranges that do not touch, 16 bytes each."""

    def __init__(self, bounds: array[int]) -> None:
        """`bounds`: start and stop of each range, one after the other."""
        self._bounds = bounds

    def __len__(self) -> int:
        return len(self._bounds) // 2

    @overload
    def __getitem__(self, index: int) -> ByteRange: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[ByteRange]: ...
    def __getitem__(self, index: int | slice) -> ByteRange | Sequence[ByteRange]:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        at = 2 * (index % len(self))
        return ByteRange(self._bounds[at], self._bounds[at + 1])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Ranges) and self._bounds == other._bounds

    def __hash__(self) -> int:
        return hash(self._bounds.tobytes())

    def __repr__(self) -> str:
        return f"Ranges({[(each.start, each.stop) for each in self[:_SHOWN_RANGES]]}, {len(self)} in all)"


@dataclass(frozen=True, slots=True)
class Damage:
    """What of one disk (or file) of a point cannot be read. Not `exact`: the ranges also span some of what can.
    `names`: what lies there, as far as somebody could tell."""

    disk: str
    size_bytes: int
    damaged_bytes: int
    ranges: Ranges
    exact: bool
    names: tuple[str, ...] = ()

    def __str__(self) -> str:
        if self.damaged_bytes == self.size_bytes:
            return f"{self.disk}: all of its {self.size_bytes} bytes"
        shown = ", ".join(f"{each.start} to {each.stop}" for each in self.ranges[:_SHOWN_RANGES])
        more = len(self.ranges) - _SHOWN_RANGES
        where = f"at {shown}{f' and in {more} more ranges' if more > 0 else ''}"
        named = f" ({', '.join(self.names[:_SHOWN_RANGES])}{', …' if len(self.names) > _SHOWN_RANGES else ''})"
        return f"{self.disk}: {self.damaged_bytes} of {self.size_bytes} bytes, {where}{named if self.names else ''}"

    def facts(self) -> dict[str, object]:
        """For programs: every range, half open."""
        return {
            "disk": self.disk,
            "size_bytes": self.size_bytes,
            "damaged_bytes": self.damaged_bytes,
            "ranges": [[each.start, each.stop] for each in self.ranges],
            "exact": self.exact,
            "files": list(self.names),
        }


def told(damage: Iterable[Damage]) -> str:
    """In a sentence."""
    return "; ".join(map(str, damage))


class Namer(Protocol):
    """Somebody who can tell what lies in byte ranges of a disk: files, where a file table can be read."""

    def names(self, point: Point, disk: DiskEntry | FileEntry, ranges: Sequence[ByteRange]) -> Iterable[str]:
        """What lies there, most important first; only the first thousand are asked for. ImagingError where that
        cannot be told: the disk is damaged, after all."""


class Collector:
    """Damage of one disk or file, gathered from hits that come in order and do not overlap."""

    def __init__(self, disk: str, size_bytes: int, ranges_max: int = RANGES_MAX) -> None:
        self._disk = disk
        self._size_bytes = size_bytes
        self._ranges_max = ranges_max
        self._bounds = array("Q")
        self._damaged_bytes = 0
        self._exact = True

    def add(self, hit: ByteRange) -> None:
        self._damaged_bytes += hit.length
        if self._bounds and self._bounds[-1] == hit.start:
            self._bounds[-1] = hit.stop
            return
        if len(self._bounds) >= 4 * self._ranges_max:
            self._thin()
        self._bounds.extend((hit.start, hit.stop))

    def damage(self) -> Damage | None:
        """None where nothing was hit."""
        if not self._damaged_bytes:
            return None
        if len(self._bounds) > 2 * self._ranges_max:
            self._thin()
        return Damage(self._disk, self._size_bytes, self._damaged_bytes, Ranges(self._bounds[:]), self._exact)

    def _thin(self) -> None:
        self._bounds, self._exact = _thinned(self._bounds, self._ranges_max), False


def _thinned(bounds: array[int], ranges_max: int) -> array[int]:
    """`ranges_max` ranges: the widest gaps between them stay."""
    numbers = np.frombuffer(bounds, np.uint64).reshape(-1, 2)
    gaps = numbers[1:, 0] - numbers[:-1, 1]
    kept = np.sort(np.argsort(gaps, kind="stable")[len(gaps) - (ranges_max - 1) :])
    starts = np.concatenate((numbers[:1, 0], numbers[kept + 1, 0]))
    stops = np.concatenate((numbers[kept, 1], numbers[-1:, 1]))
    return array("Q", np.stack((starts, stops), axis=1).tobytes())
