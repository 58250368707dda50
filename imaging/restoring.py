"""Write a disk of a restore point to a raw file, a block device or an NBD server, by several threads.

Rules: holes are punched, not written; with `compare`, what the target holds already is neither fetched nor written
(its own bytes, hashed, tell); every byte written was authenticated; the first failure ends all threads and is the one
that is raised. Memory is one region a thread.
"""

from __future__ import annotations

import ctypes
import errno
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Protocol, Self

from imaging.direct import DirectWriter
from imaging.diskmap import Leaf, leaf_ids, read_leaf, region_count
from imaging.errors import TargetFailed
from imaging.extents import PAGE_BYTES, REGION_BYTES, ByteRange
from imaging.ids import CHUNK, blob_id
from imaging.keys import Keys
from imaging.memory import aligned_memory
from imaging.raw import holes
from imaging.storage.contract import Buffer

_PUNCH_HOLE: Final = 0x02  # linux/falloc.h
_KEEP_SIZE: Final = 0x01
_ZEROS: Final = bytes(1 << 20)
_libc: Final = ctypes.CDLL(None, use_errno=True)


class Blobs(Protocol):
    """Where chunks and map nodes come from."""

    def chunks_into(self, wanted: Sequence[tuple[bytes, memoryview]]) -> None:
        """Fill memory with chunks' plaintexts, each exactly as long as its memory."""

    def node(self, identity: bytes) -> bytes:
        """One node's plaintext."""


class Target(Protocol):
    """A disk that can be overwritten. Thread-safe. Failures are OSError."""

    @property
    def name(self) -> str:
        """For messages."""

    @property
    def blank(self) -> bool:
        """Whether it is known to read as zeros everywhere."""

    def read(self, offset: int, length: int) -> bytes:
        """What it holds now."""

    def known_zero(self, start: int, stop: int) -> list[ByteRange]:
        """Parts of [start, stop) known to read as zeros without reading them."""

    def write(self, offset: int, data: Buffer) -> None:
        """All of it. From a page boundary in memory to one on the disk costs least."""

    def zero(self, offset: int, length: int) -> None:
        """Make the range read as zeros, giving up its space where possible."""


@dataclass(frozen=True, slots=True)
class Restored:
    """What a restore did, in bytes of the disk."""

    written_bytes: int
    zeroed_bytes: int
    kept_bytes: int


