"""Reads and writes past the page cache: filling the cache with a restored disk costs more than everything else in a
restore, and with packs more than encrypting them.

Rule: only whole, aligned pages go this way; what a file system or device refuses is read and written as usual.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import threading
from collections.abc import Sequence
from typing import Final

from imaging.extents import PAGE_BYTES
from imaging.storage.contract import Buffer

_BUFFER_BYTES: Final = 4 << 20
_REFUSED: Final = (errno.EINVAL, errno.EOPNOTSUPP)
_of_thread: Final = threading.local()


class DirectWriter:
    """A second descriptor of an open file or device, with O_DIRECT. Thread-safe; owns that descriptor until close()."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor: int | None = None
        try:
            self._descriptor = os.open(f"/proc/self/fd/{descriptor}", os.O_WRONLY | os.O_DIRECT | os.O_CLOEXEC)
        except OSError as err:
            if err.errno not in (*_REFUSED, errno.ENOENT):  # no O_DIRECT there, or no /proc here
                raise

    def close(self) -> None:
        """Safe again."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def write(self, offset: int, buffers: Sequence[Buffer]) -> int:
        """Write as many bytes from the beginning as can go this way; returns how many. OSError."""
        if self._descriptor is None or offset % PAGE_BYTES:
            return 0
        view, filled, written = _buffer(), 0, 0
        for buffer in buffers:
            at = 0
            if not filled and _is_aligned(buffer):  # it can go as it is
                whole = len(buffer) // PAGE_BYTES * PAGE_BYTES
                at = self._put(memoryview(buffer), whole, offset + written)
                written += at
                if at < whole:
                    return written
            while at < len(buffer):
                count = min(len(buffer) - at, _BUFFER_BYTES - filled)
                view[filled : filled + count] = memoryview(buffer)[at : at + count]
                filled, at = filled + count, at + count
                if filled == _BUFFER_BYTES:
                    done = self._put(view, filled, offset + written)
                    written, filled = written + done, 0
                    if done < _BUFFER_BYTES:
                        return written
        return written + self._put(view, filled // PAGE_BYTES * PAGE_BYTES, offset + written)

    def _put(self, view: memoryview, length: int, offset: int) -> int:
        """All of it, or as much as was taken before it was refused."""
        done = 0
        while done < length and self._descriptor is not None:
            try:
                count = os.pwrite(self._descriptor, view[done:length], offset + done)
            except OSError as err:
                if err.errno in _REFUSED:
                    break
                raise
            done += count
            if count % PAGE_BYTES:
                break
        return done


def _is_aligned(buffer: Buffer) -> bool:
    """Whether a buffer begins on a page boundary, as a mapping does; of what cannot be written to, nobody can tell."""
    view = memoryview(buffer)
    if view.readonly or len(view) < PAGE_BYTES:
        return False
    return ctypes.addressof(ctypes.c_char.from_buffer(view)) % PAGE_BYTES == 0


def read_direct(descriptor: int, offset: int, length: int) -> bytes:
    """The range of an open file, or as much of its beginning as can be had this way. OSError."""
    try:
        direct = os.open(f"/proc/self/fd/{descriptor}", os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC)
    except OSError as err:
        if err.errno in (*_REFUSED, errno.ENOENT):
            return b""
        raise
    parts: list[bytes] = []
    view, position, stop = _buffer(), offset // PAGE_BYTES * PAGE_BYTES, offset + length
    try:
        while position < stop:
            wanted = min(_BUFFER_BYTES, -(-(stop - position) // PAGE_BYTES) * PAGE_BYTES)
            count = os.preadv(direct, [view[:wanted]], position)
            parts.append(bytes(view[max(0, offset - position) : min(count, stop - position)]))
            position += count
            if count % PAGE_BYTES or not count:  # the file's end
                break
    except OSError as err:
        if err.errno not in _REFUSED:
            raise
    finally:
        os.close(direct)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _buffer() -> memoryview:
    """This thread's, on a page boundary as a mapping is. A shared one: what is read past the cache into private memory
    may be lost where another thread forks meanwhile (open(2), O_DIRECT), as libvirt does to reach a host by SSH."""
    found: memoryview | None = getattr(_of_thread, "view", None)
    if found is None:
        found = _of_thread.view = memoryview(mmap.mmap(-1, _BUFFER_BYTES))
    return found
