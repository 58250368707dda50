"""A file system that is really full, and one that is really gone."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from imaging.errors import NoSpace, StoreError
from imaging.storage.local import LocalStore

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mounting a file system needs root")


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    mounted = tmp_path / "small"
    mounted.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "strongroom-test", str(mounted)], check=True)
    try:
        yield mounted
    finally:
        subprocess.run(["umount", "--lazy", str(mounted)], check=True)


def fill(store: LocalStore) -> None:
    for number in range(1000):
        try:
            store.put(f"packs/ff/{number:04}", [os.urandom(32_768)])
        except NoSpace:
            break
    else:
        raise AssertionError("it never became full")
    for size in (4096, 1):
        for number in range(300):
            try:
                store.put(f"packs/fe/{size}-{number:04}", [b"x" * size])
            except NoSpace:
                break


def test_a_full_file_system_refuses_clearly_keeps_what_it_has_and_takes_up_again(small: Path) -> None:
    store = LocalStore(small)
    store.put("config", [b"kept"])
    fill(store)
    with pytest.raises(NoSpace) as caught:
        store.put("packs/ab/big", [os.urandom(300_000)])
    assert "no space" in str(caught.value)
    assert store.get("config") == b"kept"
    assert "packs/ab/big" not in [each.name for each in store.list("")]
    assert not list((small / "tmp").glob("*.part")), "a failed write gives its space back"
    for listed in list(store.list("packs/")):
        store.delete(listed.name)
    store.put("packs/ab/big", [b"y" * 300_000])
    assert len(store.get("packs/ab/big")) == 300_000


def test_the_reserve_lets_a_tombstone_be_written_when_nothing_else_can(small: Path) -> None:
    store = LocalStore(small)
    store.put("config", [b"kept"])
    assert (small / "tmp" / "reserve").stat().st_size >= 4096
    fill(store)
    with pytest.raises(NoSpace):
        store.put("index/aa-000000", [b"x" * 100])
    store.create("tombstones/aa/0000000001-bb", [b"t" * 300])
    assert store.get("tombstones/aa/0000000001-bb") == b"t" * 300
    for listed in list(store.list("packs/")):
        store.delete(listed.name)
    store.keep_reserve()
    assert (small / "tmp" / "reserve").exists()


NEEDED = [
    "tombstones/aa/0000000001-bb",
    "leases/aa/start",
    "leases/aa/epoch",
    "leases/aa/beat/0000000001",
    "leases/aa/end",
    "claims/aa/0000000001",
    "epochs/0000000001",
    "rollcalls/0000000001",
    "holds/aa",
]


@pytest.fixture
def roomy(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 MiB, with a reserve that somebody could eat a part of."""
    mounted = tmp_path / "roomy"
    mounted.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "strongroom-test", str(mounted)], check=True)
    try:
        yield mounted
    finally:
        subprocess.run(["umount", "--lazy", str(mounted)], check=True)


def test_all_that_a_collection_and_a_restore_write_comes_through_though_somebody_eats_what_is_given_back(
    roomy: Path,
) -> None:
    store = LocalStore(roomy)
    store.put("config", [b"kept"])
    reserve = roomy / "tmp" / "reserve"
    held = reserve.stat().st_size
    assert held >= 600_000
    for number, name in enumerate(NEEDED):
        with suppress(OSError), (roomy / "ballast").open("ab", buffering=0) as ballast:
            while True:
                ballast.write(b"x" * 4096)
        with pytest.raises(NoSpace):
            store.put(f"index/aa-{number:06}", [b"x" * 4096])
        store.create(name, [b"t" * 300])
        assert store.get(name) == b"t" * 300
    assert 0 < reserve.stat().st_size < held
    (roomy / "ballast").unlink()
    store.delete("config")
    assert reserve.stat().st_size == held, "filled again by the process that drew on it, once there is room"


def test_an_unmounted_disk_is_an_error_and_never_an_empty_store(small: Path) -> None:
    store = LocalStore(small)
    store.put("config", [b"kept"])
    subprocess.run(["umount", str(small)], check=True)
    try:
        for call in (lambda: store.list(""), lambda: store.get("config"), lambda: store.put("config", [b"elsewhere"])):
            with pytest.raises(StoreError) as caught:
                call()
            assert "no longer the one" in str(caught.value)
        assert list(small.iterdir()) == []
    finally:
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "strongroom-test", str(small)], check=True)
