"""What a client sends of an object: pieces of memory, as a file, without a copy of the whole."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence

from imaging.storage.contract import Buffer


def whole(data: Sequence[Buffer]) -> memoryview:
    """All of it as one piece; copied only where there are several."""
    return memoryview(data[0] if len(data) == 1 else b"".join(data)).cast("B")


class Sent(io.RawIOBase):
    """Borrows the memory until close(). A client may go through it twice: to sign it, and to send it."""

    def __init__(self, data: memoryview) -> None:
        self._data = data
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def read(self, size: int | None = -1) -> bytes:
        stop = len(self._data) if size is None or size < 0 else min(len(self._data), self._at + size)
        piece = bytes(self._data[self._at : stop])
        self._at = stop
        return piece

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        origin = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: len(self._data)}[whence]
        self._at = max(0, min(len(self._data), origin + offset))
        return self._at

    def tell(self) -> int:
        return self._at
