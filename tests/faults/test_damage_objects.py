"""Each class of object flipped, truncated, emptied and deleted, and authentic ones swapped.

What must hold: verify names the object and exactly the points that it reaches; everything else restores bit-exact;
what is damaged is an error and never other bytes; the next run heals what it finds again at the source.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from imaging.envelope import ObjectType, seal
from imaging.errors import (
    ChunkMissing,
    Damaged,
    ObjectMissing,
    PointNotFound,
    StoreUnavailable,
    WrongKey,
)
from imaging.index_objects import decode_index
from imaging.packs import pack_name
from imaging.repository import Point, Repository
from imaging.scrub import VerifyReport
from imaging.slots import Passphrase, parse_slot
from imaging.storage.local import LocalStore
from tests.faults.faulty_store import FaultyStore
from tests.faults.repositories import ME, PASSPHRASE, back_up, content, make, read_disk, reopen

pytestmark = pytest.mark.faults

# What both share is longer than the longest chunk, so that a cut falls in it whatever the repository's keys are.
WEB_1 = {"disk": content(1, 400_000), "second": content(2, 90_000)}
WEB_2 = {"disk": WEB_1["disk"][:300_000] + content(3, 100_000), "second": WEB_1["second"]}
DB = {"disk": content(4, 250_000)}


@dataclass(frozen=True)
class Scene:
    """A repository of three points. `written[point]` are the packs that its run wrote, by blob type."""

    folder: Path
    points: Mapping[str, Point]
    data: Mapping[str, Mapping[str, bytes]]
    written: Mapping[str, Mapping[int, str]]
    indexes: Mapping[str, str]

    def path(self, name: str) -> Path:
        return self.folder / "store" / name


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    folder = tmp_path_factory.mktemp("original")
    points, written, indexes = {}, {}, {}
    with make(folder) as repository:
        for label, name, data in (("web1", "web", WEB_1), ("web2", "web", WEB_2), ("db", "db", DB)):
            before = {listed.name for listed in repository.store.list("index/")}
            points[label] = back_up(repository, name, data)
            (index,) = {listed.name for listed in repository.store.list("index/")} - before
            body = repository._objects.read(ObjectType.INDEX, index).body
            written[label] = {entry.blob_type: pack_name(entry.pack) for entry in decode_index(body)}
            indexes[label] = index
    return Scene(folder, points, {"web1": WEB_1, "web2": WEB_2, "db": DB}, written, indexes)


@pytest.fixture
def scene(original: Scene, tmp_path: Path) -> Scene:
    """A copy to damage, whose cache is lost."""
    shutil.copytree(original.folder / "store", tmp_path / "store")
    return Scene(tmp_path, original.points, original.data, original.written, original.indexes)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x20
    path.write_bytes(bytes(data))


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path: Path) -> None:
    path.write_bytes(b"")


DAMAGES: dict[str, Callable[[Path], None]] = {"flip": flip, "truncate": truncate, "empty": empty, "delete": Path.unlink}
damages = pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())


def check(scene: Scene, affected: set[str], named: set[str]) -> VerifyReport:
    """Verify says exactly this, and reading agrees with it."""
    with reopen(scene.folder) as repository:
        report = repository.verify(read_data=True)
        assert {problem.name for problem in report.problems} == named
        assert {point.id for point in report.affected} == {scene.points[label].id for label in affected}
        assert report.ok == (not named)
        for problem in report.problems:
            assert problem.name in str(problem.error)
        for label, point in scene.points.items():
            if label in affected:
                with pytest.raises((Damaged, ChunkMissing, ObjectMissing, PointNotFound)):
                    read_all(repository, point)
            else:
                assert read_all(repository, point) == scene.data[label]
    return report


def read_all(repository: Repository, point: Point) -> dict[str, bytes]:
    found = repository.point(point.id)
    assert found == point
    return {disk.name: read_disk(repository, found, disk.name) for disk in found.manifest.disks}


def check_next_run(scene: Scene, label: str = "web2") -> None:
    """The next run of each series succeeds, and its point is whole."""
    with reopen(scene.folder) as repository:
        for name, data in (("web", scene.data[label]), ("db", DB)):
            point = back_up(repository, name, data)
            assert read_all(repository, point) == data
        ids = {point.id for point in repository.points()}
        report = repository.verify(read_data=True)
        assert not ids & {point.id for point in report.affected} - {p.id for p in scene.points.values()}


def test_nothing_is_wrong_with_the_original(scene: Scene) -> None:
    report = check(scene, set(), set())
    assert (report.points, report.packs, report.unknown) == (3, 6, ())
    with reopen(scene.folder) as repository:
        assert repository.verify(read_data=False).ok


@damages
@pytest.mark.parametrize("name", ["config", "config.copy"])
def test_configuration(scene: Scene, damage: Callable[[Path], None], name: str) -> None:
    damage(scene.path(name))
    check(scene, set(), {name})
    check_next_run(scene)


@damages
@pytest.mark.parametrize("folder", ["keys", "keys.copy"])
def test_key_slots(scene: Scene, damage: Callable[[Path], None], folder: str) -> None:
    damaged = sorted(scene.path(folder).iterdir())
    for path in damaged:
        damage(path)
    check(scene, set(), {f"{folder}/{path.name}" for path in damaged})
    opened = Repository.open(
        LocalStore(scene.path("")), Passphrase(PASSPHRASE), cache=scene.folder / "another", appliance=ME
    )
    opened.close()
    check_next_run(scene)


def test_the_recovery_key_opens_when_every_slot_is_lost(tmp_path: Path) -> None:
    store = LocalStore.make(tmp_path / "store")
    made, recovery = Repository.create(store, passphrase=None, machine_key=None, cache=tmp_path / "cache", appliance=ME)
    with made:
        point = back_up(made, "web", DB)
    shutil.rmtree(tmp_path / "store" / "keys")
    shutil.rmtree(tmp_path / "store" / "keys.copy")
    store = LocalStore(tmp_path / "store")
    with Repository.open(store, recovery, cache=tmp_path / "new", appliance=ME) as repository:
        assert read_all(repository, point) == DB
    with pytest.raises(WrongKey, match="no passphrase slot"):
        Repository.open(store, Passphrase("x"), cache=tmp_path / "new", appliance=ME)


@damages
def test_both_copies_of_every_slot(scene: Scene, damage: Callable[[Path], None]) -> None:
    for folder in ("keys", "keys.copy"):
        for path in sorted(scene.path(folder).iterdir()):
            damage(path)
    with pytest.raises((Damaged, WrongKey)) as caught:
        reopen(scene.folder)
    assert "slot" in str(caught.value)
    assert caught.value.hint


@damages
@pytest.mark.parametrize("label", ["web1", "web2", "db"])
def test_index_objects(scene: Scene, damage: Callable[[Path], None], label: str) -> None:
    """What an index object said is also in its packs' tables: nothing is lost."""
    damage(scene.path(scene.indexes[label]))
    check(scene, set(), set() if damage is Path.unlink else {scene.indexes[label]})
    check_next_run(scene)


