"""Blocks of objects that never change, kept on local disk: one file of a fixed size, shared by processes without locks.

Rules: nothing relies on it. A block is given only if its bytes have the checksum that was noted with its name, so what
is torn, flipped, cut off, or just being replaced by another process is not there; a file that cannot be used, and a
file system that is full or fails, mean that less is kept. It never grows beyond its limit, and leaves others room.

The file: a header, a table of slots in sets of eight, and the slots. A block may lie in any slot of the set that its
name leads to; in a full set the one that was used the longest ago makes way. Order within a set is all that is noted
of time, so no clock matters.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import secrets
import struct
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from blake3 import blake3

_log = logging.getLogger(__name__)

BLOCK_BYTES: Final = 256 << 10
"""A ranged read of so much takes hardly longer than one of a chunk (docs/decisions/0008), and brings its neighbours."""

WAYS: Final = 8
RESERVE_BYTES: Final = 1 << 30
_PAGE: Final = 4096
_MAGIC: Final = b"strongroom-blocks-1\n"
_HEADER: Final = struct.Struct("<20s16sIIQ")  # magic, repository, block size, ways, sets
_ENTRY: Final = struct.Struct("<16s16sIQ")  # key, checksum, length, when it was used, as a number that grows
_USED_MAX: Final = 1 << 62
"""No use of a cache counts so far: such a number is damage."""


@dataclass(frozen=True, slots=True)
class _Entry:
    key: bytes
    checksum: bytes
    length: int
    used: int


class BlockCache:
    """Thread-safe, and safe beside other processes. Owns its file descriptor until close()."""

    def __init__(self, descriptor: int, where: Path, sets: int, reserve_bytes: int) -> None:
        """Use open()."""
        self._descriptor = descriptor
        self._where = where
        self._sets = sets
        self._reserve_bytes = reserve_bytes
        self._slots_at = _slots_at(sets)
        self._lock = threading.Lock()
        self._complained = False

    @classmethod
    def open(
        cls, folder: Path, repository_id: bytes, limit_bytes: int, reserve_bytes: int = RESERVE_BYTES
    ) -> Self | None:
        """The cache of this repository, made where it is missing or of another size; those of other repositories are
        removed. None where the limit has no room for one, which removes this one too; or, after telling why, where the
        folder cannot be used."""
        sets = max(0, limit_bytes - 2 * _PAGE) // (WAYS * (BLOCK_BYTES + _ENTRY.size))
        path = folder / repository_id.hex()
        header = _HEADER.pack(_MAGIC, repository_id, BLOCK_BYTES, WAYS, sets)
        try:
            _remove_all(folder, path if sets > 0 else None)
            if sets < 1:
                return None
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            return cls(_opened(path, header, _slots_at(sets) + sets * WAYS * BLOCK_BYTES), path, sets, reserve_bytes)
        except OSError as error:
            _log.warning("chunks are not kept in %s, and fetched each time: %s", folder, error)
            return None

    def close(self) -> None:
        os.close(self._descriptor)

    def get(self, name: str, number: int) -> bytes | None:
        """A block, or None."""
        key = _key(name, number)
        try:
            entries = self._entries(key)
            for way, entry in enumerate(entries):
                if entry.key == key and entry.length <= BLOCK_BYTES:
                    data = os.pread(self._descriptor, entry.length, self._slot_at(key, way))
                    if _checksum(key, data) != entry.checksum:
                        return None
                    self._touch(key, way, entries)
                    return data
        except OSError as error:
            self._complain(error)
        return None

    def put(self, name: str, number: int, data: bytes) -> None:
        """Keeps a block, if that can be done."""
        key = _key(name, number)
        try:
            with self._lock:
                self._put(key, data)
        except OSError as error:
            self._complain(error)

    def _put(self, key: bytes, data: bytes) -> None:
        facts = os.fstat(self._descriptor)
        if not facts.st_nlink:  # another process has made the file anew, of another size
            return
        entries = self._entries(key)
        way = self._choose(key, entries)
        if way is None:
            return
        # A crash, or a reader, in between finds bytes that do not have the checksum.
        _write(self._descriptor, data, self._slot_at(key, way))
        newest = max(entry.used for entry in entries)
        entry = _ENTRY.pack(key, _checksum(key, data), len(data), newest + 1)
        _write(self._descriptor, entry, self._entry_at(key, way))

    def _choose(self, key: bytes, entries: list[_Entry]) -> int | None:
        for way, entry in enumerate(entries):
            if entry.key == key:
                return way
        empty = [way for way, entry in enumerate(entries) if not entry.used]
        if empty and self._has_room():
            return empty[0]
        taken = [way for way, entry in enumerate(entries) if entry.used]
        return min(taken, key=lambda way: entries[way].used, default=None)

    def _has_room(self) -> bool:
        """Whether one more slot may be taken into use, which takes space of the file system."""
        facts = os.fstatvfs(self._descriptor)
        return facts.f_bavail * facts.f_frsize >= self._reserve_bytes + BLOCK_BYTES

    def forget(self, name: str, number: int) -> None:
        """The block is not given again until it is put again."""
        key = _key(name, number)
        try:
            with self._lock:
                for way, entry in enumerate(self._entries(key)):
                    if entry.key == key:
                        # Its slot stays in use, and is the next one to be given away.
                        _write(self._descriptor, _ENTRY.pack(bytes(16), bytes(16), 0, 1), self._entry_at(key, way))
        except OSError as error:
            self._complain(error)

    def _touch(self, key: bytes, way: int, entries: list[_Entry]) -> None:
        newest = max(entry.used for entry in entries)
        if entries[way].used < newest:
            mine = entries[way]
            entry = _ENTRY.pack(key, mine.checksum, mine.length, newest + 1)
            with self._lock:
                _write(self._descriptor, entry, self._entry_at(key, way))

    # Where things are

    def _entries(self, of_key: bytes) -> list[_Entry]:
        """Of the set that the key leads to."""
        length = WAYS * _ENTRY.size
        data = os.pread(self._descriptor, length, self._entry_at(of_key, 0)).ljust(length, b"\0")
        return [
            _Entry(key, checksum, length, used if used < _USED_MAX else 0)
            for key, checksum, length, used in _ENTRY.iter_unpack(data)
        ]

    def _entry_at(self, key: bytes, way: int) -> int:
        return _PAGE + (self._set(key) * WAYS + way) * _ENTRY.size

    def _slot_at(self, key: bytes, way: int) -> int:
        return self._slots_at + (self._set(key) * WAYS + way) * BLOCK_BYTES

    def _set(self, key: bytes) -> int:
        return int.from_bytes(key[:8], "little") % self._sets

    def _complain(self, error: OSError) -> None:
        if not self._complained:
            self._complained = True
            _log.warning("chunks are not kept in %s for now, and fetched each time: %s", self._where, error)


def _remove_all(folder: Path, but: Path | None) -> None:
    """OSError."""
    with contextlib.suppress(FileNotFoundError):
        for other in folder.iterdir():
            if other != but and not other.name.startswith("."):  # those are being made
                other.unlink(missing_ok=True)


def _opened(path: Path, header: bytes, size_bytes: int) -> int:
    """Of a file with this header; another one makes way. OSError."""
    while True:
        with contextlib.suppress(FileNotFoundError):
            descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                if os.pread(descriptor, len(header), 0) == header:
                    return descriptor
                os.ftruncate(descriptor, 0)  # its space is given back although others may have it open
                path.unlink(missing_ok=True)
            except OSError:
                os.close(descriptor)
                raise
            os.close(descriptor)
        _make(path, header, size_bytes)


def _make(path: Path, header: bytes, size_bytes: int) -> None:
    """In one step, so that nobody sees it without its header. OSError."""
    temporary = path.with_name(f".{secrets.token_hex(8)}")
    descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        _write(descriptor, header, 0)
        os.ftruncate(descriptor, size_bytes)
        with contextlib.suppress(FileExistsError):  # somebody else was faster
            os.link(temporary, path)
    finally:
        os.close(descriptor)
        temporary.unlink(missing_ok=True)


def _write(descriptor: int, data: bytes, offset: int) -> None:
    if os.pwrite(descriptor, data, offset) != len(data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _slots_at(sets: int) -> int:
    table = sets * WAYS * _ENTRY.size
    return _PAGE + -(-table // _PAGE) * _PAGE


def _key(name: str, number: int) -> bytes:
    return blake3(f"{name}:{number}".encode()).digest(16)


def _checksum(key: bytes, data: bytes) -> bytes:
    digest = blake3(key)
    digest.update(data)
    return digest.digest(16)
