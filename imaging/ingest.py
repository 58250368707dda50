"""One disk, from its source into the repository: extents → chunks → packs → disk map.

Rules: the map is that of a full cut, however little was read or cut; at most a few regions are in memory; where the
dirty bitmap contradicts what the server says of allocation, or what a sample of clean chunks reads, the bitmap is not
believed.
"""

from __future__ import annotations

import random
import threading
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from imaging.chunking import (
    HOLE_PAGES_MIN,
    Bools,
    PageHash,
    Record,
    Words,
    covered_pages,
    cut_region,
    page_flags,
    zero_pages,
)
from imaging.diskmap import (
    FetchNode,
    Leaf,
    MapWriter,
    encode_leaf,
    leaf_ids,
    read_leaf,
    region_count,
    region_pages,
)
from imaging.errors import UNREADABLE, BitmapLied, ImagingError, ParentMapLost
from imaging.extents import PAGE_BYTES, REGION_BYTES, ByteRange, align_in, align_out, clip, subtract
from imaging.ids import chunk_ids_of
from imaging.keys import Keys
from imaging.memory import aligned_memory
from imaging.packing import PackWriter
from imaging.recutting import RegionPages, recut
from imaging.sampling import Sampler
from imaging.source import PIECE_BYTES, Source

_WINDOW_REGIONS = 64
_ZEROS = memoryview(bytes(REGION_BYTES))  # never written, so the kernel's one zero page behind all of it
_SHORT_ZERO_BYTES = HOLE_PAGES_MIN * PAGE_BYTES
_LIKENESS_CHUNKS = 16  # after so many, more than half of them changed: that region is another one now
_FLYING = 16  # regions for each worker, so that a slow one leaves the others with work; what waits holds no data
WORKERS = 2


@dataclass(frozen=True, slots=True)
class ParentDisk:
    """The disk map that a run starts from: what an incremental one carries on, or what a full one compares with.

    `fetch` reads its nodes. `known`, if packs are damaged or gone, tells which chunks are still good: regions with
    others are read again, which heals them.
    """

    root: bytes | None
    size_bytes: int
    fetch: FetchNode
    known: Callable[[Sequence[bytes]], list[bool]] | None = None


@dataclass(frozen=True, slots=True)
class Ingested:
    """What one disk came to."""

    root: bytes | None
    read_bytes: int
    chunks: int
    sampled_chunks: int


@dataclass(frozen=True, slots=True)
class _Job:
    """One region: what is known to be zero and, for an incremental read, what is dirty and what was there."""

    region: int
    zero: list[ByteRange]
    dirty: list[ByteRange] | None
    old_leaf: bytes | None


@dataclass(frozen=True, slots=True)
class _Done:
    leaf: bytes | None
    read_bytes: int
    chunks: int


def ingest_disk(source: Source, writer: PackWriter, keys: Keys, *, parent: ParentDisk | None = None,
                former: ParentDisk | None = None, sample: int = 32, seed: int | None = None, workers: int = WORKERS,
                advance: Callable[[int], None] = lambda _: None) -> Ingested:  # fmt: skip
    """Store a disk and return its map's root.

    With a `parent`, the source's dirty bitmap says what may differ from it, and `sample` clean chunks are read all
    the same. With a `former` disk instead, all is read, and compared with it by the ids of its chunks: only where they
    differ is anything cut, which halves the work for a disk that has changed little. `workers` threads are kept busy.
    `advance` is called with bytes of the disk that are done. Raises SourceError, BitmapLied, ParentMapLost, and what
    the store raises; the writer must be flushed afterwards.
    """
    if parent is not None and parent.size_bytes != source.size_bytes:
        raise ValueError("an incremental read needs a parent of the same size")
    ingest = _Ingest(source, writer, keys, parent, former, advance)
    # Where reading is waiting for a server, one more than are to be busy. Where it is copying, one more only has the
    # others wait for the interpreter.
    threads = workers + (source.piece_bytes > PIECE_BYTES)
    return ingest.run(threads, sample, random.Random(seed))  # noqa: S311


