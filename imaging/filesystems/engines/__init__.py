"""One module for each family of file systems, over a parser that others keep; what that gets wrong is put right here.

The rule: an engine runs in the worker alone. Whatever it cannot read as it is raises `NotRead`, with a reason; of
hostile data it may raise anything.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO, Protocol

from imaging.filesystems.entries import Kind


class NotRead(Exception):
    """Why something is not read, although it may be sound."""


@dataclass(frozen=True, slots=True)
class Stat:
    kind: Kind
    size_bytes: int
    modified_ns: int | None
    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    link: str = ""
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Content:
    """A file's bytes. `holes` as (offset, length), where the file system knows of any, in order."""

    file: BinaryIO
    size_bytes: int
    holes: tuple[tuple[int, int], ...] = ()


Number = int
"""A file system's own number of a file; of Btrfs, with that of the subvolume."""


class Engine(Protocol):
    @property
    def root(self) -> Number: ...

    def children(self, folder: Number) -> Iterator[tuple[str, Kind | None, Number]]:
        """Names, as they are there, also such as nobody may use; the kind only where the folder says it."""

    def stat(self, number: Number) -> Stat: ...

    def content(self, number: Number) -> Content:
        """Of a file. NotRead."""


def kind_of(file_type: int | None) -> Kind | None:
    """Of the type within a mode (S_IFMT)."""
    if not file_type:
        return None
    return {0o040000: Kind.FOLDER, 0o100000: Kind.FILE, 0o120000: Kind.LINK}.get(file_type, Kind.OTHER)


def holes_of(runs: list[tuple[int | None, int]], block_bytes: int, size_bytes: int) -> tuple[tuple[int, int], ...]:
    found: list[tuple[int, int]] = []
    at = 0
    for start, count in runs:
        if start is None and at * block_bytes < size_bytes:
            offset = at * block_bytes
            found.append((offset, min(count * block_bytes, size_bytes - offset)))
        at += count
    return tuple(found)
