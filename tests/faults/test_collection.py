"""Collection on a real repository: what it removes, what it must not, and what it waits for."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from imaging.collecting import Collected, CollectionRefused, Options
from imaging.errors import Damaged, PointHeld, PointNotFound, SeriesBusy, StillReadable, StoreUnavailable, WrongVersion
from imaging.leases import DEAD_AFTER_S
from imaging.marking import Unresolvable
from imaging.points import DamagedPoint, Point
from imaging.repository import Appliance, Repository
from imaging.rollcalls import RolledBack
from imaging.storage.contract import Listed
from imaging.storage.local import LocalStore
from imaging.tidying import Tidying
from tests.faults.faulty_store import FaultyStore
from tests.faults.repositories import (
    ME,
    OTHER,
    ManualClock,
    back_up,
    content,
    draft,
    make,
    read_disk,
    reopen,
    write_disks,
)

MIB = 1 << 20
NOW = datetime(2026, 3, 1, tzinfo=UTC)


class Silent:
    def __init__(self) -> None:
        self.notes: list[str] = []

    def start(self, label: str, total_bytes: int | None) -> None: ...
    def advance(self, count_bytes: int) -> None: ...
    def finish(self) -> None: ...
    def note(self, text: str) -> None:
        self.notes.append(text)


def collect(repository: Repository, wait_s: float = 0.0) -> Collected:
    return repository.collect(Options(wait_s=wait_s), Silent())


def packs(folder: Path) -> set[str]:
    return {path.name for path in (folder / "store" / "packs").glob("*/*")}


def delete(repository: Repository, point: Point) -> None:
    repository.delete_point(point, by="test")


def healthy(repository: Repository) -> None:
    report = repository.verify(read_data=True)
    assert report.ok, [str(problem.error) for problem in report.problems]
    assert not report.unknown


def test_nothing_goes_while_every_point_lives(tmp_path: Path) -> None:
    with make(tmp_path) as repository:
        back_up(repository, "web", {"disk": content(1, 3 * MIB)})
        back_up(repository, "db", {"disk": content(2, MIB)})
        before = packs(tmp_path)
        done = collect(repository)
        assert done.plan.empty
        assert packs(tmp_path) == before
        healthy(repository)


def test_a_deleted_points_data_goes_and_the_others_stay_bit_exact(tmp_path: Path) -> None:
    with make(tmp_path) as repository:
        shared, own, other = content(1, 2 * MIB), content(2, 3 * MIB), content(3, MIB)
        first = back_up(repository, "web", {"disk": shared + own})
        second = back_up(repository, "web", {"disk": shared + other})
        size = sum(path.stat().st_size for path in (tmp_path / "store" / "packs").glob("*/*"))
        plan = repository.plan_collection(Options(), Silent())
        assert plan.freed_bytes == 0
        delete(repository, first)
        plan = repository.plan_collection(Options(), Silent())
        done = collect(repository)
        assert done.removed_points == 1
        left = sum(path.stat().st_size for path in (tmp_path / "store" / "packs").glob("*/*"))
        assert size - left >= len(own)
        assert plan.freed_bytes == done.plan.freed_bytes
        assert abs((size - left) - plan.freed_bytes) < 2048, "the forecast is what came of it, but for a new frame"
        assert read_disk(repository, second) == shared + other
        with pytest.raises(PointNotFound):
            repository.point(first.id)
        healthy(repository)
        assert not [each for each in (tmp_path / "store" / "tombstones").rglob("*") if each.is_file()]
    with reopen(tmp_path, "new") as repository:
        assert [point.id for point in repository.points()] == [second.id]
        assert read_disk(repository, second) == shared + other
        again = collect(repository)
        assert again.plan.empty


def test_a_new_cache_relies_on_nothing_that_was_removed(tmp_path: Path) -> None:
    with make(tmp_path) as repository:
        data = content(1, 2 * MIB)
        delete(repository, back_up(repository, "web", {"disk": data}))
        keep = back_up(repository, "web", {"disk": content(9, MIB)})
        collect(repository)
    with reopen(tmp_path, "new", OTHER) as repository:
        point = back_up(repository, "db", {"disk": data})
        assert read_disk(repository, point) == data
        assert read_disk(repository, keep) == content(9, MIB)
        healthy(repository)


def test_the_race_of_a_backup_that_relies_on_a_point_being_deleted(tmp_path: Path) -> None:
    """failures.md line 7, step by step: the parent is deleted and collected while an incremental refers to it."""
    data = content(1, 3 * MIB)
    with make(tmp_path) as repository, reopen(tmp_path, "other", OTHER) as theirs:
        parent = back_up(repository, "web", {"disk": data})
        run = repository.begin_run(repository.series_of("image", "web"))
        assert run.parent is not None
        delete(theirs, parent)
        first = collect(theirs)
        assert first.removed_points == 0, "the open run pins its parent"
        entry = parent.manifest.disks[0]
        point = run.commit(draft("web", (entry,), NOW))
        second = collect(theirs)
        assert second.removed_points == 1
        assert read_disk(theirs, point) == data
        healthy(theirs)


def test_a_backup_that_deduplicates_against_what_is_condemned_meanwhile(tmp_path: Path) -> None:
    data = content(1, 3 * MIB)
    with make(tmp_path) as repository, reopen(tmp_path, "other", OTHER) as theirs:
        old = back_up(repository, "web", {"disk": data})
        back_up(repository, "web", {"disk": content(2, MIB)})
        run = repository.begin_run(repository.series_of("image", "db"))
        entries = write_disks(repository, run, {"disk": data})
        delete(theirs, old)
        done = collect(theirs)
        assert done.waiting_for == (run.lease_id,)
        assert done.deleted_packs == 0
        point = run.commit(draft("db", entries, NOW))
        again = collect(theirs)
        assert again.rescued_packs > 0
        assert again.deleted_packs > 0
        assert read_disk(theirs, point) == data
        assert read_disk(repository, point) == data
        healthy(theirs)


def test_a_run_that_begins_after_the_publication_relies_on_nothing_condemned(tmp_path: Path) -> None:
    data = content(1, 3 * MIB)
    with make(tmp_path) as repository, reopen(tmp_path, "other", OTHER) as theirs:
        old = back_up(repository, "web", {"disk": data})
        back_up(repository, "web", {"disk": content(2, MIB)})
        waited_for = repository.begin_run(repository.series_of("image", "long"))
        delete(theirs, old)
        assert collect(theirs).waiting_packs > 0
        point = back_up(repository, "db", {"disk": data})
        waited_for.abandon()
        done = collect(theirs)
        assert done.deleted_packs > 0
        assert done.rescued_packs == 0
        assert read_disk(theirs, point) == data
        healthy(theirs)


def test_packs_of_an_abandoned_run_go_at_the_second_collection(tmp_path: Path) -> None:
    with make(tmp_path) as repository:
        back_up(repository, "web", {"disk": content(1, MIB)})
        before = packs(tmp_path)
        with repository.begin_run(repository.series_of("image", "db")) as run:
            write_disks(repository, run, {"disk": content(2, 2 * MIB)})
        assert packs(tmp_path) > before
        collect(repository)
        assert packs(tmp_path) > before, "seen once"
        collect(repository)
        assert packs(tmp_path) == before
        healthy(repository)


@pytest.mark.parametrize("whose", ["own", "another's"])
def test_packs_of_a_run_that_died_go_though_nothing_else_does(tmp_path: Path, whose: str) -> None:
    """Its machine is never backed up again: nobody but the collection asks whether it is alive."""
    clock = ManualClock()
    with make(tmp_path, clock) as repository:
        back_up(repository, "web", {"disk": content(1, MIB)})
        before = packs(tmp_path)
        dies_in_a_run(tmp_path, repository, ME if whose == "own" else OTHER)
        assert len(packs(tmp_path) - before) == 2
        collect(repository)
        if whose != "own":
            assert len(packs(tmp_path) - before) == 2, "it may live"
            clock.pass_s(DEAD_AFTER_S)
            collect(repository)
        collect(repository)
        assert packs(tmp_path) == before
        healthy(repository)


def dies_in_a_run(folder: Path, repository: Repository, appliance: Appliance) -> None:
    """A process that has put packs and an index object, and then is not there any more."""
    repository.close()  # a fork must not share what is open
    process = os.fork()
    if process == 0:
        try:
            with reopen(folder, "cache" if appliance is ME else "other", appliance) as theirs:
                run = theirs.begin_run(theirs.series_of("image", "dies"))
                write_disks(theirs, run, {"disk": content(2, MIB)})
                os.kill(os.getpid(), signal.SIGKILL)
        finally:
            os._exit(1)
    assert os.WTERMSIG(os.waitpid(process, 0)[1]) == signal.SIGKILL


def test_a_point_that_is_deleted_while_the_roll_is_called_is_not_missed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with make(tmp_path) as repository:
        point = back_up(repository, "web", {"disk": content(1, MIB)})
        back_up(repository, "db", {"disk": content(2, MIB)})
        real = Tidying.deletable
        deleted: list[str] = []

        def late(self: Tidying) -> list[str]:
            if not deleted:
                delete(repository, point)
                deleted.append(point.id)
            return real(self)

        monkeypatch.setattr(Tidying, "deletable", late)
        done = collect(repository)
        assert deleted == [point.id]
        assert done.removed_points == 1
        assert collect(repository).plan.empty
        healthy(repository)


def test_a_run_that_was_fenced_stays_fenced_after_a_collection(tmp_path: Path) -> None:
    clock = ManualClock()
    with make(tmp_path, clock) as repository, reopen(tmp_path, "other", OTHER, clock) as theirs:
        back_up(repository, "web", {"disk": content(1, MIB)})
        series = repository.series_of("image", "db")
        run = repository.begin_run(series)
        entries = write_disks(repository, run, {"disk": content(2, 2 * MIB)})
        with pytest.raises(SeriesBusy):
            theirs.begin_run(series)
        clock.pass_s(3600)
        theirs.begin_run(series).abandon()
        for _ in range(3):
            collect(theirs)
        with pytest.raises(Exception, match="was ended by"), run:
            run.commit(draft("db", entries, NOW))
        healthy(theirs)
        assert len(theirs.points()) == 1


def test_one_collection_at_a_time(tmp_path: Path) -> None:
    with make(tmp_path) as repository, reopen(tmp_path, "other", OTHER) as theirs:
        with repository.begin_run(repository.collection_series), pytest.raises(SeriesBusy):
            collect(theirs)
        collect(theirs)


def test_a_held_point_is_not_removed(tmp_path: Path) -> None:
    with make(tmp_path) as repository:
        point = back_up(repository, "web", {"disk": content(1, MIB)})
        repository.hold(point, "mount", "me")
        collect(repository)
        assert read_disk(repository, point) == content(1, MIB)


def test_a_listing_that_is_empty_removes_nothing(tmp_path: Path) -> None:
    make(tmp_path).close()
    store = FaultyStore(LocalStore(tmp_path / "store"))
    with reopen(tmp_path, store=store) as repository:
        back_up(repository, "web", {"disk": content(1, MIB)})
        point = back_up(repository, "db", {"disk": content(2, MIB)})
        collect(repository)
        before = packs(tmp_path)
        real = store.list

        def lies(prefix: str) -> object:
            return iter(()) if prefix.startswith("manifests/") else real(prefix)

        store.list = lies  # type: ignore[method-assign, assignment]
        with pytest.raises((CollectionRefused, RolledBack)):
            collect(repository)
        store.list = real  # type: ignore[method-assign]
        assert packs(tmp_path) == before
        assert read_disk(repository, point) == content(2, MIB)


def test_a_listing_that_hides_packs_takes_none_out_of_the_index(tmp_path: Path) -> None:
    """It begins to lie when the first pack is removed: nothing is marked any more, and the index is rewritten."""
    make(tmp_path).close()
    store = FaultyStore(LocalStore(tmp_path / "store"))
    with reopen(tmp_path, store=store) as repository:
        old = back_up(repository, "web", {"disk": content(1, MIB)})
        keep = back_up(repository, "web", {"disk": content(2, MIB)})
        delete(repository, old)
        real, lied = store.list, 0

        def lies(prefix: str) -> Iterator[Listed]:
            nonlocal lied
            removing = any(method == "delete" and name.startswith("packs/") for method, name in store.calls)
            if prefix != "packs/" or not removing:
                return real(prefix)
            lied += 1
            return iter(())

        store.list = lies  # type: ignore[method-assign]
        with pytest.raises(CollectionRefused, match="which is there"):
            collect(repository)
        store.list = real  # type: ignore[method-assign]
        assert lied
    with reopen(tmp_path, "new") as repository:
        assert read_disk(repository, keep) == content(2, MIB)
        before = packs(tmp_path)
        back_up(repository, "db", {"disk": content(2, MIB)})
        assert packs(tmp_path) == before, "what the index has is not stored again"
        assert collect(repository).plan.orphans == ()
        assert packs(tmp_path) == {pack.hex() for pack in repository.index.packs()}
        healthy(repository)


def test_a_set_back_repository_is_noticed(tmp_path: Path) -> None:
    with make(tmp_path) as repository:
        back_up(repository, "web", {"disk": content(1, MIB)})
        collect(repository)
        (tmp_path / "store" / "rollcalls" / "0000000001").rename(tmp_path / "old")
        (tmp_path / "store" / "packs").stat()
        with pytest.raises(RolledBack):
            collect(repository)


def test_a_damaged_manifest_or_index_or_missing_pack_stops_it(tmp_path: Path) -> None:
    with make(tmp_path) as repository:
        old = back_up(repository, "web", {"disk": content(1, MIB)})
        back_up(repository, "web", {"disk": content(2, MIB)})
        delete(repository, old)
        store = tmp_path / "store"
        (index, *_) = sorted((store / "index").iterdir())
        for victim in (index, next((store / "manifests").glob("*/*2-*"))):
            whole = victim.read_bytes()
            victim.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
            with reopen(tmp_path, f"new-{victim.name[:6]}") as fresh, pytest.raises(CollectionRefused):
                collect(fresh)
            victim.write_bytes(whole)
        before = packs(tmp_path)
        victim = max((store / "packs").glob("*/*"), key=lambda path: path.stat().st_mtime_ns)
        victim.rename(tmp_path / "away")
        with reopen(tmp_path, "new") as fresh, pytest.raises((Unresolvable, CollectionRefused)):
            collect(fresh)
        (tmp_path / "away").rename(victim)
        assert packs(tmp_path) == before
        collect(repository)
        healthy(repository)


def test_a_foreign_file_among_the_index_objects_stops_nothing_and_stays(tmp_path: Path) -> None:
    with make(tmp_path) as repository:
        old = back_up(repository, "web", {"disk": content(1, MIB)})
        keep = back_up(repository, "web", {"disk": content(2, MIB)})
        delete(repository, old)
        store = tmp_path / "store"
        foreign = store / "index" / "notes"
        foreign.write_bytes(b"where the key is kept")
        assert repository.verify().unknown == ("index/notes",)
        assert collect(repository).deleted_packs > 0
        assert collect(repository).plan.empty
        assert foreign.read_bytes() == b"where the key is kept"
        assert read_disk(repository, keep) == content(2, MIB)
        # One that was ours, and that somebody renamed: what it listed is needed, and nothing goes however often.
        before = packs(tmp_path)
        renamed = [(path, path.with_suffix(".old")) for path in (store / "index").glob("*-*")]
        for path, aside in renamed:
            path.rename(aside)
        for number in range(3):
            with pytest.raises((Unresolvable, CollectionRefused)):
                collect(repository)
            with reopen(tmp_path, f"new-{number}") as fresh, pytest.raises((Unresolvable, CollectionRefused)):
                collect(fresh)
        assert packs(tmp_path) == before
        for path, aside in renamed:
            aside.rename(path)
        foreign.unlink()
        collect(repository)
        healthy(repository)


@pytest.mark.parametrize("how", ["flipped", "cut short", "gone"])
def test_a_point_that_is_damaged_can_be_deleted_and_collection_goes_on(tmp_path: Path, how: str) -> None:
    with make(tmp_path) as repository:
        first = back_up(repository, "web", {"disk": content(1, MIB)})
        keep = back_up(repository, "web", {"disk": content(2, MIB)})
        other = back_up(repository, "db", {"disk": content(3, MIB)})
    victim = tmp_path / "store" / first.name
    whole = victim.read_bytes()
    if how == "gone":
        victim.unlink()
    else:
        victim.write_bytes(whole[:100] if how == "cut short" else whole[:-1] + bytes([whole[-1] ^ 1]))
    with reopen(tmp_path, "new") as repository:
        with pytest.raises((CollectionRefused, RolledBack)):
            collect(repository)
        (broken,) = repository.survey().damaged
        assert broken.id == first.id
        hold = repository.hold(keep, "protected", "admin")
        repository.delete_point(broken, by="admin")
        repository.delete_point(broken, by="admin")
        assert repository.survey().damaged == ()
        repository.release(hold.id)
        collect(repository)
        assert collect(repository).plan.empty
        assert not victim.exists()
        for point, seed in ((keep, 2), (other, 3)):
            assert read_disk(repository, point) == content(seed, MIB)
        again = back_up(repository, "web", {"disk": content(4, MIB)})
        assert again.generation == 3
        healthy(repository)
        assert packs(tmp_path) == {pack.hex() for pack in repository.index.packs()}, "what it alone needed is gone"


def test_what_is_not_damaged_for_good_is_not_deleted_as_damaged(tmp_path: Path) -> None:
    with make(tmp_path) as repository:
        point = back_up(repository, "web", {"disk": content(1, MIB)})
        for error in (StoreUnavailable("read", point.name, "Input/output error"), WrongVersion(point.name, 9)):
            with pytest.raises(StillReadable):
                repository.delete_point(DamagedPoint(point.name, error), by="admin")
        hold = repository.hold(point, "protected", "admin")
        with pytest.raises(PointHeld):
            repository.delete_point(DamagedPoint(point.name, Damaged(point.name, "it is")), by="admin")
        repository.release(hold.id)
        assert [each.id for each in repository.survey().points] == [point.id]


def test_many_index_objects_are_merged(tmp_path: Path) -> None:
    with make(tmp_path) as repository:
        data = [content(number, 20_000) for number in range(70)]
        points = [back_up(repository, "web", {"disk": each}) for each in data]
        done = collect(repository)
        assert done.rewritten_objects > 60
        assert len(list((tmp_path / "store" / "index").iterdir())) < 5
        for point, each in zip(points, data, strict=True):
            assert read_disk(repository, point) == each
        healthy(repository)
    with reopen(tmp_path, "new") as repository:
        assert read_disk(repository, points[3]) == data[3]


def test_it_needs_no_clock(tmp_path: Path) -> None:
    clock = ManualClock()
    with make(tmp_path, clock) as repository:
        old = back_up(repository, "web", {"disk": content(1, MIB)})
        keep = back_up(repository, "web", {"disk": content(2, MIB)})
        clock.now = clock.now.replace(year=2031)
        delete(repository, old)
        clock.now = clock.now.replace(year=2020)
        assert collect(repository).deleted_packs > 0
        assert read_disk(repository, keep) == content(2, MIB)
