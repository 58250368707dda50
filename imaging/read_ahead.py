"""Notices that a disk is read in order, and has fetched what comes next.

Rules: nothing is fetched twice; memory and threads are bounded; what fails ahead of time is no failure, as whoever
wants it asks again and is told. Requests may come in any order a little, as NBD clients have several in flight; several
streams may run at once.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from imaging.errors import ImagingError
from imaging.recent import Recent

_log = logging.getLogger(__name__)

PIECE_BYTES: Final = 1 << 20
_THREADS: Final = 4
_REMEMBERED: Final = 256
"""Pieces. Reads that are spread evenly over a disk of 8 GiB seem to go on in order once in a thousand times."""

_IN_ORDER: Final = 2
"""So many pieces before one were read lately: then those after it are wanted too."""


class ReadAhead:
    """Thread-safe. Its threads live as long as it does."""

    def __init__(self, fetch: Callable[[int, int], None], size_bytes: int, ahead_bytes: int) -> None:
        """`fetch` loads the range [start, stop) of the disk into a cache of at least four times `ahead_bytes`."""
        self._fetch = fetch
        self._size_bytes = size_bytes
        self._ahead = ahead_bytes // PIECE_BYTES
        self._lock = threading.Lock()
        self._read: Recent[int, bool] = Recent(_REMEMBERED, lambda _: 1)
        self._asked: Recent[int, bool] = Recent(_REMEMBERED, lambda _: 1)
        self._pool: ThreadPoolExecutor | None = None

    @property
    def is_on(self) -> bool:
        """Whether anything is ever fetched ahead."""
        return self._ahead > 0

    def note(self, offset: int, length: int) -> None:
        """Somebody reads this."""
        if not self._ahead or not length:
            return
        for piece in range(offset // PIECE_BYTES, (offset + length - 1) // PIECE_BYTES + 1):
            self._note(piece)

    def _note(self, piece: int) -> None:
        with self._lock:
            if self._read.get(piece):
                return
            self._read.put(piece, True)
            if not all(self._read.get(piece - back) for back in range(1, _IN_ORDER + 1)):
                return
            last = min(piece + self._ahead, (self._size_bytes - 1) // PIECE_BYTES)
            wanted = [
                each for each in range(piece + 1, last + 1) if not (self._read.get(each) or self._asked.get(each))
            ]
            for each in wanted:
                self._asked.put(each, True)
            if wanted and self._pool is None:
                self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="ahead")
            pool = self._pool
        for each in wanted:
            assert pool is not None
            pool.submit(self._load, each * PIECE_BYTES, min((each + 1) * PIECE_BYTES, self._size_bytes))

    def _load(self, start: int, stop: int) -> None:
        try:
            self._fetch(start, stop)
        except ImagingError as error:
            _log.debug("what follows could not be read ahead: %s", error)
        except Exception:  # noqa: BLE001 - nobody waits for this thread
            _log.exception("what follows could not be read ahead")

    def close(self) -> None:
        """Waits for what is being fetched."""
        with self._lock:
            pool, self._pool, self._ahead = self._pool, None, 0
        if pool is not None:
            pool.shutdown(wait=True, cancel_futures=True)
