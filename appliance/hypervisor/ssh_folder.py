"""The folder of one SSH connection's sockets, and what dead processes left of theirs.

The rule: whoever uses a folder holds the lock beside it from before it is made until after it is gone; so one whose
lock nobody holds belongs to a process that died, and may be removed.
"""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from appliance.hypervisor.errors import HypervisorError
from appliance.ownership import InUse, is_owned, own

_PREFIX = "ssh-"
_LOCK = ".lock"
_SOCKET_PATH_BYTES_MAX = 107
_LONGEST_NAME_BYTES = len("/ctl.0123456789abcdef")  # as ssh makes a control socket before it renames it


@contextmanager
def socket_folder(runtime: Path | None) -> Iterator[Path]:
    """One that only this user may enter, below `runtime`; None: in the system's folder for temporary files."""
    if runtime is None:
        with tempfile.TemporaryDirectory(prefix="strongroom-ssh-") as made:
            yield Path(made)
        return
    remove_left(runtime)
    folder = runtime / f"{_PREFIX}{secrets.token_hex(4)}"
    over_bytes = len(os.fsencode(folder)) + _LONGEST_NAME_BYTES - _SOCKET_PATH_BYTES_MAX
    if over_bytes > 0:
        raise HypervisorError(
            f"the path {runtime} is {over_bytes} bytes too long for the sockets of a host over SSH",
            hint="Set STRONGROOM_HOME to a folder with a shorter path.",
            path=str(runtime),
        )
    lock = runtime / f"{folder.name}{_LOCK}"
    with own(lock, f"the SSH connection {folder.name}"):
        folder.mkdir(mode=0o700)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            lock.unlink(missing_ok=True)


def remove_left(runtime: Path) -> None:
    """Folders below `runtime` whose processes died; those of the living are left alone."""
    for lock in runtime.glob(f"{_PREFIX}*{_LOCK}"):
        if is_owned(lock):
            continue
        try:
            with own(lock, f"the SSH connection {lock.stem}"):
                shutil.rmtree(lock.with_suffix(""), ignore_errors=True)
                lock.unlink(missing_ok=True)
        except InUse:
            continue  # its process is just beginning
