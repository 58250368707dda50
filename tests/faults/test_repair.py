"""Index objects that are damaged are made anew from the packs that they listed, whatever else happens meanwhile."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from imaging.collecting import CollectionRefused, Options
from imaging.envelope import ObjectType, seal
from imaging.errors import SeriesBusy, StoreUnavailable
from imaging.object_cache import ObjectCache
from imaging.storage.local import LocalStore
from tests.faults.faulty_store import FaultyStore
from tests.faults.repositories import OTHER, back_up, content, draft, make, read_disk, reopen, write_disks
from tests.faults.test_collection import MIB, Silent, collect, delete, healthy, packs


def index_objects(folder: Path) -> list[Path]:
    return sorted((folder / "store" / "index").iterdir())


def spoil(path: Path, how: str) -> bytes:
    whole = path.read_bytes()
    path.write_bytes(whole[:60] if how == "cut short" else whole[:-1] + bytes([whole[-1] ^ 1]))
    return path.read_bytes()


@pytest.mark.parametrize("how", ["flipped", "cut short"])
@pytest.mark.parametrize("count", [1, 3])
def test_a_damaged_index_is_made_anew_and_collection_goes_on(tmp_path: Path, how: str, count: int) -> None:
    with make(tmp_path) as repository:
        doomed = back_up(repository, "web", {"disk": content(1, MIB)})
        keep = back_up(repository, "web", {"disk": content(2, MIB)})
        other = back_up(repository, "db", {"disk": content(3, MIB)})
        delete(repository, doomed)
    spoiled = {path.name: spoil(path, how) for path in index_objects(tmp_path)[:count]}
    with reopen(tmp_path, "new") as repository:
        assert [name[6:] for name in repository.broken_index(Silent())] == sorted(spoiled)
        with pytest.raises(CollectionRefused):
            collect(repository)
        done = repository.repair(Silent())
        assert [name[6:] for name in done.set_aside] == sorted(spoiled)
        assert (done.relisted_packs > 0, done.unreadable) == (True, ())
        for name, data in spoiled.items():
            assert (tmp_path / "store" / "aside" / "index" / name).read_bytes() == data
        assert repository.repair(Silent()).set_aside == (), "once is enough"
        collect(repository)
        healthy(repository)
        before = packs(tmp_path)
        back_up(repository, "third", {"disk": content(2, MIB)})
        assert packs(tmp_path) == before, "what was listed again is relied on"
    with reopen(tmp_path, "newest") as repository:
        assert collect(repository).plan.empty
        for point, seed in ((keep, 2), (other, 3)):
            assert read_disk(repository, point) == content(seed, MIB)
        assert packs(tmp_path) == {pack.hex() for pack in repository.index.packs()}, "what nothing needs is gone"


def test_a_run_that_is_under_way_loses_nothing(tmp_path: Path) -> None:
    """Its packs are listed by the repair, are needed by no point yet, and a collection comes before it commits."""
    with make(tmp_path) as repository, reopen(tmp_path, "other", appliance=OTHER) as other:
        back_up(repository, "db", {"disk": content(1, MIB)})
        with other.begin_run(other.series_of("image", "web"), host=None) as run:
            entries = write_disks(other, run, {"disk": content(2, MIB)})
            spoil(index_objects(tmp_path)[0], "flipped")
            spoil(index_objects(tmp_path)[1], "flipped")
            assert repository.repair(Silent()).relisted_packs >= 2
            done = repository.collect(Options(wait_s=0), Silent())
            assert (done.deleted_packs, done.waiting_packs > 0) == (0, True)
            point = run.commit(draft("web", entries, repository.points()[-1].created_utc))
        collect(repository)
        collect(repository)
        healthy(repository)
        assert read_disk(repository, point) == content(2, MIB)
    with reopen(tmp_path, "new") as fresh:
        assert read_disk(fresh, point) == content(2, MIB)


def test_a_pack_whose_table_cannot_be_read_is_named_and_stays(tmp_path: Path) -> None:
    with make(tmp_path) as repository:
        back_up(repository, "web", {"disk": content(1, MIB)})
    spoil(index_objects(tmp_path)[0], "flipped")
    victim = max((tmp_path / "store" / "packs").glob("*/*"), key=lambda path: path.stat().st_size)
    spoil(victim, "flipped")
    with reopen(tmp_path, "new") as repository:
        done = repository.repair(Silent())
        assert [name.rpartition("/")[2] for name, _ in done.unreadable] == [victim.name]
        assert victim.exists()
        report = repository.verify(read_data=True)
        assert f"packs/{victim.parent.name}/{victim.name}" in {problem.name for problem in report.problems}


@pytest.mark.parametrize("method", ["create", "put", "delete"])
def test_a_repair_that_fails_anywhere_can_be_done_again(tmp_path: Path, method: str) -> None:
    failures = 0
    for nth in range(1, 7):
        folder = tmp_path / str(nth)
        folder.mkdir()
        with make(folder) as repository:
            points = [
                back_up(repository, name, {"disk": content(seed, MIB)}) for seed, name in enumerate(("web", "db"))
            ]
        for path in index_objects(folder):
            spoil(path, "flipped")
        store = FaultyStore(LocalStore(folder / "store"))
        store.fail(method, nth=nth, error=StoreUnavailable(method, "it", "Input/output error"))
        with reopen(folder, "failing", store=store) as repository:
            try:
                repository.repair(Silent())
            except StoreUnavailable:
                failures += 1
        with reopen(folder, "again") as repository:
            repository.repair(Silent())
            collect(repository)
            healthy(repository)
            for seed, point in enumerate(points):
                assert read_disk(repository, point) == content(seed, MIB)
    assert failures > 0


def test_it_waits_for_no_collection(tmp_path: Path) -> None:
    with make(tmp_path) as repository, repository.begin_run(repository.collection_series, host=None):
        back_up(repository, "web", {"disk": content(1, MIB)})
        spoil(index_objects(tmp_path)[0], "flipped")
        with pytest.raises(SeriesBusy):
            repository.repair(Silent())


# What this appliance remembers


def flipped(path: Path) -> None:
    spoil(path, "flipped")


@pytest.mark.parametrize("damage", [flipped, Path.unlink], ids=["flipped", "gone"])
@pytest.mark.parametrize("what", ["manifest", "end", "both"])
def test_what_the_cache_still_has_is_put_back(tmp_path: Path, what: str, damage: Callable[[Path], None]) -> None:
    with make(tmp_path) as repository:
        point = back_up(repository, "web", {"disk": content(1, MIB)})
        other = back_up(repository, "db", {"disk": content(2, MIB)})
    with reopen(tmp_path) as repository:
        assert len(repository.points()) == 2, "who lists points reads the ends of their leases, and keeps them"
    names = {"manifest": point.name, "end": f"leases/{point.manifest.lease}/end"}
    lost = list(names.values()) if what == "both" else [names[what]]
    good = {name: (tmp_path / "store" / name).read_bytes() for name in lost}
    for name in lost:
        damage(tmp_path / "store" / name)
    damaged = {name: (tmp_path / "store" / name).read_bytes() for name in lost if (tmp_path / "store" / name).exists()}
    with reopen(tmp_path, "new") as stranger:
        assert stranger.repair(Silent()).put_back == (), "who does not have it puts nothing back"
    with reopen(tmp_path) as repository:
        told = repository.remembered(Silent())
        assert (tmp_path / "store" / lost[0]).exists() == (damage is flipped), "nothing has changed yet"
        assert repository.repair(Silent()).put_back == told
        assert repository.remembered(Silent()) == ()
    if damage is flipped or what == "manifest":
        assert set(told) == set(lost)
        assert {name: (tmp_path / "store" / name).read_bytes() for name in lost} == good
        assert {name: (tmp_path / "store" / "aside" / name).read_bytes() for name in damaged} == damaged
        with reopen(tmp_path, "newest") as repository:
            assert {each.id for each in repository.points()} == {point.id, other.id}
            assert read_disk(repository, point) == content(1, MIB)
            collect(repository)
            healthy(repository)
    else:
        assert told == (), "without its end a lease is as if tidied away: what is gone with it may have been collected"


def test_what_was_deleted_stays_away(tmp_path: Path) -> None:
    with make(tmp_path) as repository:
        point = back_up(repository, "web", {"disk": content(1, MIB)})
        keep = back_up(repository, "web", {"disk": content(2, MIB)})
        delete(repository, point)
        (tmp_path / "store" / point.name).unlink()
        assert repository.remembered(Silent()) == ()
        collect(repository)
        assert repository.repair(Silent()).put_back == ()
        assert [each.id for each in repository.points()] == [keep.id]


def test_a_manifest_that_its_run_did_not_commit_is_not_put_back(tmp_path: Path) -> None:
    """As after a disk was set back to a state in which the same point was another."""
    with make(tmp_path) as repository:
        point = back_up(repository, "web", {"disk": content(1, MIB)})
        objects = repository._objects
        path = tmp_path / "store" / point.name
        body = objects.read(ObjectType.MANIFEST, point.name).body
        flipped(path)
        data = seal(ObjectType.MANIFEST, point.name, repository.keys.manifest, repository.id, body, b"")
        ObjectCache(tmp_path / "cache" / "objects").put(point.name, data)
        assert repository.repair(Silent()).put_back == ()
        assert [each.name for each in reopen(tmp_path, "new").damaged_points()] == [point.name]