@damages
@pytest.mark.parametrize("label", ["web1", "web2", "db"])
def test_manifests(scene: Scene, damage: Callable[[Path], None], label: str) -> None:
    name = scene.points[label].name
    damage(scene.path(name))
    check(scene, {label}, {name})
    with reopen(scene.folder) as repository:
        assert [point.name for point in repository.damaged_points()] == [name]
        assert len(repository.points()) == 2
    check_next_run(scene)


def test_a_manifest_in_the_cache_still_restores_and_verify_still_tells(scene: Scene) -> None:
    name = scene.points["web1"].name
    with reopen(scene.folder) as repository:
        repository.points()
    flip(scene.path(name))
    with reopen(scene.folder) as repository:
        assert read_all(repository, scene.points["web1"]) == WEB_1
        report = repository.verify()
        assert [problem.name for problem in report.problems] == [name]
        assert [point.id for point in report.affected] == [scene.points["web1"].id]


@damages
@pytest.mark.parametrize("label", ["web1", "web2"])
def test_ends_of_leases(scene: Scene, damage: Callable[[Path], None], label: str) -> None:
    end = f"leases/{scene.points[label].manifest.lease}/end"
    damage(scene.path(end))
    if damage is Path.unlink:
        check(scene, set(), set())  # no object of the lease is left, which is how maintenance leaves committed ones
    else:
        # whether the point was committed can no longer be told: it is named, and not passed over
        check(scene, {label}, {end, scene.points[label].name})
    check_next_run(scene)


