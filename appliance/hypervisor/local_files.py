"""Files and sockets of a hypervisor that is this machine.

The rule: what QEMU has to reach belongs to QEMU's user and to nobody else, and whether that user gets there is found
out before a machine depends on it. Files are replaced whole or not at all.
"""

from __future__ import annotations

import contextlib
import grp
import os
import pwd
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

from appliance.hypervisor.errors import HostFileError
from appliance.hypervisor.parts import part_of
from appliance.hypervisor.protocol import QemuIdentity

FOLDER_MODE = 0o750
PARENT_MODE = 0o711
_MAX_FILES = 256


class LocalFiles:
    """Implements protocol.HostFiles. `identify` asks the hypervisor, once, whom QEMU runs as."""

    def __init__(self, identify: Callable[[], QemuIdentity]) -> None:
        self._identify = identify
        self._identity: QemuIdentity | None = None

    @property
    def local(self) -> bool:
        return True

    def qemu(self) -> QemuIdentity:
        if self._identity is None:
            self._identity = self._identify()
        return self._identity

    def prepare_folder(self, path: str) -> None:
        folder = Path(path)
        if not folder.is_absolute():
            raise HostFileError(path, "not an absolute path")
        try:
            _make_parents(folder)
            folder.mkdir(mode=FOLDER_MODE, exist_ok=True)
            found = folder.lstat()
            if not stat.S_ISDIR(found.st_mode):
                raise HostFileError(path, "is not a folder")
            identity = self.qemu()
            if os.geteuid() == 0 and found.st_uid != identity.uid:
                os.chown(folder, identity.uid, identity.gid)
        except OSError as error:
            raise HostFileError(path, f"cannot be made ready for QEMU: {error.strerror}") from error
        self._check_reachable(folder)

    def _check_reachable(self, folder: Path) -> None:
        """QEMU's user needs to search every parent; a home of mode 0700 is the usual obstacle."""
        identity = self.qemu()
        groups = _groups_of(identity)
        for parent in reversed(folder.resolve().parents):
            found = parent.stat()
            if not _may_search(found, identity, groups):
                raise HostFileError(
                    str(folder),
                    f"QEMU's user (uid {identity.uid}) does not get through {parent},"
                    f" mode {stat.S_IMODE(found.st_mode):04o}",
                    hint=f"chmod o+x {parent}, or set a scratch folder that QEMU's user can reach.",
                )

    def give_to_qemu(self, path: str) -> None:
        identity = self.qemu()
        try:
            os.chown(path, identity.uid, identity.gid, follow_symlinks=False)
        except OSError as error:
            raise HostFileError(path, f"cannot be given to QEMU's user: {error.strerror}") from error

    def head(self, path: str, length_bytes: int) -> bytes:
        try:
            with open(path, "rb", buffering=0) as file:
                return file.read(length_bytes) or b""
        except OSError as error:
            raise HostFileError(path, f"cannot be read: {error.strerror}") from error

    def read(self, path: str, limit_bytes: int) -> bytes:
        try:
            with open(path, "rb") as file:
                data = file.read(limit_bytes + 1)
        except OSError as error:
            raise HostFileError(path, f"cannot be read: {error.strerror}") from error
        if len(data) > limit_bytes:
            raise HostFileError(path, f"is larger than {limit_bytes} bytes")
        return data

    def read_folder(self, path: str, limit_bytes: int) -> tuple[tuple[str, bytes], ...]:
        found: list[tuple[str, bytes]] = []
        left = limit_bytes

        def refuse(error: OSError) -> None:
            raise HostFileError(path, f"cannot be read: {error.strerror}") from error

        for folder, _, names in os.walk(path, onerror=refuse):
            for name in sorted(names):
                file = os.path.join(folder, name)
                if not stat.S_ISREG(os.lstat(file).st_mode):
                    continue
                data = self.read(file, left)
                left -= len(data)
                found.append((os.path.relpath(file, path), data))
                if len(found) > _MAX_FILES:
                    raise HostFileError(path, f"holds more than {_MAX_FILES} files")
        return tuple(found)

    def write(self, path: str, data: bytes) -> None:
        identity, part, made = self.qemu(), part_of(path), False
        try:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(part)
            # The folder may be QEMU's user's: no link of that user's is followed, here or by a change of the owner.
            descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            made = True
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                if os.geteuid() == 0:
                    os.fchown(file.fileno(), identity.uid, identity.gid)
                os.fsync(file.fileno())
            os.rename(part, path)
        except OSError as error:
            if made:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(part)
            raise HostFileError(path, f"cannot be written: {error.strerror}") from error

    def remove(self, path: str) -> None:
        try:
            for each in (part_of(path), path):
                with contextlib.suppress(FileNotFoundError):
                    os.rmdir(each) if os.path.isdir(each) and not os.path.islink(each) else os.unlink(each)
        except OSError as error:
            raise HostFileError(path, f"cannot be removed: {error.strerror}") from error

    def remove_folder(self, path: str) -> None:
        try:
            with contextlib.suppress(FileNotFoundError):
                with os.scandir(path) as entries:
                    names = [entry.path for entry in entries]
                for name in names:
                    os.unlink(name)
                os.rmdir(path)
        except OSError as error:
            raise HostFileError(path, f"cannot be removed: {error.strerror}") from error

    def exists(self, path: str) -> bool:
        return os.path.lexists(path)

    def free_bytes(self, path: str) -> int | None:
        try:
            found = os.statvfs(path)
        except OSError:
            return None  # the protocol's word for: cannot be known
        return found.f_bavail * found.f_frsize

    @contextlib.contextmanager
    def carry(self, socket: str) -> Iterator[Path]:
        yield Path(socket)

    @contextlib.contextmanager
    def offer(self, local_socket: Path, socket: str) -> Iterator[str]:
        """The local socket itself serves; `socket` is for hosts elsewhere."""
        self.give_to_qemu(str(local_socket))
        self._check_reachable(local_socket.parent / "socket")
        yield str(local_socket)


def _make_parents(folder: Path) -> None:
    """Those that are missing can be passed through by QEMU's user, and by that of its TPM, whatever our umask."""
    missing = [parent for parent in folder.parents if not parent.exists()]
    for parent in reversed(missing):
        parent.mkdir(exist_ok=True)
        parent.chmod(PARENT_MODE)


def _groups_of(identity: QemuIdentity) -> frozenset[int]:
    try:
        user = pwd.getpwuid(identity.uid)
    except KeyError:
        return frozenset({identity.gid})
    return frozenset({identity.gid, *(group.gr_gid for group in grp.getgrall() if user.pw_name in group.gr_mem)})


def _may_search(found: os.stat_result, identity: QemuIdentity, groups: frozenset[int]) -> bool:
    if identity.uid == 0:
        return True
    if found.st_uid == identity.uid:
        return bool(found.st_mode & stat.S_IXUSR)
    if found.st_gid in groups:
        return bool(found.st_mode & stat.S_IXGRP)
    return bool(found.st_mode & stat.S_IXOTH)
