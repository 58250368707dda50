"""Segments of the chunk index: entries sorted by id, in files that never change once they are there.

Rules: a file counts once it is listed, and is written before; what nobody lists is what a writer that died has left, or
what others may still read although it was put together with others since. So a name is never used twice. Files are read
through a mapping, which the page cache holds and not this process, and never written through one: a disk that is full
would end the process.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import secrets
import struct
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from imaging.errors import IndexUnavailable
from imaging.index_rows import ENTRY, KEY_BYTES, REST
from imaging.places import ID_BYTES
from imaging.sorted_ids import Array, bits_for, first_at_least, parted

_SUFFIX: Final = ".segment"
_HEAD: Final = struct.Struct("<8sQQQQ24x")  # magic, entries, room for entries, bits, entries in the longest piece
_MAGIC: Final = b"SRINDEX1"
_REST_OF: Final = struct.Struct("=QIQ")
_REST_BYTES: Final = REST.itemsize
_PREFIX_BYTES: Final = 8
_IDS_IN_PIECE: Final = 64
_MERGED_AT_ONCE: Final = 1 << 18
_KEY_OF: Final = struct.Struct(">QQ")
_ID: Final = np.dtype([("high", ">u8"), ("low", ">u8"), ("rest", f"V{ID_BYTES - KEY_BYTES}")])
_FEW_IDS: Final = 24
"""So many are looked for one by one sooner than all at once."""
assert _REST_OF.size == _REST_BYTES
assert _HEAD.size == 64

_RATIO: Final = 3
"""So many times as large as all after it is each segment: up to 50 million entries there are six at most, and each
entry is written eight times until then."""
_SMALL: Final = 16_384
"""Segments with fewer entries are put together with any that come: writing them again is nothing."""

Columns = tuple[Array, Array]
"""First 8 bytes of ids, and the rest of the entries, as REST."""


class SegmentBroken(IndexUnavailable):
    """What is listed is not there as it was written."""


@dataclass(frozen=True, slots=True)
class Listed:
    name: str
    count: int


def columns_of(entries: Array) -> Columns:
    raw = entries.view(np.uint8).reshape(len(entries), ENTRY.itemsize)
    rest = np.ascontiguousarray(raw[:, _PREFIX_BYTES:]).reshape(-1).view(REST)
    return np.ascontiguousarray(entries["high"]), rest


class Segment:
    """Entries of one file, as long as anybody has it; its mapping goes with it."""

    __slots__ = ("_begins", "_longest", "_mapped", "_prefixes", "_rests", "_shift", "count", "listed")

    def __init__(self, listed: Listed, mapped: mmap.mmap, where: str) -> None:
        """SegmentBroken."""
        magic, count, room, bits, longest = (
            _HEAD.unpack_from(mapped) if len(mapped) >= _HEAD.size else (b"", 0, 0, 0, 0)
        )
        prefixes_at = _HEAD.size + 8 * ((1 << min(bits, 64)) + 1)
        rests_at = prefixes_at + _PREFIX_BYTES * room
        if (magic, count) != (_MAGIC, listed.count) or len(mapped) != rests_at + _REST_BYTES * count or count > room:
            raise SegmentBroken(where, f"segment {listed.name} is not as it was written")
        self.listed = listed
        self.count = count
        self._longest = longest
        self._shift = 64 - bits
        self._mapped = memoryview(mapped)
        # Views for single look-ups, and arrays of the same bytes for many at once.
        self._begins = self._mapped[_HEAD.size : prefixes_at].cast("Q")
        self._prefixes = self._mapped[prefixes_at : prefixes_at + _PREFIX_BYTES * count].cast("Q")
        self._rests = self._mapped[rests_at:]

    @property
    def columns(self) -> Columns:
        return np.frombuffer(self._prefixes, np.uint64), np.frombuffer(self._rests, REST)

    def find_one(self, high: int, low: int) -> Iterator[tuple[int, int]]:
        """Number and place of each entry of this id, by the first and the second 8 bytes of it."""
        prefixes = self._prefixes
        piece = high >> self._shift
        at = bisect_left(prefixes, high, self._begins[piece], self._begins[piece + 1])
        while at < self.count and prefixes[at] == high:
            found, number, place = _REST_OF.unpack_from(self._rests, at * _REST_BYTES)
            if found == low:
                yield number, place
            at += 1

    def find(self, high: Array, low: Array) -> Iterator[tuple[Array, Array]]:
        """As find_one() for many: which of them was found, and its entry, as REST; some ids may be found again."""
        prefixes, rests = self.columns
        at = first_at_least(prefixes, np.frombuffer(self._begins, np.int64), self._longest, high)
        wanted = np.flatnonzero((prefixes.take(at, mode="clip") == high) & (at < self.count))
        at = at[wanted]
        while len(wanted):
            found = rests[at]
            same = found["low"] == low[wanted]
            yield wanted[same], found[same]
            at += 1  # ids that share eight bytes lie beside each other, as do those of several places
            more = (prefixes.take(at, mode="clip") == high[wanted]) & (at < self.count)
            wanted, at = wanted[more], at[more]


def places_of(segments: Sequence[Segment], ids: Sequence[bytes]) -> Iterator[tuple[int, int, int]]:
    """All entries of these ids: which of them, the number of a pack, and a place in it."""
    if len(ids) <= _FEW_IDS:
        for at, identity in enumerate(ids):
            high, low = _KEY_OF.unpack_from(identity)
            for segment in segments:
                for number, place in segment.find_one(high, low):
                    yield at, number, place
        return
    source = np.frombuffer(b"".join(ids), _ID)
    if len(source) != len(ids):
        raise ValueError(f"{len(ids)} ids have {ID_BYTES * len(source)} bytes, and not {ID_BYTES} each")
    wanted_high, wanted_low = source["high"].astype(np.uint64), source["low"].astype(np.uint64)
    for segment in segments:
        for which, found in segment.find(wanted_high, wanted_low):
            yield from zip(which.tolist(), found["number"].tolist(), found["place"].tolist(), strict=True)


class SegmentFolder:
    """Where segments are. Whoever writes makes sure that nobody else does."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def open(self, listed: Listed, *, at_random: bool = True) -> Segment:
        """SegmentBroken, OSError; FileNotFoundError if it is gone."""
        descriptor = os.open(self._path(listed.name), os.O_RDONLY | os.O_CLOEXEC)
        try:
            if os.fstat(descriptor).st_size < _HEAD.size:
                raise SegmentBroken(str(self.folder), f"segment {listed.name} is not as it was written")
            mapped = mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ)
        finally:
            os.close(descriptor)
        mapped.madvise(mmap.MADV_RANDOM if at_random else mmap.MADV_SEQUENTIAL)
        return Segment(listed, mapped, str(self.folder))

    def write(self, room: int, blocks: Iterable[Columns]) -> list[Listed]:
        """A new segment of sorted columns that follow one another, with `room` entries at most; none, if they are
        empty. OSError."""
        name = secrets.token_hex(8)
        path = self._path(name)
        count = 0
        try:
            count = _write(path, room, blocks)
        finally:
            if not count:
                with contextlib.suppress(OSError):  # what is not listed goes with the next tidy()
                    os.unlink(path)
        return [Listed(name, count)] if count else []

    def with_more(self, listed: Sequence[Listed], entries: Columns) -> list[Listed]:
        """The segments, the largest first, when such sorted entries come: as a new one, put together with those that
        are not much larger. SegmentBroken, OSError."""
        count = len(entries[0])
        if not count:
            return list(listed)
        staying = _staying([each.count for each in listed], count)
        old = listed[staying:]
        sources = [self.open(each, at_random=False).columns for each in old]
        room = count + sum(each.count for each in old)
        return [*listed[:staying], *self.write(room, _merged([*sources, entries]))]

    def without(self, listed: Sequence[Listed], numbers: Sequence[int]) -> list[Listed]:
        """The segments, of which those that have entries of packs with these numbers are written again without them,
        as one. SegmentBroken, OSError."""
        gone = np.zeros(max(numbers, default=0) + 2, np.bool_)
        gone[numbers] = True
        staying: list[Listed] = []
        sources: list[Columns] = []
        room = 0
        for each in listed:
            columns = self.open(each, at_random=False).columns
            dead = _count_of(columns, gone)
            if dead:
                sources.append(columns)
                room += each.count - dead
            else:
                staying.append(each)
        return [*staying, *self.write(room, _merged(sources, gone))] if sources else staying

    def tidy(self, listed: Iterable[Listed]) -> None:
        """Removes all others. OSError."""
        names = {f"{each.name}{_SUFFIX}" for each in listed}
        for name in os.listdir(self.folder):
            if name.endswith(_SUFFIX) and name not in names:
                os.unlink(f"{self.folder}/{name}")

    def sync(self, listed: Iterable[Listed]) -> None:
        """Makes them durable. OSError."""
        for path in (*(self._path(each.name) for each in listed), str(self.folder)):
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)

    def _path(self, name: str) -> str:
        return f"{self.folder}/{name}{_SUFFIX}"


