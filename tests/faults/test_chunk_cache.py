"""The chunk cache of a repository that is far away: whatever becomes of it, what is read is right, and nothing is said
of a pack because of it."""

from __future__ import annotations

import os
import random
import secrets
import subprocess
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from imaging.errors import ImagingError
from imaging.packs import pack_name
from imaging.reader import DiskReader
from imaging.repository import Point, Repository
from imaging.storage import block_cache
from imaging.storage.local import LocalStore
from imaging.storage.pace import FAR
from imaging.storage.retrying import RetryingStore
from imaging.storage.s3 import S3Store
from tests.faults.bad_object_store import BadObjectStore, cut_short, late
from tests.faults.faulty_store import FaultyStore
from tests.faults.repositories import ManualClock, back_up, content, make, reopen
from tests.lab.s3_server import running

pytestmark = pytest.mark.faults

MIB = 1 << 20
_READ_BYTES = 256 << 10
SIZE = 6 * MIB + 5000
PACE = replace(FAR, cache_bytes=32 * MIB)


@dataclass
class Reserve:
    """What a cache leaves free on its file system."""

    bytes: int = 0


@pytest.fixture(autouse=True)
def reserve(monkeypatch: pytest.MonkeyPatch) -> Reserve:
    """None: the tests' file systems are small, or as full as they happen to be."""
    chosen = Reserve()
    real = block_cache.BlockCache.open

    def opened(folder: Path, repository_id: bytes, limit_bytes: int) -> block_cache.BlockCache | None:
        return real(folder, repository_id, limit_bytes, reserve_bytes=chosen.bytes)

    monkeypatch.setattr(block_cache.BlockCache, "open", opened)
    return chosen


@dataclass
class Rig:
    folder: Path
    store: FaultyStore
    point: Point
    data: bytes

    def open(self, cache: str = "cache") -> Repository:
        return reopen(self.folder, cache, store=self.store, pace=PACE)

    def pack_reads(self) -> int:
        return sum(method == "get" and name.startswith("packs/") for method, name in self.store.calls)

    def read(self, repository: Repository) -> bytes:
        """As a recovered machine does: a little at a time. What is read at once in large pieces goes past caches."""
        entry = self.point.manifest.disks[0]
        disk = DiskReader(repository.blobs, entry.root, entry.size_bytes)
        return b"".join(
            disk.pread(at, min(_READ_BYTES, entry.size_bytes - at)) for at in range(0, entry.size_bytes, _READ_BYTES)
        )

    @property
    def cache_file(self) -> Path:
        (found,) = (self.folder / "cache" / "chunks").iterdir()
        return found


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    store = FaultyStore(LocalStore.make(tmp_path / "store"))
    data = content(1, SIZE)
    with make(tmp_path, store=store) as repository:
        point = back_up(repository, "web", {"disk": data})
    return Rig(tmp_path, store, point, data)


def test_what_was_read_once_is_read_no_more_and_lies_sealed(rig: Rig) -> None:
    with rig.open() as repository:
        assert rig.read(repository) == rig.data
    before = rig.pack_reads()
    with rig.open() as repository:
        assert rig.read(repository) == rig.data
        assert rig.pack_reads() == before
    kept = rig.cache_file.read_bytes()
    assert len(kept.strip(b"\0")) > SIZE // 2, "it is there"
    assert all(rig.data[at : at + 64] not in kept for at in range(0, SIZE - 64, 65_536)), "and not in clear"


