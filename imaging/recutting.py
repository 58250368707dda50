"""Cut a region again where it changed, reading as little as the answer allows.

The rule: the records are exactly those that cutting the whole region would give. So reading goes on past a change
until a new cut meets an old one, and across any edge where zero pages on both sides might be one hole.
(Keeping the old edges instead makes chunks shrink for ever: after a year of 1 % a night a full read would
deduplicate a fifth.)
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from imaging.chunking import CHUNK_PAGES_MAX, HOLE_PAGES_MIN, Bools, Record, next_cut, runs

Load = Callable[[list[tuple[int, int]]], None]
"""Reads page ranges into the region's buffer and sets their `zero` and `cut` flags."""


@dataclass(slots=True)
class RegionPages:
    """What is known of a region's pages: `loaded` where `zero` and `cut` are true to the new content."""

    loaded: Bools
    zero: Bools
    cut: Bools

    @classmethod
    def unknown(cls, pages: int) -> RegionPages:
        """Nothing known yet."""
        return cls(np.zeros(pages, np.bool_), np.zeros(pages, np.bool_), np.zeros(pages, np.bool_))

    def know_zero(self, start: int, stop: int) -> None:
        """Mark pages as known to be zero without reading."""
        self.loaded[start:stop] = True
        self.zero[start:stop] = True
        self.cut[start:stop] = False


def recut(old: Sequence[Record], pages: RegionPages, dirty: Bools, load: Load) -> list[Record]:
    """The records of the region's new content.

    `old` are the records of the old content, which still holds wherever `dirty` is False. Pages already known
    (allocation says zero) are marked in `pages` before. Records of the result that were not loaded are old ones,
    unchanged: the caller keeps their ids.
    """
    work = _Recut(old, pages)
    work.start(dirty, load)
    while True:
        records, needed = work.attempt()
        if not needed:
            return records
        work.read(needed, load)


class _Recut:
    def __init__(self, old: Sequence[Record], pages: RegionPages) -> None:
        self.old = old
        self.starts = [record.start for record in old]
        self.stops = [record.stop for record in old]
        self.pages = pages
        self.count = len(pages.loaded)

    def at(self, page: int) -> int:
        """The number of the old record that holds `page`."""
        return bisect_right(self.starts, page) - 1

    def is_hole(self, number: int) -> bool:
        return 0 <= number < len(self.old) and not self.old[number].data

    def start(self, dirty: Bools, load: Load) -> None:
        """Load every old chunk with a dirty page, and the dirty pages of old holes; clean pages of holes are zero."""
        wanted: list[tuple[int, int]] = []
        counts = np.concatenate(([0], np.cumsum(dirty)))
        touched = (counts[self.stops] > counts[self.starts]).tolist()
        for record, is_touched in zip(self.old, touched, strict=True):
            if record.data:
                if is_touched:
                    wanted.append((record.start, record.stop))
                continue
            for a, b in runs(~dirty[record.start : record.stop]):
                self.pages.know_zero(record.start + a, record.start + b)
            if is_touched:
                wanted += [(record.start + a, record.start + b) for a, b in runs(dirty[record.start : record.stop])]
        self.load(wanted, load)

    def read(self, numbers: set[int], load: Load) -> None:
        self.load([(self.old[n].start, self.old[n].stop) for n in sorted(numbers)], load)

    def load(self, wanted: list[tuple[int, int]], load: Load) -> None:
        missing: list[tuple[int, int]] = []
        for start, stop in wanted:
            missing += [(start + a, start + b) for a, b in runs(~self.pages.loaded[start:stop])]
        joined: list[tuple[int, int]] = []
        for start, stop in missing:
            if joined and joined[-1][1] == start:
                joined[-1] = (joined[-1][0], stop)
            else:
                joined.append((start, stop))
        if joined:
            load(joined)
        for start, stop in joined:
            self.pages.loaded[start:stop] = True

    def attempt(self) -> tuple[list[Record], set[int]]:
        """The records, and the numbers of old records that must be read before they can be believed."""
        zero_runs = runs(self.pages.zero & self.pages.loaded)
        needed = self.ambiguous(zero_runs)
        if needed:
            return [], needed
        found = [(a, b) for a, b in zero_runs if b - a >= HOLE_PAGES_MIN or b == self.count]
        cuts = [int(page) for page in np.flatnonzero(self.pages.cut & self.pages.loaded)]
        records: list[Record] = []
        position = 0
        for start, stop in [*found, (self.count, self.count)]:
            needed |= self.data(position, start, cuts, records)
            if stop > start:
                records.append(Record(start, stop, data=False))
            position = stop
        return records, needed

    def ambiguous(self, zero_runs: list[tuple[int, int]]) -> set[int]:
        """Records beside a known run of zeros that might carry it on.

        A page beside an old hole is known not to be zero, as holes are maximal.
        """
        needed = set()
        loaded = self.pages.loaded
        for start, stop in zero_runs:
            if start > 0 and not loaded[start - 1] and not self.is_hole(self.at(start - 1) + 1):
                needed.add(self.at(start - 1))
            if stop < self.count and not loaded[stop] and not self.is_hole(self.at(stop) - 1):
                needed.add(self.at(stop))
        return needed

    def data(self, position: int, stop: int, cuts: list[int], records: list[Record]) -> set[int]:
        """Cut the data in [position, stop); old chunks that were not read are taken as they are where that is safe."""
        needed: set[int] = set()
        loaded = self.pages.loaded
        while position < stop:
            if not loaded[position]:
                # Of holes all is known, so what is not loaded up to the next page that is are old chunks.
                known = int(loaded[position:stop].argmax()) + position
                number = self.at(position)
                after = self.at((known if known > position else stop) - 1) + 1
                position = self.stops[after - 1]
                # an end that a hole forced holds only while the hole begins there
                if self.is_hole(after) and position != stop:
                    after -= 1
                    needed.add(after)
                records += self.old[number:after]
                continue
            end = next_cut(position, stop, cuts)
            unread = np.flatnonzero(~loaded[position : min(position + CHUNK_PAGES_MAX, end)])
            if len(unread):
                number = self.at(position + int(unread[0]))
                needed.add(number)
                position = self.old[number].stop  # a guess, only to find what else must be read in the same go
                continue
            records.append(Record(position, end, data=True))
            position = end
        return needed
