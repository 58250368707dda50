"""Cached reads against the store: fewer requests, the same bytes, and never those that are wrong."""

from __future__ import annotations

import random
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imaging.errors import Damaged, StoreUnavailable
from imaging.storage import caching
from imaging.storage.block_cache import BLOCK_BYTES, BlockCache
from imaging.storage.caching import CachedReads
from imaging.storage.local import LocalStore
from tests.faults.faulty_store import FaultyStore

NAME = "packs/ab/abcd"
CONTENT = random.Random(1).randbytes(5 * BLOCK_BYTES + 1000)


class Watched(FaultyStore):
    """Notes the ranges that it is asked for."""

    def __init__(self, inner: LocalStore) -> None:
        super().__init__(inner)
        self.ranges: list[tuple[int, int | None]] = []
        self.gate: threading.Event | None = None

    def get(self, name: str, offset_bytes: int = 0, length_bytes: int | None = None) -> bytes:
        self.ranges.append((offset_bytes, length_bytes))
        if self.gate is not None:
            assert self.gate.wait(120)
        return super().get(name, offset_bytes, length_bytes)


class Nothing:
    """A cache on a disk that is full, or gone."""

    def get(self, name: str, number: int) -> bytes | None:
        return None

    def put(self, name: str, number: int, data: bytes) -> None: ...

    def forget(self, name: str, number: int) -> None: ...


def stores(folder: Path, size: int | None = len(CONTENT)) -> tuple[Watched, CachedReads]:
    inner = Watched(LocalStore.make(folder / "store"))
    inner.put(NAME, [CONTENT])
    return inner, CachedReads(inner, blocks(folder), lambda name: size)


def blocks(folder: Path) -> BlockCache:
    cache = BlockCache.open(folder / "chunks", bytes(16), 16 << 20, reserve_bytes=0)
    assert cache is not None
    return cache


