"""Every step of the durable write fails in turn, and the process dies at each: old or new is there, never a mixture."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from imaging.errors import NoSpace, ObjectExists, ObjectMissing, StoreError, StoreUnavailable
from imaging.storage.contract import Buffer
from imaging.storage.durable import PosixSystem, clean_temporaries
from imaging.storage.local import LocalStore

OLD = b"old" * 1000
NEW = b"new" * 2000


class FailingSystem(PosixSystem):
    """Raises at the nth call of a step; `after` does the step first."""

    def __init__(self, step: str, code: int, nth: int = 1, after: bool = False) -> None:
        self.step, self.code, self.nth, self.after = step, code, nth, after
        self.seen = 0
        self.folders: list[Path] = []
        """Those that were made durable."""

    def _step(self, step: str) -> bool:
        if step != self.step:
            return False
        self.seen += 1
        return self.seen == self.nth

    def _fail(self) -> None:
        raise OSError(self.code, os.strerror(self.code))

    def create_file(self, path: Path) -> int:
        if self._step("create_file"):
            self._fail()
        return super().create_file(path)

    def write_direct(self, descriptor: int, buffers: Sequence[Buffer]) -> int:
        if self._step("write_direct"):
            self._fail()
        return super().write_direct(descriptor, [memoryview(buffers[0])[:70_000]])  # never all that could go this way

    def write(self, descriptor: int, buffers: Sequence[Buffer]) -> int:
        if self._step("write"):
            self._fail()
        return super().write(descriptor, [memoryview(buffers[0])[:1700]])  # always short: every write is continued

    def fsync(self, descriptor: int) -> None:
        if self._step("fsync"):
            self._fail()
        super().fsync(descriptor)

    def close(self, descriptor: int) -> None:
        super().close(descriptor)
        if self._step("close"):
            self._fail()

    def rename(self, source: Path, target: Path) -> None:
        due = self._step("rename")
        if due and not self.after:
            self._fail()
        super().rename(source, target)
        if due:
            self._fail()

    def link(self, source: Path, target: Path) -> None:
        due = self._step("link")
        if due and not self.after:
            self._fail()
        super().link(source, target)
        if due:
            self._fail()

    def unlink(self, path: Path) -> None:
        if self._step("unlink"):
            self._fail()
        super().unlink(path)

    def make_directory(self, path: Path) -> None:
        if self._step("make_directory"):
            self._fail()
        super().make_directory(path)

    def fsync_directory(self, path: Path) -> None:
        if self._step("fsync_directory"):
            self._fail()
        super().fsync_directory(path)
        self.folders.append(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "store").mkdir()
    return tmp_path / "store"


def temporaries(folder: Path) -> list[Path]:
    return list((folder / "tmp").glob("*.part"))


STEPS = ["create_file", "write", "fsync", "close", "rename", "fsync_directory"]


@pytest.mark.parametrize("nth", [1, 2])
@pytest.mark.parametrize("step", STEPS)
def test_a_put_that_fails_leaves_old_or_new_and_no_temporary(folder: Path, step: str, nth: int) -> None:
    LocalStore(folder).put("config", [OLD])
    system = FailingSystem(step, errno.EIO, nth)
    store = LocalStore(folder, system)
    failures: list[StoreUnavailable] = []
    for _ in range(2):
        try:
            store.put("config", [NEW[:3000], NEW[3000:]])
        except StoreUnavailable as error:
            failures.append(error)
        assert LocalStore(folder).get("config") in (OLD, NEW)
        assert not temporaries(folder)
    assert [error.name for error in failures] == ["config"]
    store.put("config", [NEW])
    assert LocalStore(folder).get("config") == NEW


@pytest.mark.parametrize("step", ["nothing", "write_direct", "write", "fsync"])
def test_a_large_object_is_written_whole_past_the_page_cache_or_not_at_all(folder: Path, step: str) -> None:
    name, large = "packs/aa/" + "ab" * 32, [OLD * 300, os.urandom(300_001)]
    store = LocalStore(folder, FailingSystem(step, errno.EIO))
    if step != "nothing":
        with pytest.raises(StoreUnavailable):
            store.put(name, large)
        assert list(store.list("")) == []
    with pytest.raises(NoSpace):
        LocalStore(folder, FailingSystem("write_direct", errno.ENOSPC)).put(name, large)
    assert list(store.list("")) == []
    store.put(name, large)
    assert not temporaries(folder)
    whole = b"".join(large)
    assert LocalStore(folder).get(name) == whole
    for offset, length in ((1, len(whole) - 1), (4097, 1 << 20), (len(whole) - (1 << 20) - 5, 1 << 20)):
        assert store.get(name, offset, length) == whole[offset : offset + length]


@pytest.mark.parametrize("step", ["create_file", "write", "fsync", "link"])
def test_a_create_that_fails_before_its_link_leaves_nothing(folder: Path, step: str) -> None:
    store = LocalStore(folder, FailingSystem(step, errno.EIO))
    with pytest.raises(StoreUnavailable):
        store.create("leases/aa/end", [NEW])
    assert list(store.list("")) == []
    assert not temporaries(folder)
    store.create("leases/aa/end", [NEW])
    assert store.get("leases/aa/end") == NEW


def test_a_create_whose_answer_is_lost_shows_the_whole_object(folder: Path) -> None:
    store = LocalStore(folder, FailingSystem("link", errno.EIO, after=True))
    with pytest.raises(StoreUnavailable):
        store.create("leases/aa/end", [NEW])
    assert store.get("leases/aa/end") == NEW
    with pytest.raises(ObjectExists):
        store.create("leases/aa/end", [OLD])


def test_who_is_told_that_an_object_exists_may_rely_on_it_after_a_power_cut(folder: Path) -> None:
    """The one who made it failed to make its folder durable: the next one does, or says that it could not."""
    LocalStore(folder).create("leases/aa/start", [OLD])
    system = FailingSystem(
        "fsync_directory", errno.EIO, nth=4
    )  # after those of tmp/, leases/ and leases/aa/ themselves
    store = LocalStore(folder, system)
    with pytest.raises(StoreUnavailable):
        store.create("leases/aa/end", [NEW])
    assert store.get("leases/aa/end") == NEW
    system.nth = system.seen + 1
    with pytest.raises(StoreUnavailable):
        store.create("leases/aa/end", [NEW])
    with pytest.raises(ObjectExists):
        store.create("leases/aa/end", [NEW])
    assert system.folders[-1] == folder / "leases" / "aa"
    assert system.seen == system.nth + 1


def test_what_was_deleted_is_gone_for_good_when_delete_returns(folder: Path) -> None:
    LocalStore(folder).put("packs/ab/abcd", [OLD])
    LocalStore(folder).put("packs/ab/abce", [OLD])
    system = FailingSystem("fsync_directory", errno.EIO)
    store = LocalStore(folder, system)
    with pytest.raises(StoreUnavailable, match="delete packs/ab/abcd"):
        store.delete("packs/ab/abcd")
    with pytest.raises(ObjectMissing):
        store.delete("packs/ab/abcd")
    assert system.folders == [folder / "packs" / "ab"], "also what somebody else removed is gone for good now"
    store.delete("packs/ab/abce")
    assert system.folders == [folder / "packs" / "ab"] * 2
    assert not (folder / "packs" / "ab").exists()
    with pytest.raises(ObjectMissing):
        store.delete("packs/ab/abce")
    assert system.folders[2:] == [folder / "packs"], "where the folder is gone, that is made durable"


def test_many_deletions_cost_one_fsync_per_folder(folder: Path) -> None:
    names = [f"packs/{number % 4:02}/{number:04}" for number in range(40)]
    for name in names:
        LocalStore(folder).put(name, [OLD])
    system = FailingSystem("nothing", 0)
    store = LocalStore(folder, system)
    store.delete_many(names)
    assert sorted(system.folders) == [folder / "packs" / f"{number:02}" for number in range(4)]
    assert list(store.list("")) == []


def test_a_temporary_that_cannot_be_removed_hurts_nothing_and_is_cleaned_later(folder: Path) -> None:
    store = LocalStore(folder, FailingSystem("unlink", errno.EIO))
    store.create("leases/aa/end", [NEW])
    assert store.get("leases/aa/end") == NEW
    assert len(temporaries(folder)) == 1
    assert LocalStore(folder).clean() == 1
    assert store.get("leases/aa/end") == NEW


@pytest.mark.parametrize("step", ["create_file", "write", "fsync", "rename", "make_directory"])
def test_a_full_file_system_is_named_as_such(folder: Path, step: str) -> None:
    store = LocalStore(folder, FailingSystem(step, errno.ENOSPC))
    with pytest.raises(NoSpace) as caught:
        store.put("packs/ab/abcd", [NEW])
    assert "packs/ab/abcd" in str(caught.value)
    assert caught.value.hint
    store.put("packs/ab/abcd", [NEW])
    assert store.get("packs/ab/abcd") == NEW


def test_a_failed_folder_fsync_is_repeated_before_the_next_object_counts_as_durable(folder: Path) -> None:
    system = FailingSystem("fsync_directory", errno.EIO)
    store = LocalStore(folder, system)
    with pytest.raises(StoreUnavailable):
        store.put("packs/ab/abcd", [NEW])
    before = system.seen
    store.put("packs/ab/abcd", [NEW])
    assert system.seen - before == 4  # the store's folder, twice (tmp and packs), packs/, and packs/ab/ with the object


def test_a_file_system_that_turned_read_only_is_not_called_passing(folder: Path) -> None:
    with pytest.raises(StoreError) as caught:
        LocalStore(folder, FailingSystem("create_file", errno.EROFS)).put("config", [NEW])
    assert not caught.value.retryable


def test_cleaning_leaves_temporaries_of_living_writers(folder: Path) -> None:
    (folder / "tmp").mkdir()
    system = PosixSystem()
    living = system.create_file(folder / "tmp" / "living.part")
    (folder / "tmp" / "dead.part").write_bytes(b"half")
    (folder / "tmp" / "reserve").write_bytes(b"not ours")
    assert clean_temporaries(folder / "tmp") == 1
    assert sorted(path.name for path in (folder / "tmp").iterdir()) == ["living.part", "reserve"]
    os.close(living)
    assert clean_temporaries(folder / "tmp") == 1


CHILD = textwrap.dedent(
    """
    import os, signal, sys
    from pathlib import Path
    from imaging.storage.durable import PosixSystem
    from imaging.storage.local import LocalStore

    method, count = sys.argv[2], int(sys.argv[3])
    class Dying(PosixSystem):
        calls = 0
        def __getattribute__(self, name):
            found = super().__getattribute__(name)
            if not callable(found) or name.startswith("__"):
                return found
            def step(*arguments):
                if Dying.calls == count:
                    os.kill(os.getpid(), signal.SIGKILL)
                Dying.calls += 1
                return found(*arguments)
            return step
    store = LocalStore(Path(sys.argv[1]), Dying())
    getattr(store, method)("manifests/aa/bb", [b"new" * 1000, b"new" * 1000])
    print("done")
    """
)


def _kill_points(folder: Path, method: str) -> Iterator[int]:
    """Runs the child once per call that it makes of the system, dying before it, until it comes through."""
    for count in range(40):
        child = subprocess.run(
            [sys.executable, "-c", CHILD, str(folder), method, str(count)], capture_output=True, text=True, check=False
        )
        if child.returncode == 0:
            assert child.stdout == "done\n"
            return
        assert child.returncode == -signal.SIGKILL, child.stderr
        yield count
    raise AssertionError("the child never came through")


def test_sigkill_before_every_step_of_a_put_leaves_old_or_new(folder: Path) -> None:
    store = LocalStore(folder)
    store.put("manifests/aa/bb", [OLD])
    kills = 0
    for _ in _kill_points(folder, "put"):
        kills += 1
        content = store.get("manifests/aa/bb")
        assert content in (OLD, NEW)
        assert [each.name for each in store.list("")] == ["manifests/aa/bb"]
        store.put("manifests/aa/bb", [OLD])
    assert kills >= 6
    LocalStore(folder).clean()
    assert not temporaries(folder)


def test_sigkill_before_every_step_of_a_create_leaves_all_or_nothing(folder: Path) -> None:
    store = LocalStore(folder)
    kills = 0
    for _ in _kill_points(folder, "create"):
        kills += 1
        found = [each.name for each in store.list("")]
        assert found in ([], ["manifests/aa/bb"])
        if found:
            assert store.get("manifests/aa/bb") == NEW
            store.delete("manifests/aa/bb")
    assert kills >= 7
    LocalStore(folder).clean()
    assert not temporaries(folder)