class _Ingest:
    def __init__(self, source: Source, writer: PackWriter, keys: Keys, parent: ParentDisk | None,
                 former: ParentDisk | None, advance: Callable[[int], None]) -> None:  # fmt: skip
        self.source = source
        self.writer = writer
        self.keys = keys
        self.parent = parent
        self.former = former
        self.advance = advance
        self.size = source.size_bytes
        self.hash = PageHash(keys.cut_multipliers, keys.cut_permutation)
        self.local = threading.local()
        self.lost: ImagingError | None = None

    def run(self, workers: int, sample: int, rng: random.Random) -> Ingested:
        tree = MapWriter(self.size, self.writer.store_node)
        flying: deque[tuple[int, Future[_Done]]] = deque()
        read = chunks = 0
        sampler = Sampler(sample, self.size, rng)

        def collect() -> None:
            nonlocal read, chunks
            region, future = flying.popleft()
            done = future.result()
            read, chunks = read + done.read_bytes, chunks + done.chunks
            if done.leaf is not None:
                tree.add(region, done.leaf)
            self.advance(region_pages(self.size, region) * PAGE_BYTES)

        with ThreadPoolExecutor(workers, thread_name_prefix="ingest") as pool:
            try:
                for job in self.jobs(sampler):
                    flying.append((job.region, pool.submit(self.region, job)))
                    if len(flying) > _FLYING * workers:
                        collect()
                while flying:
                    collect()
            finally:
                pool.shutdown(wait=True, cancel_futures=True)
        sampled = sampled_bytes = 0
        if self.parent is not None:
            sampled, sampled_bytes = sampler.check(self.source, self.keys, self.parent.fetch)
            self.lost = sampler.lost or self.lost  # where `known` is given, the region has been read again for that
        if self.lost is not None and self.parent is not None and self.parent.known is None:
            # Regions that nothing was known to be wrong with were passed over; their leaves may be lost as well.
            raise ParentMapLost(self.lost) from self.lost
        return Ingested(tree.finish(), read + sampled_bytes, chunks, sampled)

    def jobs(self, sampler: Sampler) -> Iterator[_Job]:
        """The regions that need work, in order. Holes, and clean regions of a parent, need little or none."""
        old = self.old_leaves()
        pending = next(old, None)
        for first in range(0, region_count(self.size), _WINDOW_REGIONS):
            last = min(first + _WINDOW_REGIONS, region_count(self.size))
            status = self.source.status(first * REGION_BYTES, min(last * REGION_BYTES, self.size))
            skipped = 0
            for region in range(first, last):
                start, stop = region * REGION_BYTES, min((region + 1) * REGION_BYTES, self.size)
                old_leaf = None
                if pending is not None and pending[0] == region:
                    old_leaf = pending[1]
                    pending = next(old, None)
                zero = clip(status.zero, start, stop)
                all_zero = len(zero) == 1 and zero[0] == ByteRange(start, stop)
                if self.parent is None:
                    if not all_zero:
                        yield _Job(region, zero, None, old_leaf)
                        continue
                else:
                    dirty = clip(status.dirty, start, stop)
                    if old_leaf is not None or (dirty and not all_zero):
                        sampler.offer(region, old_leaf, dirty)
                        yield _Job(region, zero, dirty, old_leaf)
                        continue
                skipped += stop - start
            self.advance(skipped)

    def old_leaves(self) -> Iterator[tuple[int, bytes]]:
        old = self.parent or self.former
        if old is None:
            return
        try:
            yield from leaf_ids(old.root, old.size_bytes, old.fetch)
        except UNREADABLE as err:
            if self.parent is not None:
                raise ParentMapLost(err) from err
            # What is read in full does not need it.

    def region(self, job: _Job) -> _Done:
        """Work on one region, in a thread of the pool."""
        if job.dirty is None:
            return self.full(job)
        suspicious = self.parent is not None and self.parent.known is not None
        if not job.dirty and not job.zero and not suspicious:
            return _Done(job.old_leaf, 0, 0)
        old = self.old_leaf(job)
        return self.full(job) if old is None else self.incremental(job, old)

    def full(self, job: _Job) -> _Done:
        start, stop, buffer = self.buffer(job.region)
        data = subtract([ByteRange(start, stop)], job.zero)
        read = sum(item.length for item in data)
        old = self.former_leaf(job)
        # What was a hole and is one is not looked at again, so it need not be cleared either.
        holes = () if old is None else self.still_holes(job, old)
        spared = [ByteRange(start + r.start * PAGE_BYTES, start + r.stop * PAGE_BYTES) for r in holes]
        self.fill(buffer, start, [], subtract(job.zero, spared))
        content = buffer[: stop - start]
        reading = _Reading(self.source, start, content, data)
        same = None if old is None else self.unchanged(old, content, reading)
        reading.upto(len(content))
        if old is not None and same is not None:
            return self.compared(job, old, {hole.start for hole in holes}, same, buffer, stop - start, read)
        self.fill(buffer, start, [], spared)
        zero, cut = self.flags(_as_pages(buffer))
        return self.store(job.region, content, cut_region(zero, cut), {}, {}, read)

    def compared(self, job: _Job, old: Leaf, holes: set[int], same: dict[Record, bytes], buffer: memoryview,
                 length: int, read_bytes: int) -> _Done:  # fmt: skip
        """A region that was read in full, cut only where its old chunks and holes are not there any more. `holes`:
        where those begin that are known to be there still."""
        words = _as_pages(buffer)
        dirty = np.zeros(len(words), np.bool_)
        for record in old.records:
            if record.data:
                if record not in same:
                    dirty[record.start : record.stop] = True
            elif record.start not in holes:
                dirty[record.start : record.stop] = ~zero_pages(words[record.start : record.stop])
        # Where nothing is lost, what the former disk refers to is there.
        stored = self.former is not None and self.former.known is None
        if stored and not dirty.any():
            return _Done(job.old_leaf, read_bytes, 0)
        pages = RegionPages.unknown(len(words))

        def load(wanted: list[tuple[int, int]]) -> None:
            for a, b in wanted:
                pages.zero[a:b], pages.cut[a:b] = self.flags(words[a:b])

        records = recut(old.records, pages, dirty, load)
        return self.store(
            job.region, buffer[:length], records, same if stored else {}, {} if stored else same, read_bytes
        )

    def still_holes(self, job: _Job, old: Leaf) -> list[Record]:
        """The holes of the old content that are holes now, as the source says without reading."""
        start = job.region * REGION_BYTES
        zero = covered_pages(align_in(job.zero, PAGE_BYTES, self.size), start, region_pages(self.size, job.region))
        return [record for record in old.records if not record.data and zero[record.start : record.stop].all()]

    def flags(self, words: Words) -> tuple[Bools, Bools]:
        """Which pages are zero, and which are cut pages."""
        return page_flags(self.hash, words)

    def former_leaf(self, job: _Job) -> Leaf | None:
        """What the region held in the former disk; None where there is none, or it ends elsewhere, or cannot be had."""
        if job.old_leaf is None or self.former is None:
            return None
        stop = (job.region + 1) * REGION_BYTES
        if min(stop, self.size) != min(stop, self.former.size_bytes):
            return None
        try:
            return read_leaf(job.old_leaf, self.former.size_bytes, job.region, self.former.fetch)
        except UNREADABLE:
            return None

    def unchanged(self, old: Leaf, content: memoryview, reading: _Reading) -> dict[Record, bytes] | None:
        """Old chunks that are there still, and their ids; None where few are."""
        records = [record for record in old.records if record.data]
        ids = [identity for identity in old.ids if identity is not None]
        starts = [record.start * PAGE_BYTES for record in records]
        stops = [min(record.stop * PAGE_BYTES, len(content)) for record in records]  # a disk may end within a page
        same: dict[Record, bytes] = {}
        at = 0
        while at < len(records):
            end = min(bisect_right(stops, reading.upto(stops[at])), at + _LIKENESS_CHUNKS)
            found = chunk_ids_of(self.keys, map(content.__getitem__, map(slice, starts[at:end], stops[at:end])))
            if found == ids[at:end]:
                same.update(zip(records[at:end], found, strict=True))
            else:
                were = zip(records[at:end], ids[at:end], found, strict=True)
                same.update((record, new) for record, identity, new in were if new == identity)
            if at < _LIKENESS_CHUNKS <= end and len(same) < end // 2:
                return None
            at = end
        return same

    def incremental(self, job: _Job, old: Leaf) -> _Done:
        dirty_ranges = self.believable_dirty(job, old)
        if not dirty_ranges:
            return _Done(job.old_leaf, 0, 0)
        start, stop, buffer = self.buffer(job.region)
        pages = RegionPages.unknown(region_pages(self.size, job.region))
        dirty = covered_pages(dirty_ranges, start, len(pages.loaded))
        for item in align_in(job.zero, PAGE_BYTES, self.size):
            for piece in clip(dirty_ranges, item.start, item.stop):
                a, b = (piece.start - start) // PAGE_BYTES, -(-(piece.stop - start) // PAGE_BYTES)
                pages.know_zero(a, b)
        if job.zero or not all(record.data for record in old.records):
            buffer[:] = _ZEROS[: len(buffer)]  # pages known to be zero are not read, and may become part of a chunk
        words = _as_pages(buffer)
        read = 0

        def load(wanted: list[tuple[int, int]]) -> None:
            nonlocal read
            ranges = [ByteRange(start + a * PAGE_BYTES, min(start + b * PAGE_BYTES, stop)) for a, b in wanted]
            self.fill(buffer, start, ranges, [])
            read += sum(item.length for item in ranges)
            for a, b in wanted:
                pages.zero[a:b], pages.cut[a:b] = self.flags(words[a:b])

        records = recut(old.records, pages, dirty, load)
        untouched = (~pages.loaded[[record.start for record in old.records]]).tolist()
        kept = {
            record: identity
            for record, identity, is_untouched in zip(old.records, old.ids, untouched, strict=True)
            if identity is not None and is_untouched
        }
        return self.store(job.region, buffer[: stop - start], records, kept, {}, read)

    def old_leaf(self, job: _Job) -> Leaf | None:
        """The region's old records; None if they, or chunks of theirs, are lost: the region must be read in full."""
        if job.old_leaf is None or self.parent is None:
            return Leaf((Record(0, region_pages(self.size, job.region), data=False),), (None,))
        try:
            leaf = read_leaf(job.old_leaf, self.size, job.region, self.parent.fetch)
        except UNREADABLE as err:
            self.lost = err
            return None
        known = self.parent.known
        if known is not None and not all(known([identity for identity in leaf.ids if identity is not None])):
            return None
        return leaf

    def believable_dirty(self, job: _Job, old: Leaf) -> list[ByteRange]:
        """What must be looked at: what the bitmap says, page-aligned, and short zero runs that the map does not know.

        A shrink and a grow back between two runs leave the bitmap clean and the content zero; only the allocation
        tells.
        """
        dirty = align_out(job.dirty or [], PAGE_BYTES, self.size)
        start = job.region * REGION_BYTES
        data = [
            ByteRange(start + r.start * PAGE_BYTES, min(start + r.stop * PAGE_BYTES, self.size))
            for r in old.records
            if r.data
        ]
        end = min(start + REGION_BYTES, self.size)
        short: list[ByteRange] = []
        for item in subtract(align_in(job.zero, PAGE_BYTES, self.size), dirty):
            pieces = clip(data, item.start, item.stop)
            if pieces and (item.length >= _SHORT_ZERO_BYTES or item.stop == end):
                raise BitmapLied(pieces[0].start, pieces[0].length, "it says clean where allocated data is gone")
            short += pieces
        return align_out([*dirty, *short], PAGE_BYTES, self.size)

    def fill(self, buffer: memoryview, start: int, data: Sequence[ByteRange], zero: Sequence[ByteRange]) -> None:
        """Read `data` into the region's buffer and clear `zero` in it."""
        octets = np.frombuffer(buffer, np.uint8)
        for item in zero:
            octets[item.start - start : item.stop - start] = 0  # by numpy, which lets other threads run meanwhile
        if data:
            self.source.read([(item.start, buffer[item.start - start : item.stop - start]) for item in data])

    def buffer(self, region: int) -> tuple[int, int, memoryview]:
        """First and last byte of the region, and this thread's buffer, cut to its pages; past the disk's end it is
        zero."""
        found: memoryview | None = getattr(self.local, "buffer", None)
        if found is None:
            # From a page boundary on: the kernel copies a third faster into it than into a bytearray.
            found = self.local.buffer = aligned_memory(REGION_BYTES)
        start, stop = region * REGION_BYTES, min((region + 1) * REGION_BYTES, self.size)
        view = found[: region_pages(self.size, region) * PAGE_BYTES]
        view[stop - start :] = bytes(len(view) - (stop - start))
        return start, stop, view

    def store(self, region: int, content: memoryview, records: Sequence[Record], kept: dict[Record, bytes],
              hashed: dict[Record, bytes], read_bytes: int) -> _Done:  # fmt: skip
        """Store the region's new chunks and its leaf. `kept`: ids of chunks that are stored; `hashed`: of others, where
        they are known already."""
        fresh = {
            record: content[record.start * PAGE_BYTES : record.stop * PAGE_BYTES]
            for record in records
            if record.data and record not in kept
        }
        unknown = {record: plain for record, plain in fresh.items() if record not in hashed} if hashed else fresh
        ids = kept | hashed | dict(zip(unknown, chunk_ids_of(self.keys, unknown.values()), strict=True))
        self.writer.store_chunks([(ids[record], plain) for record, plain in fresh.items()])
        leaf = encode_leaf(Leaf(tuple(records), tuple(map(ids.get, records))))
        return _Done(None if leaf is None else self.writer.store_node(leaf), read_bytes, len(fresh))


class _Reading:
    """A region's data, read piece by piece, each shortly before it is looked at: then it comes from the processor's
    cache, of which a whole region is several times the size."""

    def __init__(self, source: Source, start: int, content: memoryview, data: Sequence[ByteRange]) -> None:
        """`data`: of the disk; `content` is the region's memory, which begins at `start`."""
        self._source = source
        self._content = content
        self._start = start
        self._data = deque(ByteRange(item.start - start, item.stop - start) for item in data)
        self._read = 0

    def upto(self, end: int) -> int:
        """Sees that all before byte `end` of the region is read; returns how much is. Raises SourceError."""
        if end <= self._read:
            return self._read
        self._read = end = min(max(end, self._read + self._source.piece_bytes), len(self._content))
        requests: list[tuple[int, memoryview]] = []
        while self._data and self._data[0].start < end:
            item = self._data.popleft()
            if item.stop > end:
                self._data.appendleft(ByteRange(end, item.stop))
            stop = min(item.stop, end)
            requests.append((self._start + item.start, self._content[item.start : stop]))
        if requests:
            self._source.read(requests)
        return end


def _as_pages(buffer: memoryview) -> Words:
    return np.frombuffer(buffer, np.uint64).reshape(-1, PAGE_BYTES // 8)