def test_the_end_of_a_lease_that_was_not_yet_tidied(tmp_path: Path) -> None:
    with make(tmp_path) as repository:
        run = repository.begin_run(repository.series_of("image", "web"))
        start = (tmp_path / "store" / "leases" / run.lease_id / "start").read_bytes()
        run.abandon()
        (tmp_path / "store" / "leases" / run.lease_id / "end").unlink()
        assert start == (tmp_path / "store" / "leases" / run.lease_id / "start").read_bytes()
        back_up(repository, "db", DB)
        assert repository.verify().ok, "an open lease without a later claim may be a living run's"
    with reopen(tmp_path, "other") as repository:
        repository.store.put("claims/" + repository.series_of("image", "web") + "/0000000002", [b"later"])
        names = [problem.name for problem in repository.verify().problems]
        assert f"leases/{run.lease_id}/end" in names


@damages
def test_claims(scene: Scene, damage: Callable[[Path], None]) -> None:
    (path,) = (scene.path("claims") / scene.points["web2"].series).iterdir()
    damage(path)
    name = f"claims/{scene.points['web2'].series}/{path.name}"
    check(scene, set(), set() if damage is Path.unlink else {name})
    check_next_run(scene)


@damages
def test_tombstones(scene: Scene, damage: Callable[[Path], None]) -> None:
    """A tombstone buries by its name; nobody needs its content to leave the point alone."""
    with reopen(scene.folder) as repository:
        name = repository.delete_point(scene.points["web1"], "admin")
        assert {point.id for point in repository.points()} == {scene.points[label].id for label in ("db", "web2")}
    damage(scene.path(name))
    with reopen(scene.folder) as repository:
        report = repository.verify(read_data=True)
        assert [problem.name for problem in report.problems] == ([] if damage is Path.unlink else [name])
        left = {point.id for point in repository.points()}
        assert (scene.points["web1"].id in left) == (damage is Path.unlink)
        assert read_all(repository, scene.points["web2"]) == WEB_2


@damages
def test_a_pack_of_chunks(scene: Scene, damage: Callable[[Path], None]) -> None:
    name = scene.written["web1"][0]
    damage(scene.path(name))
    # web2 kept what web1 stored; a flip hits one chunk, which web2 may or may not share
    with reopen(scene.folder) as repository:
        report = repository.verify(read_data=True)
        assert [problem.name for problem in report.problems] == [name]
        hit = {point.id for point in report.affected}
        assert scene.points["web1"].id in hit
        assert scene.points["db"].id not in hit
        if damage in (empty, Path.unlink):
            assert hit == {scene.points["web1"].id, scene.points["web2"].id}
            assert {point.disks for point in report.affected} == {("disk", "second")}
        for label, point in scene.points.items():
            if point.id in hit:
                with pytest.raises((Damaged, ChunkMissing, ObjectMissing)):
                    read_all(repository, point)
            else:
                assert read_all(repository, point) == scene.data[label]
        back_up(repository, "web", WEB_1)
        healed = repository.verify(read_data=True)
        assert [problem.name for problem in healed.problems] == [name]
        assert healed.affected == () or scene.points["web1"].id not in {point.id for point in healed.affected}
        assert read_all(repository, scene.points["web1"]) == WEB_1
    check_next_run(scene)
    with reopen(scene.folder) as repository:
        assert repository.verify(read_data=True).affected == (), "a full read heals the older points too"


@damages
def test_a_pack_of_map_nodes(scene: Scene, damage: Callable[[Path], None]) -> None:
    name = scene.written["db"][1]
    damage(scene.path(name))
    check(scene, {"db"}, {name})
    with reopen(scene.folder) as repository:
        repository.verify(read_data=True)
        back_up(repository, "db", DB)
        assert read_all(repository, scene.points["db"]) == DB
        assert repository.verify(read_data=True).affected == ()


