"""What the fault tests of the hypervisor layer share: requests, small file systems, a guest that writes."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

from appliance.hypervisor.protocol import BackupRequest, DiskBackup

MIB = 1 << 20


def request_for(folder: Path, machine: str, checkpoint: str, **since: str | None) -> BackupRequest:
    """Of these disks, each full (None) or since a checkpoint; scratch and socket in the folder."""
    disks = tuple(DiskBackup(disk, str(folder / f"{disk}.scratch"), name) for disk, name in since.items())
    return BackupRequest(machine, checkpoint, str(folder / "nbd.sock"), disks)


@contextlib.contextmanager
def small_file_system(folder: Path, size_bytes: int) -> Iterator[Path]:
    """A file system of that size, mounted at a new folder below; unmounted at the end."""
    image, place = folder / "small.img", folder / "small"
    place.mkdir()
    with image.open("wb") as file:
        file.truncate(size_bytes)
    subprocess.run(
        ["mkfs.ext4", "-q", "-F", "-m", "0", image], check=True, env={"PATH": "/usr/sbin:/sbin:/usr/bin:/bin"}
    )
    subprocess.run(["mount", "-o", "loop", image, place], check=True)
    place.chmod(0o755)
    try:
        yield place
    finally:
        subprocess.run(["umount", place], check=True)