def flipped(path: Path) -> None:
    rng = random.Random(5)
    with path.open("r+b", buffering=0) as file:
        taken = [at for at in range(0, os.fstat(file.fileno()).st_size, 4096) if any(os.pread(file.fileno(), 4096, at))]
        for at in rng.sample(taken[1:], len(taken) // 4):
            spot = at + rng.randrange(4096)
            byte = os.pread(file.fileno(), 1, spot)[0]
            os.pwrite(file.fileno(), bytes([byte ^ 0x10]), spot)


@pytest.mark.parametrize(
    "harm",
    [
        flipped,
        lambda path: os.truncate(path, 5000),
        lambda path: os.truncate(path, 3 * MIB),
        lambda path: path.write_bytes(b"no cache"),
        Path.unlink,
    ],
    ids=["flipped", "cut off", "cut in the middle", "replaced", "removed"],
)
@pytest.mark.parametrize("when", ["closed", "open"])
def test_a_damaged_cache_costs_requests_and_nothing_else(rig: Rig, harm: Callable[[Path], object], when: str) -> None:
    with rig.open() as repository:
        assert rig.read(repository) == rig.data
        if when == "closed":
            harm(rig.cache_file)
    before = rig.pack_reads()
    with rig.open() as repository:
        assert repository.blobs is not None, "the cache is open"
        if when == "open":
            harm(rig.cache_file)
        assert rig.read(repository) == rig.data
        assert repository.damaged_packs() == frozenset()
    assert rig.pack_reads() > before or (when == "open" and harm is Path.unlink), "the harm was met"


def test_wrong_bytes_of_the_store_are_not_kept_and_the_pack_is_not_accused(rig: Rig) -> None:
    """A flip on the way, once: what came is kept as it came, so the second try has to go past the cache."""
    with rig.open() as repository:
        repository.blobs.node(rig.point.manifest.disks[0].root or b"")
        rig.store.corrupt(lambda data: bytes(each ^ 0x55 for each in data), prefix="packs/")
        assert rig.read(repository) == rig.data
        assert repository.damaged_packs() == frozenset()
    assert rig.store.faults[0].fired == 1
    before = rig.pack_reads()
    with rig.open() as repository:
        assert rig.read(repository) == rig.data
        again = rig.pack_reads() - before
    with rig.open() as repository:
        assert rig.read(repository) == rig.data
    assert rig.pack_reads() == before + again, "by now all that is kept is right"


def test_a_pack_that_is_damaged_in_the_store_is_found_although_it_once_was_cached(rig: Rig) -> None:
    """Verifying asks the store; a reader is served by the cache as long as that has it."""
    with rig.open() as repository:
        assert rig.read(repository) == rig.data
        place = repository.index.locate(_a_chunk(repository, rig.point))[0]
        name = pack_name(place.pack)
        bad = bytearray(rig.store.get(name))
        bad[place.offset_bytes + 5] ^= 1
        rig.store.put(name, [bytes(bad)])
        assert rig.read(repository) == rig.data
        assert not repository.verify(read_data=True).ok
        assert repository.damaged_packs() == {place.pack}


def _a_chunk(repository: Repository, point: Point) -> bytes:
    from imaging.diskmap import leaf_ids, read_leaf

    entry = point.manifest.disks[0]
    region, leaf = next(iter(leaf_ids(entry.root, entry.size_bytes, repository.blobs.node)))
    ids = read_leaf(leaf, entry.size_bytes, region, repository.blobs.node).ids
    return next(each for each in ids if each is not None)


@pytest.fixture
def small(rig: Rig) -> Iterator[Path]:
    """The cache's folder on a file system of 4 MiB."""
    folder = rig.folder / "small"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "strongroom-test", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a file system needs root")
def test_a_full_file_system_keeps_less_and_hurts_nobody(
    rig: Rig, small: Path, reserve: Reserve, caplog: pytest.LogCaptureFixture
) -> None:
    reserve.bytes = -MIB  # so that it goes on until the kernel refuses
    with reopen(rig.folder, "cache", store=rig.store, pace=PACE) as repository:
        assert repository.index is not None  # the index has its place
        chunks = rig.folder / "cache" / "chunks"
        chunks.symlink_to(small)
        assert rig.read(repository) == rig.data
        assert rig.read(repository) == rig.data
        facts = os.statvfs(small)
        assert facts.f_bavail * facts.f_frsize < block_cache.BLOCK_BYTES, "it is full"
        assert repository.damaged_packs() == frozenset()
    assert "No space left" in caplog.text


def patient(store: S3Store) -> RetryingStore:
    clock = ManualClock()
    return RetryingStore(store, clock, clock.pass_s, random.random)


def test_a_slow_server_is_asked_once_for_what_many_want(tmp_path: Path) -> None:
    """And one that ends an answer early is asked again by the one who wants it, and by nobody in vain."""
    server = running()
    with BadObjectStore(server.url) as bad:
        place = server.bucket(f"slow-{secrets.token_hex(4)}/", url=bad.url)
        data = content(3, 2 * MIB)
        with make(tmp_path, store=patient(S3Store(place, server.credentials))) as repository:
            point = back_up(repository, "web", {"disk": data})
        with reopen(tmp_path, store=patient(S3Store(place, server.credentials)), pace=PACE) as repository:
            entry = point.manifest.disks[0]
            repository.refresh_index()
            bad.begin()
            bad.fail("get", late(0.3), within="/packs/", nth=1)
            bad.fail("get", cut_short(), within="/packs/", nth=3)
            disk = DiskReader(repository.blobs, entry.root, entry.size_bytes, cache_bytes=1)
            gate = threading.Barrier(6)

            def read(number: int) -> bytes | ImagingError:
                gate.wait()
                try:
                    return disk.pread(number * 1000, 20_000)
                except ImagingError as error:
                    return error

            with ThreadPoolExecutor(6) as pool:
                found = list(pool.map(read, range(6)))
            for number, part in enumerate(found):
                assert part == data[number * 1000 : number * 1000 + 20_000]
            assert disk.pread(0, len(data)) == data
            of_packs = bad.faults[0].seen
            assert of_packs <= 6, "the map, what the six want, the rest, and that again"
            assert repository.damaged_packs() == frozenset()