@pytest.mark.parametrize("part", ["header", "table", "trailer"])
def test_the_frame_of_a_pack(scene: Scene, part: str) -> None:
    """Its blobs are well, and the index knows where they are."""
    name = scene.written["db"][0]
    path = scene.path(name)
    data = bytearray(path.read_bytes())
    data[{"header": 20, "table": len(data) - 30, "trailer": len(data) - 20}[part]] ^= 1
    path.write_bytes(bytes(data))
    check(scene, set(), {name})
    with reopen(scene.folder) as repository:
        assert [problem.name for problem in repository.verify(read_data=False).problems] == [name]


def test_without_reading_data_missing_and_short_packs_are_still_found(scene: Scene) -> None:
    scene.path(scene.written["db"][0]).unlink()
    truncate(scene.path(scene.written["web2"][0]))
    with reopen(scene.folder) as repository:
        report = repository.verify(read_data=False)
        assert {problem.name for problem in report.problems} == {scene.written["db"][0], scene.written["web2"][0]}
        assert {point.id for point in report.affected} == {scene.points["db"].id, scene.points["web2"].id}


def test_slots_forged_in_the_place_of_others_hide_none(scene: Scene) -> None:
    """Whoever can write to the store can state any id in the clear."""
    for number, path in enumerate(sorted(scene.path("keys").iterdir())):
        slot = parse_slot(path.read_bytes(), f"keys/{path.name}")
        forged = seal(ObjectType.KEY_SLOT, "x", b"f" * 32, slot.envelope.repository_id, b"", slot.envelope.clear)
        (scene.path("keys") / f"{number:032x}").write_bytes(forged)
        path.write_bytes(forged)
    with reopen(scene.folder) as repository:
        assert read_all(repository, scene.points["db"]) == DB


def test_one_configuration_of_another_repository(scene: Scene, tmp_path: Path) -> None:
    make(tmp_path / "foreign").close()
    scene.path("config").write_bytes((tmp_path / "foreign" / "store" / "config").read_bytes())
    check(scene, set(), {"config"})


def test_a_repository_rolled_back_to_last_week(scene: Scene) -> None:
    """What the caches remember of the days that are gone must not be relied on."""
    shutil.copytree(scene.path(""), scene.folder / "last week")
    with reopen(scene.folder) as repository:
        gone = back_up(repository, "web", {"disk": content(9, 300_000)})
        assert len(repository.points()) == 4
    shutil.rmtree(scene.path(""))
    shutil.move(scene.folder / "last week", scene.path(""))
    with reopen(scene.folder) as repository:
        assert gone.id not in {point.id for point in repository.points()}
        again = back_up(repository, "web", {"disk": content(9, 300_000)})
        assert read_disk(repository, again) == content(9, 300_000)
        assert repository.verify(read_data=True).ok
    check(scene, set(), set())


def test_the_cache_of_another_repository(scene: Scene, tmp_path: Path) -> None:
    with make(tmp_path / "foreign") as foreign:
        back_up(foreign, "web", WEB_1)
        foreign.points()
    shutil.copytree(tmp_path / "foreign" / "cache", scene.folder / "cache")
    check(scene, set(), set())
    check_next_run(scene)


def test_a_pack_that_comes_back_is_trusted_again(scene: Scene) -> None:
    path = scene.path(scene.written["db"][0])
    data = path.read_bytes()
    path.unlink()
    with reopen(scene.folder) as repository:
        assert not repository.verify(read_data=True).ok
        assert repository.index_has_losses()
        path.write_bytes(data)
        assert repository.verify(read_data=True).ok
        assert not repository.index_has_losses()
        packs = len(list(repository.store.list("packs/")))
        back_up(repository, "db", DB)
        assert len(list(repository.store.list("packs/"))) == packs


# Authentic objects in the wrong place


