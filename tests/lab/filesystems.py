"""Images of file systems with the same few files, made by the reference tools, and reading one as a disk."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.lab.disks import run_tool

MIB = 1 << 20


class ImageDisk:
    """A raw file as `Session` wants a disk."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.size_bytes = path.stat().st_size

    def pread(self, offset: int, length: int) -> bytes:
        with self._path.open("rb") as file:
            return os.pread(file.fileno(), length, offset)


def make_tree(folder: Path) -> Path:
    """Also of what file systems of Windows cannot hold, below `unix`."""
    (folder / "docs" / "deep").mkdir(parents=True)
    (folder / "docs" / "data.bin").write_bytes(bytes(range(256)) * 1200)
    (folder / "docs" / "deep" / "Grüße.txt").write_text("hello\n")
    (folder / "empty").touch()
    with (folder / "sparse").open("wb") as sparse:
        sparse.seek(9 * MIB)  # more than a block of indirect blocks maps
        sparse.write(b"the end")
    unix = folder / "unix"
    unix.mkdir()
    (unix / "link").symlink_to("../../etc/shadow")
    (unix / ("long" * 30)).symlink_to("x" * 100)
    os.mkfifo(unix / "pipe")
    (Path(os.fsdecode(os.fsencode(unix) + b"/no \xff utf-8"))).write_text("n")
    (unix / "old").write_text("1960")
    os.chown(unix / "old", 100_000, 100_001)
    os.utime(unix / "old", ns=(-315_619_200 * 10**9, -315_619_200 * 10**9))
    return folder


def blank(path: Path, size_bytes: int, fill: bytes = b"\0") -> Path:
    """`fill` other than zero: what a disk held before."""
    if fill == b"\0":
        with path.open("wb") as file:
            file.truncate(size_bytes)
    else:
        path.write_bytes(fill * size_bytes)
    return path


@contextmanager
def looped(path: Path) -> Iterator[str]:
    done = subprocess.run(["losetup", "-f", "--show", str(path)], check=True, capture_output=True, text=True)
    device = done.stdout.strip()
    try:
        yield device
    finally:
        subprocess.run(["losetup", "-d", device], check=True)


@contextmanager
def mounted(path: Path, at: Path, *command: str) -> Iterator[Path]:
    """By `command DEVICE FOLDER`, of a loop device."""
    at.mkdir(exist_ok=True)
    with looped(path) as device:
        run_tool(*command, device, str(at))
        try:
            yield at
        finally:
            subprocess.run(["umount", str(at)], check=True)


def copy_tree(source: Path, target: Path) -> None:
    run_tool("cp", "-a", f"{source}/.", f"{target}/")


def make_ext(path: Path, tree: Path, kind: str = "ext4", size_bytes: int = 16 * MIB) -> Path:
    run_tool(f"/usr/sbin/mkfs.{kind}", "-q", "-F", "-L", "system", "-d", tree, blank(path, size_bytes))
    return path


def make_btrfs(path: Path, tree: Path) -> Path:
    run_tool("/usr/sbin/mkfs.btrfs", "-q", "-f", "-L", "system", "--rootdir", tree, blank(path, 112 * MIB))
    return path


def make_fat(path: Path, tree: Path) -> Path:
    run_tool("/usr/sbin/mkfs.fat", "-n", "SYSTEM", blank(path, 16 * MIB))
    run_tool("mcopy", "-i", path, "-s", *(tree / name for name in ("docs", "empty", "sparse")), "::/")
    return path


def make_exfat(path: Path, tree: Path, work: Path) -> Path:
    run_tool("/usr/sbin/mkfs.exfat", "-L", "SYSTEM", blank(path, 32 * MIB))
    with mounted(path, work, "/usr/sbin/mount.exfat-fuse") as there:
        for name in ("docs", "empty", "sparse"):
            run_tool("cp", "-r", tree / name, there)
        (there / "$RECYCLE.BIN").mkdir()
    return path


def make_ntfs(path: Path, tree: Path, work: Path) -> Path:
    run_tool("/usr/sbin/mkntfs", "-q", "-F", "-Q", "-L", "SYSTEM", blank(path, 24 * MIB))
    with mounted(path, work, "ntfs-3g") as there:
        for name in ("docs", "empty", "sparse"):
            run_tool("cp", "-r", tree / name, there)
        (there / "many").mkdir()
        for number in range(400):
            (there / "many" / f"a name that fills its block of the index {number}").touch()
        for number in range(0, 400, 2):  # what is left of them are blocks that nothing leads to
            (there / "many" / f"a name that fills its block of the index {number}").unlink()
    return path


def make_xfs(path: Path, tree: Path, work: Path) -> Path:
    """On a disk that held something before; a file of it was allocated and never written."""
    run_tool("/usr/sbin/mkfs.xfs", "-q", "-f", "-K", "-L", "system", blank(path, 300 * MIB, b"\xaa"))
    with mounted(path, work, "mount", "-t", "xfs") as there:
        copy_tree(tree, there)
        run_tool("fallocate", "-l", "65536", there / "unwritten")
    return path


def make_group(folder: Path, filesystem: Path) -> list[Path]:
    """Two physical volumes with the volume guests/root over both of them, without device-mapper: its content is written
    to where LVM says that it is."""
    disks = [blank(folder / name, 14 * MIB) for name in ("first", "second")]
    with looped(disks[0]) as first, looped(disks[1]) as second:
        configuration = (
            f'devices {{ filter=["a|^{first}$|","a|^{second}$|","r|.*|"] use_devicesfile=0 }} global {{ activation=0 }}'
            " activation { udev_sync=0 udev_rules=0 monitoring=0 } backup { backup=0 archive=0 }"
        )
        for command in (
            ("pvcreate", first, second),
            ("vgcreate", "guests", first, second),
            ("lvcreate", "-an", "-Zn", "-Wn", "-y", "-l", "4", "-n", "root", "guests"),
        ):
            run_tool(f"/usr/sbin/{command[0]}", "--config", configuration, "-q", *command[1:])
    content = filesystem.read_bytes()
    for disk, part in zip(disks, (content[: 12 * MIB], content[12 * MIB :]), strict=True):
        with disk.open("r+b") as file:
            file.seek(MIB)
            file.write(part)
    return disks