def _staying(counts: Sequence[int], added: int) -> int:
    """How many segments, of so many entries each, the largest first, stay as they are when so many entries come: the
    others become one with those."""
    staying, weight = len(counts), added
    while staying and counts[staying - 1] < max(_RATIO * weight, _SMALL):
        staying -= 1
        weight += counts[staying]
    return staying


def _merged(sources: Sequence[Columns], gone: Array | None = None) -> Iterator[Columns]:
    """Sorted columns as one, part by part; without the entries of those packs that are `gone`, by their numbers."""
    total = sum(len(prefixes) for prefixes, _ in sources)
    bits = bits_for(total, _MERGED_AT_ONCE) if total > _MERGED_AT_ONCE else 0
    for spans in parted([prefixes for prefixes, _ in sources], bits):
        some = [(prefixes[span], rests[span]) for (prefixes, rests), span in zip(sources, spans, strict=True)]
        some = [each for each in some if len(each[0])]
        if not some:
            continue
        prefixes, rests = (np.concatenate(column) for column in zip(*some, strict=True))
        if gone is not None:
            left = ~_are_of(rests["number"], gone)
            prefixes, rests = prefixes[left], rests[left]
        if len(some) > 1:
            order = np.argsort(prefixes, kind="stable")
            prefixes, rests = prefixes[order], rests[order]
        yield prefixes, rests


