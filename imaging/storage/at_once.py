"""Requests for many objects, several at a time.

Rules: what a store refuses for one object, or that it is gone, ends nothing; a store that does not answer ends all, and
soon: few requests are under way at any moment.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final, TypeVar

from imaging.errors import ImagingError, ObjectMissing, StoreError, StoreUnavailable

_WAITING: Final = 8
"""So many requests are lined up for each connection."""

T = TypeVar("T")
R = TypeVar("R")


def outcomes(items: Sequence[T], act: Callable[[T], R], connections: int) -> Iterator[tuple[T, R | ImagingError]]:
    """What came of each item, in order. StoreUnavailable."""

    def attempt(item: T) -> R | ImagingError:
        try:
            return act(item)
        except StoreUnavailable:
            raise
        except (StoreError, ObjectMissing) as error:
            return error

    pool = ThreadPoolExecutor(connections, thread_name_prefix="at-once")
    try:
        for first in range(0, len(items), connections * _WAITING):
            some = items[first : first + connections * _WAITING]
            yield from zip(some, pool.map(attempt, some), strict=True)
    finally:
        pool.shutdown(cancel_futures=True)
