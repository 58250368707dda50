"""What is known to be damaged or missing stays known: after a power cut, without the cache, in another appliance, to a
collection; and what only seemed so for a moment does not."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from imaging.envelope import ObjectType
from imaging.errors import Damaged, ImagingError, NoSpace, ObjectMissing, StoreUnavailable
from imaging.packs import HEADER_BYTES, pack_name
from imaging.places import PackState
from imaging.repository import Point, Repository
from imaging.soundness import known_damage
from imaging.storage.local import LocalStore
from imaging.verdicts import verdict_name
from tests.faults.faulty_store import FaultyStore
from tests.faults.repositories import OTHER, back_up, content, make, read_disk, reopen
from tests.faults.test_collection import collect, delete, healthy

pytestmark = pytest.mark.faults

DATA = content(1, 300_000)


def flip(path: Path) -> None:
    """A byte of the first blob."""
    data = bytearray(path.read_bytes())
    data[HEADER_BYTES + 3] ^= 1
    path.write_bytes(data)


damages = pytest.mark.parametrize("damage", [flip, Path.unlink], ids=["flipped", "gone"])


def chunk_pack(repository: Repository) -> bytes:
    """The one that its only backup wrote."""
    (found,) = (pack for pack, each in repository.index.packs().items() if each.blob_type == 0)
    return found


def path_of(folder: Path, pack: bytes) -> Path:
    return folder / "store" / pack_name(pack)


def lose_cache(folder: Path) -> None:
    shutil.rmtree(folder / "cache")


def cut_power(folder: Path) -> None:
    (folder / "cache" / "index" / "open").write_text("another boot")


def verdicts(folder: Path) -> set[str]:
    return {f"damaged/{path.name}" for path in (folder / "store" / "damaged").glob("*")}


def reads_without_a_cache(folder: Path, *points: Point) -> None:
    with reopen(folder, "fresh") as fresh:
        for point in points:
            assert read_disk(fresh, point) == DATA
    shutil.rmtree(folder / "fresh")


@damages
@pytest.mark.parametrize("event", [lose_cache, cut_power])
def test_what_a_verification_found_outlives_the_cache(
    tmp_path: Path, damage: Callable[[Path], None], event: Callable[[Path], None]
) -> None:
    with make(tmp_path) as repository:
        first = back_up(repository, "web", {"disk": DATA})
        pack = chunk_pack(repository)
        damage(path_of(tmp_path, pack))
        assert not repository.verify(read_data=True).ok
    assert verdicts(tmp_path) == {verdict_name(pack)}
    event(tmp_path)
    with reopen(tmp_path) as repository:
        assert repository.index_has_losses()
        second = back_up(repository, "web", {"disk": DATA})
        report = repository.verify(read_data=True)
        assert [problem.name for problem in report.problems] == [pack_name(pack)]
        assert report.affected == ()
    reads_without_a_cache(tmp_path, first, second)


@damages
def test_another_appliance_that_knew_better_days_is_told(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    with make(tmp_path) as repository, reopen(tmp_path, "other", OTHER) as theirs:
        back_up(repository, "web", {"disk": DATA})
        pack = chunk_pack(theirs)
        damage(path_of(tmp_path, pack))
        repository.verify(read_data=True)
        point = back_up(theirs, "db", {"disk": DATA})
        assert theirs.index_has_losses()
    reads_without_a_cache(tmp_path, point)


@damages
def test_what_a_reader_met_is_told_too(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    with make(tmp_path) as repository, reopen(tmp_path, "other", OTHER) as theirs:
        first = back_up(repository, "web", {"disk": DATA})
        pack = chunk_pack(theirs)
        damage(path_of(tmp_path, pack))
        with pytest.raises((Damaged, ObjectMissing)):
            read_disk(repository, first)
        assert verdicts(tmp_path) == {verdict_name(pack)}
        point = back_up(theirs, "db", {"disk": DATA})
        assert read_disk(theirs, first) == DATA, "the older point is healed too"
    reads_without_a_cache(tmp_path, first, point)


def test_a_pack_that_is_gone_is_noticed_by_whoever_builds_an_index(tmp_path: Path) -> None:
    with make(tmp_path) as repository:
        back_up(repository, "web", {"disk": DATA})
        gone = chunk_pack(repository)
        path_of(tmp_path, gone).unlink()
    with reopen(tmp_path, "new", OTHER) as repository:
        point = back_up(repository, "db", {"disk": DATA})
        live = {pack for pack, each in repository.index.packs().items() if each.state == PackState.LIVE}
        assert gone not in live, "it is not relied on: the data is stored again"
    reads_without_a_cache(tmp_path, point)


@pytest.mark.parametrize("error", [NoSpace("write", "damaged/"), StoreUnavailable("write", "damaged/", "read-only")])
def test_where_a_verdict_cannot_be_written_nothing_else_fails_and_the_cache_knows(
    tmp_path: Path, error: ImagingError, caplog: pytest.LogCaptureFixture
) -> None:
    make(tmp_path).close()
    with FaultyStore(LocalStore(tmp_path / "store")) as store, reopen(tmp_path, store=store) as repository:
        first = back_up(repository, "web", {"disk": DATA})
        pack = chunk_pack(repository)
        flip(path_of(tmp_path, pack))
        store.fail("create", prefix="damaged/", error=error, forever=True)
        with pytest.raises(Damaged, match="does not authenticate"):
            read_disk(repository, first)
        assert "only this appliance knows" in caplog.text
        assert not repository.verify(read_data=True).ok
        assert verdicts(tmp_path) == set()
        repository.refresh_index()
        point = back_up(repository, "web", {"disk": DATA})
    reads_without_a_cache(tmp_path, first, point)


def test_a_verdict_holds_until_the_pack_was_read_whole(tmp_path: Path) -> None:
    with make(tmp_path) as repository:
        point = back_up(repository, "web", {"disk": DATA})
        pack = chunk_pack(repository)
        path = path_of(tmp_path, pack)
        good = path.read_bytes()
        flip(path)
        repository.verify(read_data=True)
        path.write_bytes(good)
        report = repository.verify(read_data=False)
        assert [problem.name for problem in report.problems] == [pack_name(pack)]
        assert "so it was found" in str(report.problems[0].error)
        assert [each.id for each in report.affected] == [point.id]
        assert verdicts(tmp_path) == {verdict_name(pack)}
        assert repository.verify(read_data=True).ok
        assert verdicts(tmp_path) == set()
        assert not repository.index_has_losses()
        with reopen(tmp_path, "other", OTHER) as theirs:
            packs = len(list((tmp_path / "store" / "packs").glob("*/*")))
            back_up(theirs, "db", {"disk": DATA})
            assert len(list((tmp_path / "store" / "packs").glob("*/*"))) == packs


def test_a_verdict_that_cannot_be_read_is_one_all_the_same(tmp_path: Path) -> None:
    with make(tmp_path) as repository, reopen(tmp_path, "other", OTHER) as theirs:
        first = back_up(repository, "web", {"disk": DATA})
        pack = chunk_pack(theirs)
        flip(path_of(tmp_path, pack))
        repository.verify(read_data=True)
        verdict = tmp_path / "store" / verdict_name(pack)
        verdict.write_bytes(verdict.read_bytes()[:-1] + b"?")
        point = back_up(theirs, "db", {"disk": DATA})
        assert read_disk(theirs, first) == DATA
        quick = repository.verify(read_data=False)
        assert {problem.name for problem in quick.problems} == {verdict_name(pack), pack_name(pack)}
        repository.verify(read_data=True)
        again = repository.verify(read_data=True)
        assert {problem.name for problem in again.problems} == {pack_name(pack)}, "it was written anew"
    reads_without_a_cache(tmp_path, point)


def test_a_later_look_says_more_of_a_pack(tmp_path: Path) -> None:
    """A reader knows of the one chunk that it met; a verification of all that is lost."""
    with make(tmp_path) as repository:
        first = back_up(repository, "web", {"disk": DATA})
        path = path_of(tmp_path, chunk_pack(repository))
        flip(path)
        with pytest.raises(Damaged):
            read_disk(repository, first)
        data = bytearray(path.read_bytes())
        data[HEADER_BYTES + len(DATA) - 100] ^= 1  # in the last chunk, however many there are
        path.write_bytes(data)
        hit = repository.verify(read_data=True)
        (name,) = verdicts(tmp_path)
        assert len(repository._objects.read_json(ObjectType.VERDICT, name).texts("unreadable")) == 2
        assert [each.id for each in hit.affected] == [first.id]
        assert [each.id for each in repository.verify(read_data=False).affected] == [first.id]


# What passes


def test_a_store_that_fails_for_a_moment_condemns_no_pack(tmp_path: Path) -> None:
    make(tmp_path).close()
    with FaultyStore(LocalStore(tmp_path / "store")) as store, reopen(tmp_path, store=store) as repository:
        point = back_up(repository, "web", {"disk": DATA})
        name = pack_name(chunk_pack(repository))
        store.fail("get", prefix=name, forever=True, error=StoreUnavailable("read", name, "Input/output error"))
        with pytest.raises(StoreUnavailable):
            read_disk(repository, point)
        for read_data in (False, True):
            report = repository.verify(read_data=read_data)
            assert [problem.name for problem in report.problems] == [name]
            assert [each.id for each in report.affected] == [point.id]
        store.faults[0].forever = False
        assert verdicts(tmp_path) == set()
        assert not repository.index_has_losses()
        assert repository.verify(read_data=True).ok
        assert read_disk(repository, point) == DATA
        packs = len(list(store.list("packs/")))
        back_up(repository, "web", {"disk": DATA})
        assert len(list(store.list("packs/"))) == packs


def test_a_table_that_could_not_be_read_at_first_is_no_problem_once_the_pack_was(tmp_path: Path) -> None:
    make(tmp_path).close()
    with FaultyStore(LocalStore(tmp_path / "store")) as store, reopen(tmp_path, store=store) as repository:
        back_up(repository, "web", {"disk": DATA})
        name = pack_name(chunk_pack(repository))
        store.fail("get", prefix=name, error=StoreUnavailable("read", name, "it is a test"))
        assert repository.verify(read_data=False).ok


@pytest.mark.parametrize("quick", [None, False, True])
def test_a_pack_that_was_away_is_read_again(tmp_path: Path, quick: bool | None) -> None:
    """A disk that was not mounted for a moment: what seemed to be gone is there again, and nobody need know why."""
    with make(tmp_path) as repository:
        point = back_up(repository, "web", {"disk": DATA})
        pack = chunk_pack(repository)
        path = path_of(tmp_path, pack)
        path.rename(tmp_path / "away")
        with pytest.raises(ObjectMissing):
            read_disk(repository, point)
        assert repository.index.packs()[pack].state is PackState.GONE
        (tmp_path / "away").rename(path)
        if quick is None:
            assert read_disk(repository, point) == DATA
            assert repository.index.packs()[pack].state is not PackState.GONE
        else:
            assert repository.verify(read_data=not quick).ok
            assert repository.index.packs()[pack].state is PackState.LIVE
            assert verdicts(tmp_path) == set()
            assert not repository.index_has_losses()
            packs = len(list((tmp_path / "store" / "packs").glob("*/*")))
            back_up(repository, "web", {"disk": DATA})
            assert len(list((tmp_path / "store" / "packs").glob("*/*"))) == packs


@pytest.mark.parametrize("read_data", [False, True])
def test_a_damaged_pack_that_was_away_is_damaged_and_there(tmp_path: Path, read_data: bool) -> None:
    with make(tmp_path) as repository:
        back_up(repository, "web", {"disk": DATA})
        pack = chunk_pack(repository)
        flip(path_of(tmp_path, pack))
        repository.verify(read_data=True)
        repository.index.set_states({pack: PackState.GONE})
        assert not repository.verify(read_data=read_data).ok
        assert repository.index.packs()[pack].state is PackState.DAMAGED


def test_who_restores_doubts_a_pack_that_was_away(tmp_path: Path) -> None:
    """It may have been damaged before."""
    with make(tmp_path) as repository:
        point = back_up(repository, "web", {"disk": DATA})
        pack = chunk_pack(repository)
        flip(path_of(tmp_path, pack))
        repository.verify(read_data=True)
        repository.index.set_states({pack: PackState.GONE})
        (damage,) = known_damage(repository, point.manifest.disks)
        assert [(each.start, each.stop < len(DATA)) for each in damage.ranges] == [(0, True)]


def test_a_pack_that_is_gone_is_asked_for_once_and_not_for_each_of_its_chunks(tmp_path: Path) -> None:
    make(tmp_path).close()
    with FaultyStore(LocalStore(tmp_path / "store")) as store, reopen(tmp_path, store=store) as repository:
        point = back_up(repository, "web", {"disk": content(3, 6_000_000)})
        pack = chunk_pack(repository)
        path_of(tmp_path, pack).unlink()
        store.calls.clear()
        (damage,) = known_damage(repository, point.manifest.disks)
        assert damage.damaged_bytes == damage.size_bytes
        asked = [name for method, name in store.calls if method in ("get", "exists") and name == pack_name(pack)]
        assert len(asked) < 8 < repository.index.packs()[pack].rows


def test_a_pack_that_was_away_when_the_index_was_built_is_read(tmp_path: Path) -> None:
    with make(tmp_path) as repository:
        point = back_up(repository, "web", {"disk": DATA})
        path = path_of(tmp_path, chunk_pack(repository))
    path.rename(tmp_path / "away")
    with reopen(tmp_path, "new") as repository:
        assert repository.index_has_losses()
        (tmp_path / "away").rename(path)
        assert read_disk(repository, point) == DATA
        assert not repository.index_has_losses()


# Collections


@damages
def test_a_collection_keeps_the_copy_that_is_good(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    """Whichever index object it meets first."""
    points = {}
    with make(tmp_path) as repository:
        for number in range(6):
            points[number] = back_up(repository, f"web-{number}", {"disk": content(number, 100_000)})
        for pack, each in repository.index.packs().items():
            if each.blob_type == 0:
                damage(path_of(tmp_path, pack))
        repository.verify(read_data=True)
        assert len(verdicts(tmp_path)) == 6
        for number in range(6):
            back_up(repository, f"web-{number}", {"disk": content(number, 100_000)})
    with reopen(tmp_path, "new", OTHER) as theirs:
        collect(theirs)
        assert verdicts(tmp_path) == set(), "the packs are gone, and so is what was said of them"
        for number, point in points.items():
            assert read_disk(theirs, point) == content(number, 100_000)
        healthy(theirs)


def test_a_collection_that_meets_damage_tells(tmp_path: Path) -> None:
    """It reads packs that it wants to empty."""
    shared, own = content(1, 600_000), content(2, 2_000_000)  # shared: longer than a chunk can be
    with make(tmp_path) as repository:
        first = back_up(repository, "web", {"disk": shared + own})
        second = back_up(repository, "web", {"disk": shared})
        damaged = max((tmp_path / "store" / "packs").glob("*/*"), key=lambda path: path.stat().st_size)
        flip(damaged)
        delete(repository, first)
        assert collect(repository).problems
        assert verdicts(tmp_path) == {f"damaged/{damaged.name}"}
        assert damaged.exists()
        third = back_up(repository, "db", {"disk": shared})
        assert collect(repository).deleted_packs
        assert not damaged.exists()
        assert verdicts(tmp_path) == set()
        for point in (second, third):
            assert read_disk(repository, point) == shared
        healthy(repository)


def test_a_verification_says_nothing_against_what_a_collection_removed(tmp_path: Path) -> None:
    """Condemned packs may go at any time, also before the index objects that list them."""
    with make(tmp_path) as repository:
        first = back_up(repository, "web", {"disk": DATA})
        condemned = repository.index.packs()
        back_up(repository, "web", {"disk": content(2, 300_000)})
        delete(repository, first)
        repository._objects.create_json(
            ObjectType.EPOCH, "epochs/0000000001", {"condemned": sorted(pack.hex() for pack in condemned)}
        )
        for pack in condemned:
            path_of(tmp_path, pack).unlink()
        healthy(repository)
        assert verdicts(tmp_path) == set()
        assert not repository.index_has_losses()
    with reopen(tmp_path, "new") as repository:
        assert not repository.index_has_losses()


def test_the_index_forgets_what_was_collected(tmp_path: Path) -> None:
    with make(tmp_path) as repository, reopen(tmp_path, "other", OTHER) as theirs:
        keep = back_up(repository, "keep", {"disk": DATA})
        back_up(theirs, "theirs", {"disk": DATA})
        for seed in range(10, 16):
            delete(repository, back_up(repository, "web", {"disk": content(seed, 200_000)}))
        theirs.refresh_index()
        for _ in range(2):
            collect(repository)
        left = {path.name for path in (tmp_path / "store" / "packs").glob("*/*")}
        for each in (repository, theirs):
            each.refresh_index()
            assert {pack.hex() for pack in each.index.packs()} == left
            assert not each.index_has_losses()
            assert read_disk(each, keep) == DATA
        healthy(theirs)
