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
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from imaging.errors import ImagingError
from imaging.keys import Keys
from imaging.ledger_segments import (
    NAMES,
    OBJECT,
    PACK,
    Array,
    Segment,
    SegmentFolder,
    as_runs,
    expand,
    head,
)
from imaging.places import ROW_BYTES, PackRows

_log = logging.getLogger(__name__)

_ROW: Final = np.dtype([("prefix", ">u8"), ("check", ">u4"), ("rest", "V20"), ("place", "<u8")])
assert _ROW.itemsize == ROW_BYTES
_STORED_SHIFT: Final = np.uint64(25)
_STORED_MASK: Final = np.uint64((1 << 19) - 1)
_PARSED_AT_ONCE: Final = 65_536
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
        self._finders: dict[int, _Finder] = {}
        self._rows = 0
        for segment in segments:
            self._append(segment)
        self._fresh = _Fresh(self._rows, len(self._packs))
        self._nodes: list[tuple[int, Array, Array, Array]] = []

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
        order, within, of = _first_of_equals(order, prefixes, checks)
        self._keep(
            head=head(first_row, len(stored), len(self._packs)),
            stored=stored,
            prefixes=prefixes[order],
            checks=checks[order],
            originals=(order + first_row).astype("<u4"),
            copies=(np.concatenate((copies, within)) + first_row).astype("<u4"),
            copied=np.concatenate((copied, of + first_row)).astype("<u4"),
            packs=np.array(fresh.packs, PACK),
            **_objects(fresh.objects),
        )
        self._fresh = _Fresh(self._rows, len(self._packs))

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
                    finder = self._finders[segment.first_row] = _Finder(segment)
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


class _Fresh:
    """Rows and packs that no segment has yet."""

    def __init__(self, first_row: int, first_pack: int) -> None:
        self._following_row = first_row
        self._first_pack = first_pack
        self.packs: list[tuple[Any, ...]] = []
        self.objects: list[tuple[str, int, Array]] = []
        self.held = 0
        self._raw: list[bytes] = []
        self._raw_rows = 0
        self._parsed: list[tuple[Array, Array, Array]] = []

    @property
    def is_empty(self) -> bool:
        return not self.objects

    def add(self, pack: PackRows) -> int:
        rows = len(pack.rows) // ROW_BYTES
        self.packs.append((pack.pack, pack.size_bytes, pack.blob_type, self._following_row, rows))
        self._following_row += rows
        self.held += rows
        self._raw.append(pack.rows)
        self._raw_rows += rows
        if self._raw_rows >= _PARSED_AT_ONCE:
            self._parse()
        return self._first_pack + len(self.packs) - 1

    def _parse(self) -> None:
        """Of 40 bytes a row, 16 are needed."""
        source = np.frombuffer(b"".join(self._raw), _ROW)
        stored = (source["place"] >> _STORED_SHIFT & _STORED_MASK).astype("<u4")
        self._parsed.append((source["prefix"].astype("<u8"), source["check"].astype("<u4"), stored))
        self._raw, self._raw_rows = [], 0

    def columns(self) -> list[Array]:
        """Prefixes, checks and stored lengths of all rows."""
        self._parse()
        parts, self._parsed = self._parsed, []
        columns: list[list[Array]] = [list(column) for column in zip(*parts, strict=True)]
        del parts
        return [np.concatenate(columns.pop(0)) for _ in range(3)]


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


def _objects(objects: Sequence[tuple[str, int, Array]]) -> dict[str, Array]:
    ends = np.cumsum([len(each[2]) for each in objects]).tolist()
    records = [
        (name.encode(), size, end - len(listed), len(listed))
        for (name, size, listed), end in zip(objects, ends, strict=True)
    ]
    return {"objects": np.array(records, OBJECT), "listed": np.concatenate([each[2] for each in objects])}


class _Finder:
    """Finds ids in one segment. As they are spread evenly, their first bits say nearly where: a table of those leaves a
    few steps of what would be a search through memory that is far apart."""

    def __init__(self, segment: Segment) -> None:
        self._segment = segment
        bits = max(1, len(segment.prefixes).bit_length() - 4)
        self._shift = np.uint64(64 - bits)
        edges = np.arange(1 << bits, dtype=np.uint64) << self._shift
        self._begins = np.append(np.searchsorted(segment.prefixes, edges), len(segment.prefixes))
        self._steps = int(np.diff(self._begins).max()).bit_length()

    def find(self, prefixes: Array, checks: Array) -> Array:
        """As Ledger._find, in this segment."""
        segment = self._segment
        begins = (prefixes >> self._shift).astype(np.int64)
        low, high = self._begins[begins], self._begins[begins + 1]
        last = len(segment.prefixes) - 1
        for _ in range(self._steps):
            middle = (low + high) >> 1
            below = (segment.prefixes[np.minimum(middle, last)] < prefixes) & (low < high)
            low = np.where(below, middle + 1, low)
            high = np.where(below, high, middle)
        at = np.minimum(low, last)
        same = segment.prefixes[at] == prefixes
        good = same & (segment.checks[at] == checks)
        found = np.where(good, segment.originals[at].astype(np.int64), -1)
        for number in np.flatnonzero(same & ~good).tolist():  # ids that share eight bytes lie beside each other
            found[number] = self._among_equals(int(at[number]), int(prefixes[number]), int(checks[number]))
        return found

    def _among_equals(self, place: int, prefix: int, check: int) -> int:
        segment = self._segment
        while place < len(segment.prefixes) and int(segment.prefixes[place]) == prefix:
            if int(segment.checks[place]) == check:
                return int(segment.originals[place])
            place += 1
        return -1


def _first_of_equals(order: Array, prefixes: Array, checks: Array) -> tuple[Array, Array, Array]:
    """Of rows sorted by prefix, and those of equal ids by row: the first of each id, the others, and for each of these
    the first."""
    ordered = prefixes[order]
    same = ordered[1:] == ordered[:-1]
    places = np.flatnonzero(np.concatenate((same, [False])) | np.concatenate(([False], same)))
    if not len(places):
        return order, places, places
    mine = order[places]
    by_id = mine[np.lexsort((mine, checks[mine], prefixes[mine]))]
    equal = (prefixes[by_id][1:] == prefixes[by_id][:-1]) & (checks[by_id][1:] == checks[by_id][:-1])
    begins = np.concatenate(([True], ~equal))
    firsts = by_id[begins][np.cumsum(begins) - 1]
    others = by_id[~begins]
    return order[~np.isin(order, others)], others, firsts[~begins]


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
