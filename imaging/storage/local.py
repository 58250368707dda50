"""A store in a folder of a local (or NFS 4) file system.

Rules: objects are ordinary files below the folder, written by durable.py; a link is no object. A folder that is not
there, or is not the one that it was, is an error and never an empty store: that is what an unmounted disk looks like.
A small reserve keeps tombstones and the ends of leases writable when the file system is full, so that deleting points
can free it.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import re
import stat
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final, NoReturn

from imaging.errors import Damaged, InvalidName, NoSpace, ObjectExists, ObjectMissing, StoreError, StoreUnavailable
from imaging.storage.contract import OBJECT_BYTES_MAX, Buffer, Listed, check_name, check_prefix
from imaging.storage.durable import PosixSystem, System, clean_temporaries, durable_write

_log = logging.getLogger(__name__)

TEMPORARY_FOLDER: Final = "tmp"
_RESERVE_FILE: Final = "reserve"
_RESERVE_BYTES_MAX: Final = 4 << 20
_RESERVED_FOR: Final = re.compile(r"(?:tombstones|epochs|rollcalls)/.*|leases/[^/]*/end")
_FULL: Final = (errno.ENOSPC, errno.EDQUOT)
_PASSING: Final = (errno.EIO, errno.EINTR, errno.EAGAIN, errno.ETIMEDOUT, errno.ESTALE, errno.EBUSY)


class LocalStore:
    """Borrows the folder, which must exist; makes what it needs below it."""

    def __init__(self, folder: Path, system: System | None = None) -> None:
        self._folder = folder
        self._temporary = folder / TEMPORARY_FOLDER
        self._system = system or PosixSystem()
        self._durable: set[Path] = set()
        self._lock = threading.Lock()
        self._cleaned = False
        self._identity = _identity_of(folder)

    @classmethod
    def make(cls, folder: Path) -> LocalStore:
        """As the constructor, after making the folder durably where it is not there."""
        missing = [each for each in (folder, *folder.parents) if not each.exists()]
        try:
            for each in reversed(missing):
                each.mkdir(mode=0o700, exist_ok=True)
                PosixSystem().fsync_directory(each.parent)
        except OSError as error:
            _raise_for("make the folder", str(folder), error)
        return cls(folder)

    def describe(self) -> str:
        return str(self._folder)

    def put(self, name: str, data: Sequence[Buffer]) -> None:
        check_name(name)
        self._write(name, data, replace=True)

    def create(self, name: str, data: Sequence[Buffer]) -> None:
        check_name(name)
        self._write(name, data, replace=False)

    def _write(self, name: str, data: Sequence[Buffer], replace: bool) -> None:
        target = self._folder / name

        def attempt() -> None:
            self._ready(self._temporary)
            self._clean_once()
            self._ready(target.parent)
            durable_write(self._system, target, data, self._temporary, replace)

        try:
            self._with_reserve(name, lambda: self._again_if_folder_vanished(attempt))
        except FileExistsError as error:
            raise ObjectExists(name) from error
        except OSError as error:
            _raise_for("write", name, error)

    def _again_if_folder_vanished(self, attempt: Callable[[], None]) -> None:
        """delete() removes folders that it empties, possibly in the moment in which another thread writes into one."""
        try:
            attempt()
        except FileNotFoundError:
            with self._lock:
                self._durable.clear()
            attempt()

    def _with_reserve(self, name: str, attempt: Callable[[], None]) -> None:
        try:
            attempt()
        except OSError as error:
            reserve = self._temporary / _RESERVE_FILE
            if error.errno not in _FULL or not _RESERVED_FOR.fullmatch(name) or not reserve.exists():
                raise
            os.unlink(reserve)
            attempt()

    def _ready(self, folder: Path) -> None:
        """Makes `folder`, and makes its own entry durable: once per folder and process, whoever made it first."""
        if folder in self._durable:
            return
        if folder == self._folder:
            self._check_folder("write to", str(folder))
            return
        self._ready(folder.parent)
        with contextlib.suppress(FileExistsError):
            self._system.make_directory(folder)
        self._system.fsync_directory(folder.parent)
        with self._lock:
            self._durable.add(folder)

    def get(self, name: str, offset_bytes: int = 0, length_bytes: int | None = None) -> bytes:
        check_name(name)
        try:
            descriptor = os.open(self._folder / name, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        except (FileNotFoundError, NotADirectoryError) as error:
            self._check_folder("read", name)
            raise ObjectMissing(name) from error
        except OSError as error:
            _raise_for("read", name, error)
        try:
            return self._read(descriptor, name, offset_bytes, length_bytes)
        except OSError as error:
            _raise_for("read", name, error)
        finally:
            os.close(descriptor)

    def _read(self, descriptor: int, name: str, offset_bytes: int, length_bytes: int | None) -> bytes:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise Damaged(name, "it is no ordinary file")
        wanted = found.st_size - offset_bytes if length_bytes is None else length_bytes
        if offset_bytes < 0 or wanted < 0 or offset_bytes + wanted > found.st_size:
            raise Damaged(
                name, f"it has {found.st_size} bytes where {offset_bytes} to {offset_bytes + wanted} are wanted"
            )
        if wanted > OBJECT_BYTES_MAX:
            raise Damaged(name, f"it has {found.st_size} bytes, more than any object")
        data = os.pread(descriptor, wanted, offset_bytes)
        while len(data) < wanted:
            more = os.pread(descriptor, wanted - len(data), offset_bytes + len(data))
            if not more:
                raise Damaged(name, f"it ended {wanted - len(data)} bytes early while it was read")
            data += more
        return data

    def list(self, prefix: str) -> Iterator[Listed]:
        check_prefix(prefix)
        self._check_folder("list", prefix or "the repository")
        return self._walk(self._folder / prefix, prefix)

    def _walk(self, folder: Path, prefix: str) -> Iterator[Listed]:
        try:
            with os.scandir(folder) as entries:
                found = sorted(
                    (entry.name + "/" if entry.is_dir(follow_symlinks=False) else entry.name, entry)
                    for entry in entries
                )
        except (FileNotFoundError, NotADirectoryError):
            return
        except OSError as error:
            _raise_for("list", prefix or "the repository", error)
        for shown, entry in found:
            name = prefix + shown
            if not _may_be_named(name):
                continue
            if shown.endswith("/"):
                yield from self._walk(folder / entry.name, name)
                continue
            try:
                status = entry.stat(follow_symlinks=False)
            except FileNotFoundError:
                continue  # removed since the folder was read: as if listed a moment later
            except OSError as error:
                _raise_for("list", name, error)
            if stat.S_ISREG(status.st_mode):
                yield Listed(name, status.st_size)

    def delete(self, name: str) -> None:
        check_name(name)
        path = self._folder / name
        try:
            self._system.unlink(path)
        except (FileNotFoundError, NotADirectoryError) as error:
            self._check_folder("delete", name)
            raise ObjectMissing(name) from error
        except OSError as error:
            _raise_for("delete", name, error)
        self._remove_empty_folders(path.parent)

    def _remove_empty_folders(self, folder: Path) -> None:
        """Leases come and go in folders of their own; the first level stays."""
        while folder != self._folder and folder.parent != self._folder:
            try:
                os.rmdir(folder)
            except OSError:
                return  # not empty, as a rule; an empty folder that stays is harmless and shows in no listing
            with self._lock:
                self._durable.discard(folder)
            folder = folder.parent

    def free_bytes(self) -> int | None:
        try:
            status = os.statvfs(self._folder)
        except OSError as error:
            _raise_for("measure", str(self._folder), error)
        return status.f_bavail * status.f_frsize

    def _clean_once(self) -> None:
        """Before this process's first write: what dead ones left, and the reserve."""
        with self._lock:
            if self._cleaned:
                return
            self._cleaned = True
        self.clean()

    def clean(self) -> int:
        """Removes temporaries of dead writers and fills the reserve, where there is room; returns how many it
        removed."""
        removed = clean_temporaries(self._temporary)
        self.keep_reserve()
        return removed

    def keep_reserve(self) -> None:
        """Sets aside up to 4 MiB, never more than a hundredth of the file system, for what must be written when it is
        full."""
        path = self._temporary / _RESERVE_FILE
        try:
            status = os.statvfs(self._folder)
            wanted = min(_RESERVE_BYTES_MAX, status.f_blocks * status.f_frsize // 100)
            if path.exists() or status.f_bavail * status.f_frsize < 2 * wanted:
                return
            self._temporary.mkdir(mode=0o700, exist_ok=True)
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            try:
                os.posix_fallocate(descriptor, 0, max(1, wanted))
            except OSError:
                os.unlink(path)
                raise
            finally:
                os.close(descriptor)
        except OSError as error:
            _log.info("no reserve in %s: %s", self._folder, error)  # nothing but the reserve is lost by that

    def _check_folder(self, operation: str, name: str) -> None:
        found = _identity_of(self._folder)
        if found is None:
            raise StoreError(operation, name, f"the folder {self._folder} is not there")
        if self._identity is None:
            self._identity = found
        if found != self._identity:
            raise StoreError(operation, name, f"the folder {self._folder} is no longer the one that was opened")


def _identity_of(folder: Path) -> tuple[int, int] | None:
    try:
        found = folder.stat()
    except OSError:
        return None
    return (found.st_dev, found.st_ino) if stat.S_ISDIR(found.st_mode) else None


def _may_be_named(name: str) -> bool:
    try:
        (check_prefix if name.endswith("/") else check_name)(name)
    except InvalidName:
        return False
    return name != TEMPORARY_FOLDER + "/"


def _raise_for(operation: str, name: str, error: OSError) -> NoReturn:
    if error.errno in _FULL:
        raise NoSpace(operation, name) from error
    kind = StoreUnavailable if error.errno in _PASSING else StoreError
    raise kind(operation, name, error.strerror or str(error)) from error
