"""Where a local store's objects lie: links, other file systems, and disks that go away in the middle of a listing."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from imaging.errors import ObjectMissing, StoreError
from imaging.storage.durable import PosixSystem
from imaging.storage.folders import Folders, kind_of_mount
from imaging.storage.local import LocalStore

NAMES = ["config", "manifests/aa/0000000001-bb", "packs/ab/abcd", "packs/cd/cdef"]
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounting a file system needs root")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    store = LocalStore.make(tmp_path / "store")
    for name in NAMES:
        store.put(name, [name.encode()])
    return tmp_path / "store"


@pytest.fixture
def big(tmp_path: Path) -> Iterator[Path]:
    """Another file system."""
    mounted = tmp_path / "big"
    mounted.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "strongroom-test", str(mounted)], check=True)
    try:
        yield mounted
    finally:
        subprocess.run(["umount", "--lazy", str(mounted)], check=False, capture_output=True)


def names(store: LocalStore, prefix: str = "") -> list[str]:
    return [listed.name for listed in store.list(prefix)]


def every_operation(store: LocalStore, prefix: str, name: str) -> dict[str, Callable[[], object]]:
    """What touches an object, or lists what is around it."""
    return {
        "list": lambda: list(store.list(prefix)),
        "list all": lambda: list(store.list("")),
        "get": lambda: store.get(name),
        "exists": lambda: store.exists(name),
        "put": lambda: store.put(name, [b"new"]),
        "create": lambda: store.create(name, [b"new"]),
        "delete": lambda: store.delete(name),
        "delete_many": lambda: store.delete_many([name]),
    }


OPERATIONS = ["list", "list all", "get", "exists", "put", "create", "delete", "delete_many"]


# A listing that is cut short


def test_a_disk_that_goes_away_during_a_listing_is_an_error_and_no_short_list(folder: Path, tmp_path: Path) -> None:
    listing = LocalStore(folder).list("packs/")
    assert next(listing).name == "packs/ab/abcd"
    folder.rename(tmp_path / "unmounted")
    folder.mkdir()
    with pytest.raises(StoreError, match=r"no longer the one|not there"):  # the latter on an overlay file system
        list(listing)


def test_objects_that_vanish_with_their_disk_after_the_last_folder_was_read_are_an_error(
    folder: Path, tmp_path: Path
) -> None:
    store = LocalStore(folder)
    store.put("packs/ab/abce", [b"second"])
    listing = store.list("packs/ab/")
    assert next(listing).name == "packs/ab/abcd"
    folder.rename(tmp_path / "unmounted")
    with pytest.raises(StoreError, match="is not there"):
        list(listing)


@needs_root
def test_a_disk_that_is_unmounted_during_a_listing_is_an_error(tmp_path: Path, big: Path) -> None:
    store = LocalStore(big)
    for number in range(20):
        store.put(f"manifests/{number:02}/0000000001-aa", [b"x"])
    listing = store.list("")
    next(listing)
    subprocess.run(["umount", "--lazy", str(big)], check=True)
    with pytest.raises(StoreError, match="no longer the one") as caught:
        list(listing)
    assert "mounted" in caught.value.hint


@pytest.mark.parametrize(("kind", "believed"), [("overlay", True), ("fuse.sshfs", True), ("ext4", False)])
def test_a_folder_has_another_inode_number_where_the_file_system_makes_them_up(
    folder: Path, tmp_path: Path, kind: str, believed: bool
) -> None:
    """Overlay file systems do when the kernel was short of memory; here the folder is put in its place, and what the
    kernel tells of mounts is made up."""
    device = folder.stat().st_dev
    mounts = tmp_path / "mountinfo"
    mounts.write_text(
        f"1 0 0:{2**20 - 1} / / rw,relatime shared:1 - xfs /dev/vda rw\n"
        f"2 1 {os.major(device)}:{os.minor(device)} / /srv rw,relatime shared:2 master:1 - {kind} source rw\n"
    )
    folders = Folders(folder, PosixSystem(), mounts)
    before = folder.stat().st_ino
    folder.rename(tmp_path / "aside")
    shutil.copytree(tmp_path / "aside", folder)
    assert folder.stat().st_ino != before
    for _ in range(2):
        if believed:
            folders.check("list", "packs/")
        else:
            with pytest.raises(StoreError, match="no longer the one"):
                folders.check("list", "packs/")


@needs_root
def test_the_kind_of_what_is_mounted_is_known(big: Path) -> None:
    assert kind_of_mount(big.stat().st_dev) == "tmpfs"


# Links


def test_a_folder_at_the_first_level_may_be_a_link(folder: Path, tmp_path: Path) -> None:
    (folder / "packs").rename(tmp_path / "elsewhere")
    (folder / "packs").symlink_to("../elsewhere")
    store = LocalStore(folder)
    assert names(store) == NAMES
    assert names(store, "packs/") == NAMES[2:]
    assert store.get("packs/ab/abcd") == b"packs/ab/abcd"
    assert store.exists("packs/cd/cdef")
    store.put("packs/ef/ef01", [b"more"])
    store.create("packs/ef/ef02", [b"more"])
    assert (tmp_path / "elsewhere" / "ef" / "ef02").read_bytes() == b"more"
    store.delete("packs/ef/ef01")
    store.delete_many(["packs/ef/ef02", "packs/cd/cdef"])
    assert names(store) == NAMES[:3]
    assert (folder / "packs").is_symlink()


@needs_root
def test_a_folder_on_another_file_system_is_written_through_temporaries_of_its_own(folder: Path, big: Path) -> None:
    (folder / "packs").rename(folder.parent / "old")
    (big / "packs").mkdir()
    (folder / "packs").symlink_to(big / "packs")
    store = LocalStore(folder)
    store.put("packs/ab/abcd", [b"one", b"two"])
    store.create("packs/ab/abce", [b"three"])
    assert store.get("packs/ab/abcd") == b"onetwo"
    assert names(store) == [*NAMES[:3], "packs/ab/abce"]
    stale = big / "packs" / ".tmp" / "dead.part"
    stale.write_bytes(b"half")
    again = LocalStore(folder)
    again.put("config", [b"x"])
    assert not stale.exists(), "cleaned as those in tmp/ are"
    free = os.statvfs(big)
    assert store.free_bytes() == free.f_bavail * free.f_frsize, "the fullest file system counts"


@needs_root
@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("below", ["packs", "."])
def test_a_linked_disk_that_is_unmounted_is_an_error(folder: Path, big: Path, below: str, operation: str) -> None:
    """Whether the link then leads nowhere or to the empty folder that the disk was mounted on."""
    subprocess.run(["cp", "-a", f"{folder}/packs", f"{big}/packs"], check=True)
    if below == ".":
        subprocess.run(["sh", "-c", f"mv {big}/packs/* {big}/"], check=True)
    subprocess.run(["rm", "-r", f"{folder}/packs"], check=True)
    (folder / "packs").symlink_to(big / below)
    store = LocalStore(folder)
    assert names(store) == NAMES
    subprocess.run(["umount", str(big)], check=True)
    with pytest.raises(StoreError, match=r"no longer the one|not there"):
        every_operation(store, "packs/", "packs/ab/abcd")[operation]()
    assert list(big.iterdir()) == []
    assert names(store, "manifests/") == NAMES[1:2], "what is on the other disk is read all the same"


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("new", [False, True])
def test_a_link_that_leads_nowhere_is_an_error_that_names_it(
    folder: Path, tmp_path: Path, new: bool, operation: str
) -> None:
    store = LocalStore(folder)
    (folder / "packs").rename(tmp_path / "elsewhere")
    (folder / "packs").symlink_to(tmp_path / "gone")
    if new:
        store = LocalStore(folder)
    with pytest.raises(StoreError, match="/packs") as caught:
        every_operation(store, "packs/", "packs/ab/abcd")[operation]()
    assert caught.value.hint


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_link_to_a_folder_below_the_first_level_is_refused_by_all(
    folder: Path, tmp_path: Path, operation: str
) -> None:
    (folder / "packs" / "ab").rename(tmp_path / "elsewhere")
    (folder / "packs" / "ab").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StoreError, match=r"packs/ab is a link") as caught:
        every_operation(LocalStore(folder), "packs/ab/", "packs/ab/abcd")[operation]()
    assert "directly in the repository" in caught.value.hint
    assert (tmp_path / "elsewhere" / "abcd").read_bytes() == b"packs/ab/abcd"


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("name", ["packs/ab/abcd", "config"])
def test_a_link_to_a_file_is_refused_by_all(folder: Path, tmp_path: Path, name: str, operation: str) -> None:
    (folder / name).rename(tmp_path / "elsewhere")
    (folder / name).symlink_to(tmp_path / "elsewhere")
    prefix = f"{name.rpartition('/')[0]}/".removeprefix("/")
    with pytest.raises(StoreError, match=f"{name} is a link"):
        every_operation(LocalStore(folder), prefix, name)[operation]()
    assert (tmp_path / "elsewhere").read_bytes() == name.encode()


def test_links_that_are_in_no_objects_way_are_ignored(folder: Path, tmp_path: Path) -> None:
    (folder / "README").symlink_to(tmp_path / "nothing")
    (folder / "packs" / ".snapshot").symlink_to(tmp_path)
    store = LocalStore(folder)
    assert names(store) == NAMES
    with pytest.raises(ObjectMissing):
        store.get("packs/ab/none")
