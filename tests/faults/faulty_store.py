"""A store whose calls fail on demand, around a real one.

    with FaultyStore(inner) as store:
        store.fail("put", nth=2, error=NoSpace("write", "packs/…"))

A fault that was queued and never fired fails the test when the block ends: a check that cannot fail is none.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from imaging.errors import ImagingError, ObjectMissing
from imaging.storage.contract import Buffer, Listed, Store, check_name

METHODS = ("put", "create", "get", "exists", "list", "delete", "free_bytes")


@dataclass(slots=True)
class Fault:
    """`after`: the call is carried out and fails nevertheless, as a request whose answer is lost; a listing fails
    half-way."""

    method: str
    nth: int
    error: ImagingError | None
    prefix: str
    after: bool
    forever: bool
    every: bool = False
    change: Callable[[bytes], bytes] | None = None
    seen: int = field(default=0)
    fired: int = field(default=0)

    def due(self) -> bool:
        if self.every:
            return self.seen % self.nth == 0
        return self.seen == self.nth or (self.forever and self.seen > self.nth)


class FaultyStore:
    """Borrows `inner`. Also records every call as (method, name) in `calls`."""

    def __init__(self, inner: Store) -> None:
        self.inner = inner
        self.calls: list[tuple[str, str]] = []
        self.faults: list[Fault] = []
        self.before: Callable[[str, str], None] | None = None
        self._counting = threading.Lock()

    def fail(
        self,
        method: str,
        *,
        error: ImagingError,
        nth: int = 1,
        prefix: str = "",
        after: bool = False,
        forever: bool = False,
        every: bool = False,
    ) -> None:
        """The nth call of `method` on a name that begins with `prefix` raises `error`; with `forever`, later ones
        too; with `every`, each nth call."""
        if method not in METHODS:
            raise ValueError(f"a store has no method {method}")
        self.faults.append(Fault(method, nth, error, prefix, after, forever, every))

    def corrupt(
        self, change: Callable[[bytes], bytes], *, nth: int = 1, prefix: str = "", forever: bool = False
    ) -> None:
        """The nth get answers with changed bytes."""
        self.faults.append(Fault("get", nth, None, prefix, after=True, forever=forever, change=change))

    def _due(self, method: str, name: str, after: bool) -> Fault | None:
        with self._counting:  # several threads may write at once
            for fault in self.faults:
                if fault.method != method or fault.after != after or not name.startswith(fault.prefix):
                    continue
                fault.seen += 1
                if fault.due():
                    fault.fired += 1
                    return fault
        return None

    def _enter(self, method: str, name: str) -> None:
        self.calls.append((method, name))
        if self.before is not None:
            self.before(method, name)
        self._raise(self._due(method, name, after=False))

    @staticmethod
    def _raise(fault: Fault | None) -> None:
        if fault is not None and fault.error is not None:
            raise fault.error

    def put(self, name: str, data: Sequence[Buffer]) -> None:
        self._enter("put", name)
        self.inner.put(name, data)
        self._raise(self._due("put", name, after=True))

    def create(self, name: str, data: Sequence[Buffer]) -> None:
        self._enter("create", name)
        self.inner.create(name, data)
        self._raise(self._due("create", name, after=True))

    def get(self, name: str, offset_bytes: int = 0, length_bytes: int | None = None) -> bytes:
        self._enter("get", name)
        data = self.inner.get(name, offset_bytes, length_bytes)
        fault = self._due("get", name, after=True)
        self._raise(fault)
        return fault.change(data) if fault is not None and fault.change is not None else data

    def exists(self, name: str) -> bool:
        self._enter("exists", name)
        found = self.inner.exists(name)
        self._raise(self._due("exists", name, after=True))
        return found

    def list(self, prefix: str) -> Iterator[Listed]:
        self._enter("list", prefix)
        listing = self.inner.list(prefix)
        fault = self._due("list", prefix, after=True)
        return listing if fault is None else self._cut_short(list(listing), fault)

    def _cut_short(self, found: Sequence[Listed], fault: Fault) -> Iterator[Listed]:
        yield from found[: len(found) // 2]
        self._raise(fault)

    def delete(self, name: str) -> None:
        self._enter("delete", name)
        self.inner.delete(name)
        self._raise(self._due("delete", name, after=True))

    def delete_many(self, names: Iterable[str]) -> None:
        """One by one, so that each can fail, and a process can die before each."""
        wanted = list(names)
        for name in wanted:
            check_name(name)
        for name in wanted:
            with suppress(ObjectMissing):
                self.delete(name)

    def free_bytes(self) -> int | None:
        self._enter("free_bytes", "")
        return self.inner.free_bytes()

    def describe(self) -> str:
        return f"{self.inner.describe()} (with faults)"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        idle = [fault for fault in self.faults if not fault.fired]
        if idle and error is None:
            raise AssertionError(f"faults that never fired: {idle}")
