"""A store in a folder of a local (or NFS 4) file system.

Rules: objects are ordinary files below the folder, written by durable.py; which folders may be links, and that a disk
which is not mounted is no empty store, is folders.py's business; what must be written though the file system is full,
reserve.py's. Nothing that this process did or found in a folder is reported before the folder is durable.
"""

from __future__ import annotations

import errno
import os
import stat
import threading
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final, NoReturn

from imaging.direct import read_direct
from imaging.errors import Damaged, InvalidName, NoSpace, ObjectExists, ObjectMissing, StoreError, StoreUnavailable
from imaging.storage.contract import OBJECT_BYTES_MAX, Buffer, Listed, check_name, check_prefix
from imaging.storage.durable import PosixSystem, System, clean_temporaries, durable_write
from imaging.storage.folders import TEMPORARY_FOLDER, Folders, refuse_link
from imaging.storage.reserve import Reserve
from imaging.storage.sectors import bad_for_good

_FULL: Final = (errno.ENOSPC, errno.EDQUOT)
_PASSING: Final = (errno.EIO, errno.EINTR, errno.EAGAIN, errno.ETIMEDOUT, errno.ESTALE, errno.EBUSY)
_DIRECT_BYTES_MIN: Final = 1 << 20
"""Who reads that much at once goes through all of it, once: a restore, a scrub."""
_MISSING: Final = (FileNotFoundError, NotADirectoryError, IsADirectoryError)


