"""What was there at an earlier moment, in a bucket that keeps every version.

Rules: a moment splits what happened into before and after; what happened in the same second as another thing is taken
to have happened so that more is there. Of an object that is written once, the oldest version with intact bytes is the
true one: whoever wrote over it came later.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from typing import NoReturn

from imaging.errors import Damaged, ObjectMissing, StoreError
from imaging.storage.contract import Buffer, Listed, check_name, check_prefix
from imaging.storage.versions import Version


@dataclass(frozen=True, slots=True)
class History:
    """An object's versions and markers, oldest first."""

    name: str
    versions: tuple[Version, ...]

    def at(self, moment_utc: datetime) -> Version | None:
        """The version that was there just before the moment; None where there was none."""
        before = [version for version in self.versions if version.modified_utc < moment_utc]
        return before[-1] if before and not before[-1].is_marker else None

    def now(self) -> Version | None:
        newest = self.versions[-1]
        return None if newest.is_marker else newest

    def contents(self, moment_utc: datetime, *, whole: bool) -> list[Version]:
        """The versions from before the moment, oldest first, one for each different content: of the `whole` history, or
        since the object was last deleted."""
        found: dict[tuple[int, str], Version] = {}
        for version in self.versions:
            if version.modified_utc >= moment_utc:
                continue
            if not version.is_marker:
                found.setdefault(version.content, version)
            elif not whole:
                found.clear()
        return list(found.values())


def histories(versions: Iterable[Version]) -> dict[str, History]:
    """By name. Listings show the newest first, and of equal times what they show first is the newer."""
    by_name: dict[str, list[Version]] = {}
    for version in versions:
        by_name.setdefault(version.name, []).append(version)

    def age(numbered: tuple[int, Version]) -> tuple[bool, datetime, bool, int]:
        number, version = numbered
        return version.is_latest, version.modified_utc, not version.is_marker, -number

    return {
        name: History(name, tuple(version for _, version in sorted(enumerate(some), key=age)))
        for name, some in by_name.items()
    }


class AsOf:
    """A store of what was there once; nothing can be written to it. `read` gives a version's bytes."""

    def __init__(self, where: str, there: Mapping[str, Version], read: Callable[[Version], bytes]) -> None:
        self._where = where
        self._there = there
        self._names = sorted(there)
        self._read = read

    def get(self, name: str, offset_bytes: int = 0, length_bytes: int | None = None) -> bytes:
        check_name(name)
        version = self._there.get(name)
        if version is None:
            raise ObjectMissing(name)
        data = self._read(version)
        end = len(data) if length_bytes is None else offset_bytes + length_bytes
        if not 0 <= offset_bytes <= end <= len(data):
            raise Damaged(name, f"it has {len(data)} bytes where {offset_bytes} to {end} are wanted")
        return data[offset_bytes:end]

    def exists(self, name: str) -> bool:
        check_name(name)
        return name in self._there

    def list(self, prefix: str) -> Iterator[Listed]:
        check_prefix(prefix)
        for name in islice(self._names, bisect_left(self._names, prefix), None):
            if not name.startswith(prefix):
                return
            yield Listed(name, self._there[name].size_bytes)

    def put(self, name: str, data: Sequence[Buffer]) -> None:
        self._refuse("write", name)

    def create(self, name: str, data: Sequence[Buffer]) -> None:
        self._refuse("create", name)

    def delete(self, name: str) -> None:
        self._refuse("delete", name)

    def delete_many(self, names: Iterable[str]) -> None:
        for name in names:
            self._refuse("delete", name)

    def free_bytes(self) -> int | None:
        return None

    def describe(self) -> str:
        return self._where

    def _refuse(self, operation: str, name: str) -> NoReturn:
        raise StoreError(operation, name, "this is what was there once", hint="nothing can be changed in the past")
