"""Disks and parts of them as the file objects that parsers read: `seek`, `read`, `tell`.

The rule: memory is bounded, and small reads near each other are one request.
"""

from __future__ import annotations

import io
from collections import OrderedDict
from collections.abc import Callable
from typing import BinaryIO, Final, Protocol, cast

from imaging.filesystems.frames import READ_BYTES_MAX

_BLOCK_BYTES: Final = 64 << 10
_BLOCKS_MAX: Final = 512
_DIRECT_BYTES: Final = 256 << 10


class Bytes(Protocol):
    size_bytes: int

    def pread(self, offset: int, length: int) -> bytes:
        """Up to `length` bytes, fewer only at the end. OSError."""


class CachedDisk:
    """A disk whose bytes `fetch(offset, length)` brings, exactly so many of them and at most READ_BYTES_MAX at once."""

    def __init__(self, fetch: Callable[[int, int], bytes], size_bytes: int) -> None:
        self._fetch = fetch
        self._blocks: OrderedDict[int, bytes] = OrderedDict()
        self.size_bytes = size_bytes

    def pread(self, offset: int, length: int) -> bytes:
        stop = min(offset + length, self.size_bytes)
        if offset >= stop or offset < 0:
            return b""
        if stop - offset >= _DIRECT_BYTES:
            step = READ_BYTES_MAX
            return b"".join(self._fetch(at, min(step, stop - at)) for at in range(offset, stop, step))
        first, last = offset // _BLOCK_BYTES, (stop - 1) // _BLOCK_BYTES
        found = b"".join(self._block(number) for number in range(first, last + 1))
        start = offset - first * _BLOCK_BYTES
        return found[start : start + stop - offset]

    def _block(self, number: int) -> bytes:
        block = self._blocks.get(number)
        if block is None:
            offset = number * _BLOCK_BYTES
            block = self._fetch(offset, min(_BLOCK_BYTES, self.size_bytes - offset))
            self._blocks[number] = block
            if len(self._blocks) > _BLOCKS_MAX:
                self._blocks.popitem(last=False)
        else:
            self._blocks.move_to_end(number)
        return block


class Window:
    """`size_bytes` of a disk from `start` on; what of it lies behind the disk's end is not there."""

    def __init__(self, disk: Bytes, start: int = 0, size_bytes: int | None = None) -> None:
        self._disk = disk
        self._start = start
        self._at = 0
        self.size_bytes = max(0, disk.size_bytes - start) if size_bytes is None else size_bytes
        self.size = self.size_bytes

    def pread(self, offset: int, length: int) -> bytes:
        if offset < 0:
            return b""
        return self._disk.pread(self._start + offset, max(0, min(length, self.size_bytes - offset)))

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self.size_bytes}[whence]
        if base + offset < 0:
            raise ValueError("a position before the beginning")
        self._at = base + offset
        return self._at

    def tell(self) -> int:
        return self._at

    def read(self, length: int = -1) -> bytes:
        found = self.pread(self._at, self.size_bytes - self._at if length < 0 else length)
        self._at += len(found)
        return found

    def file(self) -> BinaryIO:
        return cast("BinaryIO", self)


class Stream:
    """A parser's own file object as `Bytes`: a logical volume."""

    def __init__(self, file: BinaryIO, size_bytes: int) -> None:
        self._file = file
        self.size_bytes = size_bytes

    def pread(self, offset: int, length: int) -> bytes:
        self._file.seek(offset)
        return self._file.read(max(0, min(length, self.size_bytes - offset)))
