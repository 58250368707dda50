"""Disks for lab machines, made by the reference tools and without mounting anything."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class LabDisk:
    path: Path
    target: str
    format: str = "qcow2"
    readonly: bool = False
    serial: str | None = None


def run_tool(*arguments: str | Path) -> None:
    """Run one tool; what it wrote to standard error is in the error when it fails."""
    done = subprocess.run([str(argument) for argument in arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{arguments[0]} failed with status {done.returncode}: {done.stderr.strip()}")


def make_blank_disk(path: Path, size_bytes: int, *, format: str = "qcow2", compat: str | None = None) -> Path:
    """An empty disk. `compat` is qcow2's, for instance "0.10", which can hold no bitmaps."""
    options = ["-o", f"compat={compat}"] if compat else []
    run_tool("qemu-img", "create", "-q", "-f", format, *options, path, str(size_bytes))
    return path


def make_ext4_disk(
    path: Path,
    size_bytes: int,
    files: Mapping[str, bytes],
    *,
    format: str = "qcow2",
    compat: str | None = None,
) -> Path:
    """A disk that holds one ext4 file system with these files (relative path → content). The guest mounts it."""
    with tempfile.TemporaryDirectory(prefix="strongroom-mkfs-", dir=path.parent) as folder:
        tree, raw = Path(folder, "tree"), Path(folder, "raw")
        tree.mkdir()
        for name, content in files.items():
            file = tree / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)
        with raw.open("wb") as handle:
            handle.truncate(size_bytes)
        # Everything is laid out now, so that an idle guest writes nothing later.
        layout = "lazy_itable_init=0,lazy_journal_init=0,root_owner=0:0"
        run_tool("/usr/sbin/mkfs.ext4", "-q", "-F", "-d", tree, "-E", layout, raw)
        options = ["-o", f"compat={compat}"] if compat else []
        run_tool("qemu-img", "convert", "-f", "raw", "-O", format, *options, raw, path)
    return path
