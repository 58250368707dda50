"""Files of a host over SSH, by the plain programs that every such host has.

The rule: a path is always one argument, never part of a script; what comes back is bounded before it is read.
"""

from __future__ import annotations

import io
import posixpath
import subprocess
import tarfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from appliance.hypervisor.errors import HostFileError
from appliance.hypervisor.parts import part_of
from appliance.hypervisor.protocol import QemuIdentity
from appliance.hypervisor.ssh import SshHost

_MAX_FILES = 256
_TAR_OVERHEAD_BYTES = 1024 * 1024
# $1 is the path, $2 uid:gid, $3 where it is written first. Data comes by standard input. The folder may be QEMU's
# user's: no link of that user's is followed (-C opens what is not there, or nothing).
_WRITE = (
    'umask 077 && set -C && rm -f -- "$3" && cat >"$3" && chown -h -- "$2" "$3" && sync -- "$3" && mv -fT -- "$3" "$1"'
)
_REMOVE = 'rm -f -- "$2" && if [ -d "$1" ] && [ ! -L "$1" ]; then rmdir -- "$1"; else rm -f -- "$1"; fi'
_REMOVE_FOLDER = 'if [ -d "$1" ]; then find "$1" -mindepth 1 -maxdepth 1 ! -type d -delete && rmdir -- "$1"; fi'
_EXISTS = '[ -e "$1" ] || [ -L "$1" ]'
# What a reader asks first: does it exist, and if not, is that all that is wrong?
_HEAD = 'head -c "$2" -- "$1"'


class SshFiles:
    """Implements protocol.HostFiles. Borrows the host."""

    def __init__(self, host: SshHost, identify: Callable[[], QemuIdentity]) -> None:
        self._host = host
        self._identify = identify
        self._identity: QemuIdentity | None = None

    @property
    def local(self) -> bool:
        return False

    def qemu(self) -> QemuIdentity:
        if self._identity is None:
            self._identity = self._identify()
        return self._identity

    def _owner(self) -> str:
        identity = self.qemu()
        return f"{identity.uid}:{identity.gid}"

    def _sh(self, path: str, script: str, *arguments: str, data: bytes = b"", doing: str) -> bytes:
        return self._do(path, ["sh", "-c", script, "sh", path, *arguments], data=data, doing=doing)

    def _do(self, path: str, command: Sequence[str], *, data: bytes = b"", doing: str) -> bytes:
        if not posixpath.isabs(path) or "\0" in path:
            raise HostFileError(path, "not an absolute path")
        done = self._host.run(command, data=data)
        if done.returncode != 0:
            raise HostFileError(path, f"{doing}: {_words(done)}")
        return done.stdout

    def prepare_folder(self, path: str) -> None:
        identity = self.qemu()
        owner, group = str(identity.uid), str(identity.gid)
        command = ["install", "-d", "-m", "0750", "-o", owner, "-g", group, "--", path]
        self._do(path, command, doing="cannot be made ready for QEMU")
        # As QEMU's user itself: only so every parent, and whatever else may bar the way, is part of the answer.
        become = ["setpriv", "--reuid", owner, "--regid", group, "--init-groups", "--"]
        done = self._host.run([*become, "test", "-w", path])
        if done.returncode != 0:
            raise HostFileError(
                path,
                f"QEMU's user (uid {owner}) does not get there{': ' if done.stderr else ''}{_words(done)}",
                hint=f"'namei -l {path}' there shows which folder bars the way; or set another scratch folder.",
            )

    def give_to_qemu(self, path: str) -> None:
        self._do(path, ["chown", "-h", "--", self._owner(), path], doing="cannot be given to QEMU's user")

    def head(self, path: str, length_bytes: int) -> bytes:
        return self._sh(path, _HEAD, str(length_bytes), doing="cannot be read")

    def read(self, path: str, limit_bytes: int) -> bytes:
        data = self.head(path, limit_bytes + 1)
        if len(data) > limit_bytes:
            raise HostFileError(path, f"is larger than {limit_bytes} bytes")
        return data

    def read_folder(self, path: str, limit_bytes: int) -> tuple[tuple[str, bytes], ...]:
        most = limit_bytes + _TAR_OVERHEAD_BYTES
        archive = self._sh(path, 'tar -C "$1" -cf - . | head -c "$2"', str(most + 1), doing="cannot be read")
        if len(archive) > most:
            raise HostFileError(path, f"holds more than {limit_bytes} bytes")
        try:
            with tarfile.open(fileobj=io.BytesIO(archive), mode="r:") as tar:
                return tuple(self._members(path, tar, limit_bytes))
        except tarfile.TarError as error:
            raise HostFileError(path, f"cannot be read: {error}") from error

    def _members(self, path: str, tar: tarfile.TarFile, limit_bytes: int) -> Iterator[tuple[str, bytes]]:
        left = limit_bytes
        for number, member in enumerate(tar):
            name = posixpath.normpath(member.name)
            if number > _MAX_FILES:
                raise HostFileError(path, f"holds more than {_MAX_FILES} files")
            if not member.isreg() or name.startswith(("/", "..")):
                continue
            left -= member.size
            content = tar.extractfile(member)
            if left < 0 or content is None:
                raise HostFileError(path, f"holds more than {limit_bytes} bytes")
            yield name, content.read()

    def write(self, path: str, data: bytes) -> None:
        part = part_of(path)
        try:
            self._sh(path, _WRITE, self._owner(), part, data=data, doing="cannot be written")
        except HostFileError:
            self._host.run(["rm", "-f", "--", part])
            raise

    def remove(self, path: str) -> None:
        self._sh(path, _REMOVE, part_of(path), doing="cannot be removed")

    def remove_folder(self, path: str) -> None:
        self._sh(path, _REMOVE_FOLDER, doing="cannot be removed")

    def exists(self, path: str) -> bool:
        return self._host.run(["sh", "-c", _EXISTS, "sh", path]).returncode == 0

    def free_bytes(self, path: str) -> int | None:
        done = self._host.run(["stat", "-f", "-c", "%a %S", "--", path])
        fields = done.stdout.split()
        if done.returncode != 0 or len(fields) != 2 or not all(field.isdigit() for field in fields):
            return None
        return int(fields[0]) * int(fields[1])

    @contextmanager
    def carry(self, socket: str) -> Iterator[Path]:
        with self._host.carry(socket) as local:
            yield local

    @contextmanager
    def offer(self, local_socket: Path, socket: str) -> Iterator[str]:
        with self._host.offer(local_socket, socket) as there:
            self.give_to_qemu(there)
            yield there


def _words(done: subprocess.CompletedProcess[bytes]) -> str:
    return " ".join(done.stderr.decode("utf-8", "replace").split())[:300]
