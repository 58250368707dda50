"""The last step of a run in a store that fails: it is repeated, whoever is told anything is told the truth, and what
comes after the commit costs nothing."""

from __future__ import annotations

import errno
import os
from datetime import UTC, datetime
from pathlib import Path

import pytest

from imaging import running
from imaging.errors import NoSpace, StoreUnavailable
from imaging.repository import Repository
from imaging.storage.durable import PosixSystem
from imaging.storage.local import LocalStore
from tests.faults.faulty_store import FaultyStore
from tests.faults.repositories import back_up, content, draft, make, read_disk, reopen, write_disks

DATA = {"disk": content(1, 60_000)}
NEW = {"disk": content(2, 60_000)}
NOW = datetime(2026, 3, 1, tzinfo=UTC)


def series(repository: Repository) -> str:
    return repository.series_of("image", "web")


PASSING = StoreUnavailable("write", "an object", "Input/output error")


def test_a_full_store_refuses_the_end_of_a_lease_at_once_and_the_next_run_succeeds(tmp_path: Path) -> None:
    make(tmp_path).close()
    with FaultyStore(LocalStore(tmp_path / "store")) as store, reopen(tmp_path, store=store) as repository:
        store.fail("create", prefix="leases/", nth=3, error=NoSpace("write", "leases/"))
        with pytest.raises(NoSpace):
            back_up(repository, "web", DATA)
        assert repository.points() == []
        assert back_up(repository, "web", NEW).generation == 2


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("times", [1, 2])
def test_a_commit_that_fails_in_passing_is_repeated_and_counts(tmp_path: Path, after: bool, times: int) -> None:
    """`after`: the end was there, and only the answer, or the last step of making it durable, was lost."""
    make(tmp_path).close()
    with FaultyStore(LocalStore(tmp_path / "store")) as store, reopen(tmp_path, store=store) as repository:
        store.fail("create", prefix="leases/", nth=3, after=after, error=PASSING)
        if times == 2:
            store.fail("get" if after else "create", prefix="leases/", nth=1 if after else 3, error=PASSING)
        point = back_up(repository, "web", DATA)
        assert repository.points() == [point]
        assert [listed.name[-4:] for listed in store.list("leases/")] == ["/end"], "tidied as ever"
        assert back_up(repository, "web", NEW).manifest.predecessor == point.hash


class FailsAtOnce(PosixSystem):
    """The folder of the next lease's end cannot be made durable when `due`; counts how often it could."""

    due = 0
    durable = 0

    def fsync_directory(self, path: Path) -> None:
        if path.parent.name == "leases" and (path / "end").exists():
            if self.due:
                self.due -= 1
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            self.durable += 1
        super().fsync_directory(path)


def test_an_end_whose_folder_could_not_be_made_durable_is_made_so_before_the_commit_returns(tmp_path: Path) -> None:
    make(tmp_path).close()
    system = FailsAtOnce()
    with reopen(tmp_path, store=LocalStore(tmp_path / "store", system)) as repository:
        run = repository.begin_run(series(repository))
        entries = write_disks(repository, run, DATA)
        system.due = 1
        system.durable = 0

        def committed(_: object) -> None:
            durable.append(system.durable)

        durable: list[int] = []
        object.__setattr__(run._context, "committed", committed)
        point = run.commit(draft("web", entries, NOW))
        assert system.due == 0
        assert durable == [1]
        assert repository.points() == [point]


def test_a_commit_that_fails_for_good_may_count_and_then_everybody_is_told_the_same(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make(tmp_path).close()
    store = FaultyStore(LocalStore(tmp_path / "store"))
    with reopen(tmp_path, store=store) as repository:
        with repository.begin_run(series(repository)) as run:
            entries = write_disks(repository, run, DATA)
            store.fail("create", prefix=f"leases/{run.lease_id}/end", after=True, error=PASSING)
            store.fail("get", prefix=f"leases/{run.lease_id}/end", error=PASSING, forever=True)
            with pytest.raises(StoreUnavailable):
                run.commit(draft("web", entries, NOW))
            assert all(fault.fired for fault in store.faults)
            store.faults.clear()
        assert "counts, though it was told" in caplog.text
        (point,) = repository.points()
        assert read_disk(repository, point) == DATA["disk"]
        assert [listed.name[-4:] for listed in store.list("leases/")] == ["/end"]
        assert back_up(repository, "web", NEW).manifest.predecessor == point.hash


@pytest.mark.parametrize("step", ["index", "tidy", "claims"])
def test_what_fails_after_the_commit_costs_nothing_and_is_logged_whole(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, step: str
) -> None:
    make(tmp_path).close()
    with reopen(tmp_path) as repository:
        run = repository.begin_run(series(repository))
        entries = write_disks(repository, run, DATA)

        def mistake(*_: object) -> None:
            raise MemoryError("the mistake")

        if step == "index":
            object.__setattr__(run._context, "committed", mistake)
        elif step == "tidy":
            repository._leases.tidy = mistake  # type: ignore[method-assign, assignment]
        else:
            run._drop_older_claims = mistake  # type: ignore[method-assign]
        point = run.commit(draft("web", entries, NOW))
        assert repository.points() == [point]
        assert "the mistake" in caplog.text
        assert "Traceback" in caplog.text
    with reopen(tmp_path) as repository, repository.begin_run(point.series) as run:
        assert run.parent == point


def test_a_failing_abandonment_does_not_hide_why_the_run_failed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make(tmp_path).close()
    with FaultyStore(LocalStore(tmp_path / "store")) as store, reopen(tmp_path, store=store) as repository:
        store.fail("create", prefix="leases/", nth=3, error=PASSING, forever=True)
        with pytest.raises(KeyError, match="the first"), repository.begin_run(series(repository)):
            raise KeyError("the first")
        assert store.faults.pop().fired == 3
        assert "could not be ended" in caplog.text
        assert back_up(repository, "web", DATA).generation == 2


def test_a_backup_does_not_begin_where_only_what_is_set_aside_is_left_and_a_collection_does(tmp_path: Path) -> None:
    class Full(FaultyStore):
        def free_bytes(self) -> int | None:
            return 200_000

    make(tmp_path).close()
    store = Full(LocalStore(tmp_path / "store"))
    with reopen(tmp_path, store=store) as repository:
        with pytest.raises(NoSpace, match="195 KiB") as caught:
            repository.begin_run(series(repository))
        assert "collect" in caught.value.hint
        assert not [name for method, name in store.calls if method in ("put", "create")]
        running.begin(repository._context, "ab" * 16, None, running.COLLECTION).abandon()
