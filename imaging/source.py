"""An NBD export as extents and data: whatever is protected is read this way.

Rules: a failed read is an error, never zeros; only NBD's ZERO flag means zero (HOLE alone does not); several requests
are in flight on each connection, and each thread takes a connection of its own.
"""

from __future__ import annotations

import os
import queue
import socket
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import ClassVar, Final, Protocol

import nbd

from imaging.errors import SourceError
from imaging.extents import REGION_BYTES, ByteRange, clip, merge

PIECE_BYTES: Final = 512 << 10
"""Half of a processor's second-level cache: what is hashed right after it was read comes from there."""

_REQUEST_BYTES: Final = 512 << 10
_IN_FLIGHT: Final = 8
_STATUS_BYTES: Final = 1 << 30
_ALLOCATION: Final = "base:allocation"
_STATE_ZERO: Final = 2
_STATE_DIRTY: Final = 1
_STALL_S: Final = 300
_GOODBYE_S: Final = 2
DISK_BYTES_MAX: Final = 64 << 40


@dataclass(frozen=True, slots=True)
class BlockStatus:
    """What the server says of a range: what reads as zeros; what changed, if it has a dirty bitmap."""

    zero: list[ByteRange] = field(default_factory=list)
    dirty: list[ByteRange] = field(default_factory=list)


class Source(Protocol):
    """A disk that can be read. Thread-safe."""

    @property
    def size_bytes(self) -> int:
        """Length of the disk."""

    @property
    def piece_bytes(self) -> int:
        """How much is best read at once: PIECE_BYTES where reading is copying, more where a server is kept busy."""

    def status(self, start: int, stop: int) -> BlockStatus:
        """What is known of [start, stop). Raises SourceError."""

    def read(self, requests: Sequence[tuple[int, memoryview]]) -> None:
        """Fill each buffer from its offset. Raises SourceError; the buffers' content is then undefined."""


class BytesSource:
    """A small file in memory (NVRAM, TPM state) as a source without extents."""

    def __init__(self, content: bytes) -> None:
        self._content = content
        self.size_bytes = len(content)
        self.piece_bytes = PIECE_BYTES

    def status(self, start: int, stop: int) -> BlockStatus:
        """See Source: nothing is known."""
        return BlockStatus()

    def read(self, requests: Sequence[tuple[int, memoryview]]) -> None:
        """See Source."""
        for offset, view in requests:
            view[:] = self._content[offset : offset + len(view)]


class _Slots:
    """The buffers of one connection's requests in flight, used again and again.

    libnbd's Python module (1.14) never lets go of a buffer that it was given to read into: a buffer per request would
    be kept for ever, and with it whatever it is a view of. So those given to it are few, and shared by the process.
    """

    _free: ClassVar[queue.SimpleQueue[_Slots]] = queue.SimpleQueue()

    def __init__(self) -> None:
        self._memory = [memoryview(bytearray(_REQUEST_BYTES)) for _ in range(_IN_FLIGHT)]
        self._views: dict[tuple[int, int], tuple[nbd.Buffer, memoryview]] = {}

    @classmethod
    def take(cls) -> _Slots:
        try:
            return cls._free.get_nowait()
        except queue.Empty:
            return cls()

    def give_back(self) -> None:
        self._free.put(self)

    def of(self, number: int, length: int) -> tuple[nbd.Buffer, memoryview]:
        """A slot cut to a length, as libnbd and as Python take it. Lengths are few: whole sectors of one request."""
        found = self._views.get((number, length))
        if found is None:
            view = self._memory[number][:length]
            found = self._views[number, length] = (nbd.Buffer.from_buffer(view), view)
        return found


def _parts(requests: Sequence[tuple[int, memoryview]]) -> Iterator[tuple[int, memoryview]]:
    for offset, view in requests:
        for at in range(0, len(view), _REQUEST_BYTES):
            yield offset + at, view[at : at + _REQUEST_BYTES]


