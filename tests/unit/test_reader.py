"""The reader against a bytearray: any range, from several threads, in bounded memory; an error harms nobody else."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imaging.blobs import BlobReader
from imaging.chunking import Record
from imaging.diskmap import Leaf, MapWriter, encode_leaf, region_count, region_pages
from imaging.errors import Damaged
from imaging.extents import PAGE_BYTES, REGION_BYTES
from imaging.ids import CHUNK, blob_id
from imaging.reader import NO_ROOMS, DiskReader, Rooms
from tests.unit.memory import KEYS, DictIndex, MemoryStore, reader, writer

KIB = 1024
MIB = 1024 * KIB
SIZE = 2 * REGION_BYTES + 5 * MIB + 777
"""Two whole regions and one that ends in the middle of a page."""


class Disk:
    """A disk with chunks of any cut, some of the same content, and its bytes. The second region is one hole."""

    def __init__(self, seed: int) -> None:
        rng = random.Random(seed)
        self.content = bytearray(SIZE)
        self.ids: list[tuple[int, int, bytes]] = []
        self.store, index = MemoryStore(), DictIndex()
        shared = rng.randbytes(4 * PAGE_BYTES)
        with writer(self.store, index, pack_bytes=MIB) as packs:
            tree = MapWriter(SIZE, packs.store_node)
            for region in (0, 2):
                records: list[Record] = []
                ids: list[bytes | None] = []
                page, pages = 0, region_pages(SIZE, region)
                while page < pages:
                    data = bool(records and not records[-1].data) or rng.random() < 0.8
                    end = min(pages, page + (rng.randrange(1, 65) if data else rng.randrange(16, 200)))
                    start = region * REGION_BYTES + page * PAGE_BYTES
                    stop = min(region * REGION_BYTES + end * PAGE_BYTES, SIZE)
                    records.append(Record(page, end, data))
                    ids.append(None)
                    if data:
                        same = stop - start == len(shared)
                        plain = shared if same else rng.randbytes(stop - start)
                        self.content[start:stop] = plain
                        ids[-1] = identity = blob_id(KEYS, CHUNK, plain)
                        self.ids.append((start, stop, identity))
                        packs.store_chunks([(identity, plain)])
                    page = end
                leaf = encode_leaf(Leaf(tuple(records), tuple(ids)))
                assert leaf is not None
                tree.add(region, packs.store_node(leaf))
            self.root = tree.finish()
            packs.flush()
        self.blobs = reader(self.store, index)


DISK = Disk(1)


class Watched:
    """Counts what is fetched; `damaged` chunks fail. `before` runs before each fetch."""

    def __init__(self, blobs: BlobReader, before: Callable[[Sequence[bytes]], object] = lambda ids: None) -> None:
        self.inner = blobs
        self.before = before
        self.damaged: set[bytes] = set()
        self.fetched: list[bytes] = []
        self.lock = threading.Lock()

    def chunks(self, identities: Sequence[bytes], rooms: Rooms = NO_ROOMS) -> list[bytes | memoryview]:
        with self.lock:
            self.fetched += identities
        self.before(identities)
        for identity in identities:
            if identity in self.damaged:
                raise Damaged(f"chunk {identity.hex()}", "injected")
        return self.inner.chunks(identities, rooms)

    def node(self, identity: bytes) -> bytes:
        return self.inner.node(identity)


ranges = st.lists(
    st.tuples(
        st.integers(0, SIZE), st.one_of(st.integers(0, 10), st.integers(0, 300 * KIB), st.integers(MIB // 2, 3 * MIB))
    ),
    min_size=1, max_size=12,
)  # fmt: skip


@given(ranges, st.sampled_from([1, 64 * KIB, 8 * MIB]))
@settings(max_examples=60, deadline=None)
def test_any_range_from_any_thread_is_what_was_stored(wanted: list[tuple[int, int]], cache_bytes: int) -> None:
    disk = DiskReader(DISK.blobs, DISK.root, SIZE, cache_bytes=cache_bytes)

    def check(item: tuple[int, int]) -> None:
        start, length = item[0], min(item[1], SIZE - item[0])
        assert disk.pread(start, length) == DISK.content[start : start + length]
        told = disk.extents(start, length)
        assert sum(extent.length for extent in told) == length
        assert [e.start for e in told] == [start, *(e.stop for e in told)][: len(told)]
        assert not any(DISK.content[e.start : e.stop].strip(b"\0") for e in told if e.zero)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(check, wanted))


def test_a_whole_disk_reads_back_at_once() -> None:
    assert DiskReader(DISK.blobs, DISK.root, SIZE, cache_bytes=1).pread(0, SIZE) == DISK.content


def test_the_cache_keeps_its_bound_and_fetches_what_is_hot_once() -> None:
    blobs = Watched(DISK.blobs)
    disk = DiskReader(blobs, DISK.root, SIZE, cache_bytes=MIB)
    start, stop, identity = DISK.ids[0]
    rng = random.Random(3)
    for _ in range(300):
        disk.pread(start, stop - start)  # used all the time: never put out
        disk.pread(rng.randrange(SIZE - 4096), 4096)
        held = sum(len(plain) for plain in disk._chunks._held.values())
        assert held == disk._chunks._total <= MIB
        assert len(disk._leaves._held) <= 64
    assert blobs.fetched.count(identity) == 1
    assert len(blobs.fetched) > len(set(blobs.fetched)), "others were put out and fetched again"
    assert not disk._loading


def test_a_large_read_goes_past_the_cache_but_for_what_is_in_it_or_reaches_beyond_the_range() -> None:
    blobs = Watched(DISK.blobs)
    disk = DiskReader(blobs, DISK.root, SIZE)
    ids = [identity for _, _, identity in DISK.ids]
    first, *inside, last = [item for item in DISK.ids if ids.count(item[2]) == 1 and item[0] < 2 * MIB]
    stop = last[0] + 1
    disk.pread(first[0], 1)  # in the cache from now on
    for _ in range(2):
        assert disk.pread(0, stop) == DISK.content[:stop]
    assert set(disk._chunks._held) == {first[2], last[2]}
    assert [blobs.fetched.count(item[2]) for item in (first, last)] == [1, 1]
    assert {blobs.fetched.count(item[2]) for item in inside} == {2}


def test_threads_that_want_the_same_chunk_fetch_it_once() -> None:
    gate = threading.Barrier(4)
    release = threading.Event()
    blobs = Watched(DISK.blobs, lambda ids: release.wait(60))
    disk = DiskReader(blobs, DISK.root, SIZE)
    start, stop, identity = DISK.ids[3]

    def read(_: int) -> bytes:
        gate.wait(60)
        return disk.pread(start, stop - start)

    with ThreadPoolExecutor(4) as pool:
        threading.Timer(0.1, release.set).start()
        assert set(pool.map(read, range(4))) == {bytes(DISK.content[start:stop])}
    assert blobs.fetched == [identity]


def neighbours() -> tuple[tuple[int, int, bytes], tuple[int, int, bytes]]:
    """Two different chunks, one right after the other."""
    return next((a, b) for a, b in zip(DISK.ids, DISK.ids[1:], strict=False) if a[1] == b[0] and a[2] != b[2])


def test_a_bad_chunk_fails_only_who_asked_for_it() -> None:
    """One thread reads a good and a bad chunk at once, another, meanwhile, the good one alone: that one succeeds."""
    good, bad = neighbours()
    waiting = threading.Event()
    blobs = Watched(DISK.blobs, lambda ids: waiting.wait(60) if len(ids) > 1 else None)
    blobs.damaged = {bad[2]}
    disk = DiskReader(blobs, DISK.root, SIZE)

    with ThreadPoolExecutor(2) as pool:
        both = pool.submit(disk.pread, good[0], bad[1] - good[0])
        while len(blobs.fetched) < 2:
            pass
        alone = pool.submit(disk.pread, good[0], good[1] - good[0])
        threading.Timer(0.1, waiting.set).start()
        with pytest.raises(Damaged, match=bad[2].hex()):
            both.result(60)
        assert alone.result(60) == DISK.content[good[0] : good[1]]
    blobs.damaged = set()
    assert disk.pread(good[0], bad[1] - good[0]) == DISK.content[good[0] : bad[1]], "a failure is not remembered"
    assert not disk._loading


def test_many_threads_over_a_damaged_disk_each_get_their_bytes_or_the_error() -> None:
    blobs = Watched(DISK.blobs)
    blobs.damaged = {identity for _, _, identity in DISK.ids[::7]}
    bad = [(start, stop) for start, stop, identity in DISK.ids if identity in blobs.damaged]
    disk = DiskReader(blobs, DISK.root, SIZE, cache_bytes=256 * KIB)

    def read(seed: int) -> tuple[int, int]:
        rng, failed, well = random.Random(seed), 0, 0
        for _ in range(60):
            start = rng.randrange(SIZE)
            length = rng.randrange(min(200 * KIB, SIZE - start) + 1)
            touched = length and any(a < start + length and start < b for a, b in bad)
            try:
                assert disk.pread(start, length) == DISK.content[start : start + length]
                assert not touched, "what is damaged must not be returned"
                well += 1
            except Damaged:
                assert touched, "what is well must be returned"
                failed += 1
        return failed, well

    with ThreadPoolExecutor(6) as pool:
        counts = list(pool.map(read, range(6)))
    assert all(failed and well for failed, well in counts)
    assert not disk._loading


@pytest.mark.parametrize(("offset", "length"), [(-1, 1), (SIZE, 1), (SIZE - 10, 11), (SIZE + 1, 0)])
def test_what_lies_outside_is_refused(offset: int, length: int) -> None:
    with pytest.raises(ValueError, match="outside a disk"):
        DiskReader(DISK.blobs, DISK.root, SIZE).pread(offset, length)


@pytest.mark.parametrize("size", [0, 1, 511, PAGE_BYTES, REGION_BYTES, REGION_BYTES + 1, 64 << 40])
def test_a_disk_of_holes_of_any_size(size: int) -> None:
    disk = DiskReader(DISK.blobs, None, size)
    assert [(e.start, e.length, e.zero) for e in disk.extents(0, size)] == ([(0, size, True)] if size else [])
    assert disk.pread(max(0, size - 9), min(9, size)) == bytes(min(9, size))
    assert region_count(size) == -(-size // REGION_BYTES)


def test_a_disk_that_is_read_in_order_is_fetched_ahead_and_every_chunk_once() -> None:
    watched = Watched(DISK.blobs)
    ahead: list[str] = []
    watched.before = lambda ids: ahead.append(threading.current_thread().name)
    disk = DiskReader(watched, DISK.root, SIZE, ahead_bytes=4 * MIB)
    for at in range(0, SIZE, 64 * KIB):
        length = min(64 * KIB, SIZE - at)
        assert disk.pread(at, length) == DISK.content[at : at + length]
    disk.close()
    assert len(watched.fetched) == len(set(watched.fetched)) == len({identity for _, _, identity in DISK.ids})
    assert any(name.startswith("ahead") for name in ahead)


def test_what_cannot_be_read_ahead_is_an_error_only_for_who_reads_it() -> None:
    watched = Watched(DISK.blobs)
    bad = next(each for each in DISK.ids if each[0] > 6 * MIB)
    watched.damaged = {bad[2]}
    disk = DiskReader(watched, DISK.root, SIZE, ahead_bytes=8 * MIB)
    for at in range(0, bad[0] - 64 * KIB, 64 * KIB):
        assert disk.pread(at, 64 * KIB) == DISK.content[at : at + 64 * KIB]
    with pytest.raises(Damaged):
        disk.pread(bad[0], 1)
    disk.close()
    assert watched.fetched.count(bad[2]) >= 1
