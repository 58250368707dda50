"""A bucket that keeps every version of its objects, and some of them locked: what a repository needs of it.

Rules: nothing here destroys a version. What was deleted or overwritten comes back as a new version, copied from an old
one; so it needs no right that an intruder could have destroyed anything with.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from imaging.errors import ImagingError
from imaging.storage.object_lock import Lock


class LockUnsuitable(ImagingError):
    """The bucket, or the rights to it, cannot keep what Object Lock promises."""

    def __init__(self, where: str, detail: str, *, hint: str = "") -> None:
        super().__init__(
            f"{where} does not keep objects locked: {detail}",
            hint=hint or "see 'Object Lock' in docs/operations.md for how the bucket and its rights have to be",
        )
        self.where = where
        self.detail = detail


@dataclass(frozen=True, slots=True)
class Version:
    """One version of an object, or a marker that says that it was deleted. `modified_utc` is the store's own, and may
    be in whole seconds; `etag` is the same for the same bytes, or nearly so."""

    name: str
    id: str
    size_bytes: int
    etag: str
    modified_utc: datetime
    is_latest: bool
    is_marker: bool

    @property
    def content(self) -> tuple[int, str]:
        """Equal for versions of equal bytes."""
        return self.size_bytes, self.etag


@dataclass(frozen=True, slots=True)
class Retention:
    """Until when a version cannot be destroyed; `mode` is one of object_lock.MODES."""

    mode: str
    until_utc: datetime


class Versions(Protocol):
    """Thread-safe."""

    @property
    def lock(self) -> Lock:
        """How objects are to be locked."""

    def now_utc(self) -> datetime:
        """The store's time. StoreError."""

    def check(self) -> None:
        """Whether the bucket keeps versions, and locks. LockUnsuitable, StoreError."""

    def prove(self) -> None:
        """As check(), and tries to destroy a locked object with these credentials. Leaves that object behind, hidden
        and locked for some minutes."""

    def list(self, prefix: str = "") -> Iterator[Version]:
        """Every version and marker of objects below, in any order but that of each object's, which is newest first;
        without a prefix, of all that the format knows. StoreError."""

    def get(self, version: Version) -> bytes:
        """The bytes of a version. ObjectMissing, Damaged, StoreError."""

    def retention(self, name: str, id: str = "") -> Retention | None:
        """Of a version, or of the newest. None where it has none. ObjectMissing, StoreError."""

    def retain(self, name: str, id: str, retention: Retention) -> None:
        """Never shortens. ObjectMissing, StoreError."""

    def bring_back(self, version: Version) -> None:
        """Makes its bytes the newest version, locked anew if restore points are made of it. ObjectMissing,
        StoreError."""