class RawTarget:
    """An open file or block device. A context manager. Borrows the descriptor."""

    def __init__(self, descriptor: int, name: str, *, blank: bool) -> None:
        self._descriptor = descriptor
        self.name = name
        self.blank = blank
        self._punches = True
        self._direct = DirectWriter(descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._direct.close()

    def read(self, offset: int, length: int) -> bytes:
        parts = []
        while length:
            part = os.pread(self._descriptor, length, offset)
            if not part:
                raise OSError(errno.EIO, "it ends too early")
            parts.append(part)
            offset, length = offset + len(part), length - len(part)
        return b"".join(parts)

    def known_zero(self, start: int, stop: int) -> list[ByteRange]:
        return holes(self._descriptor, start, stop)

    def write(self, offset: int, data: Buffer) -> None:
        done = self._direct.write(offset, [data])
        view = memoryview(data)
        while done < len(view):
            count = os.pwrite(self._descriptor, view[done:], offset + done)
            if count == 0:
                raise OSError(errno.EIO, "nothing was written")
            done += count

    def zero(self, offset: int, length: int) -> None:
        if self.blank:
            return
        if self._punches:
            flags = _PUNCH_HOLE | _KEEP_SIZE
            arguments = (
                ctypes.c_int(self._descriptor),
                ctypes.c_int(flags),
                ctypes.c_int64(offset),
                ctypes.c_int64(length),
            )
            if _libc.fallocate64(*arguments) == 0:
                return
            code = ctypes.get_errno()
            if code not in (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL):
                raise OSError(code, os.strerror(code))
            self._punches = False
        for at in range(offset, offset + length, len(_ZEROS)):
            self.write(at, _ZEROS[: min(len(_ZEROS), offset + length - at)])


class DiskWriter:
    """Writes one disk map to one target. Borrows both."""

    def __init__(
        self,
        blobs: Blobs,
        keys: Keys,
        target: Target,
        *,
        compare: bool = False,
        threads: int = 3,
        advance: Callable[[int], None] | None = None,
    ) -> None:
        """`advance` is told of bytes of the disk that are done, from any thread."""
        self._blobs = blobs
        self._keys = keys
        self._target = target
        self._compare = compare and not target.blank
        self._threads = threads
        self._advance = advance or (lambda _: None)
        self._lock = threading.Lock()
        self._local = threading.local()
        self._failure: BaseException | None = None
        self._written = self._zeroed = self._kept = 0

    def write(self, root: bytes | None, size_bytes: int) -> Restored:
        """Make the target's first `size_bytes` the disk's. Raises TargetFailed, or what reading the repository
        raises.
        """
        work = self._regions(root, size_bytes)
        threads = [
            threading.Thread(target=self._run, args=(work, size_bytes), name=f"restore-{number}")
            for number in range(self._threads)
        ]
        for thread in threads:
            thread.start()
        try:
            for thread in threads:
                thread.join()
        except BaseException as err:
            self._fail(err)
            for thread in threads:
                thread.join()
            raise
        if self._failure is not None:
            raise self._failure
        return Restored(self._written, self._zeroed, self._kept)

    def _regions(self, root: bytes | None, size_bytes: int) -> Iterator[tuple[int, int, bytes | None]]:
        """(first region, how many, leaf id): stretches of holes come as one."""
        expected = 0
        for region, leaf in leaf_ids(root, size_bytes, self._blobs.node):
            if region > expected:
                yield expected, region - expected, None
            yield region, 1, leaf
            expected = region + 1
        if region_count(size_bytes) > expected:
            yield expected, region_count(size_bytes) - expected, None

    def _run(self, work: Iterator[tuple[int, int, bytes | None]], size_bytes: int) -> None:
        try:
            while self._failure is None:
                with self._lock:
                    item = next(work, None)
                if item is None:
                    return
                self._one(*item, size_bytes)
        except OSError as err:
            hint = ""
            if err.errno in (errno.ENOSPC, errno.EDQUOT):
                hint = "make room on the target's file system, then restore again"
            failure = TargetFailed(self._target.name, err.strerror or str(err), hint=hint)
            failure.__cause__ = err
            self._fail(failure)
        except BaseException as err:  # noqa: BLE001 - carried to the caller's thread, which raises it
            self._fail(err)

    def _fail(self, err: BaseException) -> None:
        with self._lock:
            self._failure = self._failure or err

    def _one(self, region: int, count: int, leaf_id: bytes | None, size_bytes: int) -> None:
        start = region * REGION_BYTES
        stop = min((region + count) * REGION_BYTES, size_bytes)
        if leaf_id is None:
            self._hole(start, stop)
        else:
            leaf = read_leaf(leaf_id, size_bytes, region, self._blobs.node)
            self._leaf(leaf, start, stop)
        self._advance(stop - start)

    def _leaf(self, leaf: Leaf, start: int, stop: int) -> None:
        wanted: list[tuple[int, int, bytes]] = []
        kept = 0
        for record, identity in zip(leaf.records, leaf.ids, strict=True):
            first, end = start + record.start * PAGE_BYTES, min(start + record.stop * PAGE_BYTES, stop)
            if identity is None:
                self._hole(first, end)
            elif self._compare and self._holds(first, end, identity):
                kept += end - first
            else:
                wanted.append((first, end, identity))
        room = self._room()
        if wanted:
            self._blobs.chunks_into([(identity, room[first - start : end - start]) for first, end, identity in wanted])
        at = 0
        while at < len(wanted):
            following = at + 1
            while following < len(wanted) and wanted[following][0] == wanted[following - 1][1]:
                following += 1
            first, end = wanted[at][0], wanted[following - 1][1]
            self._target.write(first, room[first - start : end - start])
            at = following
        with self._lock:
            self._kept += kept
            self._written += sum(end - first for first, end, _ in wanted)

    def _room(self) -> memoryview:
        """This thread's region."""
        found: memoryview | None = getattr(self._local, "room", None)
        if found is None:
            found = self._local.room = aligned_memory(REGION_BYTES)
        return found

    def _holds(self, start: int, stop: int, identity: bytes) -> bool:
        return blob_id(self._keys, CHUNK, self._target.read(start, stop - start)) == identity

    def _hole(self, start: int, stop: int) -> None:
        if self._target.blank:
            return
        zeroed = 0
        position = start
        for known in [*self._target.known_zero(start, stop), ByteRange(stop, stop)]:
            zeroed += self._zero(position, known.start)
            position = known.stop
        with self._lock:
            self._zeroed += zeroed
            self._kept += stop - start - zeroed

    def _zero(self, start: int, stop: int) -> int:
        """Zero what is not known to be; with `compare`, only where it is not zero already."""
        zeroed = 0
        for at in range(start, stop, REGION_BYTES):
            end = min(at + REGION_BYTES, stop)
            if self._compare and self._target.read(at, end - at) == bytes(end - at):
                continue
            self._target.zero(at, end - at)
            zeroed += end - at
        return zeroed