class LocalStore:
    """Borrows the folder, which must exist; makes what it needs below it."""

    def __init__(self, folder: Path, system: System | None = None) -> None:
        self._folder = folder
        self._system = system or PosixSystem()
        self._folders = Folders(folder, self._system)
        self._reserve = Reserve(folder / TEMPORARY_FOLDER / "reserve")
        self._lock = threading.Lock()
        self._cleaned = False

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

    # Writing

    def put(self, name: str, data: Sequence[Buffer]) -> None:
        check_name(name)
        try:
            self._write(name, data, replace=True)
        except OSError as error:
            _raise_for("write", name, error)

    def create(self, name: str, data: Sequence[Buffer]) -> None:
        check_name(name)
        try:
            try:
                self._write(name, data, replace=False)
            except FileExistsError as error:
                # Whoever made it may have failed at this step, and whoever is told of it may rely on it.
                self._folders.settle((self._folder / name).parent)
                raise ObjectExists(name) from error
        except OSError as error:
            _raise_for("write", name, error)

    def _write(self, name: str, data: Sequence[Buffer], replace: bool) -> None:
        """Once more where a folder had vanished, from another temporary folder, or with a part of the reserve."""
        vanished = False
        while True:
            try:
                return self._write_once(name, data, replace)
            except FileNotFoundError:
                # delete() removes folders that it empties, possibly while another thread writes into one
                if vanished:
                    raise
                vanished = True
                self._folders.forget_made()
            except OSError as error:
                if error.errno == errno.EXDEV and self._folders.learn_elsewhere(name):
                    continue
                size_bytes = sum(memoryview(each).nbytes for each in data)
                if error.errno not in _FULL or not Reserve.is_for(name) or not self._reserve.draw(size_bytes):
                    raise

    def _write_once(self, name: str, data: Sequence[Buffer], replace: bool) -> None:
        target = Path(self._folders.path("write", name))
        temporary = self._folders.temporary_for(name)
        self._folders.make(temporary)
        self._clean_once()
        self._folders.make(target.parent)
        durable_write(self._system, target, data, temporary, replace)

    # Reading

    def get(self, name: str, offset_bytes: int = 0, length_bytes: int | None = None) -> bytes:
        check_name(name)
        try:
            path = self._folders.path("read", name)
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        except _MISSING as error:
            self._folders.check("read", name)
            raise ObjectMissing(name) from error
        except OSError as error:
            _raise_for("read", name, error)
        try:
            return self._read(descriptor, name, offset_bytes, length_bytes)
        except OSError as error:
            if error.errno == errno.EIO:
                _raise_if_bad(descriptor, name, offset_bytes, length_bytes, error)
            _raise_for("read", name, error)
        finally:
            os.close(descriptor)

    def _read(self, descriptor: int, name: str, offset_bytes: int, length_bytes: int | None) -> bytes:
        found = os.fstat(descriptor)
        if stat.S_ISDIR(found.st_mode):
            raise ObjectMissing(name)
        if not stat.S_ISREG(found.st_mode):
            raise Damaged(name, "it is no ordinary file")
        wanted = found.st_size - offset_bytes if length_bytes is None else length_bytes
        if offset_bytes < 0 or wanted < 0 or offset_bytes + wanted > found.st_size:
            raise Damaged(
                name, f"it has {found.st_size} bytes where {offset_bytes} to {offset_bytes + wanted} are wanted"
            )
        if wanted > OBJECT_BYTES_MAX:
            raise Damaged(name, f"it has {found.st_size} bytes, more than any object")
        data = read_direct(descriptor, offset_bytes, wanted) if wanted >= _DIRECT_BYTES_MIN else b""
        while len(data) < wanted:
            more = os.pread(descriptor, wanted - len(data), offset_bytes + len(data))
            if not more:
                raise Damaged(name, f"it ended {wanted - len(data)} bytes early while it was read")
            data += more
        return data

    def exists(self, name: str) -> bool:
        check_name(name)
        try:
            return not stat.S_ISDIR(os.lstat(self._folders.path("look for", name)).st_mode)
        except _MISSING:
            self._folders.check("look for", name)
            return False
        except OSError as error:
            _raise_for("look for", name, error)

    def list(self, prefix: str) -> Iterator[Listed]:
        check_prefix(prefix)
        self._folders.check("list", prefix)
        return self._listing(prefix)

    def _listing(self, prefix: str) -> Iterator[Listed]:
        yield from self._walk(self._folders.path("list", prefix), prefix)
        self._folders.check("list", prefix)  # what was not met may have gone with its disk

    def _walk(self, folder: str, prefix: str) -> Iterator[Listed]:
        """A folder or an object that is not there any more was removed since: as if listed a moment later."""
        try:
            with os.scandir(folder) as entries:
                found = sorted((name, entry) for entry in entries if (name := self._shown(prefix, entry)) is not None)
        except (FileNotFoundError, NotADirectoryError):
            self._folders.check("list", prefix)
            return
        except OSError as error:
            _raise_for("list", prefix or "the repository", error)
        for name, entry in found:
            if name.endswith("/"):
                yield from self._walk(entry.path, name)
                continue
            try:
                status = entry.stat(follow_symlinks=False)
            except FileNotFoundError:
                continue
            except OSError as error:
                _raise_for("list", name, error)
            if stat.S_ISREG(status.st_mode):
                yield Listed(name, status.st_size)

    @staticmethod
    def _shown(prefix: str, entry: os.DirEntry[str]) -> str | None:
        """An entry's name, with a slash if it is a folder; None for what cannot be, or hold, an object."""
        link = entry.is_symlink()
        is_folder = entry.is_dir(follow_symlinks=not prefix)
        name = prefix + entry.name + ("/" if is_folder else "")
        if not _may_be_named(name):
            return None
        if link and not (is_folder and not prefix):
            refuse_link("list", prefix, entry.path)
        return name

    # Removing

    def delete(self, name: str) -> None:
        check_name(name)
        if self._delete([name]):
            raise ObjectMissing(name)

    def delete_many(self, names: Iterable[str]) -> None:
        wanted = list(names)
        for name in wanted:
            check_name(name)
        self._delete(wanted)

    def _delete(self, names: Sequence[str]) -> Sequence[str]:
        """Returns those that were not there: also that is durable, as whoever removed one may have failed to."""
        missing = []
        folders: dict[Path, str] = {}
        for name in names:
            try:
                path = Path(self._folders.path("delete", name))
                folders[path.parent] = name
                self._system.unlink(path)
            except _MISSING:
                self._folders.check("delete", name)
                missing.append(name)
            except OSError as error:
                _raise_for("delete", name, error)
        for folder, name in folders.items():
            try:
                self._folders.settle(folder)
            except OSError as error:
                _raise_for("delete", name, error)
            self._folders.remove_empty(folder)
        self._reserve.fill_again()
        return missing

    # Room

    def free_bytes(self) -> int | None:
        """On the fullest of its file systems."""
        try:
            found = [os.statvfs(folder) for folder in self._folders.file_systems() or [self._folder]]
        except OSError as error:
            _raise_for("measure", str(self._folder), error)
        return min(status.f_bavail * status.f_frsize for status in found)

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
        removed = sum(clean_temporaries(folder) for folder in self._folders.temporaries())
        self.keep_reserve()
        return removed

    def keep_reserve(self) -> None:
        """Sets room aside for what must be written when the file system is full."""
        self._reserve.fill()


def _may_be_named(name: str) -> bool:
    try:
        (check_prefix if name.endswith("/") else check_name)(name)
    except InvalidName:
        return False
    return name != TEMPORARY_FOLDER + "/"


def _raise_if_bad(descriptor: int, name: str, offset_bytes: int, length_bytes: int | None, error: OSError) -> None:
    """Damaged where the disk has bad sectors there, and not just a bad moment."""
    try:
        length = os.fstat(descriptor).st_size - offset_bytes if length_bytes is None else length_bytes
        bad = bad_for_good(descriptor, offset_bytes, length)
    except OSError:
        return  # the first error is the one to report
    if bad is not None:
        detail = f"the disk cannot read its bytes {bad.start} to {bad.stop}, again and again, and can read others"
        hint = "look after that disk, then see 'strongroom repository repair --help': it has bad sectors"
        raise Damaged(name, detail, hint=hint) from error


def _raise_for(operation: str, name: str, error: OSError) -> NoReturn:
    if error.errno in _FULL:
        raise NoSpace(operation, name) from error
    kind = StoreUnavailable if error.errno in _PASSING else StoreError
    raise kind(operation, name, error.strerror or str(error)) from error
