"""A store that moves not more than so many bytes a second, together with all others that share its throttle.

Rules: what is written is paid for before it goes, what is read before it comes, as far as its length is known. Small
objects are paid for and never wait: the beat of a lease must not queue behind packs. Of packs every piece waits, or
many small ones would run up a debt that the next one sleeps for.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from imaging.storage.contract import Buffer, Listed, Store
from imaging.throttle import Throttle

_SMALL_BYTES: Final = 64 << 10


class LimitedStore:
    """Thread-safe. Borrows everything."""

    def __init__(self, inner: Store, throttle: Throttle) -> None:
        self._inner = inner
        self._throttle = throttle

    def put(self, name: str, data: Sequence[Buffer]) -> None:
        self._pay(name, _bytes(data))
        self._inner.put(name, data)

    def create(self, name: str, data: Sequence[Buffer]) -> None:
        self._pay(name, _bytes(data))
        self._inner.create(name, data)

    def get(self, name: str, offset_bytes: int = 0, length_bytes: int | None = None) -> bytes:
        if length_bytes is not None:
            self._pay(name, length_bytes)
            return self._inner.get(name, offset_bytes, length_bytes)
        data = self._inner.get(name, offset_bytes)
        self._pay(name, len(data))
        return data

    def _pay(self, name: str, count_bytes: int) -> None:
        if count_bytes < _SMALL_BYTES and not name.startswith("packs/"):
            self._throttle.owe(max(0, count_bytes))
        else:
            self._throttle.take(max(0, count_bytes))

    def exists(self, name: str) -> bool:
        return self._inner.exists(name)

    def list(self, prefix: str) -> Iterator[Listed]:
        return self._inner.list(prefix)

    def delete(self, name: str) -> None:
        self._inner.delete(name)

    def delete_many(self, names: Iterable[str]) -> None:
        self._inner.delete_many(names)

    def free_bytes(self) -> int | None:
        return self._inner.free_bytes()

    def describe(self) -> str:
        return self._inner.describe()


def _bytes(data: Sequence[Buffer]) -> int:
    return sum(memoryview(part).nbytes for part in data)