def swap(scene: Scene, one: str, two: str) -> None:
    first, second = scene.path(one).read_bytes(), scene.path(two).read_bytes()
    scene.path(one).write_bytes(second)
    scene.path(two).write_bytes(first)


def test_two_manifests_of_one_machine_swapped(scene: Scene) -> None:
    names = [scene.points[label].name for label in ("web1", "web2")]
    swap(scene, *names)
    check(scene, {"web1", "web2"}, set(names))
    check_next_run(scene)


def test_another_machines_manifest_under_this_name(scene: Scene) -> None:
    scene.path(scene.points["web1"].name).write_bytes(scene.path(scene.points["db"].name).read_bytes())
    check(scene, {"web1"}, {scene.points["web1"].name})


def test_two_packs_swapped(scene: Scene) -> None:
    names = [scene.written["web1"][0], scene.written["db"][0]]
    swap(scene, *names)
    check(scene, {"web1", "web2", "db"}, set(names))


def test_two_index_objects_swapped(scene: Scene) -> None:
    names = [scene.indexes["web1"], scene.indexes["db"]]
    swap(scene, *names)
    check(scene, set(), set(names))


def test_two_ends_of_leases_swapped(scene: Scene) -> None:
    ends = [f"leases/{scene.points[label].manifest.lease}/end" for label in ("web1", "db")]
    swap(scene, *ends)
    check(scene, {"web1", "db"}, {*ends, scene.points["web1"].name, scene.points["db"].name})


def test_two_key_slots_swapped(scene: Scene) -> None:
    one, two = sorted(f"keys/{path.name}" for path in scene.path("keys").iterdir())[:2]
    swap(scene, one, two)
    check(scene, set(), {one, two})


@pytest.mark.parametrize("what", ["config", "keys", "manifests", "packs"])
def test_objects_of_another_repository(scene: Scene, tmp_path: Path, what: str) -> None:
    with make(tmp_path / "foreign") as foreign:
        theirs = back_up(foreign, "web", WEB_1)
        pack = next(foreign.store.list("packs/")).name
    source = tmp_path / "foreign" / "store"
    if what == "config":
        for name in ("config", "config.copy"):
            scene.path(name).write_bytes((source / name).read_bytes())
        check(scene, set(), {"config", "config.copy"})
        return
    if what == "keys":
        for path in (source / "keys").iterdir():
            (scene.path("keys") / path.name).write_bytes(path.read_bytes())
        check(scene, set(), {f"keys/{path.name}" for path in (source / "keys").iterdir()})
        return
    if what == "manifests":
        target = scene.path(theirs.name)
        target.parent.mkdir(parents=True)
        target.write_bytes((source / theirs.name).read_bytes())
        with reopen(scene.folder) as repository:
            assert [point.name for point in repository.damaged_points()] == [theirs.name]
            assert len(repository.points()) == 3
        return
    scene.path(pack).parent.mkdir(parents=True, exist_ok=True)
    scene.path(pack).write_bytes((source / pack).read_bytes())
    check(scene, set(), {pack})


@pytest.mark.parametrize("what", ["config", "keys/", "index", "manifest", "end", "chunks", "nodes"])
def test_a_sector_that_cannot_be_read(scene: Scene, what: str) -> None:
    """As damage: the object is named, and the others are gone on with."""
    name = {
        "index": scene.indexes["web1"],
        "manifest": scene.points["web1"].name,
        "end": f"leases/{scene.points['web1'].manifest.lease}/end",
        "chunks": scene.written["web1"][0],
        "nodes": scene.written["web1"][1],
    }.get(what, what)
    store = FaultyStore(LocalStore(scene.path("")))
    store.fail("get", prefix=name, forever=True, error=StoreUnavailable("read", name, "Input/output error"))
    with store, reopen(scene.folder, store=store) as repository:
        report = repository.verify(read_data=True)
        named = {problem.name for problem in report.problems}
        assert any(problem.startswith(name) for problem in named)
        hit = {point.id for point in report.affected}
        assert scene.points["db"].id not in hit
        assert (scene.points["web1"].id in hit) == (what in ("manifest", "end", "chunks", "nodes"))
        assert read_all(repository, scene.points["db"]) == DB