def absent(entries: Array, segments: Sequence[Segment]) -> Array:
    """Those of these entries that no segment has."""
    high, low = np.ascontiguousarray(entries["high"]), np.ascontiguousarray(entries["low"])
    new = np.ones(len(entries), np.bool_)
    for segment in segments:
        for wanted, found in segment.find(high, low):
            mine = entries[wanted]
            new[wanted[(mine["number"] == found["number"]) & (mine["place"] == found["place"])]] = False
    return entries[new]


def _count_of(columns: Columns, gone: Array) -> int:
    """How many entries are of packs that are `gone`."""
    numbers = columns[1]["number"]
    return sum(
        int(np.count_nonzero(_are_of(numbers[start : start + _MERGED_AT_ONCE], gone)))
        for start in range(0, len(numbers), _MERGED_AT_ONCE)
    )


def _are_of(numbers: Array, gone: Array) -> Array:
    """Of entries, by the numbers of their packs; the last of `gone` stands for all that are greater."""
    found: Array = gone[np.minimum(numbers, len(gone) - 1)]
    return found


def _write(path: str, room: int, blocks: Iterable[Columns]) -> int:
    """Returns how many entries it was."""
    bits = bits_for(room, _IDS_IN_PIECE)
    shift = np.uint64(64 - bits)
    pieces = np.zeros((1 << bits) + 1, np.int64)
    begins_at = _HEAD.size
    prefixes_at = begins_at + pieces.nbytes
    rests_at = prefixes_at + _PREFIX_BYTES * room
    count = 0
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        for prefixes, rests in blocks:
            if len(prefixes):
                _write_at(descriptor, prefixes, prefixes_at + _PREFIX_BYTES * count)
                _write_at(descriptor, rests, rests_at + _REST_BYTES * count)
                first, last = int(prefixes[0] >> shift), int(prefixes[-1] >> shift)
                pieces[first + 1 : last + 2] += np.bincount((prefixes >> shift).astype(np.int64) - first)
                count += len(prefixes)
        longest = int(pieces.max())
        _write_at(descriptor, np.cumsum(pieces), begins_at)
        _write_at(descriptor, np.frombuffer(_HEAD.pack(_MAGIC, count, room, bits, longest), np.uint8), 0)
    finally:
        os.close(descriptor)
    return count


def _write_at(descriptor: int, array: Array, offset: int) -> None:
    """OSError."""
    data = np.ascontiguousarray(array).view(np.uint8).data
    while data:
        written = os.pwrite(descriptor, data, offset)
        data, offset = data[written:], offset + written
