"""Locks that die with their holder, and that nobody who only looks can take away."""

from __future__ import annotations

import fcntl
import os
import threading
import time
from pathlib import Path

import pytest

from appliance.ownership import InUse, is_owned, own, remove_unowned
from imaging import export


def test_one_owner_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "a.lock"
    assert not is_owned(path)
    with own(path, "it"):
        assert is_owned(path)
        with pytest.raises(InUse, match="it is in use"), own(path, "it"):
            pytest.fail("two owners")
        assert is_owned(path)
    assert not is_owned(path)
    with own(path, "it"):
        pass


def test_an_error_frees_it(tmp_path: Path) -> None:
    with pytest.raises(KeyError), own(tmp_path / "a.lock", "it"):
        raise KeyError
    assert not is_owned(tmp_path / "a.lock")


def test_looking_takes_nothing_away(tmp_path: Path) -> None:
    path = tmp_path / "a.lock"
    with own(path, "it"):
        pass
    stop = threading.Event()

    def look() -> None:
        while not stop.is_set():
            is_owned(path)

    looker = threading.Thread(target=look)
    looker.start()
    try:
        for _ in range(300):
            with own(path, "it"):
                assert is_owned(path)
    finally:
        stop.set()
        looker.join()


class Looker:
    """Looks at a lock file until the 40th time that whoever waits for it sleeps, who himself is stopped for a minute
    each time."""

    def __init__(self, path: Path, monkeypatch: pytest.MonkeyPatch, module: str) -> None:
        path.touch()
        self._looking = os.open(path, os.O_RDWR)
        fcntl.flock(self._looking, fcntl.LOCK_SH)
        self.waits = 0
        self._monotonic = time.monotonic
        monkeypatch.setattr(f"{module}.time", self)

    def monotonic(self) -> float:
        return self._monotonic() + 60 * self.waits

    def sleep(self, _: float) -> None:
        self.waits += 1
        if self.waits == 40:
            os.close(self._looking)


def test_who_looks_is_taken_for_an_owner_by_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However long it takes: a look that the kernel has stopped in its midst, on a busy machine, is a look."""
    path = tmp_path / "a.lock"
    looker = Looker(path, monkeypatch, "appliance.ownership")
    assert not is_owned(path)
    with own(path, "it"):
        assert is_owned(path)
        assert not remove_unowned(path)
    assert looker.waits == 40
    assert remove_unowned(path)
    assert not path.exists()


def test_who_looks_whether_an_export_lives_is_not_its_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "s.lock"
    looker = Looker(path, monkeypatch, "imaging.export")
    lock = os.open(path, os.O_RDWR)
    assert not export._held(path)
    assert export._locked(lock)
    assert looker.waits == 40
    assert export._held(path)
    os.close(lock)


def test_removers_take_no_lock_from_a_new_owner(tmp_path: Path) -> None:
    path = tmp_path / "a.lock"
    stop = threading.Event()

    def remove() -> None:
        while not stop.is_set():
            remove_unowned(path)

    removers = [threading.Thread(target=remove) for _ in range(3)]
    for each in removers:
        each.start()
    try:
        for _ in range(300):
            with own(path, "it"):
                assert is_owned(path)
                assert path.exists()
    finally:
        stop.set()
        for each in removers:
            each.join()


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("x")
    (tmp_path / "a.lock").symlink_to(tmp_path / "secret")
    with pytest.raises(OSError, match="symbolic"), own(tmp_path / "a.lock", "it"):
        pytest.fail("followed")
