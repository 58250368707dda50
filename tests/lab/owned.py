"""Folders of tests, and what is left in and around those whose process died.

The rule: a folder belongs to the process that holds its lock, which the kernel frees however that process ends. Only
what names the folder of a dead one is ended, and only by who has got that lock: so what runs beside us, in another
session of tests or for the machine's own sake, is never touched.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

PARENT: Final = Path("/var/tmp")
_PATIENCE_S: Final = 10.0  # with a process that does not end by itself
_REMOVING_S: Final = 120.0


class OwnedFolder:
    """A new folder below `parent`, called prefix and something of its own. `remove` ends it; a process that dies leaves
    it to `swept`."""

    def __init__(self, prefix: str, parent: Path = PARENT) -> None:
        name = f"{prefix}{secrets.token_hex(4)}"
        made = parent / f"new-{name}"
        made.mkdir(mode=0o700)
        self._lock = os.open(made, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        # Only now where `swept` of a process beside this one looks: it would take an unlocked one for a dead one's.
        self.path: Final = made.rename(parent / name)

    def remove(self, *, ignore_errors: bool = False) -> None:
        """With all that is in it."""
        shutil.rmtree(self.path, ignore_errors=ignore_errors)
        os.close(self._lock)


@contextmanager
def home_folder() -> Iterator[Path]:
    """For the home of an appliance, where QEMU's user can reach it. Before it is removed, what still runs for a home in
    it is waited for, and ended when that takes long."""
    owned = OwnedFolder("strongroom-rig-")
    owned.path.chmod(0o755)
    try:
        yield owned.path
    finally:
        deadline = time.monotonic() + _REMOVING_S
        while True:
            end_processes(owned.path, patience_s=_PATIENCE_S)
            try:
                shutil.rmtree(owned.path)
                break
            except OSError:
                # Whoever was made between the kernel's list and a look at it writes into it now: so once more.
                if time.monotonic() >= deadline:
                    raise
        owned.remove(ignore_errors=True)


def processes_of(folder: Path) -> dict[int, str]:
    """Command lines of all processes whose home lies in this folder."""
    mark = f"\0STRONGROOM_HOME={folder}".encode()
    found: dict[int, str] = {}
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has just ended
            at = (b"\0" + (process / "environ").read_bytes() + b"\0").partition(mark)
            if at[1] and at[2][:1] in (b"\0", b"/"):
                words = (process / "cmdline").read_bytes().split(b"\0")
                found[int(process.name)] = b" ".join(words).decode(errors="replace").strip()
    return found


def end_processes(folder: Path, *, patience_s: float) -> None:
    """Those that still work on thaws and the like; those that do not come to an end are killed."""
    deadline = time.monotonic() + patience_s
    while found := processes_of(folder):
        if time.monotonic() >= deadline:
            _kill(found)
        time.sleep(0.05)


def swept(prefix: str, parent: Path = PARENT, before: Callable[[Path], None] = lambda _: None) -> None:
    """Remove the folders of dead processes. `before` is called with each, before its processes are killed."""
    for left in parent.glob(f"{prefix}*"):
        with contextlib.suppress(OSError):  # its owner lives, or has just removed it
            lock = os.open(left, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                before(left)
                _kill(_naming(left))
                _unmount(left)
                shutil.rmtree(left, ignore_errors=True)
            finally:
                os.close(lock)


def _naming(folder: Path) -> list[int]:
    """Processes that were started for something in this folder: by their environment, or by their command line."""
    mark, found = os.fsencode(folder), []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if any(mark in (process / of).read_bytes() for of in ("environ", "cmdline")):
                found.append(int(process.name))
    return found


def _kill(pids: dict[int, str] | list[int]) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _unmount(folder: Path) -> None:
    for line in reversed(Path("/proc/self/mountinfo").read_text().splitlines()):
        if (place := line.split(" ")[4]).startswith(f"{folder}/"):
            subprocess.run(["umount", "--lazy", place], check=False, capture_output=True)
