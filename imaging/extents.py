"""Byte ranges, half open, and what can be done with them without I/O.

Every function takes and gives ranges that are sorted and do not overlap.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

PAGE_BYTES = 4096
REGION_BYTES = 16 << 20
REGION_PAGES = REGION_BYTES // PAGE_BYTES


@dataclass(frozen=True, slots=True)
class ByteRange:
    """The bytes from `start` up to, not including, `stop`."""

    start: int
    stop: int

    @property
    def length(self) -> int:
        """Bytes in the range."""
        return self.stop - self.start


@dataclass(frozen=True, slots=True)
class Extent:
    """A byte range and whether it is known to read as zeros."""

    start: int
    length: int
    zero: bool

    @property
    def stop(self) -> int:
        """The first byte after the extent."""
        return self.start + self.length


def merge(ranges: Iterable[ByteRange]) -> list[ByteRange]:
    """Sort, and join what touches or overlaps; empty ranges vanish."""
    merged: list[ByteRange] = []
    for item in sorted(ranges, key=lambda r: r.start):
        if item.stop <= item.start:
            continue
        if merged and item.start <= merged[-1].stop:
            if item.stop > merged[-1].stop:
                merged[-1] = ByteRange(merged[-1].start, item.stop)
        else:
            merged.append(item)
    return merged


def clip(ranges: Iterable[ByteRange], start: int, stop: int) -> list[ByteRange]:
    """The parts of `ranges` that lie in [start, stop)."""
    if stop <= start:
        return []
    return [ByteRange(max(r.start, start), min(r.stop, stop)) for r in ranges if r.start < stop and r.stop > start]


def align_out(ranges: Iterable[ByteRange], unit: int, limit: int) -> list[ByteRange]:
    """Widen each range to multiples of `unit`, at most to `limit`, and merge."""
    return merge(ByteRange(r.start // unit * unit, min(-(-r.stop // unit) * unit, limit)) for r in ranges)


def align_in(ranges: Iterable[ByteRange], unit: int, limit: int) -> list[ByteRange]:
    """Shrink each range to multiples of `unit`; an end at `limit` counts as one. Ranges left empty vanish."""
    shrunk = (
        ByteRange(-(-r.start // unit) * unit, r.stop if r.stop == limit else r.stop // unit * unit) for r in ranges
    )
    return [r for r in shrunk if r.stop > r.start]


def subtract(ranges: Sequence[ByteRange], holes: Sequence[ByteRange]) -> list[ByteRange]:
    """What of `ranges` lies outside `holes`."""
    left: list[ByteRange] = []
    index = 0
    for item in ranges:
        start = item.start
        while index < len(holes) and holes[index].stop <= start:
            index += 1
        at = index
        while at < len(holes) and holes[at].start < item.stop:
            if holes[at].start > start:
                left.append(ByteRange(start, holes[at].start))
            start = max(start, holes[at].stop)
            at += 1
        if start < item.stop:
            left.append(ByteRange(start, item.stop))
    return left


def split(ranges: Iterable[ByteRange], length: int) -> Iterator[ByteRange]:
    """Cut ranges into pieces of at most `length` bytes."""
    for item in ranges:
        for start in range(item.start, item.stop, length):
            yield ByteRange(start, min(start + length, item.stop))
