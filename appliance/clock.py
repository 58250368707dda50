"""Time, as an effect that is passed in.

The rule: nothing else in the appliance asks the operating system what time it is. Wall time is for people and records;
durations and deadlines use the monotonic clock.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Protocol


class Clock(Protocol):
    def now_utc(self) -> datetime:
        """Wall time, aware, in UTC."""

    def monotonic_s(self) -> float:
        """Seconds that only grow; meaningless across processes."""

    def sleep(self, seconds: float) -> None: ...


class SystemClock:
    def now_utc(self) -> datetime:
        return datetime.now(UTC)

    def monotonic_s(self) -> float:
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)


def format_utc(moment: datetime) -> str:
    """ISO 8601 with a Z, microseconds only where there are any: what manifests, JSON output and logs use."""
    if moment.tzinfo is None:
        raise ValueError("a moment without a time zone is not a moment")
    return moment.astimezone(UTC).isoformat().replace("+00:00", "Z")


def parse_utc(text: str) -> datetime:
    """The reverse of `format_utc`; ValueError for anything without a zone."""
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise ValueError(f"{text!r} names no time zone")
    return moment.astimezone(UTC)
