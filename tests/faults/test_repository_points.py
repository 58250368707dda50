"""Which points there are, deleting one and holding one: in a store that fails, and from several threads at once."""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from typing import cast

import pytest

from imaging.errors import Damaged, HoldNotFound, ObjectMissing, PointHeld, PointNotFound, StoreUnavailable
from imaging.points import Point, Points
from imaging.storage.local import LocalStore
from tests.faults.faulty_store import FaultyStore
from tests.faults.repositories import OTHER, back_up, content, make, reopen

DATA = {"disk": content(1, 60_000)}
NEW = {"disk": content(2, 60_000)}
PASSING = StoreUnavailable("write", "an object", "Input/output error")


def test_a_point_that_vanished_is_told_as_lost_also_by_a_process_that_has_read_it(tmp_path: Path) -> None:
    with make(tmp_path) as repository:
        point = back_up(repository, "web", DATA)
        kept = back_up(repository, "web", NEW)
        assert repository.points() == [point, kept]
        (tmp_path / "store" / point.name).unlink()
        assert repository.points() == [kept]
        (lost,) = repository.damaged_points()
        assert (lost.id, type(lost.error)) == (point.id, ObjectMissing)


class ReadMeanwhile:
    """A point; whenever it is looked at, another thread has just read one more."""

    def __init__(self, point: Point, points: Points) -> None:
        self._point = point
        self._points = points
        self._times = 0

    def __getattr__(self, name: str) -> object:
        self._times += 1
        self._points._read[f"manifests/{self._times}"] = self._point
        return getattr(self._point, name)


def test_a_point_that_another_thread_reads_meanwhile_disturbs_no_survey(tmp_path: Path) -> None:
    with make(tmp_path) as repository:
        points = [back_up(repository, f"machine{number}", DATA) for number in range(3)]
        read = repository._points._read
        for point in points:
            read[point.name] = cast(Point, ReadMeanwhile(point, repository._points))
        assert {point.id for point in repository._points.survey().points} == {point.id for point in points}


def test_several_threads_look_at_once(tmp_path: Path) -> None:
    with make(tmp_path) as repository:
        points = [back_up(repository, f"machine{number}", DATA) for number in range(6)]
        interval = sys.getswitchinterval()
        failures: list[BaseException] = []

        def look(number: int) -> None:
            try:
                for _ in range(5):
                    repository._points._read.clear()
                    found = repository._points.survey(None if number % 2 else points[number].series)
                    assert len(found.points) == (6 if number % 2 else 1)
                    assert not found.damaged
            except BaseException as error:  # noqa: BLE001 - reported below
                failures.append(error)

        threads = [threading.Thread(target=look, args=(number,)) for number in range(4)]
        sys.setswitchinterval(1e-6)
        try:
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        finally:
            sys.setswitchinterval(interval)
        assert failures == []


# Holds and deletion


def test_a_held_point_is_not_deleted_until_it_is_let_go(tmp_path: Path) -> None:
    with make(tmp_path) as repository:
        point = back_up(repository, "web", DATA)
        held = repository.hold(point, "recovery", "session 7")
        with reopen(tmp_path, "other", OTHER) as theirs:
            assert theirs.holds() == [held]
            assert (held.point, held.purpose, held.owner) == (point.id, "recovery", "session 7")
            with pytest.raises(PointHeld, match="recovery"):
                theirs.delete_point(point, "admin")
            assert theirs.points() == [point]
        repository.release(held.id)
        with pytest.raises(HoldNotFound):
            repository.release(held.id)
        for wrong in ("../config", "x", ""):
            with pytest.raises(HoldNotFound):
                repository.release(wrong)
        repository.delete_point(point, "admin")
        repository.delete_point(point, "admin")
        assert repository.points() == []
        with pytest.raises(PointNotFound):
            repository.hold(point, "mount", "late")
        assert repository.holds() == []
        with pytest.raises(PointNotFound):
            repository.point(point.id)
        assert back_up(repository, "web", DATA).generation == 2
        with pytest.raises(ValueError, match="no holds for"):
            repository.hold(point, "fun", "x")


