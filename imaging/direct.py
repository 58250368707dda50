"""Writes past the page cache: filling the cache with a restored disk costs more than everything else in a restore.

Rule: only whole, aligned pages go this way; what a file system or device refuses is written as usual.
"""

from __future__ import annotations

import errno
import mmap
import os
import threading
from collections.abc import Sequence
from typing import Final

from imaging.extents import PAGE_BYTES

_BUFFER_BYTES: Final = 4 << 20
_REFUSED: Final = (errno.EINVAL, errno.EOPNOTSUPP)


class DirectWriter:
    """A second descriptor of an open file or device, with O_DIRECT. Thread-safe; owns that descriptor until close()."""

    def __init__(self, descriptor: int) -> None:
        self._local = threading.local()
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

    def write(self, offset: int, buffers: Sequence[bytes]) -> int:
        """Write as many bytes from the beginning as can go this way; returns how many. OSError."""
        if self._descriptor is None or offset % PAGE_BYTES:
            return 0
        view, filled, written = self._buffer(), 0, 0
        for buffer in buffers:
            at = 0
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

    def _buffer(self) -> memoryview:
        """This thread's, on a page boundary as a mapping is."""
        found: memoryview | None = getattr(self._local, "view", None)
        if found is None:
            found = self._local.view = memoryview(mmap.mmap(-1, _BUFFER_BYTES))
        return found
