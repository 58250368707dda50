"""One byte flipped in every object of a repository in turn: each is found and named, and no restore returns wrong data.

The repository has objects of every kind. For each flip, somebody who knows of nothing restores every point first: what
ends well is bit-exact, and what fails tells byte ranges, outside of which everything is right. Then verify names the
object, and the same ranges of the same points. The byte is put back, and all is well again.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from imaging.damage import Damage
from imaging.errors import ChunkMissing, Damaged, ObjectMissing, PointNotFound
from imaging.extents import ByteRange, subtract
from imaging.packs import HEADER_BYTES, TRAILER_BYTES
from imaging.points import Point
from imaging.reader import DiskReader
from imaging.repository import Repository
from imaging.restoring import DiskWriter, RawTarget
from imaging.soundness import known_damage
from tests.faults.guarded import Guarded
from tests.faults.repositories import ManualClock, back_up, content, make, reopen
from tests.faults.test_collection import collect, delete

pytestmark = pytest.mark.faults

LOST = (Damaged, ChunkMissing, ObjectMissing)
WEB_1 = {"disk": content(1, 300_000) + bytes(200_000) + content(2, 50_123)}
WEB_2 = {"disk": WEB_1["disk"][:150_000] + content(3, 60_000) + WEB_1["disk"][210_000:], "second": content(4, 70_000)}
DB = {"disk": content(5, 120_000)}
KINDS = {
    *("config", "config.copy", "keys", "keys.copy", "packs", "index", "manifests", "tombstones", "leases", "claims"),
    *("holds", "epochs", "rollcalls", "damaged", "persons", "guard", "guard.copy", "requests"),
}


@dataclass(frozen=True)
class Whole:
    """A repository in which nothing is damaged, with every kind of object."""

    folder: Path
    points: list[tuple[Point, dict[str, bytes]]]

    @property
    def store(self) -> Path:
        return self.folder / "store"

    def objects(self) -> list[str]:
        found = (path.relative_to(self.store) for path in self.store.rglob("*") if path.is_file())
        return sorted(str(path) for path in found if path.parts[0] != "tmp")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    folder = tmp_path_factory.mktemp("flips")
    with make(folder) as repository:
        delete(repository, back_up(repository, "web", {"disk": content(8, 100_000)}))
        points = [(back_up(repository, "web", data), data) for data in (WEB_1, WEB_2)]
        points.append((back_up(repository, "db", DB), DB))
        assert collect(repository).deleted_packs, "epochs and roll calls"
        delete(repository, back_up(repository, "gone", {"disk": content(9, 50_000)}))
        repository.hold(points[0][0], "protected", "test")
        suspect = max((folder / "store" / "packs").glob("*/*"), key=lambda path: path.stat().st_size)
        with flipped(suspect, HEADER_BYTES + 1):
            repository.verify(read_data=True)
        guarded = Guarded(folder, ManualClock(), repository, [point for point, _ in points])
        guarded.turn_on("alice", "bob")
        guarded.confirm(guarded.ask(guarded.deletion(points[0][0])))
    whole = Whole(folder, points)
    assert {name.partition("/")[0] for name in whole.objects()} == KINDS
    return whole


@contextmanager
def flipped(path: Path, at: int) -> Iterator[None]:
    good = path.read_bytes()
    path.write_bytes(good[:at] + bytes([good[at] ^ 0x10]) + good[at + 1 :])
    yield
    put_back(path, good)


def put_back(path: Path, data: bytes) -> None:
    """Also a verdict that a verification has taken back."""
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(data)


def places(path: Path) -> Iterator[int]:
    """Where bytes are flipped: in the middle; of packs also in the header, the last blob, the table and the trailer."""
    size_bytes = path.stat().st_size
    yield size_bytes // 2
    if path.parent.parent.name == "packs":
        yield from (HEADER_BYTES // 2, size_bytes - TRAILER_BYTES - 8, size_bytes - 10)


def restore(repository: Repository, point: Point, disk: str, target: Path) -> bytes:
    entry = point.manifest.disk(disk)
    assert entry is not None
    descriptor = os.open(target, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        os.ftruncate(descriptor, entry.size_bytes)
        with RawTarget(descriptor, str(target), blank=True) as raw:
            DiskWriter(repository.blobs, repository.keys, raw, threads=1).write(entry.root, entry.size_bytes)
    finally:
        os.close(descriptor)
    return target.read_bytes()


def check_ranges(repository: Repository, point: Point, damage: Damage, truth: bytes) -> None:
    """Just these cannot be read: around them all is right, and in each there is an error."""
    entry = point.manifest.disk(damage.disk)
    assert entry is not None
    assert damage.exact
    assert damage.ranges
    reader = DiskReader(repository.blobs, entry.root, entry.size_bytes)
    for good in subtract([ByteRange(0, len(truth))], damage.ranges):
        assert reader.pread(good.start, good.length) == truth[good.start : good.stop]
    for bad in damage.ranges:
        with pytest.raises(LOST):
            reader.pread(bad.start, bad.length)


def test_each_is_found_and_named_and_no_restore_returns_wrong_data(whole: Whole, tmp_path: Path) -> None:
    before = {name: (whole.store / name).read_bytes() for name in whole.objects()}
    hurt: set[str] = set()
    for name in before:
        for at in places(whole.store / name):
            with flipped(whole.store / name, at):
                failed = what_fails(whole, tmp_path)
                what_verify_says(whole, name, failed)
            hurt.update([name] if failed else [])
            for path in whole.store.glob("damaged/*"):
                if f"damaged/{path.name}" not in before:
                    path.unlink()
            for verdict in (each for each in before if each.startswith("damaged/")):
                put_back(whole.store / verdict, before[verdict])
            shutil.rmtree(whole.folder / "fresh", ignore_errors=True)
            assert {each: (whole.store / each).read_bytes() for each in whole.objects()} == before
    assert {name.partition("/")[0] for name in hurt} == {"packs", "manifests", "leases"}
    with reopen(whole.folder, "fresh") as repository:
        assert repository.verify(read_data=True).ok


def what_fails(whole: Whole, folder: Path) -> dict[str, tuple[Damage, ...]]:
    """By point, for somebody who knows of nothing: () where the point itself cannot be read."""
    failed: dict[str, tuple[Damage, ...]] = {}
    with reopen(whole.folder, "fresh") as repository:
        for point, data in whole.points:
            try:
                assert repository.point(point.id) == point
            except (Damaged, PointNotFound):
                assert point.id in {each.id for each in repository.damaged_points()}
                failed[point.id] = ()
                continue
            for disk, truth in data.items():
                try:
                    assert restore(repository, point, disk, folder / "back.raw") == truth
                except LOST:
                    entry = point.manifest.disk(disk)
                    assert entry is not None
                    (damage,) = known_damage(repository, [entry])
                    check_ranges(repository, point, damage, truth)
                    failed[point.id] = (*failed.get(point.id, ()), damage)
    return failed


def what_verify_says(whole: Whole, name: str, failed: dict[str, tuple[Damage, ...]]) -> None:
    with reopen(whole.folder, "fresh") as repository:
        report = repository.verify(read_data=True)
        named = {problem.name: str(problem.error) for problem in report.problems}
        assert name in named
        assert name in named[name]
        points = {point.name for point, _ in whole.points}
        ends = {f"leases/{point.manifest.lease}/end": point.name for point, _ in whole.points}
        assert set(named) - {name} <= ({ends[name]} if name in ends else set()), "and nothing else"
        assert {hit.id: hit.damage for hit in report.affected} == failed
        assert bool(failed) or name not in points
