"""Locks that die with their holder, and that nobody who only looks can take away."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from appliance.ownership import InUse, is_owned, own


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


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("x")
    (tmp_path / "a.lock").symlink_to(tmp_path / "secret")
    with pytest.raises(OSError, match="symbolic"), own(tmp_path / "a.lock", "it"):
        pytest.fail("followed")
