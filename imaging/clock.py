"""Time, as it is given to what needs it.

Rule: `now_utc` is only ever written down, as what an admin reads; whatever is decided about another's life is decided
by `monotonic_s`, which no admin and no time server can turn back.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Protocol


class Clock(Protocol):
    def now_utc(self) -> datetime: ...

    def monotonic_s(self) -> float:
        """Seconds since some moment of this boot of the machine; the same for every process on it."""


class SystemClock:
    def now_utc(self) -> datetime:
        return datetime.now(UTC)

    def monotonic_s(self) -> float:
        return time.monotonic()