def test_of_a_hold_and_a_deletion_at_once_the_hold_is_told_or_the_point_stays(tmp_path: Path) -> None:
    make(tmp_path).close()
    store = FaultyStore(LocalStore(tmp_path / "store"))
    with reopen(tmp_path, store=store) as repository:
        point = back_up(repository, "web", DATA)

        def hold_now(method: str, name: str) -> None:
            if method == "create" and name.startswith("tombstones/"):
                store.before = None
                repository.hold(point, "export", "quick")

        store.before = hold_now
        with pytest.raises(PointHeld):
            repository.delete_point(point, "admin")
        assert repository.points() == [point]
        repository.release(repository.holds()[0].id)

        def delete_now(method: str, name: str) -> None:
            if method == "create" and name.startswith("holds/"):
                store.before = None
                repository.delete_point(point, "admin")

        store.before = delete_now
        with pytest.raises(PointNotFound):
            repository.hold(point, "export", "late")
        assert (repository.points(), repository.holds()) == ([], [])


@pytest.mark.parametrize("fault", ["list holds/", "get holds/", "create tombstones/", "interrupt"])
def test_a_deletion_that_fails_has_not_deleted_a_point_that_is_held_meanwhile(tmp_path: Path, fault: str) -> None:
    make(tmp_path).close()
    with FaultyStore(LocalStore(tmp_path / "store")) as store, reopen(tmp_path, store=store) as repository:
        point = back_up(repository, "web", DATA)
        failure: type[BaseException] = StoreUnavailable
        method, _, prefix = fault.partition(" ")
        if fault == "interrupt":
            failure = KeyboardInterrupt
        else:
            nth = 1 if method == "create" else 2  # letting go of a hold looks at it, and deleting lists them twice
            store.fail(method, prefix=prefix, nth=nth, after=method == "create", error=PASSING)

        def hold_now(method: str, name: str) -> None:
            if method == "create" and name.startswith("tombstones/"):
                store.before = interrupt if fault == "interrupt" else None
                store.inner.create(*held)

        def interrupt(method: str, name: str) -> None:
            if (method, name) == ("list", "holds/"):
                store.before = None
                raise KeyboardInterrupt

        hold = repository.hold(point, "export", "somebody")
        held = (f"holds/{hold.id}", [store.inner.get(f"holds/{hold.id}")])
        repository.release(hold.id)
        store.before = hold_now
        with pytest.raises(failure):
            repository.delete_point(point, "admin")
        assert repository.holds() == [hold]
        assert repository.points() == [point]


def test_repeating_a_deletion_in_a_failing_store_does_not_take_it_back(tmp_path: Path) -> None:
    make(tmp_path).close()
    store = FaultyStore(LocalStore(tmp_path / "store"))
    with reopen(tmp_path, store=store) as repository:
        point = back_up(repository, "web", DATA)
        repository.delete_point(point, "admin")
        store.fail("create", prefix="tombstones/", error=PASSING)
        assert repository.delete_point(point, "admin")
        assert repository.points() == []


def test_a_tombstone_that_cannot_be_taken_back_is_told_and_hides_no_first_error(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make(tmp_path).close()
    with FaultyStore(LocalStore(tmp_path / "store")) as store, reopen(tmp_path, store=store) as repository:
        point = back_up(repository, "web", DATA)
        store.fail("list", prefix="holds/", nth=2, error=StoreUnavailable("list", "holds/", "the first"))
        store.fail("delete", prefix="tombstones/", error=PASSING)
        with pytest.raises(StoreUnavailable, match="the first"):
            repository.delete_point(point, "admin")
        assert "could not be taken back" in caplog.text


@pytest.mark.parametrize(("method", "prefix"), [("create", "holds/"), ("exists", "manifests/"), ("exists", "tombs")])
def test_a_hold_that_fails_holds_nothing(tmp_path: Path, method: str, prefix: str) -> None:
    make(tmp_path).close()
    with FaultyStore(LocalStore(tmp_path / "store")) as store, reopen(tmp_path, store=store) as repository:
        point = back_up(repository, "web", DATA)
        store.fail(method, prefix=prefix, after=True, error=PASSING)
        with pytest.raises(StoreUnavailable):
            repository.hold(point, "restore", "somebody")
        assert repository.holds() == []
        repository.delete_point(point, "admin")


def test_a_hold_that_cannot_be_read_stops_deletion(tmp_path: Path) -> None:
    with make(tmp_path) as repository:
        point = back_up(repository, "web", DATA)
        repository.hold(point, "mount", "x")
        (path,) = (tmp_path / "store" / "holds").iterdir()
        path.write_bytes(path.read_bytes()[:-1])
        with pytest.raises(Damaged, match="holds/"):
            repository.delete_point(point, "admin")
        assert repository.points() == [point]
