"""What one request to a worker may take: time, bytes of the disks, and bytes of what it tells.

The rule: time is the worker's own, and goes on however its answer comes, in one piece or in a trickle. What it brings
of a file gives it more, so that a long file is not cut: zeros too, as far as one frame can have read them, as a hole
beyond that costs it nothing.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from imaging.filesystems.frames import ALLOWANCE_BYTES, READ_BYTES_MAX

REQUEST_S: Final = 60.0
"""Without content; for each 64 MiB of that as much again."""
_READ_BYTES_MAX: Final = 2 << 30  # of the disks
_READ_FACTOR: Final = 8  # besides, for each byte of content: what is compressed, and looked at twice
_READ_BYTES_LEAST: Final = 64 << 10  # that a wish counts for: a byte costs a chunk
_ITEM_BYTES_MAX: Final = 16 << 20  # of JSON: 500 entries whose names and links are all escapes


class Budget:
    """Of one request, with time for what is no content."""

    def __init__(self, given_s: float) -> None:
        self.given_s = given_s
        self._content_bytes = 0
        self._item_bytes = 0
        self._read_bytes = 0
        self._spent_s = 0.0
        self._since_s = 0.0

    def left_s(self) -> float:
        """While it is `running`. TimeoutError: there is none."""
        extra_s = self._content_bytes // ALLOWANCE_BYTES * REQUEST_S
        left_s = self.given_s + extra_s - self._spent_s - (time.monotonic() - self._since_s)
        if left_s <= 0:
            raise TimeoutError
        return left_s

    @contextmanager
    def running(self) -> Iterator[None]:
        self._since_s = time.monotonic()
        try:
            yield
        finally:
            self._spent_s += time.monotonic() - self._since_s

    @property
    def exhausted(self) -> bool:
        return self._read_bytes > _READ_BYTES_MAX + _READ_FACTOR * self._content_bytes

    def content(self, count_bytes: int) -> None:
        self._content_bytes += min(count_bytes, READ_BYTES_MAX)

    def item(self, count_bytes: int) -> bool:
        """Whether it may be so much more."""
        self._item_bytes += count_bytes
        return self._item_bytes <= _ITEM_BYTES_MAX

    def read(self, count_bytes: int) -> None:
        self._read_bytes += max(count_bytes, _READ_BYTES_LEAST)
