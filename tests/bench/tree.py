"""The files on the benchmark's disks, as many as the comparison is about: 4 GiB of programs and libraries.

The rule: /usr/lib has them on a machine that is used. Where it has not, as on a bare one, Debian packages are unpacked
beside the disks, and not installed; which they are is fixed, so that every bare machine has the same ones.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Final

from tests.bench.measure import run

WANTED_BYTES: Final = 3500 << 20
_PACKAGES: Final = (
    "blender", "chromium", "firefox-esr", "ghc", "golang-1.19-go", "golang-1.19-src", "libboost1.74-dev", "libllvm14",
    "libllvm15", "libqt6webenginecore6", "libreoffice-core", "libstd-rust-dev", "libtorch1.13", "libwebkit2gtk-4.0-37",
    "libwine", "libwine-dev", "llvm-14-dev", "mono-devel", "thunderbird",
)  # fmt: skip
_MARK: Final = ".unpacked"
_ROOM_BYTES: Final = 32 << 30  # the files, the three disks, and a copy of all three as the simplest tool makes it


def large_enough(tree: Path, folder: Path) -> Path:
    """The tree, or one of packages in `folder`, made if it is not there. BenchError."""
    if _size_bytes(tree) >= WANTED_BYTES:
        return tree
    made = folder / "tree"
    if (folder / _MARK).exists():
        return made
    shutil.rmtree(folder, ignore_errors=True)
    made.mkdir(parents=True)
    if shutil.disk_usage(folder).free < _ROOM_BYTES:
        print(
            f"bench: {tree} is small, and there is no room for the 4 GiB of files that the comparison is about"
            f" ({_ROOM_BYTES >> 30} GiB free at {folder}, for disks and repositories): ratios are of start-up times",
            flush=True,
        )
        return tree
    print(f"bench: {tree} is small: unpacking {len(_PACKAGES)} Debian packages instead", flush=True)
    run(["apt-get", "update", "-qq"])
    for package in _PACKAGES:
        run(["env", f"--chdir={folder}", "apt-get", "download", "-qq", "-o", "APT::Sandbox::User=root", package])
        for archive in folder.glob("*.deb"):
            run(["dpkg-deb", "--extract", str(archive), str(made)])
            archive.unlink()
    (folder / _MARK).touch()
    return made


def _size_bytes(tree: Path) -> int:
    """Of its files, without what is mounted below."""
    device, found = tree.stat().st_dev, 0
    for folder, folders, names in os.walk(tree):
        folders[:] = [each for each in folders if os.lstat(os.path.join(folder, each)).st_dev == device]
        found += sum(os.lstat(os.path.join(folder, name)).st_size for name in names)
    return found
