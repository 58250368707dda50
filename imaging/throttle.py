"""Not more than so many bytes a second, whoever of several threads asks.

Rules: who asks waits first, for what was asked for before; so one large piece is never refused, only paid for by the
next. Whoever waits can be told to end, as a debt may be one of hours.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from imaging.clock import Clock
from imaging.errors import ImagingError


class Ended(ImagingError):
    """Instead of waiting further, as the command is told to end: what was to be moved is not."""

    def __init__(self) -> None:
        super().__init__("the command ends, so what waited for its turn under the limit of bandwidth is not moved")


class Throttle:
    """Thread-safe."""

    def __init__(self, bytes_per_s: float, clock: Clock, wait: Callable[[float], bool]) -> None:
        """`wait` takes seconds, and says whether it was ended before they were over; then it does so every time."""
        if bytes_per_s <= 0:
            raise ValueError(f"a rate of {bytes_per_s:g} bytes per second")
        self._rate = bytes_per_s
        self._clock = clock
        self._wait = wait
        self._lock = threading.Lock()
        self._free_s = clock.monotonic_s()

    def owe(self, count_bytes: int) -> None:
        """Counts what is moved at once; who comes later waits for it."""
        with self._lock:
            self._free_s = max(self._free_s, self._clock.monotonic_s()) + count_bytes / self._rate

    def take(self, count_bytes: int) -> None:
        """Waits until `count_bytes` may be moved. Ended."""
        with self._lock:
            now = self._clock.monotonic_s()
            begins = max(self._free_s, now)
            self._free_s = begins + count_bytes / self._rate
        if begins > now and self._wait(begins - now):
            raise Ended
