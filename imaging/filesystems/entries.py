"""What is found within disks: volumes, and the entries of folders. Pure.

The rule: a name is one component, and nothing else gets through: no slash, no NUL, neither "." nor "..". Names are
bytes on most file systems: what is no UTF-8 is kept by surrogate escapes, as `os.fsdecode` does it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Final

NAME_BYTES_MAX: Final = 1024  # 255 UTF-16 units of NTFS are 765 bytes at most
DEPTH_MAX: Final = 256
LINK_BYTES_MAX: Final = 4096
VOLUMES_MAX: Final = 1024  # of all disks of a restore point
FILE_BYTES_MAX: Final = 1 << 53
"""More than any disk that is read here: an inode may claim 8 EiB."""

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)

Path = tuple[str, ...]
"""From the root of a volume on, one name after the other."""


class Kind(StrEnum):
    FILE = "file"
    FOLDER = "folder"
    LINK = "link"
    OTHER = "other"  # a device, a socket, a pipe: nothing of it can be read


class Journal(StrEnum):
    """What a volume says of changes that only its journal has: they are not seen."""

    CLEAN = "clean"
    PENDING = "pending"
    UNKNOWN = "unknown"  # it does not say


@dataclass(frozen=True, slots=True)
class Volume:
    """`name` is what it is asked for by; `disk` the disk on which it, or the first part of it, lies. `problem`: why it
    cannot be read, if so."""

    name: str
    disk: str
    kind: str
    label: str
    size_bytes: int
    journal: Journal
    problem: str = ""

    @property
    def readable(self) -> bool:
        return not self.problem


@dataclass(frozen=True, slots=True)
class Entry:
    """`number` is the file system's own of it (two names of one file have the same). `problem`: why it cannot be read.
    `link`: what a link says, which nobody follows."""

    name: str
    kind: Kind
    size_bytes: int
    modified_ns: int | None
    mode: int | None
    uid: int | None
    gid: int | None
    number: int
    link: str = ""
    problem: str = ""

    @property
    def modified_utc(self) -> datetime | None:
        """To the microsecond; None also of a moment that no calendar has."""
        if self.modified_ns is None:
            return None
        try:
            return _EPOCH + timedelta(microseconds=self.modified_ns // 1000)
        except OverflowError:
            return None


@dataclass(frozen=True, slots=True)
class Listing:
    """A part of a folder, folders first, then by name. `refused`: entries with names that no file may have."""

    entries: tuple[Entry, ...]
    total: int
    refused: int


def is_name(name: str) -> bool:
    """Whether it may be one component of a path."""
    if not name or name in (".", "..") or "/" in name or "\0" in name:
        return False
    try:
        return len(name.encode("utf-8", "surrogateescape")) <= NAME_BYTES_MAX
    except UnicodeEncodeError:
        return False


def split(text: str) -> Path | None:
    """A path as people write it; None where it is none: a component that goes up, or one too many."""
    names = tuple(name for name in text.split("/") if name not in ("", "."))
    return names if len(names) <= DEPTH_MAX and all(is_name(name) for name in names) else None


def joined(path: Sequence[str]) -> str:
    return "/" + "/".join(path)
