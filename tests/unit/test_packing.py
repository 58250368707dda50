"""The pack writer when something fails: a run that lost a pack never flushes well, and no thread waits for ever."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest

from imaging.errors import IndexUnavailable, NoSpace
from imaging.ids import CHUNK, blob_id
from imaging.packing import PackWriter
from imaging.packs import PACK_BYTES_MAX, iter_rows, parse_pack
from imaging.places import PackRows
from imaging.storage.contract import Buffer
from tests.unit.memory import KEYS, DictIndex, MemoryStore, reader

PACK_BYTES = 256 << 10


def chunks(seed: int, count: int) -> list[tuple[bytes, bytes]]:
    rng = random.Random(seed)
    plains = [rng.randbytes(64 << 10) for _ in range(count)]
    return [(blob_id(KEYS, CHUNK, plain), plain) for plain in plains]


def nothing_known(ids: Sequence[bytes]) -> list[bool]:
    return [False] * len(ids)


class Shared:
    """What others have stored: nothing."""

    known = staticmethod(nothing_known)


class FullCache(DictIndex):
    """A pending index whose cache folder is full once: as PendingIndex.add, it has taken the rows in by then."""

    full = True

    def add(self, rows: PackRows) -> None:
        super().add(rows)
        if self.full:
            self.full = False
            raise IndexUnavailable("the cache", "no space is left")


class FullStore(MemoryStore):
    """Refuses the pack that is put as the `nth`; `meanwhile` runs before that."""

    def __init__(self, nth: int, meanwhile: Callable[[], object] = lambda: None) -> None:
        super().__init__()
        self.nth, self.meanwhile, self.puts = nth, meanwhile, 0
        self.counting = threading.Lock()

    def put(self, name: str, data: Sequence[Buffer]) -> None:
        with self.counting:
            self.puts += 1
            mine = self.puts
        if mine >= self.nth:
            self.meanwhile()
            raise NoSpace("write", name)
        super().put(name, data)


def writer(store: MemoryStore, pending: DictIndex, publish: Callable[[Sequence[PackRows]], None]) -> PackWriter:
    return PackWriter(store, KEYS, Shared(), pending, publish, compression_level=1, pack_bytes=PACK_BYTES)


def test_a_pack_that_was_lost_before_its_put_is_never_forgotten() -> None:
    """The caller may go on with the same writer, as a run does after a bitmap that lied: its error is then gone."""
    store, pending = MemoryStore(), FullCache()
    with writer(store, pending, lambda packs: None) as packs:
        with pytest.raises(IndexUnavailable):
            packs.store_chunks(chunks(1, 8))
        with pytest.raises(IndexUnavailable):
            packs.store_chunks(chunks(1, 8))
        with pytest.raises(IndexUnavailable):
            packs.flush()


def test_a_pack_that_is_lost_at_the_flush_is_never_forgotten() -> None:
    store, pending = MemoryStore(), FullCache()
    with writer(store, pending, lambda packs: None) as packs:
        packs.store_chunks(chunks(1, 1))
        for _ in range(2):
            with pytest.raises(IndexUnavailable):
                packs.flush()
        with pytest.raises(IndexUnavailable):
            packs.store_chunks(chunks(1, 1))


def test_what_was_flushed_is_there_and_published_after_it_was_durable() -> None:
    store, pending = MemoryStore(), DictIndex()
    published: list[PackRows] = []

    def publish(rows: Sequence[PackRows]) -> None:
        assert all(any(pack.pack.hex() in name for name in store.objects) for pack in rows)
        published.extend(rows)

    content = chunks(2, 20)
    with writer(store, pending, publish) as packs:
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(packs.store_chunks, [content[n::4] for n in range(4)]))
        node = packs.store_node(b"a node")
        packs.flush()
    assert reader(store, pending).chunks([identity for identity, _ in content]) == [plain for _, plain in content]
    assert reader(store, pending).node(node) == b"a node"
    assert {pack.pack for pack in published} == {bytes.fromhex(name[9:]) for name in store.objects}
    assert packs.stored.packs == len(store.objects)
    assert packs.stored.bytes == sum(map(len, store.objects.values()))


@pytest.mark.parametrize("below", [0, 100, 64 << 10])
def test_no_pack_is_longer_than_a_pack_may_be(below: int) -> None:
    store, pending = MemoryStore(), DictIndex()
    content = chunks(5, 600)
    with PackWriter(store, KEYS, Shared(), pending, lambda packs: None, compression_level=1,
                    pack_bytes=PACK_BYTES_MAX - below) as packs:  # fmt: skip
        packs.store_chunks(content)
        packs.flush()
    longest = max(map(len, store.objects.values()))
    assert longest <= PACK_BYTES_MAX
    for name, data in store.objects.items():
        parse_pack(name, KEYS, data)
    assert reader(store, pending).chunks([identity for identity, _ in content]) == [plain for _, plain in content]


@pytest.mark.parametrize("nth", [1, 3])
def test_a_put_that_fails_ends_all_threads_and_nothing_is_published(nth: int) -> None:
    """Also those that wait, under the lock, until the uploaders have room."""
    waiting = threading.Event()
    store = FullStore(nth, lambda: waiting.wait(0.3))
    published: list[PackRows] = []
    ended: list[BaseException | None] = []

    def work(seed: int) -> None:
        try:
            for turn in range(20):
                packs.store_chunks(chunks(1000 * seed + turn, 4))
            ended.append(None)
        except NoSpace as err:
            ended.append(err)

    with writer(store, DictIndex(), published.extend) as packs:
        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert not any(thread.is_alive() for thread in threads)
        with pytest.raises(NoSpace):
            packs.flush()
    assert len(ended) == 4
    assert all(isinstance(err, NoSpace) for err in ended)
    assert not published


def test_an_index_object_that_cannot_be_published_fails_the_flush() -> None:
    def publish(rows: Sequence[PackRows]) -> None:
        raise NoSpace("write", "index")

    with writer(MemoryStore(), DictIndex(), publish) as packs:
        packs.store_chunks(chunks(3, 3))
        with pytest.raises(NoSpace):
            packs.flush()
        with pytest.raises(NoSpace):
            packs.flush()


def test_leaving_after_a_failure_waits_for_the_uploads_that_run() -> None:
    store, pending = MemoryStore(), DictIndex()
    begun, release = threading.Event(), threading.Event()
    inner = store.put

    def put(name: str, data: Sequence[Buffer]) -> None:
        begun.set()
        release.wait(60)
        inner(name, data)

    store.put = put  # type: ignore[method-assign]

    def interrupted() -> None:
        with writer(store, pending, lambda packs: None) as packs:
            packs.store_chunks(chunks(4, 5))
            assert begun.wait(60)
            threading.Timer(0.1, release.set).start()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert len(store.objects) == 1, "no put is left running behind"


def test_threads_share_one_pack_until_it_is_full_and_fill_their_own_then() -> None:
    """So a small run stores one pack, and what lies together on a large disk lies together in a pack."""
    together = threading.Barrier(3)

    def store_some(turns: int) -> tuple[MemoryStore, dict[str, set[int]]]:
        store, pending = MemoryStore(), DictIndex()
        owner: dict[bytes, int] = {}

        def work(number: int) -> None:
            for turn in range(turns):
                mine = chunks(1000 * number + turn + 7, 1)
                owner.update({identity: number for identity, _ in mine})
                together.wait(120)
                packs.store_chunks(mine)

        with PackWriter(store, KEYS, Shared(), pending, lambda packs: None, compression_level=1,
                        pack_bytes=10 * PACK_BYTES) as packs:  # fmt: skip
            with ThreadPoolExecutor(3) as pool:
                list(pool.map(work, range(3)))
            packs.flush()
        assert pending.known(list(owner)) == [True] * len(owner)
        holds = {
            name: {owner[identity] for identity, _ in iter_rows(parse_pack(name, KEYS, data).rows)}
            for name, data in store.objects.items()
        }
        return store, holds

    small, holds = store_some(2)
    assert len(small.objects) == 1
    assert list(holds.values()) == [{0, 1, 2}]
    _, holds = store_some(200)
    of_one = [name for name, numbers in holds.items() if len(numbers) == 1]
    assert len(of_one) == len(holds) - 1 > 3, "all but the first"
