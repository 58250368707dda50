"""What a store must do, and nothing else that a repository relies on.

Rules: an object is written whole or not at all, and is durable when put() or create() returns, or gone for good when
delete() does; create() is the one primitive that protocols are built on (link(2) here, If-None-Match on an object
store); a listing shows complete objects only, and ends well only if it showed them all. Every store passes
tests/contract/test_store_contract.py.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Protocol, TypeAlias

from imaging.errors import InvalidName

Buffer: TypeAlias = bytes | bytearray | memoryview

NAME_BYTES_MAX: Final = 255
OBJECT_BYTES_MAX: Final = 128 << 20
"""No object of the format comes near this; a store refuses to load more at once, whatever somebody put there."""

_SEGMENT: Final = r"[a-z0-9][a-z0-9.-]*"
_NAME: Final = re.compile(rf"{_SEGMENT}(?:/{_SEGMENT})*")
_PREFIX: Final = re.compile(rf"(?:{_SEGMENT}/)*")


@dataclass(frozen=True, slots=True)
class Listed:
    """An object as a listing shows it."""

    name: str
    size_bytes: int


class Store(Protocol):
    """Names to immutable bytes. Implementations may be called from several threads at once."""

    def put(self, name: str, data: Sequence[Buffer]) -> None:
        """Write an object, replacing one of that name at once and whole. `data` is written in order. NoSpace,
        StoreError; after StoreUnavailable it may be written or not."""

    def create(self, name: str, data: Sequence[Buffer]) -> None:
        """As put, but raises ObjectExists, and changes nothing, if the name is taken.

        What took it is durable then, and may be what this caller wrote in an earlier call that raised
        StoreUnavailable: only the caller can tell, by comparing (storage/retrying.py does, for all).
        """

    def get(self, name: str, offset_bytes: int = 0, length_bytes: int | None = None) -> bytes:
        """The object, or exactly `length_bytes` of it. ObjectMissing; Damaged when the object ends before the range
        does, or a part of the range is known never to be read again; StoreUnavailable when it cannot be read now."""

    def exists(self, name: str) -> bool:
        """Whether there is such an object, whatever its bytes are. StoreError where that cannot be told."""

    def list(self, prefix: str) -> Iterator[Listed]:
        """Every object whose name begins with `prefix` (which is empty or ends in "/"), sorted by name. StoreError, at
        once or after any number of them."""

    def delete(self, name: str) -> None:
        """Remove an object: it is gone for good when this returns, or raises ObjectMissing as it was not there."""

    def delete_many(self, names: Iterable[str]) -> None:
        """Remove objects, in any order and cheaper than one by one: all are gone for good when this returns. One that
        is not there is no error. After an error any of them may be gone, and none for good."""

    def free_bytes(self) -> int | None:
        """What can still be written, or None where nobody knows."""

    def describe(self) -> str:
        """Where this is, for messages."""


def check_name(name: str) -> None:
    """Raises InvalidName unless `name` may name an object: no empty, hidden or climbing part, nothing but a-z 0-9 / .
    -"""
    if len(name) > NAME_BYTES_MAX or not _NAME.fullmatch(name) or name.startswith("tmp/") or name == "tmp":
        raise InvalidName(name)


def check_prefix(prefix: str) -> None:
    """Raises InvalidName unless `prefix` may be listed."""
    if len(prefix) > NAME_BYTES_MAX or not _PREFIX.fullmatch(prefix):
        raise InvalidName(prefix)
