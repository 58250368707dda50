"""Ingest and read back against a plain bytearray; incremental maps equal full ones."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterable, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imaging.chunking import Bools, PageHash, Words
from imaging.diskmap import difference, leaf_ids, read_leaf
from imaging.errors import BitmapLied, ChunkMissing, ParentMapLost, SourceError
from imaging.extents import REGION_BYTES, ByteRange, clip, merge
from imaging.ids import chunk_ids_of
from imaging.ingest import Ingested, ParentDisk, ingest_disk
from imaging.keys import Keys
from imaging.reader import DiskReader
from imaging.source import PIECE_BYTES, BlockStatus
from tests.unit.memory import KEYS, DictIndex, MemorySource, MemoryStore, reader, writer

KIB = 1024
MIB = 1024 * KIB


def texture(seed: int, length: int) -> bytes:
    """Bytes that compress a little, with repeats."""
    rng = random.Random(seed)
    unit = rng.randbytes(512) + bytes(3584)
    return (unit * (length // 4096 + 1))[:length] if seed % 3 == 0 else rng.randbytes(length)


def ingest(store: MemoryStore, index: DictIndex, source: MemorySource, **options: object) -> Ingested:
    with writer(store, index, pack_bytes=256 * KIB) as packs:
        result = ingest_disk(source, packs, KEYS, seed=1, **options)  # type: ignore[arg-type]
        packs.flush()
    return result


def parent(result: Ingested, size: int, store: MemoryStore, index: DictIndex) -> ParentDisk:
    return ParentDisk(result.root, size, reader(store, index).node)


Write = tuple[int, int, int]
writes = st.lists(
    st.tuples(st.integers(0, 40 * MIB), st.integers(1, 400 * KIB), st.integers(0, 9)), min_size=0, max_size=6
)


@given(
    size=st.sampled_from([1, 4096, 5000, 3 * MIB + 17, REGION_BYTES, REGION_BYTES + 4096, 36 * MIB + 1000]),
    first=writes,
    second=writes,
    told_zero=st.booleans(),
)
@settings(max_examples=40, deadline=None)
def test_incremental_equals_full_and_reads_back(
    size: int, first: list[Write], second: list[Write], told_zero: bool
) -> None:
    store, index = MemoryStore(), DictIndex()
    content = bytearray(size)

    def write(items: list[Write]) -> list[ByteRange]:
        changed = []
        for start, length, seed in items:
            start %= size
            stop = min(start + length, size)
            content[start:stop] = bytes(stop - start) if seed > 6 else texture(seed, stop - start)
            changed.append(ByteRange(start, stop))
        return sorted(changed, key=lambda r: r.start)

    write(first)
    before = bytes(content)
    full = ingest(store, index, MemorySource(before))
    changed = write(second)
    source = MemorySource(content, changed)
    source.told_zero = told_zero
    incremental = ingest(store, index, source, parent=parent(full, size, store, index))
    again = ingest(store, index, MemorySource(content))
    assert incremental.root == again.root
    reading = MemorySource(content)
    reading.told_zero = told_zero
    compared = ingest(store, index, reading, former=parent(full, size, store, index))
    assert (compared.root, compared.read_bytes) == (again.root, reading.read_bytes), "all is read, and once"
    blobs = reader(store, index)
    for root, expected in ((full.root, before), (incremental.root, bytes(content))):
        disk = DiskReader(blobs, root, size)
        assert disk.pread(0, size) == expected
        start = size // 3
        assert disk.pread(start, min(100_000, size - start)) == expected[start : start + 100_000]
        for extent in disk.extents(0, size):
            if extent.zero:
                assert not any(expected[extent.start : extent.stop])
    told = list(difference((full.root, size), (incremental.root, size), blobs.node))
    at = 0
    for item in [*told, ByteRange(size, size)]:
        assert before[at : item.start] == content[at : item.start], "what is not listed is equal"
        at = item.stop


def test_an_unchanged_disk_stores_and_reads_nothing() -> None:
    store, index = MemoryStore(), DictIndex()
    content = texture(1, 20 * MIB)
    full = ingest(store, index, MemorySource(content))
    objects = len(store.objects)
    source = MemorySource(content)
    again = ingest(store, index, source, parent=parent(full, len(content), store, index), sample=4)
    assert again.root == full.root
    assert len(store.objects) == objects
    assert again.sampled_chunks == 4, "also of a disk with fewer regions than samples"
    assert source.read_bytes == again.read_bytes < 4 * 256 * KIB


@given(
    sizes=st.tuples(*[st.sampled_from([4096, 5000, REGION_BYTES, REGION_BYTES + 4096, 20 * MIB + 1000])] * 2),
    second=writes,
    told_zero=st.booleans(),
    same=st.integers(0, 1),
)
@settings(max_examples=25, deadline=None)
def test_a_full_read_is_compared_with_a_disk_of_any_size_and_content(
    sizes: tuple[int, int], second: list[Write], told_zero: bool, same: int
) -> None:
    """Also where next to nothing is alike."""
    store, index = MemoryStore(), DictIndex()
    former = texture(1, sizes[0])
    full = ingest(store, index, MemorySource(former))
    content = bytearray((former if same else texture(2, sizes[0]))[: sizes[1]].ljust(sizes[1], b"\0"))
    for start, length, seed in second:
        start %= sizes[1]
        stop = min(start + length, sizes[1])
        content[start:stop] = bytes(stop - start) if seed > 4 else texture(seed, stop - start)
    source = MemorySource(content)
    source.told_zero = told_zero
    compared = ingest(store, index, source, former=parent(full, sizes[0], store, index))
    assert compared.read_bytes == source.read_bytes, "nothing is read twice"
    assert compared.root == ingest(store, index, MemorySource(content)).root
    assert DiskReader(reader(store, index), compared.root, sizes[1]).pread(0, sizes[1]) == content


def test_a_comparison_cuts_nothing_where_nothing_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    store, index = MemoryStore(), DictIndex()
    content = bytearray(texture(1, 40 * MIB))
    full = ingest(store, index, MemorySource(content))
    hashed = 0
    real = PageHash.cut_pages

    def count(self: PageHash, pages: Words) -> Bools:
        nonlocal hashed
        hashed += len(pages)
        return real(self, pages)

    monkeypatch.setattr(PageHash, "cut_pages", count)
    former = parent(full, len(content), store, index)
    assert ingest(store, index, MemorySource(content), former=former).root == full.root
    assert hashed == 0
    content[20 * MIB] ^= 1
    changed = ingest(store, index, MemorySource(content), former=former)
    assert 0 < hashed <= 256, "the chunk that changed, and what its cuts touch"
    assert changed.root == ingest(store, index, MemorySource(content)).root


@pytest.mark.parametrize("piece_bytes", [PIECE_BYTES, REGION_BYTES])
def test_another_content_is_noticed_after_few_chunks(monkeypatch: pytest.MonkeyPatch, piece_bytes: int) -> None:
    """Also where a region is read at once."""
    store, index = MemoryStore(), DictIndex()
    full = ingest(store, index, MemorySource(texture(1, 40 * MIB)))
    hashed = 0

    def count(keys: Keys, plains: Iterable[memoryview]) -> list[bytes]:
        nonlocal hashed
        found = chunk_ids_of(keys, plains)
        hashed += len(found)
        return found

    monkeypatch.setattr("imaging.ingest.chunk_ids_of", count)
    source = MemorySource(texture(2, 40 * MIB))
    source.piece_bytes = piece_bytes
    another = ingest(store, index, source, former=parent(full, 40 * MIB, store, index))
    assert 0 < hashed - another.chunks <= 3 * 2 * 16, "of each of three regions, two pieces' chunks at the most"


def test_a_server_is_waited_for_by_one_thread_more_than_copies() -> None:
    class Meeting(MemorySource):
        """Lets nobody read before so many do."""

        def __init__(self, piece_bytes: int, parties: int) -> None:
            super().__init__(texture(3, (parties + 2) * REGION_BYTES))
            self.piece_bytes = piece_bytes
            self.readers = set[int]()
            self.barrier = threading.Barrier(parties, timeout=120)

        def read(self, requests: Sequence[tuple[int, memoryview]]) -> None:
            if (me := threading.get_ident()) not in self.readers:
                self.readers.add(me)
                self.barrier.wait()
            super().read(requests)

    for piece_bytes, threads in ((PIECE_BYTES, 2), (REGION_BYTES, 3)):
        source = Meeting(piece_bytes, threads)
        ingest(MemoryStore(), DictIndex(), source, workers=2)
        assert len(source.readers) == threads


def test_a_comparison_stores_again_what_is_lost() -> None:
    """Where packs are damaged or gone, what is alike is offered to the store all the same."""
    store, index = MemoryStore(), DictIndex()
    content = texture(1, 3 * MIB)
    full = ingest(store, index, MemorySource(content))
    leaf = read_leaf(next(iter(leaf_ids(full.root, len(content), reader(store, index).node)))[1], len(content), 0,
                     reader(store, index).node)  # fmt: skip
    lost = leaf.ids[3]
    assert lost is not None
    del index.places[lost]
    former = ParentDisk(full.root, len(content), reader(store, index).node, index.known)
    assert ingest(store, index, MemorySource(content), former=former).root == full.root
    assert DiskReader(reader(store, index), full.root, len(content)).pread(0, len(content)) == content


@pytest.mark.parametrize("nodes", [0, 1])
def test_a_former_map_that_cannot_be_read_costs_nothing_but_the_comparison(nodes: int) -> None:
    store, index = MemoryStore(), DictIndex()
    content = texture(1, 40 * MIB)
    full = ingest(store, index, MemorySource(content))
    fetched = 0

    def fetch(identity: bytes) -> bytes:
        nonlocal fetched
        fetched += 1
        if fetched > nodes:
            raise ChunkMissing(identity)
        return reader(store, index).node(identity)

    source = MemorySource(content)
    again = ingest(store, index, source, former=ParentDisk(full.root, len(content), fetch))
    assert (again.root, source.read_bytes, fetched > nodes) == (full.root, len(content), True)


def test_a_sparse_disk_costs_little() -> None:
    store, index = MemoryStore(), DictIndex()

    class Sparse(MemorySource):
        def __init__(self) -> None:
            super().__init__(b"")
            self.size_bytes = 2 << 40

        def status(self, start: int, stop: int):  # type: ignore[no-untyped-def]
            from imaging.source import BlockStatus

            return BlockStatus([ByteRange(start, stop)] if start else [ByteRange(4096, stop)], [])

        def read(self, requests):  # type: ignore[no-untyped-def]
            for _, view in requests:
                view[:] = b"x" * len(view)

    result = ingest(store, index, Sparse())
    disk = DiskReader(reader(store, index), result.root, 2 << 40)
    assert [(e.start, e.length, e.zero) for e in disk.extents(0, 2 << 40)] == [
        (0, 4096, False),
        (4096, (2 << 40) - 4096, True),
    ]
    assert disk.pread((2 << 40) - 5, 5) == bytes(5)
    assert len(list(leaf_ids(result.root, 2 << 40, reader(store, index).node))) == 1


def test_a_bitmap_that_lies_is_found_by_allocation() -> None:
    """Shrunk and grown back: the size is equal, the bitmap clean, the content zero."""
    store, index = MemoryStore(), DictIndex()
    content = bytearray(texture(1, 8 * MIB))
    full = ingest(store, index, MemorySource(content))
    content[6 * MIB :] = bytes(2 * MIB)
    with pytest.raises(BitmapLied, match="clean where allocated data is gone"):
        ingest(store, index, MemorySource(content), parent=parent(full, len(content), store, index))


def test_a_short_zero_run_that_the_bitmap_missed_is_read() -> None:
    store, index = MemoryStore(), DictIndex()
    content = bytearray(texture(1, 8 * MIB))
    full = ingest(store, index, MemorySource(content))
    content[6 * MIB : 6 * MIB + 8192] = bytes(8192)

    class Fine(MemorySource):
        def status(self, start: int, stop: int):  # type: ignore[no-untyped-def]
            from imaging.source import BlockStatus

            return BlockStatus([ByteRange(6 * MIB, 6 * MIB + 8192)], [])

    result = ingest(store, index, Fine(content), parent=parent(full, len(content), store, index), sample=0)
    assert DiskReader(reader(store, index), result.root, len(content)).pread(0, len(content)) == content


def test_a_bitmap_that_lies_is_found_by_sampling() -> None:
    store, index = MemoryStore(), DictIndex()
    content = texture(1, 8 * MIB)
    full = ingest(store, index, MemorySource(content))
    other = texture(2, 8 * MIB)
    with pytest.raises(BitmapLied, match="sample"):
        ingest(store, index, MemorySource(other), parent=parent(full, len(content), store, index))


@pytest.mark.parametrize(("regions", "sample"), [(1, 1), (1, 40), (3, 8), (3, 10_000), (3, 2), (0, 5)])
def test_as_many_chunks_are_sampled_as_were_asked_for_or_all_that_are_clean(regions: int, sample: int) -> None:
    """What the documentation states of the chance to miss a bitmap that lies holds for small disks too."""
    store, index = MemoryStore(), DictIndex()
    content = texture(1, regions * REGION_BYTES)
    full = ingest(store, index, MemorySource(content))
    source = MemorySource(content, [ByteRange(0, 1)] if regions else [])
    again = ingest(store, index, source, parent=parent(full, len(content), store, index), sample=sample)
    fetch = reader(store, index).node
    ids = [each for number, leaf in leaf_ids(full.root, len(content), fetch)
           for each in read_leaf(leaf, len(content), number, fetch).ids if each]  # fmt: skip
    dirty = 2 if regions else 0  # 64 KiB, in one or two chunks
    assert min(sample, len(ids) - dirty) <= again.sampled_chunks <= min(sample, len(ids))


def test_a_failed_read_fails_the_run() -> None:
    store, index = MemoryStore(), DictIndex()
    source = MemorySource(texture(1, 40 * MIB))
    source.fail_at = 30 * MIB
    with pytest.raises(SourceError, match="injected"):
        ingest(store, index, source)


@pytest.mark.parametrize("sample", [0, 8])
def test_a_lost_leaf_is_read_again(sample: int) -> None:
    """Where losses are known, its region alone; else the whole disk, as other leaves may be lost with it."""
    store, index = MemoryStore(), DictIndex()
    content = texture(1, 40 * MIB)
    full = ingest(store, index, MemorySource(content))
    fetch = reader(store, index).node
    leaves = dict(leaf_ids(full.root, len(content), fetch))
    del index.places[leaves[1]]
    source = MemorySource(content, [ByteRange(REGION_BYTES, REGION_BYTES + 1)])
    plain = parent(full, len(content), store, index)
    with pytest.raises(ParentMapLost):
        ingest(store, index, source, parent=plain, sample=sample)
    index.places.pop(leaves[1], None)  # the run before, which failed, may have stored it
    knowing = ParentDisk(plain.root, plain.size_bytes, plain.fetch, index.known)
    healed = ingest(store, index, source, parent=knowing, sample=sample)
    assert healed.root == full.root
    assert DiskReader(reader(store, index), healed.root, len(content)).pread(0, len(content)) == content


class Ragged(MemorySource):
    """Extents of single sectors, as a server may tell them: aligned to nothing of ours, and not of all zeros."""

    sector = 512

    def __init__(self, content: bytes | bytearray, dirty: list[ByteRange], seed: int) -> None:
        super().__init__(content, dirty, granularity=self.sector)
        self.seed = seed

    def status(self, start: int, stop: int) -> BlockStatus:
        rng = random.Random(self.seed + start)
        zero = []
        for at in range(start, stop, self.sector):
            end = min(at + self.sector, stop)
            if not self.content[at:end].strip(b"\0") and (rng.random() < 0.9 or self.seed % 2):
                zero.append(ByteRange(at, end))
        return BlockStatus(merge(zero), clip(self.dirty, start, stop))


@given(
    size=st.sampled_from([1, 511, 4097, 300_000, REGION_BYTES + 70_001]),
    seed=st.integers(0, 1000),
    data=st.data(),
)
@settings(max_examples=40, deadline=None)
def test_extents_that_are_aligned_to_nothing_change_no_map(size: int, seed: int, data: st.DataObject) -> None:
    edges = st.sampled_from([0, 1, 511, 512, 4095, 4096, 16 * 4096, 65536, REGION_BYTES - 1, REGION_BYTES + 5])
    spots = st.lists(st.tuples(edges, st.integers(0, 70_000), st.booleans()), max_size=6)
    store, index = MemoryStore(), DictIndex()
    content = bytearray(texture(1 + seed % 2, size)) if seed % 3 else bytearray(size)
    full = ingest(store, index, Ragged(content, [], seed))
    assert full.root == ingest(store, index, Untold(content)).root
    changed = []
    for start, length, zero in data.draw(spots):
        start, stop = start % size, min(start % size + length, size)
        content[start:stop] = bytes(stop - start) if zero else random.Random(length).randbytes(stop - start)
        changed.append(ByteRange(start, stop))
    source = Ragged(content, merge(changed), seed)
    incremental = ingest(store, index, source, parent=parent(full, size, store, index))
    assert incremental.root == ingest(store, index, Untold(content)).root
    assert DiskReader(reader(store, index), incremental.root, size).pread(0, size) == content


class Untold(MemorySource):
    """A server without extents."""

    def status(self, start: int, stop: int) -> BlockStatus:
        return BlockStatus()
