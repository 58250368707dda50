"""The protocol of docs/locking.md, provoked: who may write, who decides, and what a dead or late run leaves behind."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from imaging import canonical
from imaging.envelope import ObjectType, seal
from imaging.errors import (
    Damaged,
    Fenced,
    NoSpace,
    SeriesBusy,
    StoreError,
    StoreUnavailable,
)
from imaging.leases import Standing
from imaging.places import PackState
from imaging.repository import Repository, Run
from imaging.storage.local import LocalStore
from tests.faults.faulty_store import FaultyStore
from tests.faults.repositories import OTHER, ManualClock, back_up, content, draft, make, read_disk, reopen, write_disks

DATA = {"disk": content(1, 60_000)}
NEW = {"disk": content(2, 60_000)}
NOW = datetime(2026, 3, 1, tzinfo=UTC)


def series(repository: Repository) -> str:
    return repository.series_of("image", "web")


def publish(repository: Repository, kind: ObjectType, name: str, values: dict[str, object]) -> None:
    """A control object, as a collector would write it."""
    data = seal(kind, name, repository.keys.control, repository.id, canonical.encode(values))
    repository.store.create(name, [data])


def test_everything_happens_in_the_order_that_the_protocol_needs(tmp_path: Path) -> None:
    make(tmp_path).close()
    store = FaultyStore(LocalStore(tmp_path / "store"))
    with reopen(tmp_path, store=store) as repository:
        parent = back_up(repository, "web", DATA)
        store.calls.clear()
        with repository.begin_run(series(repository)) as run:
            begun = len(store.calls)
            lease = f"leases/{run.lease_id}"
            steps = [
                ("create", f"{lease}/start"),
                ("create", f"claims/{run.series}/0000000002"),
                ("list", "epochs/"),
                ("create", f"{lease}/epoch"),
                ("exists", parent.name),
                ("exists", parent.name.replace("manifests", "tombstones")),
                ("list", "index/"),
            ]
            calls = store.calls[store.calls.index(steps[0]) : begun]
            assert [calls.index(step) for step in steps] == sorted(calls.index(step) for step in steps)
            run.commit(draft("web", write_disks(repository, run, NEW), NOW))
        written = [name.split("/")[0] for method, name in store.calls[begun:] if method in ("put", "create")]
    assert [each for at, each in enumerate(written) if at == 0 or written[at - 1] != each] == [
        "packs",
        "index",
        "manifests",
        "leases",
    ]


def test_one_run_per_series_and_the_busy_one_is_named(tmp_path: Path) -> None:
    with make(tmp_path) as repository:
        with repository.begin_run(series(repository)), pytest.raises(SeriesBusy, match="first"):
            repository.begin_run(series(repository))
        with repository.begin_run(series(repository)) as run, repository.begin_run("ab" * 16) as second:
            assert run.generation == 2, "an abandoned run used up its number"
            assert second.generation == 1


def test_another_appliance_waits_and_takes_over_only_from_a_lease_that_stands_still(tmp_path: Path) -> None:
    clock = ManualClock()
    with make(tmp_path) as mine, reopen(tmp_path, "other", OTHER, clock) as theirs:
        run = mine.begin_run(series(mine), host="hv1")
        with pytest.raises(SeriesBusy, match="hv1") as caught:
            theirs.begin_run(series(theirs))
        assert caught.value.wait_s == 15 * 60
        assert "900 s" in caught.value.hint
        clock.pass_s(14 * 60)
        publish(mine, ObjectType.LEASE, f"leases/{run.lease_id}/beat/0000000001", {})
        with pytest.raises(SeriesBusy):
            theirs.begin_run(series(theirs))
        clock.pass_s(14 * 60)
        with pytest.raises(SeriesBusy) as caught:
            theirs.begin_run(series(theirs))
        assert caught.value.wait_s == 60
        clock.pass_s(60)
        point = back_up(theirs, "web", NEW)

        entries = write_disks(mine, run, DATA)  # packs and index objects of a fenced lease hurt nobody
        with pytest.raises(Fenced, match=OTHER.id.hex()):
            run.commit(draft("web", entries, NOW))
        run.abandon()
        for each in (mine, theirs):
            assert each.points() == [point]
            each.refresh_index()
            assert each.index.known([mine.keys.chunk_id]) == [False]
            assert read_disk(each, point) == NEW["disk"]
        assert theirs.verify(read_data=True).ok


def test_what_was_observed_outlives_the_observing_process_but_not_the_boot(tmp_path: Path) -> None:
    clock = ManualClock()
    with make(tmp_path) as mine:
        run = mine.begin_run(series(mine))
        for _ in range(3):
            with reopen(tmp_path, "other", OTHER, clock) as theirs, pytest.raises(SeriesBusy):
                theirs.begin_run(series(theirs))
            clock.pass_s(299)
        clock.pass_s(3)
        seen = tmp_path / "other" / "observed" / run.lease_id
        seen.write_text(seen.read_text().replace('"boot": "', '"boot": "another'))
        with reopen(tmp_path, "other", OTHER, clock) as theirs, pytest.raises(SeriesBusy):
            theirs.begin_run(series(theirs))
        clock.pass_s(900)
        with reopen(tmp_path, "other", OTHER, clock) as theirs:
            theirs.begin_run(series(theirs)).abandon()
        run.abandon()


def test_the_heart_beats_and_notices_that_it_was_fenced(tmp_path: Path) -> None:
    make(tmp_path).close()
    with reopen(tmp_path, beat_s=0.02) as repository, repository.begin_run(series(repository)) as run:

        def beats() -> list[str]:
            return [listed.name for listed in repository.store.list(f"leases/{run.lease_id}/beat/")]

        deadline = time.monotonic() + 120
        while not any(int(name.rpartition("/")[2]) >= 4 for name in beats()):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert len(beats()) <= 2
        publish(repository, ObjectType.LEASE, f"leases/{run.lease_id}/end", {"outcome": "fenced", "by": "ab" * 16})
        while run._heart.is_alive():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        with pytest.raises(Fenced, match="abab"):
            run.put_index([])


def test_a_heartbeat_that_fails_is_reported_and_goes_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make(tmp_path).close()
    with FaultyStore(LocalStore(tmp_path / "store")) as store, reopen(tmp_path, store=store, beat_s=0.02) as repository:
        with caplog.at_level(logging.WARNING), repository.begin_run(series(repository)) as run:
            store.fail("create", prefix=f"leases/{run.lease_id}/beat", error=StoreUnavailable("write", "x", "y"))
            store.fail(
                "create",
                prefix=f"leases/{run.lease_id}/beat",
                nth=3,
                after=True,
                error=StoreUnavailable("write", "x", "y"),
            )
            deadline = time.monotonic() + 120
            while not any(name.endswith("/0000000006") for _, name in store.calls):
                assert time.monotonic() < deadline
                time.sleep(0.01)
            run.commit(draft("web", (), NOW))
        assert "could not be renewed" in caplog.text
        assert len(repository.points()) == 1


def test_who_ends_the_lease_first_decides_even_in_the_last_moment(tmp_path: Path) -> None:
    make(tmp_path).close()
    store = FaultyStore(LocalStore(tmp_path / "store"))
    with reopen(tmp_path, store=store) as repository:
        before = back_up(repository, "web", DATA)
        run = repository.begin_run(series(repository))
        entries = write_disks(repository, run, NEW)

        def fence(method: str, name: str) -> None:
            if (method, name) == ("create", f"leases/{run.lease_id}/end"):
                store.before = None
                publish(repository, ObjectType.LEASE, name, {"outcome": "fenced", "by": "cd" * 16})

        store.before = fence
        with pytest.raises(Fenced), run:
            run.commit(draft("web", entries, NOW))
        assert repository.points() == [before]
        assert [listed.name for listed in store.list("manifests/")] != [before.name], "it is there, and inert"
        assert back_up(repository, "web", NEW).manifest.predecessor == before.hash


def test_a_parent_that_is_deleted_in_the_moment_of_beginning_is_not_used(tmp_path: Path) -> None:
    make(tmp_path).close()
    store = FaultyStore(LocalStore(tmp_path / "store"))
    with reopen(tmp_path, store=store) as repository:
        first = back_up(repository, "web", DATA)
        second = back_up(repository, "web", NEW)

        def bury(method: str, name: str) -> None:
            if method == "create" and name.endswith("/start"):
                store.before = None
                repository.delete_point(second, "admin")

        store.before = bury
        with repository.begin_run(series(repository)) as run:
            assert run.parent == first
            assert run.generation == 4, "two numbers were used up"
        assert repository.points() == [first]


def test_a_run_suspended_before_its_claim_does_not_take_a_number_that_was_cleared_away(tmp_path: Path) -> None:
    make(tmp_path).close()
    store = FaultyStore(LocalStore(tmp_path / "store"))
    with reopen(tmp_path, "other", OTHER) as theirs, reopen(tmp_path, store=store) as mine:

        def suspended(method: str, name: str) -> None:
            if method == "create" and name.startswith("claims/"):
                store.before = None
                for data in (DATA, NEW, DATA):
                    back_up(theirs, "web", data)
                assert [listed.name[-10:] for listed in store.list("claims/")] == ["0000000003"]

        store.before = suspended
        point = back_up(mine, "web", NEW)
        assert [each.generation for each in mine.points()] == [1, 2, 3, 4]
        assert point.generation == 4


@pytest.mark.parametrize("call", range(1, 30))
def test_of_two_that_begin_at_once_one_gets_the_lease_whenever_the_other_comes(tmp_path: Path, call: int) -> None:
    """The other begins, whole, before each call of the store that the one makes."""
    make(tmp_path).close()
    store = FaultyStore(LocalStore(tmp_path / "store"))
    outcomes: list[Run | SeriesBusy] = []
    calls = 0
    with reopen(tmp_path, "other", OTHER) as theirs, reopen(tmp_path, store=store) as mine:

        def begin(repository: Repository) -> None:
            try:
                outcomes.append(repository.begin_run(series(repository)))
            except SeriesBusy as error:
                outcomes.append(error)

        def interrupted(method: str, name: str) -> None:
            nonlocal calls
            calls += 1
            if calls == call:
                store.before = None
                begin(theirs)

        store.before = interrupted
        begin(mine)
        if store.before is not None:
            store.before = None
            begin(theirs)
        runs = [each for each in outcomes if isinstance(each, Run)]
        assert len(outcomes) == 2
        assert len(runs) == 1, "two write one series"
        runs[0].abandon()


def die_at(folder: Path, count: int, action: Callable[[Repository], object]) -> str:
    """Runs `action` in a child that kills itself before its nth call of the store: that call, or "" if it came
    through."""
    last = folder / "last"
    child = os.fork()
    if child == 0:
        try:
            store = FaultyStore(LocalStore(folder / "store"))
            calls = 0

            counting = threading.Lock()

            def tick(method: str, name: str) -> None:
                nonlocal calls
                with counting:
                    if calls == count:
                        last.write_text(f"{method} {name}")
                        os.kill(os.getpid(), signal.SIGKILL)
                    calls += 1

            with reopen(folder, store=store) as repository:
                store.before = tick
                action(repository)
            os._exit(0)
        except BaseException:
            logging.exception("the child failed")
        os._exit(1)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in (0, -signal.SIGKILL)
    return last.read_text() if status else ""


@pytest.mark.faults
def test_a_run_that_is_killed_anywhere_leaves_no_half_point_and_the_next_succeeds_at_once(tmp_path: Path) -> None:
    with make(tmp_path) as repository:
        first = back_up(repository, "web", DATA)
    committed = 0
    for count in range(200):
        call = die_at(tmp_path, count, lambda repository: back_up(repository, "web", NEW))
        through = call.startswith("delete claims/") or not call  # its last step: as many as killed runs have left
        with reopen(tmp_path) as repository:
            points = repository.points()
            assert len(points) - committed in (1, 2), "a point counts wholly or not at all"
            committed = len(points) - 1
            for point in points:
                expected = DATA if point == first else NEW
                assert read_disk(repository, point) == expected["disk"]
            with repository.begin_run(series(repository)) as run:
                assert run.parent == points[-1]
            if count % 10 == 0 or through:
                report = repository.verify(read_data=True)
                assert report.ok, report
        if through:
            break
    else:
        raise AssertionError("the child never came through")
    assert count > 30
    assert committed >= 2


@pytest.mark.faults
def test_a_deletion_that_is_killed_anywhere_is_done_or_not(tmp_path: Path) -> None:
    with make(tmp_path) as repository:
        kept = back_up(repository, "web", DATA)
        doomed = back_up(repository, "web", NEW)
    for count in range(50):
        through = not die_at(
            tmp_path, count, lambda repository: repository.delete_point(repository.point(doomed.id), "admin")
        )
        with reopen(tmp_path) as repository:
            assert repository.points() in ([kept, doomed], [kept])
            if repository.points() == [kept]:
                assert repository.verify(read_data=True).ok
                if through:
                    break
                repository.store.delete(doomed.name.replace("manifests", "tombstones"))
    assert count > 3


WRITES = [
    ("create", "leases/", 1),
    ("create", "claims/", 1),
    ("create", "leases/", 2),
    ("put", "packs/", 1),
    ("put", "packs/", 2),
    ("create", "index/", 1),
    ("create", "manifests/", 1),
]
"""The last one, the end of the lease, is repeated where that may help: see test_repository_commits.py."""


@pytest.mark.parametrize(("method", "prefix", "nth"), WRITES)
@pytest.mark.parametrize("full", [True, False])
def test_a_write_that_fails_ends_the_run_cleanly_and_the_next_succeeds(
    tmp_path: Path, method: str, prefix: str, nth: int, full: bool
) -> None:
    make(tmp_path).close()
    with FaultyStore(LocalStore(tmp_path / "store")) as store, reopen(tmp_path, store=store) as repository:
        first = back_up(repository, "web", DATA)
        error = NoSpace("write", prefix) if full else StoreUnavailable("write", prefix, "it is a test")
        store.fail(method, prefix=prefix, nth=nth, error=error)
        with pytest.raises(StoreError) as caught:
            back_up(repository, "web", NEW)
        assert caught.value is error
        assert repository.points() == [first]
        assert read_disk(repository, first) == DATA["disk"]
        again = back_up(repository, "web", NEW)
        assert repository.points() == [first, again]
        assert again.manifest.predecessor == first.hash
        assert repository.verify(read_data=True).ok


STRAYS = [
    "epochs/1234567890123",
    "epochs/0000000009.old",
    "claims/{series}/9999999999x",
    "claims/{series}/zzzz",
    "claims/{series}/00000000000001",
    "claims/{series}/0000000000/what",
    "claims/{series}/0.old",
    "manifests/{series}/9999999998-what",
    "tombstones/{series}/9999999998-what",
    "leases/{lease}/what",
    "leases/{lease}/beat/99999999999999",
]


@pytest.mark.parametrize("stray", STRAYS)
def test_an_unknown_object_neither_stops_a_run_nor_is_deleted(tmp_path: Path, stray: str) -> None:
    with make(tmp_path) as repository, reopen(tmp_path, "other", OTHER) as theirs:
        back_up(theirs, "web", DATA)
        run = repository.begin_run(series(repository))
        name = stray.format(series=run.series, lease=run.lease_id)
        repository.store.put(name, [b"of a later version"])
        point = run.commit(draft("web", write_disks(repository, run, NEW), NOW))
        assert repository._leases.counter(run.lease_id) == 0
        assert not repository._leases.is_open(run.lease_id)
        again = back_up(repository, "web", DATA)
        assert (point.generation, again.generation) == (2, 3)
        assert again.manifest.predecessor == point.hash
        assert repository.store.get(name) == b"of a later version"
        if "{lease}" in stray:
            repository.store.delete(f"leases/{run.lease_id}/end")
            assert theirs._leases.standing(run.lease_id) is Standing.TIDIED


def test_what_is_condemned_is_read_but_never_relied_on_anew(tmp_path: Path) -> None:
    with make(tmp_path) as repository:
        first = back_up(repository, "web", DATA)
        packs = sorted(repository.index.packs())
        publish(repository, ObjectType.EPOCH, "epochs/0000000001", {"condemned": []})
        publish(repository, ObjectType.EPOCH, "epochs/0000000007", {"condemned": [pack.hex() for pack in packs]})
        with repository.begin_run(series(repository)) as run:
            assert run.condemned == frozenset(packs)
            epoch = repository._leases._objects.read_json(ObjectType.LEASE, f"leases/{run.lease_id}/epoch")
            assert epoch.integer("epoch") == 7
        assert read_disk(repository, first) == DATA["disk"]
        second = back_up(repository, "web", DATA)
        fresh = [pack for pack in repository.index.packs() if pack not in packs]
        assert len(fresh) == len(packs), "everything was stored anew"
        for pack in packs:
            repository.store.delete(f"packs/{pack.hex()[:2]}/{pack.hex()}")
        assert read_disk(repository, second) == DATA["disk"]
        states = {pack.state for pack in repository.index.packs().values()}
        assert states == {PackState.LIVE, PackState.CONDEMNED}


def test_a_condemned_list_that_cannot_be_read_stops_new_runs_and_no_reader(tmp_path: Path) -> None:
    with make(tmp_path) as repository:
        point = back_up(repository, "web", DATA)
        repository.store.create("epochs/0000000001", [b"rubbish"])
        with pytest.raises(Damaged, match="epochs/0000000001"):
            repository.begin_run(series(repository))
    with reopen(tmp_path, "fresh") as repository:
        assert read_disk(repository, repository.point(point.id)) == DATA["disk"]


def test_a_claim_that_cannot_be_read_does_not_stop_a_series_for_ever(tmp_path: Path) -> None:
    clock = ManualClock()
    with make(tmp_path) as repository, reopen(tmp_path, "other", OTHER, clock) as theirs:
        run = repository.begin_run(series(repository))
        (claim,) = (tmp_path / "store" / "claims").glob("*/*")
        claim.write_bytes(b"")
        with pytest.raises(SeriesBusy):
            theirs.begin_run(series(theirs))
        run.abandon()
        assert back_up(theirs, "web", DATA).generation == 2