@given(st.lists(st.tuples(st.integers(0, len(CONTENT) - 1), st.integers(1, 3 * BLOCK_BYTES)), min_size=1, max_size=8))
@settings(max_examples=40, deadline=None)
def test_any_range_is_what_was_put_and_each_block_is_fetched_once(
    tmp_path_factory: pytest.TempPathFactory, wanted: list[tuple[int, int]]
) -> None:
    inner, store = stores(tmp_path_factory.mktemp("caching"))
    for offset, length in wanted:
        length = min(length, len(CONTENT) - offset)
        assert store.get(NAME, offset, length) == CONTENT[offset : offset + length]
    covered = [number for start, length in inner.ranges for number in range(start // BLOCK_BYTES,
               -(-(start + (length or 0)) // BLOCK_BYTES))]  # fmt: skip
    assert len(covered) == len(set(covered))


def test_neighbours_that_are_missing_are_one_request_and_the_last_block_ends_with_the_object(tmp_path: Path) -> None:
    inner, store = stores(tmp_path)
    store.get(NAME, 2 * BLOCK_BYTES + 5, 10)
    store.get(NAME, 0, len(CONTENT))
    assert inner.ranges == [
        (2 * BLOCK_BYTES, BLOCK_BYTES), (0, 2 * BLOCK_BYTES), (3 * BLOCK_BYTES, len(CONTENT) - 3 * BLOCK_BYTES)
    ]  # fmt: skip


def test_another_process_finds_what_was_kept(tmp_path: Path) -> None:
    _, store = stores(tmp_path)
    store.get(NAME, 0, len(CONTENT))
    inner, again = stores(tmp_path)
    assert again.get(NAME, 0, len(CONTENT)) == CONTENT
    assert inner.ranges == []


def test_where_nothing_can_be_kept_on_disk_neighbours_still_cost_one_request(tmp_path: Path) -> None:
    inner, _ = stores(tmp_path)
    store = CachedReads(inner, Nothing(), lambda name: len(CONTENT))
    for at in range(0, BLOCK_BYTES, 32 << 10):
        assert store.get(NAME, at, 32 << 10) == CONTENT[at : at + (32 << 10)]
    assert inner.ranges == [(0, BLOCK_BYTES)]


@pytest.fixture
def waiting(monkeypatch: pytest.MonkeyPatch) -> threading.Semaphore:
    """Released by each reader that has found another one fetching its block, and waits for it from now on."""
    arrived = threading.Semaphore(0)

    class Watched(Future[bytes]):
        def exception(self, timeout: float | None = None) -> BaseException | None:
            arrived.release()
            return super().exception(timeout)

    monkeypatch.setattr(caching, "Future", Watched)
    return arrived


def all_but_one_wait(waiting: threading.Semaphore, reads: list[Future[bytes]]) -> None:
    for _ in reads[1:]:
        assert waiting.acquire(timeout=120)
    assert not any(read.done() for read in reads)


def test_many_readers_of_a_block_fetch_it_once(tmp_path: Path, waiting: threading.Semaphore) -> None:
    inner, store = stores(tmp_path)
    inner.gate = threading.Event()
    with ThreadPoolExecutor(8) as pool:
        reads = [pool.submit(store.get, NAME, BLOCK_BYTES + number, 100) for number in range(8)]
        try:
            all_but_one_wait(waiting, reads)
        finally:
            inner.gate.set()
        for number, read in enumerate(reads):
            assert read.result() == CONTENT[BLOCK_BYTES + number : BLOCK_BYTES + number + 100]
    assert inner.ranges == [(BLOCK_BYTES, BLOCK_BYTES)]
    assert not store._loading


def test_who_waited_for_one_that_failed_asks_on_its_own(tmp_path: Path, waiting: threading.Semaphore) -> None:
    inner, store = stores(tmp_path)
    inner.gate = threading.Event()
    inner.fail("get", error=StoreUnavailable("read", NAME, "Connection reset by peer"))
    with ThreadPoolExecutor(4) as pool:
        reads = [pool.submit(store.get, NAME, number, 100) for number in range(4)]
        try:
            all_but_one_wait(waiting, reads)
        finally:
            inner.gate.set()
        errors = [read.exception() for read in reads]
    (loser,) = [number for number, error in enumerate(errors) if error is not None]
    assert isinstance(errors[loser], StoreUnavailable)
    others = [number for number in range(4) if number != loser]
    assert all(reads[number].result() == CONTENT[number : number + 100] for number in others)
    assert (inner.ranges[0], sorted(inner.ranges[1:])) == ((0, BLOCK_BYTES), [(number, 100) for number in others])
    assert store.get(NAME, 0, 100) == CONTENT[:100]


def test_what_was_forgotten_is_fetched_again(tmp_path: Path) -> None:
    inner, store = stores(tmp_path)
    inner.corrupt(lambda data: bytes([data[0] ^ 1]) + data[1:])
    assert store.get(NAME, 0, 100) != CONTENT[:100], "it cannot know"
    store.forget(NAME, 0, 100)
    assert store.get(NAME, 0, 100) == CONTENT[:100]
    assert stores(tmp_path)[1].get(NAME, 0, 100) == CONTENT[:100]


@pytest.mark.parametrize("size", [None, 7])
def test_an_object_whose_length_is_not_known_is_left_to_the_store(tmp_path: Path, size: int | None) -> None:
    inner, store = stores(tmp_path, size)
    assert store.get(NAME, 10, 100) == CONTENT[10:110]
    assert inner.ranges == [(10, 100)]


def test_an_object_that_is_shorter_than_it_should_be_is_damaged(tmp_path: Path) -> None:
    _, store = stores(tmp_path, len(CONTENT) + 1)
    assert store.get(NAME, 0, 100) == CONTENT[:100]
    with pytest.raises(Damaged):
        store.get(NAME, 5 * BLOCK_BYTES, 100)
