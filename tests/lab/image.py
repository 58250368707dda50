"""The files of the test guest, built on first use and again when their recipe changes."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, slots=True)
class GuestImage:
    kernel: Path
    initrd: Path
    agent_initrd: Path
    data_disk: Path
    """A qcow2 of 256 MiB: ext4, with a marker and a few files of a Debian system."""


def guest_image(folder: Path | None = None) -> GuestImage:
    """Build what is missing (seconds; needs Debian's packages) and say where it is. Safe for several at once."""
    folder = folder or PROJECT / ".cache" / "guest"
    subprocess.run([PROJECT / "images" / "guest" / "build", folder], check=True, timeout=300)
    return GuestImage(folder / "kernel", folder / "initrd", folder / "initrd-agent", folder / "disk.qcow2")
