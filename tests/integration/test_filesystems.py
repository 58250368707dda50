"""Files out of images that the reference tools made, compared with what went in."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from imaging.filesystems.entries import Entry, Journal, Kind
from imaging.filesystems.errors import NotThatKind, Unreadable
from imaging.filesystems.session import Hole, Session
from tests.lab.disks import run_tool
from tests.lab.filesystems import (
    MIB,
    ImageDisk,
    blank,
    make_btrfs,
    make_exfat,
    make_ext,
    make_fat,
    make_group,
    make_ntfs,
    make_tree,
    make_xfs,
)

UNIX = ("ext4", "ext3", "btrfs", "xfs")


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tree(tmp_path_factory.mktemp("tree"))


def made(kind: str, folder: Path, tree: Path) -> Path:
    path, work = folder / "image", folder / "mounted"
    makers = {
        "ext4": lambda: make_ext(path, tree),
        "ext3": lambda: make_ext(path, tree, "ext3"),
        "btrfs": lambda: make_btrfs(path, tree),
        "fat": lambda: make_fat(path, tree),
        "exfat": lambda: make_exfat(path, tree, work),
        "ntfs": lambda: make_ntfs(path, tree, work),
        "xfs": lambda: make_xfs(path, tree, work),
    }
    return makers[kind]()


def content(session: Session, volume: str, path: tuple[str, ...], size_bytes: int) -> bytes:
    pieces = session.read(volume, path, size_bytes)
    return b"".join(bytes(piece.length) if isinstance(piece, Hole) else piece for piece in pieces)


def walk(session: Session, volume: str, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Entry]]:
    for entry in session.listing(volume, path).entries:
        yield (*path, entry.name), entry
        if entry.kind is Kind.FOLDER and entry.name != "lost+found":
            yield from walk(session, volume, (*path, entry.name))


@pytest.mark.parametrize("kind", [*UNIX, "fat", "exfat", "ntfs"])
def test_every_file_is_what_went_in(kind: str, tree: Path, tmp_path: Path) -> None:
    session = Session([("vda", ImageDisk(made(kind, tmp_path, tree)))])
    with session_of(session):
        (volume,) = session.volumes()
        assert (volume.name, volume.kind, volume.readable) == ("vda", kind, True)
        found = dict(walk(session, "vda"))
        wanted = ["docs", "empty", "sparse", *(["unix"] if kind in UNIX else [])]
        for top in wanted:
            for path in (tree / top, *(tree / top).rglob("*")):
                check(session, found, path, path.relative_to(tree).parts, kind)
        beside = {"xfs": {"unwritten"}, "ntfs": {"many"}, "exfat": {"$RECYCLE.BIN"}}.get(kind, set())
        assert {path[0] for path in found} - {"lost+found"} == {*wanted, *beside}
        if kind == "xfs":
            assert content(session, "vda", ("unwritten",), 65536) == bytes(65536)
        if kind == "ntfs":
            assert sum(path[0] == "many" for path in found) == 201
        with pytest.raises(NotThatKind):
            next(session.read("vda", ("docs",), 0))


class session_of:  # noqa: N801  # read as a word
    def __init__(self, session: Session) -> None:
        self._session = session

    def __enter__(self) -> Session:
        return self._session

    def __exit__(self, *_: object) -> None:
        self._session.close()


def check(session: Session, found: dict[tuple[str, ...], Entry], path: Path, parts: tuple[str, ...], kind: str) -> None:
    entry, facts = found[parts], path.lstat()
    if stat.S_ISREG(facts.st_mode):
        assert (entry.kind, entry.size_bytes, entry.problem) == (Kind.FILE, facts.st_size, "")
        read = content(session, "vda", parts, entry.size_bytes)
        assert hashlib.sha256(read).digest() == hashlib.sha256(path.read_bytes()).digest(), parts
    elif stat.S_ISLNK(facts.st_mode):
        assert (entry.kind, entry.link) == (Kind.LINK, os.readlink(path))
    else:
        assert entry.kind is (Kind.FOLDER if stat.S_ISDIR(facts.st_mode) else Kind.OTHER)
    if kind in UNIX:
        assert entry.modified_ns is not None
        assert (entry.mode, entry.uid, entry.gid) == (stat.S_IMODE(facts.st_mode), facts.st_uid, facts.st_gid)
        if parts[-1] == "old":
            assert entry.modified_ns // 10**9 == facts.st_mtime_ns // 10**9


def test_lvm_over_two_disks_partitions_and_what_cannot_be_read(tree: Path, tmp_path: Path) -> None:
    first, second = make_group(tmp_path, make_ext(tmp_path / "root", tree))
    parted = blank(tmp_path / "parted", 24 * MIB)
    parted.write_bytes(blank(tmp_path / "lead", MIB).read_bytes() + make_ext(tmp_path / "fs", tree).read_bytes())
    with parted.open("r+b") as file:
        file.seek(446)
        file.write(
            bytes([0, 0, 0, 0, 0x83, 0, 0, 0]) + (2048).to_bytes(4, "little") + (16 * 2048).to_bytes(4, "little")
        )
        file.seek(510)
        file.write(b"\x55\xaa")
    locked = blank(tmp_path / "locked", MIB)
    locked.write_bytes(b"LUKS\xba\xbe" + locked.read_bytes()[6:])
    disks = [("vda", parted), ("vdb", first), ("vdc", second), ("vdd", locked)]
    with session_of(Session([(name, ImageDisk(path)) for name, path in disks])) as session:
        volumes = {volume.name: volume for volume in session.volumes()}
        assert {name for name, volume in volumes.items() if volume.readable} == {"vda1", "guests/root"}
        assert "encrypted (LUKS)" in volumes["vdd"].problem
        for name in ("vda1", "guests/root"):
            assert volumes[name].label == "system"
            size = session.stat(name, ("sparse",)).size_bytes
            assert content(session, name, ("sparse",), size) == (tree / "sparse").read_bytes()
        with pytest.raises(Unreadable, match="LUKS"):
            session.listing("vdd", ())
    with session_of(Session([("vdb", ImageDisk(first))])) as session:
        (lonely,) = (volume for volume in session.volumes() if volume.name == "guests/root")
        assert "not found" in lonely.problem


def test_names_that_no_file_may_have_are_counted_and_never_told(tree: Path, tmp_path: Path) -> None:
    """An ext4 whose entries lead upwards, made so by debugfs, and one that was not unmounted."""
    image = make_ext(tmp_path / "image", tree)
    run_tool("/usr/sbin/debugfs", "-w", "-R", "link empty qqqqqqqqq", image)
    run_tool("/usr/sbin/debugfs", "-w", "-R", "feature needs_recovery", image)
    raw = image.read_bytes()
    assert raw.count(b"qqqqqqqqq") == 1
    image.write_bytes(raw.replace(b"qqqqqqqqq", b"../../etc"))
    with session_of(Session([("vda", ImageDisk(image))])) as session:
        assert session.volumes()[0].journal is Journal.PENDING
        listing = session.listing("vda", ())
        assert listing.refused == 1
        assert {entry.name for entry in listing.entries} == {"docs", "lost+found", "unix", "empty", "sparse"}
        assert [entry.name for entry in session.listing("vda", (), offset=1, limit=2).entries] == ["lost+found", "unix"]
