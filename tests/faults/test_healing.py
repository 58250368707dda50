"""What is lost here and is in a copy, under other keys and cuts, comes back: bit by bit as it was, and nothing else."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from imaging.copying import Copier, SamePoints
from imaging.diskmap import find_leaf, read_leaf
from imaging.envelope import ObjectType
from imaging.errors import (
    ChunkMissing,
    Damaged,
    NoSpace,
    ObjectMissing,
    SeriesBusy,
    StoreUnavailable,
)
from imaging.extents import ByteRange
from imaging.healing import Healed, Healer
from imaging.healing_store import LeasedStore
from imaging.index_objects import decode_index
from imaging.ingest import ingest_disk
from imaging.manifest import FileEntry
from imaging.packing import PackWriter
from imaging.packs import HEADER_BYTES, pack_name
from imaging.points import Point
from imaging.reader import DiskReader
from imaging.repository import Repository
from imaging.source import BytesSource
from imaging.storage.local import LocalStore
from tests.faults.faulty_store import FaultyStore
from tests.faults.repositories import OTHER, back_up, content, draft, make, read_disk, reopen, write_disks
from tests.faults.test_collection import Silent, collect, delete, healthy

pytestmark = pytest.mark.faults

MIB = 1 << 20
LOST = (Damaged, ChunkMissing, ObjectMissing)
# Three regions: data, a hole with a little at its end, and a last one that is short and ends within a page.
WEB_1 = content(1, 500_000) + bytes(32 * MIB - 600_000) + content(2, 100_000) + content(3, 700_123)
WEB_2 = WEB_1[:300_000] + content(4, 90_000) + WEB_1[390_000:]  # the first chunk, 256 KiB at most, is the same
DB = content(5, 400_000)
NVRAM = content(6, 60_000)


@dataclass(frozen=True)
class Scene:
    """`folder`/store is ours, `copy`/store the copy. `written[label]`: names of the packs of its run, by blob type."""

    folder: Path
    copy: Path
    points: Mapping[str, Point]
    written: Mapping[str, Mapping[int, str]]

    def path(self, name: str) -> Path:
        return self.folder / "store" / name


CONTENT = {"web1": WEB_1, "web2": WEB_2, "db": DB}


def back_up_with_nvram(repository: Repository, name: str, disk: bytes) -> Point:
    with repository.begin_run(repository.series_of("image", name)) as run:
        entries = write_disks(repository, run, {"disk": disk, "nvram-as-disk": NVRAM})
        made = draft(name, entries[:1], datetime(2026, 3, 1, tzinfo=UTC))
        file = FileEntry("nvram", "/nvram", root=entries[1].root, size_bytes=len(NVRAM))
        return run.commit(replace(made, files=(file,)))


def copy_point(origin: Repository, target: Repository, point: Point) -> Point:
    series = target.series_of("image", point.manifest.machine.name)
    with (
        target.begin_run(series) as run,
        target.pending() as pending,
        PackWriter(target.store, target.keys, target.index, pending, run.put_index, compression_level=1) as writer,
    ):
        copier = Copier(origin, target, writer, workers=1, start=lambda *_: None, advance=lambda _: None)
        made = copier.copy(point, None, run.parent)
        writer.flush()
        return run.commit(made)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    folder = tmp_path_factory.mktemp("healing")
    (folder / "copy").mkdir()
    points, written = {}, {}
    with make(folder) as ours, make(folder / "copy") as copy:
        assert ours.keys.cut_multipliers != copy.keys.cut_multipliers
        for label, data in CONTENT.items():
            before = {listed.name for listed in ours.store.list("index/")}
            if label == "db":
                points[label] = back_up(ours, "db", {"disk": data})
            else:
                points[label] = back_up_with_nvram(ours, "web", data)
            (index,) = {listed.name for listed in ours.store.list("index/")} - before
            body = ours._objects.read(ObjectType.INDEX, index).body
            written[label] = {entry.blob_type: pack_name(entry.pack) for entry in decode_index(body)}
            copy_point(ours, copy, points[label])
    return Scene(folder, folder / "copy", points, written)


@pytest.fixture
def scene(original: Scene, tmp_path: Path) -> Scene:
    shutil.copytree(original.folder / "store", tmp_path / "store")
    (tmp_path / "copy").mkdir()
    shutil.copytree(original.copy / "store", tmp_path / "copy" / "store")
    return replace(original, folder=tmp_path, copy=tmp_path / "copy")


def unheld(point: Point) -> AbstractContextManager[object]:
    return nullcontext()


def heal(repository: Repository, scene: Scene, *, dry_run: bool = False) -> Healed:
    with reopen(scene.copy) as copy:
        return repository.heal(SamePoints(repository, copy, unheld).of, Silent(), dry_run=dry_run)


def read_part(repository: Repository, point: Point, name: str) -> bytes:
    if name == "disk":
        return read_disk(repository, point)
    (file,) = point.manifest.files
    return DiskReader(repository.blobs, file.root, file.size_bytes).pread(0, file.size_bytes)


def everything_restores(folder: Path, points: Mapping[str, Point]) -> None:
    """To whoever comes new, and again once what nothing needs any more is gone."""
    with reopen(folder, "fresh", OTHER) as repository:
        restores(repository, points)
        assert repository.verify().affected == ()
        collect(repository)
        collect(repository)
        healthy(repository)
        restores(repository, points)
    shutil.rmtree(folder / "fresh")


def restores(repository: Repository, points: Mapping[str, Point]) -> None:
    for label, point in points.items():
        assert repository.point(point.id) == point
        assert read_disk(repository, point) == CONTENT[label]
        if point.manifest.files:
            assert read_part(repository, point, "nvram") == NVRAM


def objects(folder: Path) -> dict[str, bytes]:
    store = folder / "store"
    return {str(path.relative_to(store)): path.read_bytes() for path in store.rglob("*") if path.is_file()}


def flip_all(path: Path) -> None:
    """Every blob, but not the frame."""
    data = path.read_bytes()
    path.write_bytes(data[:HEADER_BYTES] + bytes(byte ^ 1 for byte in data[HEADER_BYTES:]))


def flip_one(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[HEADER_BYTES + 3] ^= 1
    path.write_bytes(data)


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


damages = pytest.mark.parametrize(
    "damage", [flip_one, flip_all, cut_short, Path.unlink], ids=["one", "all", "cut", "gone"]
)


@damages
@pytest.mark.parametrize("blob_type", [0, 1], ids=["chunks", "nodes"])
def test_what_is_lost_comes_out_of_the_copy(scene: Scene, damage: Callable[[Path], None], blob_type: int) -> None:
    damage(scene.path(scene.written["web1"][blob_type]))
    with reopen(scene.folder) as repository:
        assert repository.verify(read_data=True).affected
        before = objects(scene.folder)
        told = heal(repository, scene, dry_run=True)
        assert objects(scene.folder) == before, "nothing was written"
        assert (told.left, told.stored_bytes) == ((), 0)
        assert told.copied_blobs
        done = heal(repository, scene)
        assert replace(done, stored_bytes=0) == told
        assert done.stored_bytes
        if blob_type == 0:
            assert bool(done.moved_blobs) == (damage in (flip_one, cut_short))
        after = objects(scene.folder)
        assert {name: after[name] for name in before} == before, "nothing was replaced or removed"
        assert repository.verify(read_data=True).affected == ()
        again = heal(repository, scene)
        assert (again.moved_blobs, again.copied_blobs, again.stored_bytes, again.left) == (0, 0, 0, ())
    everything_restores(scene.folder, scene.points)


def test_every_pack_is_lost(scene: Scene) -> None:
    """The maps too, whose inner nodes are made again from all that lies below them."""
    shutil.rmtree(scene.path("packs"))
    with reopen(scene.folder) as repository:
        assert {each.disks for each in repository.verify().affected} == {("disk", "nvram"), ("disk",)}
        done = heal(repository, scene)
        assert (done.left, done.moved_blobs) == ((), 0)
    everything_restores(scene.folder, scene.points)


def test_the_copy_is_healed_out_of_what_it_is_a_copy_of(scene: Scene) -> None:
    shutil.rmtree(scene.copy / "store" / "packs")
    with reopen(scene.folder) as ours, reopen(scene.copy) as copy:
        copies = {label: point for point in copy.points() for label in CONTENT if _is(point, scene.points[label])}
        assert copy.verify().affected
        assert copy.heal(SamePoints(copy, ours, unheld).of, Silent()).left == ()
    everything_restores(scene.copy, copies)


def _is(copy: Point, point: Point) -> bool:
    return any(point.id in note for note in copy.manifest.notes)


def test_a_damaged_pack_is_needed_no_more(scene: Scene) -> None:
    """What still opened in it was moved, so that a collection may remove it, and its verdict."""
    name = scene.written["web1"][0]
    flip_one(scene.path(name))
    with reopen(scene.folder) as repository:
        repository.verify(read_data=True)
        done = heal(repository, scene)
        assert (done.copied_blobs, done.moved_blobs > 2) == (1, True)
        assert [problem.name for problem in repository.verify(read_data=True).problems] == [name]
        collect(repository)
        assert not scene.path(name).exists()
        healthy(repository)
    everything_restores(scene.folder, scene.points)


def test_only_what_is_known_is_healed_and_nothing_is_written_where_nothing_is(scene: Scene) -> None:
    flip_one(scene.path(scene.written["web1"][0]))
    with reopen(scene.folder) as repository:
        before = objects(scene.folder)
        assert heal(repository, scene).stored_bytes == 0
        assert objects(scene.folder) == before
        with pytest.raises(LOST):
            read_disk(repository, scene.points["web1"])
        assert heal(repository, scene).copied_blobs == 1, "a reader has met it by now"
        assert read_disk(repository, scene.points["web1"]) == WEB_1


# What the copy does not have


def test_a_copy_that_holds_other_bytes_heals_nothing(scene: Scene) -> None:
    """Whatever its notes say: only what has the missing id takes its place."""
    with make(scene.folder / "liar") as liar:
        with liar.begin_run(liar.series_of("image", "web")) as run:
            entries = write_disks(liar, run, {"disk": content(9, len(WEB_1))})
            made = draft("web", entries, datetime(2026, 3, 1, tzinfo=UTC))
            with reopen(scene.folder) as ours:
                note = f"copied from restore point {scene.points['web1'].id} of repository {ours.id.hex()}"
            run.commit(replace(made, notes=(note,)))
        for blob_type in (0, 1):
            flip_all(scene.path(scene.written["web1"][blob_type]))
        with reopen(scene.folder) as repository:
            affected = {each.id: each.damage for each in repository.verify(read_data=True).affected}
            done = repository.heal(SamePoints(repository, liar, unheld).of, Silent())
            assert done.copied_blobs == 0
            left = {still.id: still for still in done.left if still.damage.disk == "disk"}
            web1 = left[scene.points["web1"].id]
            assert "other bytes" in web1.reason
            assert [web1.damage] == [each for each in affected[web1.id] if each.disk == "disk"]
            assert "does not have this disk" in left[scene.points["web2"].id].reason
            with pytest.raises(LOST):
                read_disk(repository, scene.points["web1"])
            assert read_disk(repository, scene.points["db"]) == DB


def test_what_the_copy_cannot_give_is_told_and_all_else_is_healed(scene: Scene) -> None:
    """As ranges: just those that neither has."""
    with reopen(scene.copy) as copy:
        (point,) = (each for each in copy.points() if _is(each, scene.points["web1"]))
        disk = point.manifest.disks[0]
        leaf = find_leaf(disk.root, disk.size_bytes, 0, copy.blobs.node)
        assert leaf is not None
        chunk = read_leaf(leaf, disk.size_bytes, 0, copy.blobs.node).ids[0]
        assert chunk is not None
        (place,) = copy.index.locate(chunk)
        path = scene.copy / "store" / pack_name(place.pack)
    data = bytearray(path.read_bytes())
    data[place.offset_bytes] ^= 1
    path.write_bytes(data)
    scene.path(scene.written["web1"][0]).unlink()
    with reopen(scene.folder) as repository, reopen(scene.copy) as copy:
        repository.verify()
        done = repository.heal(SamePoints(repository, copy, unheld).of, Silent())
        assert done.copied_blobs > 2
        lost = {still.id: still for still in done.left}
        assert set(lost) == {scene.points["web1"].id, scene.points["web2"].id}
        assert all("the copy cannot be read there" in still.reason for still in done.left)
        report = repository.verify(read_data=True)
        assert {each.id: each.damage for each in report.affected} == {still.id: (still.damage,) for still in done.left}
        for label in ("web1", "web2"):
            point = scene.points[label]
            (first,) = lost[point.id].damage.ranges
            assert first.start == 0
            assert first.stop < 600_000
            reader = DiskReader(repository.blobs, point.manifest.disks[0].root, len(CONTENT[label]))
            rest = len(CONTENT[label]) - first.stop
            assert reader.pread(first.stop, rest) == CONTENT[label][first.stop :]


def test_a_point_without_a_copy_is_healed_by_what_it_shares(scene: Scene) -> None:
    with reopen(scene.copy) as copy:
        for point in copy.points():
            if _is(point, scene.points["web1"]):
                copy.delete_point(point, "test")
    shutil.rmtree(scene.path("packs"))
    with reopen(scene.folder) as repository:
        repository.verify()
        done = heal(repository, scene)
        assert read_part(repository, scene.points["web1"], "nvram") == NVRAM
        assert {(still.id, still.damage.disk) for still in done.left} == {(scene.points["web1"].id, "disk")}
        assert read_disk(repository, scene.points["web2"]) == WEB_2


def test_a_point_that_is_deleted_meanwhile_is_not_told_of(scene: Scene) -> None:
    shutil.rmtree(scene.path("packs"))
    with reopen(scene.folder) as repository, make(scene.folder / "empty") as empty:
        repository.verify()

        def deleting(point: Point) -> AbstractContextManager[None]:
            if point.id in {each.id for each in repository.points()}:
                delete(repository, point)
            return nullcontext()

        assert repository.heal(deleting, Silent()).left == ()
        assert empty.points() == []


# What may happen meanwhile


def test_it_waits_for_no_collection_and_none_begins_meanwhile(scene: Scene) -> None:
    scene.path(scene.written["web1"][0]).unlink()
    with reopen(scene.folder) as repository:
        repository.verify()
        with repository.begin_run(repository.collection_series), pytest.raises(SeriesBusy):
            heal(repository, scene)
        heal(repository, scene)
    everything_restores(scene.folder, scene.points)


def test_what_the_store_does_not_give_for_a_moment_is_not_taken_for_lost(scene: Scene) -> None:
    name = scene.written["web1"][0]
    with FaultyStore(LocalStore(scene.folder / "store")) as store, reopen(scene.folder, store=store) as repository:
        before = objects(scene.folder)
        store.fail("get", prefix=name, error=StoreUnavailable("read", name, "Input/output error"), forever=True)
        with pytest.raises(StoreUnavailable):
            heal(repository, scene)
        assert objects(scene.folder) == before
        store.faults[0].forever = False
    everything_restores(scene.folder, scene.points)


@pytest.mark.parametrize(
    ("method", "prefix"),
    [("put", "packs/"), ("create", "index/"), ("create", "leases/")],
    ids=["pack", "index", "lease"],
)
def test_a_heal_that_fails_anywhere_is_gone_on_with(scene: Scene, method: str, prefix: str) -> None:
    """What it has left behind by then, and no index object lists, is read and not relied on."""
    shutil.rmtree(scene.path("packs"))
    with reopen(scene.folder) as repository:
        repository.verify()
    failures, published = 0, []
    for nth in (1, 2, 4):
        store = FaultyStore(LocalStore(scene.folder / "store"))
        store.fail(method, prefix=prefix, nth=nth, error=NoSpace("write", prefix))
        with store, reopen(scene.folder, store=store) as repository, reopen(scene.copy) as copy:
            copies = SamePoints(repository, copy, unheld)
            slices = LeasedStore(repository, repository._context, slice_bytes=100_000)
            with pytest.raises(NoSpace), slices:
                Healer(repository, slices, copies.of, Silent()).heal(repository.points())
            failures += 1
            published.append(slices._published_bytes)
    assert failures == 3
    assert published[-1] > 0, "some of it counted by then"
    with reopen(scene.folder) as repository:
        assert heal(repository, scene).left == ()
    everything_restores(scene.folder, scene.points)


def test_a_later_full_read_heals_what_it_finds_again(scene: Scene) -> None:
    """Without any copy."""
    scene.path(scene.written["web1"][0]).unlink()
    with reopen(scene.folder) as repository:
        assert repository.verify().affected
        with (
            repository.begin_run(repository.series_of("image", "web")) as run,
            repository.pending() as pending,
            PackWriter(
                repository.store, repository.keys, repository.index, pending, run.put_index, compression_level=1
            ) as writer,
        ):
            for data in (WEB_1, NVRAM):
                ingest_disk(BytesSource(data), writer, repository.keys, workers=1)
            writer.flush()
            run.commit(draft("web", (), datetime(2026, 3, 2, tzinfo=UTC)))
        (left,) = repository.verify(read_data=True).affected or (None,)
        assert left is None or left.id == scene.points["web2"].id
        assert read_disk(repository, scene.points["web1"]) == WEB_1
        assert heal(repository, scene).left == ()
    everything_restores(scene.folder, scene.points)


def test_a_hook_names_what_lies_in_what_is_damaged(scene: Scene) -> None:
    flip_one(scene.path(scene.written["web1"][0]))

    class Table:
        """A file table: one file lies in the first half MiB."""

        def names(self, point: Point, disk: object, ranges: object) -> list[str]:
            assert isinstance(ranges, list | tuple) or hasattr(ranges, "__len__")
            first = next(iter(ranges))  # type: ignore[call-overload]
            assert isinstance(first, ByteRange)
            return ["/etc/passwd"] if first.start < 500_000 else []

    class Broken:
        def names(self, point: Point, disk: object, ranges: object) -> list[str]:
            raise Damaged("the file table", "it lies in what is lost")

    with reopen(scene.folder) as repository:
        report = repository.verify(read_data=True, namer=Table())
        assert {each.names for hit in report.affected for each in hit.damage} == {("/etc/passwd",)}
        assert all("(/etc/passwd)" in hit.detail for hit in report.affected)
        watcher = Silent()
        report = repository.verify(progress=watcher, namer=Broken())
        assert {each.names for hit in report.affected for each in hit.damage} == {()}
        assert any("cannot be named" in note for note in watcher.notes)
