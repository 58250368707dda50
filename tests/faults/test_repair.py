"""Index objects that are damaged are made anew from the packs that they listed, whatever else happens meanwhile."""

from __future__ import annotations

from pathlib import Path

import pytest

from imaging.collecting import CollectionRefused, Options
from imaging.errors import SeriesBusy, StoreUnavailable
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
