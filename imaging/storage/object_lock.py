"""Which objects are locked against deletion, how, and until when.

Rules: the objects that restore points are made of, and the guard's, are locked one by one, as they are written; never
by a default of the bucket, so that leases, which come and go, stay deletable. Moments are the store's own, taken from
the Date header of its answers: it is the store's clock that a lock runs by, and no other is believed.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Any, Final

from imaging.errors import StoreUnavailable

GOVERNANCE: Final = "governance"
COMPLIANCE: Final = "compliance"
MODES: Final = (GOVERNANCE, COMPLIANCE)

_ID: Final = "[0-9a-f]{32}"
_LOCKED: Final = re.compile(
    rf"config|config\.copy|keys/{_ID}|keys\.copy/{_ID}|index/{_ID}-\d{{6}}|manifests/{_ID}/\d{{10}}-{_ID}"
    rf"|packs/[0-9a-f]{{2}}/[0-9a-f]{{64}}"
    rf"|guard/\d{{10}}|guard\.copy/\d{{10}}|persons/{_ID}/{_ID}"
)


def is_locked(name: str) -> bool:
    """Whether an object of this name is one that restore points are made of, or that says who may let them go: of a
    repository that an intruder has emptied, the guard comes back, too."""
    return _LOCKED.fullmatch(name) is not None


@dataclass(frozen=True, slots=True)
class Lock:
    """`days` is what a sweep leaves every object with at the least; one that has less is locked for `extra_days` more
    than that, as is what is written anew. `mode` is one of MODES."""

    mode: str
    days: int
    extra_days: int

    def least_until(self, now_utc: datetime) -> datetime:
        return now_utc + timedelta(days=self.days)

    def fresh_until(self, now_utc: datetime) -> datetime:
        """In whole seconds."""
        return (now_utc + timedelta(days=self.days + self.extra_days)).replace(microsecond=0)


class StoreTime:
    """What time it is at the store: its last answer's, and what has passed since. Thread-safe."""

    def __init__(self, passed_s: Callable[[], float] | None = None) -> None:
        """`passed_s` is a clock that no one sets, and that goes on while the machine sleeps."""
        self._passed_s = passed_s or (lambda: time.clock_gettime(time.CLOCK_BOOTTIME))
        self._heard: tuple[datetime, float] | None = None

    def heard(self, date: object) -> None:
        """The Date header of an answer; one that is none says nothing."""
        try:
            moment = parsedate_to_datetime(str(date))
        except ValueError:
            return
        if moment.tzinfo is not None:
            self._heard = moment, self._passed_s()

    @property
    def is_known(self) -> bool:
        return self._heard is not None

    def now_utc(self) -> datetime:
        """StoreUnavailable while no answer has told."""
        heard = self._heard
        if heard is None:
            raise StoreUnavailable("lock", "an object", "no answer of the object store has told the time yet")
        moment, at_s = heard
        return moment + timedelta(seconds=self._passed_s() - at_s)


class Locking:
    """How a store in a bucket locks what it writes. Thread-safe."""

    def __init__(self, lock: Lock, store_time: StoreTime | None = None) -> None:
        self.lock = lock
        self.time = store_time or StoreTime()

    def listen(self, events: Any) -> None:
        """To every answer that a client gets; `events` are the client's."""
        events.register("after-call.s3", self._hear)

    def parameters(self) -> dict[str, Any]:
        """Of the request that writes an object which is to be locked. StoreUnavailable while the time is not known."""
        return {
            "ObjectLockMode": self.lock.mode.upper(),
            "ObjectLockRetainUntilDate": self.lock.fresh_until(self.time.now_utc()),
        }

    def _hear(self, parsed: dict[str, Any], **_: object) -> None:
        self.time.heard(parsed.get("ResponseMetadata", {}).get("HTTPHeaders", {}).get("date"))
