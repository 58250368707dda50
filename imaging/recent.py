"""The most recently used values, up to a total weight."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")


class Recent(Generic[K, V]):
    """Not thread-safe. A value that alone weighs more than `limit` is kept until the next one comes."""

    def __init__(self, limit: int, weight: Callable[[V], int]) -> None:
        self._limit = limit
        self._weight = weight
        self._held: OrderedDict[K, V] = OrderedDict()
        self._total = 0

    def get(self, key: K) -> V | None:
        value = self._held.get(key)
        if value is not None:
            self._held.move_to_end(key)
        return value

    def put(self, key: K, value: V) -> None:
        if key in self._held:
            return
        self._held[key] = value
        self._total += self._weight(value)
        while self._total > self._limit and len(self._held) > 1:
            self._total -= self._weight(self._held.popitem(last=False)[1])

    def drop(self, key: K) -> None:
        if key in self._held:
            self._total -= self._weight(self._held.pop(key))
