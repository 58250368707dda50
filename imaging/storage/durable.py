"""The one way that files of a repository come to be: a crash at any step leaves the old file or the new one, never a
mixture.

Steps: temporary → write → fsync → rename (or link, which refuses to replace) → fsync of the directory. The operating
system is reached through a seam, so that tests fail each step in turn. A failed fsync means that the data is gone,
whatever a later one says: the temporary is thrown away and the caller writes again from memory.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
from collections import deque
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Final, Protocol

from imaging.direct import DirectWriter
from imaging.storage.contract import Buffer

TEMPORARY_SUFFIX: Final = ".part"
_BUFFERS_PER_WRITE: Final = 512
"""Below IOV_MAX, which is 1,024 on Linux."""
_DIRECT_BYTES_MIN: Final = 1 << 20
"""Packs, that is; what is smaller is cheap either way, and read again soon."""


class System(Protocol):
    """What a durable write asks of the operating system. Every method raises OSError."""

    def create_file(self, path: Path) -> int:
        """A new file, open for writing and locked: whoever can lock a temporary knows that its writer is dead."""

    def write_direct(self, descriptor: int, buffers: Sequence[Buffer]) -> int:
        """Write as many bytes from the beginning of a new file as can go past the page cache; returns how many. What
        is written next follows them."""

    def write(self, descriptor: int, buffers: Sequence[Buffer]) -> int: ...
    def fsync(self, descriptor: int) -> None: ...
    def close(self, descriptor: int) -> None: ...
    def rename(self, source: Path, target: Path) -> None: ...
    def link(self, source: Path, target: Path) -> None: ...
    def unlink(self, path: Path) -> None: ...
    def make_directory(self, path: Path) -> None: ...
    def fsync_directory(self, path: Path) -> None: ...


class PosixSystem:
    """The real one."""

    def create_file(self, path: Path) -> int:
        while True:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            with contextlib.suppress(OSError):  # a file system without locks: then stale temporaries stay
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            if os.fstat(descriptor).st_nlink:
                return descriptor
            os.close(descriptor)  # a cleaner took it for stale in the moment before it was locked

    def write_direct(self, descriptor: int, buffers: Sequence[Buffer]) -> int:
        with contextlib.closing(DirectWriter(descriptor)) as direct:
            return os.lseek(descriptor, direct.write(0, buffers), os.SEEK_SET)

    def write(self, descriptor: int, buffers: Sequence[Buffer]) -> int:
        return os.writev(descriptor, buffers)

    def fsync(self, descriptor: int) -> None:
        os.fsync(descriptor)

    def close(self, descriptor: int) -> None:
        os.close(descriptor)

    def rename(self, source: Path, target: Path) -> None:
        os.rename(source, target)

    def link(self, source: Path, target: Path) -> None:
        os.link(source, target, follow_symlinks=False)

    def unlink(self, path: Path) -> None:
        os.unlink(path)

    def make_directory(self, path: Path) -> None:
        os.mkdir(path, 0o700)

    def fsync_directory(self, path: Path) -> None:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def durable_write(
    system: System, target: Path, data: Sequence[Buffer], temporary_folder: Path, replace: bool = True
) -> None:
    """Writes `data` to `target`, whose folder exists. Without `replace`, FileExistsError when the target is there.

    Raises OSError; then the target is as before, unless only the last step failed: it is then whole, but may not
    outlive a power cut, so it has to be written again before anything relies on it.
    """
    temporary = temporary_folder / f"{target.name[:100]}.{secrets.token_hex(8)}{TEMPORARY_SUFFIX}"
    descriptor = system.create_file(temporary)
    kept = True
    try:
        try:
            _write_all(system, descriptor, data)
            system.fsync(descriptor)
            if replace:
                system.rename(temporary, target)
                kept = False
            else:
                system.link(temporary, target)
        finally:
            system.close(descriptor)
    except BaseException:
        with contextlib.suppress(OSError):  # the first error is the one to report; clean_temporaries() finds the rest
            system.unlink(temporary)
        raise
    if kept:
        with contextlib.suppress(OSError):  # a second name of the object: harmless, and removed as a stale temporary
            system.unlink(temporary)
    system.fsync_directory(target.parent)


def _write_all(system: System, descriptor: int, data: Sequence[Buffer]) -> None:
    pending = deque(view for view in (memoryview(each).cast("B") for each in data if len(each)) if len(view))
    if sum(map(len, pending)) >= _DIRECT_BYTES_MIN:
        _drop(pending, system.write_direct(descriptor, pending))
    while pending:
        _drop(pending, system.write(descriptor, list(islice(pending, _BUFFERS_PER_WRITE))))


def _drop(pending: deque[memoryview], written: int) -> None:
    """Take what was written from the front."""
    while written:
        if written < len(pending[0]):
            pending[0] = pending[0][written:]
            return
        written -= len(pending.popleft())


def clean_temporaries(folder: Path) -> int:
    """Removes temporaries whose writer is dead (their lock can be taken); returns how many. Never raises for a single
    one."""
    removed = 0
    for path in _temporaries_in(folder):
        with contextlib.suppress(OSError):
            descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.unlink(path)
                removed += 1
            finally:
                os.close(descriptor)
    return removed


def _temporaries_in(folder: Path) -> list[Path]:
    try:
        with os.scandir(folder) as entries:
            return [
                Path(entry.path)
                for entry in entries
                if entry.name.endswith(TEMPORARY_SUFFIX) and entry.is_file(follow_symlinks=False)
            ]
    except FileNotFoundError:
        return []
