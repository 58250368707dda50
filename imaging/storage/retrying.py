"""A store that has patience with another one: what failed in passing is tried again.

Rules: which errors pass is declared on them (`retryable`) and never guessed at here; waits grow exponentially, each of
a random length below its bound (full jitter), so that many clients do not come back at once; no operation begins
another attempt after its total time. A failed call may have been carried out all the same: a create that then finds
the name taken, by just the bytes that it sent, has succeeded, and so has a delete that finds nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count, dropwhile
from typing import Final, TypeVar

from imaging.clock import Clock
from imaging.errors import Damaged, ImagingError, ObjectExists, ObjectMissing
from imaging.storage.contract import Buffer, Listed, Store

_log = logging.getLogger(__name__)
_DOUBLINGS_MAX: Final = 30

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Patience:
    """The nth wait is at most first_s · 2ⁿ⁻¹, and at most longest_s. `total_s` is of one operation, for a listing from
    one object to the next; far below the time after which a silent lease is taken for dead."""

    first_s: float = 0.2
    longest_s: float = 10.0
    total_s: float = 60.0


class RetryingStore:
    """Borrows everything. `random` gives numbers from 0 to 1. A call of `inner` that never ends is not ended here."""

    def __init__(
        self,
        inner: Store,
        clock: Clock,
        sleep: Callable[[float], None],
        random: Callable[[], float],
        patience: Patience | None = None,
    ) -> None:
        self._inner = inner
        self._clock = clock
        self._sleep = sleep
        self._random = random
        self._patience = patience or Patience()

    def put(self, name: str, data: Sequence[Buffer]) -> None:
        self.patiently(lambda again: self._inner.put(name, data))

    def create(self, name: str, data: Sequence[Buffer]) -> None:
        def attempt(again: bool) -> None:
            try:
                self._inner.create(name, data)
            except ObjectExists:
                if not again or not self._holds(name, data):
                    raise

        self.patiently(attempt)

    def _holds(self, name: str, data: Sequence[Buffer]) -> bool:
        try:
            return self._inner.get(name) == b"".join(data)
        except (Damaged, ObjectMissing):
            return False

    def get(self, name: str, offset_bytes: int = 0, length_bytes: int | None = None) -> bytes:
        return self.patiently(lambda again: self._inner.get(name, offset_bytes, length_bytes))

    def exists(self, name: str) -> bool:
        return self.patiently(lambda again: self._inner.exists(name))

    def list(self, prefix: str) -> Iterator[Listed]:
        """See Store. One that fails on its way is begun again, and goes on after the last object that it gave."""
        return self._resumed(prefix, self.patiently(lambda again: self._inner.list(prefix)))

    def _resumed(self, prefix: str, listing: Iterator[Listed]) -> Iterator[Listed]:
        last = ""

        def following(again: bool) -> Listed | None:
            nonlocal listing
            if again:
                listing = dropwhile(lambda listed: listed.name <= last, self._inner.list(prefix))
            return next(listing, None)

        while (listed := self.patiently(following)) is not None:
            last = listed.name
            yield listed

    def delete(self, name: str) -> None:
        def attempt(again: bool) -> None:
            try:
                self._inner.delete(name)
            except ObjectMissing:
                if not again:
                    raise

        self.patiently(attempt)

    def delete_many(self, names: Iterable[str]) -> None:
        wanted = tuple(names)
        self.patiently(lambda again: self._inner.delete_many(wanted))

    def free_bytes(self) -> int | None:
        return self.patiently(lambda again: self._inner.free_bytes())

    def describe(self) -> str:
        return self._inner.describe()

    def patiently(self, attempt: Callable[[bool], T]) -> T:
        """For calls that no store has, too. `attempt` is told whether an earlier one may have been carried out."""
        patience = self._patience
        deadline_s = self._clock.monotonic_s() + patience.total_s
        for number in count():
            try:
                return attempt(number > 0)
            except ImagingError as error:
                if not error.retryable:
                    raise
                bound_s = min(patience.longest_s, patience.first_s * 2 ** min(number, _DOUBLINGS_MAX))
                wait_s = self._random() * bound_s
                if self._clock.monotonic_s() + wait_s > deadline_s:
                    raise
                _log.info("tried again in %.1f s: %s", wait_s, error)
            self._sleep(wait_s)
        raise AssertionError("count() does not end")
