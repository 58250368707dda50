"""The ledger: what a collection has learnt and what stays true for ever, so that the next one reads only what is new.

Rules: it holds facts and no judgements. An index object that was opened lists these packs; the pack of this hash has
these rows; the map node of this id refers to these ids: none of that can change, as each was authenticated and is named
by what it says, or is never written twice. Which objects, packs and points are there now, which count, and which place
of an id is good, is never remembered, but asked each time: so an old ledger costs reading, and never makes anything
live look dead. Ids are rows: the first that has an id stands for it, whatever becomes of its pack. A node is noted when
all below it is. Lost, it is made anew.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
from bisect import bisect_right
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Final

import numpy as np

from imaging.errors import ImagingError
from imaging.keys import Keys
from imaging.ledger_ids import Finder, first_of_equals
from imaging.ledger_intake import Intake
from imaging.ledger_segments import (
    NAMES,
    OBJECT,
    PACK,
    Segment,
    SegmentFolder,
    as_runs,
    expand,
    head,
)
from imaging.places import ROW_BYTES, PackRows
from imaging.sorted_ids import Array

_log = logging.getLogger(__name__)

_SORTED_AT_ONCE: Final = 2_500_000
"""Rows that are in memory, and not in a mapped file, at a time."""
_FOUND_AT_ONCE: Final = 1 << 18
_ROWS_MAX: Final = (1 << 32) - 1
_UNUSED_ROWS: Final = 1_000_000
"""So many rows of packs that no index object lists any more are never worth making the ledger anew."""


class TooManyBlobs(ImagingError):
    """More than can be numbered."""

    def __init__(self, count: int) -> None:
        super().__init__(
            f"the packs that index objects list hold {count} blobs, more than the {_ROWS_MAX} that can be collected",
            hint="part the machines among several repositories",
        )
        self.count = count


class Ledger:
    """Not thread-safe. Any number of processes may use one folder; what only one has learnt is lost if another writes
    first."""

    def __init__(self, segments: Sequence[Segment] = (), folder: SegmentFolder | None = None,
                 names: Sequence[str] = ()) -> None:  # fmt: skip
        """Use open(); without a folder, all of it is in memory."""
        self._folder = folder
        self._names = list(names)
        self._segments: list[Segment] = []
        self._packs = np.empty(0, PACK)
        self._numbers: dict[bytes, int] = {}
        self._objects: dict[str, tuple[int, Array]] = {}
        self._finders: dict[int, Finder] = {}
        self._rows = 0
        for segment in segments:
            self._append(segment)
        self._fresh = Intake(self._rows, len(self._packs))
        self._nodes: list[tuple[int, Array, Array, Array]] = []
        self._maps: list[tuple[int, PackRows]] = []

    @classmethod
    def open(cls, folder: Path, keys: Keys) -> Ledger:
        """What is in `folder`, or nothing, if it cannot be believed or read."""
        files = SegmentFolder(folder, keys)
        segments: list[Segment] = []
        names: list[str] = []
        try:
            with _locked(folder):
                files.clean()
                for name in files.names():
                    segment = files.load(name)
                    if segment is None or not _follows(segments, segment):
                        _log.warning("the ledger in %s cannot be believed and is made anew", folder)
                        files.discard()
                        return cls((), files)
                    segments.append(segment)
                    names.append(name)
        except OSError as error:
            _log.warning("the ledger in %s cannot be used, so everything is read again: %s", folder, error)
            return cls()
        return cls(segments, files, names)

    # What index objects and packs say

    @property
    def rows(self) -> int:
        """Of all packs that were ever listed."""
        return self._rows

    @property
    def packs(self) -> Array:
        """PACK records, by their numbers. Their rows follow one another."""
        return self._packs

    def listed_by(self, name: str, size_bytes: int) -> Array | None:
        """Numbers of the packs that an index object lists; None if it was not read yet, or was another one."""
        found = self._objects.get(name)
        return found[1] if found is not None and found[0] == size_bytes else None

    def add_object(self, name: str, size_bytes: int, packs: Sequence[PackRows]) -> Array:
        """What an index object was read to say, and the numbers of its packs; settle() makes its ids known."""
        numbers = []
        for pack in packs:
            number = self._numbers.get(pack.pack)
            if number is None:
                number = self._numbers[pack.pack] = self._fresh.add(pack)
            numbers.append(number)
        listed = np.array(numbers, "<u4")
        self._fresh.objects.append((name, size_bytes, listed))
        self._objects[name] = (size_bytes, listed)
        if self._fresh.held >= _SORTED_AT_ONCE:
            self.settle()
        return listed

    def settle(self) -> None:
        """All that was added can be asked for."""
        if self._fresh.is_empty:
            return
        fresh, first_row = self._fresh, self._rows
        prefixes, checks, stored = fresh.columns()
        if first_row + len(stored) > _ROWS_MAX:
            raise TooManyBlobs(first_row + len(stored))
        known = self._find(prefixes, checks)
        copies = np.flatnonzero(known >= 0)
        copied = known[copies]
        new = np.flatnonzero(known < 0)
        order = new[np.argsort(prefixes[new], kind="stable")]
        order, within, of = first_of_equals(order, prefixes, checks)
        self._keep(
            head=head(first_row, len(stored), len(self._packs)),
            stored=stored,
            prefixes=prefixes[order],
            checks=checks[order],
            originals=(order + first_row).astype("<u4"),
            copies=(np.concatenate((copies, within)) + first_row).astype("<u4"),
            copied=np.concatenate((copied, of + first_row)).astype("<u4"),
            packs=fresh.pack_records(),
            **fresh.object_records(),
        )
        self._maps += fresh.maps
        self._fresh = Intake(self._rows, len(self._packs))

    def map_pack(self, row: int) -> tuple[PackRows, int] | None:
        """The pack of map nodes that this row is in, and which of its rows it is, if that pack was met just now: what
        segments keep of packs is no places."""
        number = bisect_right(self._maps, row, key=lambda each: each[0]) - 1
        if number < 0:
            return None
        first, pack = self._maps[number]
        return (pack, row - first) if (row - first) * ROW_BYTES < len(pack.rows) else None

    def rows_of(self, ids: bytes | memoryview) -> Array:
        """The row that stands for each of these ids, which have 32 bytes and follow one another; -1 where no pack was
        ever known to have it."""
        parts = np.frombuffer(ids, ">u4").reshape(-1, 8)
        prefixes = parts[:, 0].astype(np.uint64) << np.uint64(32) | parts[:, 1]
        return self._find(prefixes, parts[:, 2].astype(np.uint32))

    def _find(self, prefixes: Array, checks: Array) -> Array:
        found = np.full(len(prefixes), -1, np.int64)
        order = np.argsort(prefixes)  # in order, neighbours are looked for in memory that is near
        for start in range(0, len(order), _FOUND_AT_ONCE):
            self._find_some(order[start : start + _FOUND_AT_ONCE], prefixes, checks, found)
        return found

    def _find_some(self, wanted: Array, prefixes: Array, checks: Array, found: Array) -> None:
        for segment in self._segments:
            if len(segment.prefixes) and len(wanted):
                finder = self._finders.get(segment.first_row)
                if finder is None:
                    finder = self._finders[segment.first_row] = Finder(segment)
                found[wanted] = finder.find(prefixes[wanted], checks[wanted])
                wanted = wanted[found[wanted] < 0]

    def copies(self) -> tuple[Array, Array]:
        """Rows whose id an earlier row has, and the row that stands for it."""
        return (
            np.concatenate([np.empty(0, np.int64), *(each.copies for each in self._segments)]).astype(np.int64),
            np.concatenate([np.empty(0, np.int64), *(each.copied for each in self._segments)]).astype(np.int64),
        )

    def stored(self) -> Iterator[tuple[int, Array]]:
        """Stored lengths of rows, in pieces that end where a pack does, each with its first row."""
        for segment in self._segments:
            if segment.rows:
                yield segment.first_row, segment.stored

    def pack_of(self, rows: Array) -> Array:
        """Numbers of the packs that these rows are in."""
        return np.searchsorted(self._packs["first"], rows, side="right") - 1

    # What map nodes refer to

    def note(self, rows: Array, level: int, below: Array, counts: Array) -> None:
        """Nodes of one level, each with so many of `below`, which follow one another. All that is below them must have
        been noted."""
        firsts, lengths, runs = as_runs(below, counts)
        self._nodes.append((level, rows, runs, np.stack((firsts, lengths))))

    def below(self, rows: Array, level: int) -> tuple[Array, Array]:
        """All rows that those of these nodes refer to which were noted at this level; and which those are."""
        there = np.zeros(len(rows), np.bool_)
        parts = [np.empty(0, np.int64)]
        for segment in self._segments:
            if not len(segment.nodes):
                continue
            at = np.minimum(np.searchsorted(segment.nodes, rows), len(segment.nodes) - 1)
            mine = (segment.nodes[at] == rows) & (segment.levels[at] == level)
            at = at[mine]
            there |= mine
            begins = segment.runs_at[at]
            runs = expand(begins, segment.runs_at[at + 1] - begins)
            parts.append(expand(segment.run_firsts[runs], segment.run_lengths[runs]))
        return np.concatenate(parts), there

    # Keeping it

    def save(self, wanted: Collection[str]) -> None:
        """Keeps what was noted since, and puts together what is in many pieces; of index objects, the `wanted` ones. It
        never fails: what is not kept is read again."""
        self._save_nodes()
        if self._folder is None or not self._segments:
            return
        listed = np.zeros(len(self._packs), np.bool_)
        for name in wanted:
            if name in self._objects:
                listed[self._objects[name][1]] = True
        unused = self._rows - int(self._packs["rows"][listed].sum())
        try:
            with _locked(self._folder.folder):
                if self._folder.names() != self._names:
                    self._folder = None  # another process was faster; this one goes on with what it has in memory
                    return
                if unused > _UNUSED_ROWS and unused * 2 > self._rows:
                    self._folder.discard()
                    self._folder, self._names = None, []
                    return
                self._merge(wanted)
        except OSError as error:
            _log.warning("the ledger is not kept: %s", error)

    def _save_nodes(self) -> None:
        if not self._nodes:
            return
        rows = np.concatenate([each[1] for each in self._nodes])
        order = np.argsort(rows, kind="stable")
        counts = np.concatenate([each[2] for each in self._nodes])
        runs = np.concatenate([each[3] for each in self._nodes], axis=1)
        begins = np.cumsum(counts) - counts
        taken = expand(begins[order], counts[order])
        levels = np.concatenate([np.full(len(each[1]), each[0], "u1") for each in self._nodes])
        self._nodes = []
        self._keep(
            head=head(self._rows, 0, len(self._packs)),
            nodes=rows[order].astype("<u4"),
            levels=levels[order],
            runs_at=np.concatenate(([0], np.cumsum(counts[order]))).astype("<i8"),
            run_firsts=runs[0][taken],
            run_lengths=runs[1][taken],
        )

    def _merge(self, wanted: Collection[str]) -> None:
        """The last ones become one, until each is at least twice as large as the next: so there are few, and nothing
        is written again often. Raises OSError."""
        at, weight = len(self._segments) - 1, self._segments[-1].weight
        while at > 0 and self._segments[at - 1].weight < 2 * weight:
            at -= 1
            weight += self._segments[at].weight
        if self._folder is None or at == len(self._segments) - 1:
            return
        old = self._names[at:]
        name = self._folder.merge(int(old[-1].partition("-")[0]) + 1, self._segments[at:], wanted)
        self._folder.remove(old)
        merged = self._loaded(self._folder, name)
        self._names[at:], self._segments[at:] = [name], [merged]
        self._finders = {row: finder for row, finder in self._finders.items() if row < merged.first_row}

    def _keep(self, **arrays: Array) -> None:
        """Appends a segment, in a file if that can be."""
        whole = {**_EMPTY, **arrays}
        segment = Segment(**whole)
        if self._folder is not None:
            try:
                with _locked(self._folder.folder):
                    if self._folder.names() == self._names:
                        number = 1 + int(self._names[-1].partition("-")[0]) if self._names else 0
                        name = self._folder.write(number, [(each, whole[each]) for each in NAMES])
                        self._names.append(name)
                        segment = self._loaded(self._folder, name)
                    else:
                        self._folder = None
            except OSError as error:
                _log.warning("the ledger is not kept: %s", error)
                self._folder = None
        self._append(segment)

    @staticmethod
    def _loaded(folder: SegmentFolder, name: str) -> Segment:
        """What was just written. OSError."""
        found = folder.load(name)
        if found is None:
            raise OSError(f"segment {name} does not read back as it was written")
        return found

    def _append(self, segment: Segment) -> None:
        self._segments.append(segment)
        self._rows += segment.rows
        if len(segment.packs):
            first = len(self._packs)
            self._packs = np.concatenate((self._packs, segment.packs))
            self._numbers |= {bytes(each): first + at for at, each in enumerate(segment.packs["hash"])}
        for name, size, first, count in segment.objects.tolist():
            self._objects[name.decode()] = (size, segment.listed[first : first + count])

    def discard(self) -> None:
        """Throws away what is kept."""
        if self._folder is not None:
            try:
                with _locked(self._folder.folder):
                    self._folder.discard()
            except OSError as error:
                _log.warning("the ledger cannot be removed: %s", error)


_EMPTY: Final[dict[str, Array]] = {
    "stored": np.empty(0, "<u4"),
    "prefixes": np.empty(0, "<u8"),
    "checks": np.empty(0, "<u4"),
    "originals": np.empty(0, "<u4"),
    "copies": np.empty(0, "<u4"),
    "copied": np.empty(0, "<u4"),
    "packs": np.empty(0, PACK),
    "objects": np.empty(0, OBJECT),
    "listed": np.empty(0, "<u4"),
    "nodes": np.empty(0, "<u4"),
    "levels": np.empty(0, "u1"),
    "runs_at": np.zeros(1, "<i8"),
    "run_firsts": np.empty(0, "<u4"),
    "run_lengths": np.empty(0, "<u4"),
}


def _follows(segments: Sequence[Segment], segment: Segment) -> bool:
    """Whether its numbers go on where the last one's end."""
    rows = sum(each.rows for each in segments)
    packs = sum(len(each.packs) for each in segments)
    return (segment.first_row, segment.first_pack) == (rows, packs)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One process at a time; beside the folder, as that may be thrown away."""
    folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor = os.open(folder.with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
