"""When a notice that did not arrive is sent again. Pure."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta
from typing import Final

from appliance.notices.records import Delivery, DeliveryState

_FIRST: Final = timedelta(seconds=30)
_LONGEST: Final = timedelta(hours=1)
GIVEN_UP_AFTER: Final = timedelta(days=3)
FAR: Final = timedelta(days=2)  # nothing is put off for so long: the clock was wrong when it was


def attempted(delivery: Delivery, error: str | None, created_utc: datetime, now_utc: datetime) -> Delivery:
    """The delivery after an attempt; `error`: why it failed, if it did. Tried again after half a minute, then twice as
    long each time, an hour at most, for three days."""
    done = replace(delivery, attempts=delivery.attempts + 1, next_utc=now_utc, error=error)
    if error is None:
        return replace(done, state=DeliveryState.SENT)
    if now_utc - created_utc >= GIVEN_UP_AFTER:
        return replace(done, state=DeliveryState.GIVEN_UP)
    return replace(done, next_utc=now_utc + min(_FIRST * 2 ** min(delivery.attempts, 20), _LONGEST))


def is_due(delivery: Delivery, now_utc: datetime) -> bool:
    return not now_utc < delivery.next_utc <= now_utc + FAR