class NbdSource:
    """One export of an NBD server. A context manager that closes its connections."""

    def __init__(
        self, socket: Path, export: str = "", *, dirty_bitmap: str | None = None, connections: int = 2
    ) -> None:
        """`dirty_bitmap`: the metadata context of the bitmap, as `qemu:dirty-bitmap:NAME`. Raises SourceError."""
        self._socket = socket
        self._export = export
        self._bitmap = dirty_bitmap
        self._idle: queue.LifoQueue[nbd.NBD | None] = queue.LifoQueue()  # None: one to be made in place of a failed one
        self._all: list[nbd.NBD] = []
        first = self._connect()
        self._idle.put(first)
        self.size_bytes: int = first.get_size()
        self.piece_bytes = REGION_BYTES
        if self.size_bytes > DISK_BYTES_MAX:
            self.close()
            raise SourceError(0, 0, f"the disk claims {self.size_bytes} bytes, more than {DISK_BYTES_MAX}")
        if first.can_multi_conn():
            for _ in range(connections - 1):
                self._idle.put(self._connect())

    def __enter__(self) -> NbdSource:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, err: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close every connection; a server that is gone already, or does not answer, is no error."""
        for handle in self._all:
            with suppress(nbd.Error):
                handle.aio_disconnect()
                while not (handle.aio_is_closed() or handle.aio_is_dead()) and handle.poll(_GOODBYE_S * 1000):
                    pass
            _cut(handle)
        self._all = []
        self._idle = queue.LifoQueue()  # a handle closes its socket when the last reference goes

    def status(self, start: int, stop: int) -> BlockStatus:
        """See Source. Asks as often as the server's answers are short."""
        zero: list[ByteRange] = []
        dirty: list[ByteRange] = []
        with self._connection(start, stop) as handle:
            position = start
            while position < stop:
                ends = self._status_once(handle, position, min(stop, position + _STATUS_BYTES), zero, dirty)
                if ends <= position:
                    raise SourceError(position, stop - position, "the server's block status does not advance")
                position = ends
        return BlockStatus(clip(merge(zero), start, stop), clip(merge(dirty), start, stop))

    def read(self, requests: Sequence[tuple[int, memoryview]]) -> None:
        """See Source. Splits long requests and keeps several in flight."""
        if not requests:
            return
        with self._connection(requests[0][0], requests[-1][0] + len(requests[-1][1])) as handle:
            slots = _Slots.take()
            flying: deque[tuple[int, int, memoryview, memoryview]] = deque()
            for number, (offset, part) in enumerate(_parts(requests)):
                if len(flying) == _IN_FLIGHT:
                    self._land(handle, *flying.popleft())
                buffer, slot = slots.of(number % _IN_FLIGHT, len(part))
                flying.append((handle.aio_pread(buffer, offset), offset, slot, part))
            while flying:
                self._land(handle, *flying.popleft())
            slots.give_back()  # not after a failure: answers may still be on their way into them

    def _connect(self) -> nbd.NBD:
        handle = nbd.NBD()
        try:
            handle.set_export_name(self._export)
            handle.add_meta_context(_ALLOCATION)
            if self._bitmap is not None:
                handle.add_meta_context(self._bitmap)
            handle.set_pread_initialize(False)
            handle.aio_connect_unix(str(self._socket))
            _poll(handle, handle.aio_is_connecting, 0, 0)
            if self._bitmap is not None and not handle.can_meta_context(self._bitmap):
                raise SourceError(0, 0, f"the server has no dirty bitmap {self._bitmap}")
        except nbd.Error as err:
            raise SourceError(0, 0, f"no NBD export '{self._export}' at {self._socket}: {err.string}") from err
        self._all.append(handle)
        return handle

    @contextmanager
    def _connection(self, start: int, stop: int) -> Iterator[nbd.NBD]:
        """A connection for this thread alone. One that failed is cut and not used again: answers that are still on
        their way would be written to buffers that somebody uses for something else by then."""
        handle = self._idle.get()
        try:
            if handle is None:
                handle = self._connect()
            yield handle
        except BaseException as err:
            if handle is not None:
                _cut(handle)
                self._all = [each for each in self._all if each is not handle]
            self._idle.put(None)
            if isinstance(err, nbd.Error):
                raise SourceError(start, stop - start, err.string) from err
            raise
        else:
            self._idle.put(handle)

    def _status_once(
        self, handle: nbd.NBD, start: int, stop: int, zero: list[ByteRange], dirty: list[ByteRange]
    ) -> int:
        """One request; returns how far every context of the answer reaches."""
        ends: dict[str, int] = {}

        def extents(context: str, offset: int, entries: list[int], error: object) -> int:
            position = offset
            for length, flags in zip(entries[::2], entries[1::2], strict=True):
                if context == _ALLOCATION and flags & _STATE_ZERO:
                    zero.append(ByteRange(position, position + length))
                elif context == self._bitmap and flags & _STATE_DIRTY:
                    dirty.append(ByteRange(position, position + length))
                position += length
            ends[context] = position
            return 0

        contexts = [_ALLOCATION] if handle.can_meta_context(_ALLOCATION) else []
        contexts += [self._bitmap] if self._bitmap is not None else []
        if not contexts:
            return stop  # a server that knows nothing of its extents: all is data
        self._wait(handle, handle.aio_block_status(stop - start, start, extents), start, stop - start)
        return min((ends.get(context, start) for context in contexts), default=start)

    def _land(self, handle: nbd.NBD, cookie: int, offset: int, slot: memoryview, part: memoryview) -> None:
        self._wait(handle, cookie, offset, len(part))
        part[:] = slot

    @staticmethod
    def _wait(handle: nbd.NBD, cookie: int, offset: int, length: int) -> None:
        try:
            _poll(handle, lambda: not handle.aio_command_completed(cookie), offset, length)
        except nbd.Error as err:
            raise SourceError(offset, length, err.string) from err


def _poll(handle: nbd.NBD, unfinished: Callable[[], bool], offset: int, length: int) -> None:
    while unfinished():
        if handle.poll(_STALL_S * 1000) == 0:
            raise SourceError(offset, length, f"the server has not answered for {_STALL_S} s")


def _cut(handle: nbd.NBD) -> None:
    """End the connection whoever still refers to the handle, which closes it in the end."""
    with suppress(nbd.Error, OSError), socket.socket(fileno=os.dup(handle.aio_get_fd())) as line:
        line.shutdown(socket.SHUT_RDWR)
