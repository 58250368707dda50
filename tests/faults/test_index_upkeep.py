"""The index while the repository is in use: what a run may rely on, what a lost chunk may hold up, what a failing cache
may spoil, and what a verification may believe."""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import pytest

from imaging.census import CollectionRefused
from imaging.collecting import Options
from imaging.envelope import ObjectType, parse
from imaging.errors import IndexUnavailable, ObjectMissing, StoreUnavailable
from imaging.index_files import IndexFolder
from imaging.packs import pack_name
from imaging.places import PackState
from imaging.repository import Repository
from imaging.slots import RecoveryKey, parse_slot
from imaging.storage.local import LocalStore
from tests.faults.counted_lock import CountedLock
from tests.faults.faulty_store import FaultyStore
from tests.faults.repositories import OTHER, back_up, content, draft, make, read_disk, reopen, write_disks
from tests.faults.test_collection import NOW, Silent

pytestmark = pytest.mark.faults

DATA = content(1, 300_000)


def condemn(repository: Repository, number: int) -> frozenset[bytes]:
    """Everything that is there, as a collection would."""
    packs = frozenset(repository.index.packs())
    repository._objects.create_json(
        ObjectType.EPOCH, f"epochs/{number:010}", {"condemned": sorted(pack.hex() for pack in packs)}
    )
    return packs


@pytest.mark.parametrize("cache", ["cache", "new"])
def test_a_run_relies_on_nothing_that_the_epoch_it_recorded_condemns(tmp_path: Path, cache: str) -> None:
    """Though the list cannot be read a second time, whether its index is old or built under the run's lease."""
    with make(tmp_path) as repository:
        back_up(repository, "web", {"disk": DATA})
        condemned = condemn(repository, 1)
    with FaultyStore(LocalStore(tmp_path / "store")) as store, reopen(tmp_path, cache, store=store) as repository:
        store.corrupt(lambda data: data[:-1] + b"?", nth=2, prefix="epochs/", forever=True)
        with repository.begin_run(repository.series_of("image", "db")) as run:
            assert run.condemned == condemned
            store.faults[0].nth = 1 << 30
            store.faults[0].forever = False
            entries = write_disks(repository, run, {"disk": DATA})
            point = run.commit(draft("db", entries, NOW))
        for pack in condemned:
            store.delete(pack_name(pack))
        assert read_disk(repository, point) == DATA


def test_no_pack_is_live_before_it_is_condemned(tmp_path: Path) -> None:
    """Packs that the list names and the index does not have yet, looked at from another thread all the time."""
    with make(tmp_path) as repository:
        back_up(repository, "web", {"disk": DATA})
        condemned = condemn(repository, 1)
    states: set[PackState] = set()
    with reopen(tmp_path, "new") as repository:
        keeper = repository._keeper
        real = keeper._opened(True)
        changed = real._access.writing

        @contextlib.contextmanager
        def watched() -> Iterator[object]:
            with changed() as transaction:
                yield transaction
            states.update(pack.state for pack in real.packs().values() if pack.pack in condemned)

        real._access.writing = watched  # type: ignore[method-assign, assignment]
        keeper.refresh()
    assert states == {PackState.CONDEMNED}


def test_a_lost_chunk_holds_up_no_healthy_read(tmp_path: Path) -> None:
    """The store is slow, and a reader looks through all its packs for what is not there."""
    make(tmp_path).close()
    store = FaultyStore(LocalStore(tmp_path / "store"))
    with reopen(tmp_path, store=store) as repository:
        lost = back_up(repository, "lost", {"disk": content(2, 100_000)})
        before = set(repository.index.packs())
        well = back_up(repository, "web", {"disk": DATA})
        for pack in before:
            if repository.index.packs()[pack].blob_type == 0:
                store.delete(pack_name(pack))
        looking, go_on = threading.Event(), threading.Event()

        def slow(method: str, name: str) -> None:
            if method == "list" and threading.current_thread().name == "unlucky":
                looking.set()
                go_on.wait()

        store.before = slow
        failures: list[BaseException] = []

        def read_lost() -> None:
            try:
                read_disk(repository, lost)
            except ObjectMissing as error:
                failures.append(error)

        def read_well() -> None:
            assert read_disk(repository, well) == DATA
            assert repository.index.objects()
            done.set()

        done = threading.Event()
        threads = [threading.Thread(target=read_lost, name="unlucky"), threading.Thread(target=read_well)]
        threads[0].start()
        assert looking.wait(120)
        threads[1].start()
        try:
            assert done.wait(120), "a healthy read waits for the other"
        finally:
            go_on.set()
            for thread in threads:
                thread.join()
        assert len(failures) == 1


def test_many_who_miss_at_once_are_served_by_few_looks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path).close()
    store = FaultyStore(LocalStore(tmp_path / "store"))
    with reopen(tmp_path, store=store) as repository:
        back_up(repository, "web", {"disk": DATA})
        begun, go_on = threading.Event(), threading.Event()

        def slow(method: str, name: str) -> None:
            if (method, name) == ("list", "index/"):
                begun.set()
                go_on.wait()

        store.before = slow
        store.calls.clear()
        looking = CountedLock(repository._keeper._looking)
        monkeypatch.setattr(repository._keeper, "_looking", looking)
        first = threading.Thread(target=repository._keeper.look_again)
        first.start()
        begun.wait()
        while looking.came.acquire(blocking=False):
            pass  # it was the first itself
        others = [threading.Thread(target=repository._keeper.look_again) for _ in range(20)]
        for thread in others:
            thread.start()
        for _ in others:
            looking.came.acquire()
        assert all(thread.is_alive() for thread in others), "they wait for the one that looks"
        go_on.set()
        for thread in [first, *others]:
            thread.join()
        assert store.calls.count(("list", "index/")) <= 5


def test_a_broken_cache_takes_back_no_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(*_: object) -> NoReturn:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with make(tmp_path) as repository:
        with repository.begin_run(repository.series_of("image", "web")) as run:
            entries = write_disks(repository, run, {"disk": DATA})
            with monkeypatch.context() as patched:
                patched.setattr(IndexFolder, "writing", fails)
                patched.setattr("imaging.index_files.shutil.rmtree", fails)
                point = run.commit(draft("web", entries, NOW))
                with pytest.raises(IndexUnavailable):
                    repository.refresh_index()
        assert "counts, but" in caplog.text
        assert read_disk(repository, point) == DATA
        assert back_up(repository, "web", {"disk": DATA}).manifest.predecessor == point.hash


def test_a_verification_believes_no_remembered_end_of_a_lease(tmp_path: Path) -> None:
    with make(tmp_path) as repository:
        point = back_up(repository, "web", {"disk": DATA})
    with reopen(tmp_path) as repository:
        assert repository.points() == [point]  # from now on its cache has the end
    end = tmp_path / "store" / "leases" / point.manifest.lease / "end"
    data = bytearray(end.read_bytes())
    data[60] ^= 1
    end.write_bytes(data)
    with reopen(tmp_path, "new", OTHER) as fresh:
        assert fresh.points() == []
    with reopen(tmp_path) as repository:
        assert repository.points() == [point]
        report = repository.verify()
        assert [each.id for each in report.affected] == [point.id]
        assert {problem.name for problem in report.problems} == {f"leases/{point.manifest.lease}/end", point.name}
        with pytest.raises(CollectionRefused):
            repository.collect(Options(wait_s=0), Silent())


def carried(folder: Path) -> dict[str, str]:
    """The kind of slot that each index object carries; "" for none."""
    objects = (folder / "store" / "index").iterdir()
    clears = {path.name: parse(path.read_bytes(), f"index/{path.name}").clear for path in objects}
    return {name: parse_slot(clear, "carried").kind if clear else "" for name, clear in clears.items()}


@pytest.mark.parametrize("failing", [1, 8, 1000])
def test_a_recovery_slot_that_cannot_be_read_just_now_is_not_left_out_for_ever(
    tmp_path: Path, failing: int, caplog: pytest.LogCaptureFixture
) -> None:
    make(tmp_path).close()
    store = FaultyStore(LocalStore(tmp_path / "store"))
    with reopen(tmp_path, store=store) as repository:
        left = [failing]

        def away(method: str, name: str) -> None:
            if method == "get" and name.startswith("keys") and left[0]:
                left[0] -= 1
                raise StoreUnavailable("read", name, "it is a test")

        store.before = away
        back_up(repository, "web", {"disk": DATA})
        kept = RecoveryKey.kind if failing < 1000 else ""
        before = carried(tmp_path)
        assert list(before.values()) == [kept]
        assert ("carries no recovery slot" in caplog.text) == (not kept)
        store.before = None
        back_up(repository, "web", {"disk": content(3, 100_000)})
        assert set(carried(tmp_path).items()) - set(before.items()) == {
            (name, RecoveryKey.kind) for name in carried(tmp_path).keys() - before.keys()
        }
        assert carried(tmp_path).keys() > before.keys()
