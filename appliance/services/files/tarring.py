"""A folder of a restore point as a tar (POSIX, pax), as a stream.

The rule: names, links and modes go in as they are, but for set-uid and set-gid; nothing of it is written here. What
cannot be read is left out and named in a file at the end; a file that fails within ends the stream with its error, as
nobody could tell it from a whole one. Devices, sockets and pipes are left out.
"""

from __future__ import annotations

import tarfile
from collections.abc import Generator, Iterator
from typing import Final

from imaging.filesystems.entries import DEPTH_MAX, Entry, Kind, Path, joined
from imaging.filesystems.errors import EntryNotFound, NotThatKind, Unreadable
from imaging.filesystems.session import PAGE_MAX, Hole, Piece, Session

MEMBERS_MAX: Final = 2_000_000
BLOCK_BYTES: Final = 512
LEFT_OUT: Final = "-left-out.txt"
"""After the name of the folder, what the file at the end is called: beside the folder, where nothing else is."""
END_BYTES: Final = 10240
"""How many zeros follow the last member."""
_ZEROS: Final = bytes(1 << 20)
_LEFT_OUT_MAX: Final = 10_000
_MODES: Final = {Kind.FILE: 0o644, Kind.FOLDER: 0o755, Kind.LINK: 0o777}
_TYPES: Final = {Kind.FILE: tarfile.REGTYPE, Kind.FOLDER: tarfile.DIRTYPE, Kind.LINK: tarfile.SYMTYPE}


class Tar:
    """Borrows the session. `left_out`: what is not in it, with the reason, once the stream is at its end."""

    def __init__(self, session: Session, volume: str, path: Path, name: str) -> None:
        self._session = session
        self._volume = volume
        self._path = path
        self._name = name
        self._members = 0
        self.left_out: list[str] = []

    def stream(self) -> Generator[bytes, None, None]:
        """FilesError, and ImagingError of the repository."""
        folder = self._session.stat(self._volume, self._path)
        yield from self._header(self._name, folder, 0)
        yield from self._below(self._path, self._name, (folder.number,))
        if self.left_out:
            text = "".join(f"{line}\n" for line in self.left_out).encode()
            info = tarfile.TarInfo(f"{self._name}{LEFT_OUT}")
            info.size = len(text)
            yield _buffer(info) + text + bytes(padding_bytes(len(text)))
        yield bytes(END_BYTES)

    def _below(self, path: Path, name: str, above: tuple[int, ...]) -> Iterator[bytes]:
        offset = 0
        while True:
            listing = self._session.listing(self._volume, path, offset, PAGE_MAX)
            if offset == 0 and listing.refused:
                self._leave_out(path, f"{listing.refused} entries with names that no file may have")
            for entry in listing.entries:
                self._members += 1
                if self._members > MEMBERS_MAX:
                    raise Unreadable(joined(self._path), f"it has more than {MEMBERS_MAX} entries: take parts of it")
                yield from self._member(entry, (*path, entry.name), f"{name}/{entry.name}", above)
            offset += PAGE_MAX
            if offset >= listing.total:
                return

    def _member(self, entry: Entry, path: Path, name: str, above: tuple[int, ...]) -> Iterator[bytes]:
        if entry.problem or entry.kind is Kind.OTHER:
            self._leave_out(path, entry.problem or "it is a device, a socket or a pipe")
        elif entry.kind is Kind.FOLDER:
            if entry.number in above or len(path) >= DEPTH_MAX:
                self._leave_out(path, "it is too deep, or leads back to a folder above it")
                return
            yield from self._header(name, entry, 0)
            try:
                yield from self._below(path, name, (*above, entry.number))
            except (Unreadable, EntryNotFound, NotThatKind) as err:
                if self._members > MEMBERS_MAX:
                    raise
                self._leave_out(path, f"not all of it: {err}")
        elif entry.kind is Kind.LINK:
            yield from self._header(name, entry, 0)
        else:
            yield from self._file(entry, path, name)

    def _file(self, entry: Entry, path: Path, name: str) -> Iterator[bytes]:
        pieces = self._session.read(self._volume, path, entry.size_bytes)
        try:
            first: Piece | None = next(pieces, None)
        except (Unreadable, EntryNotFound, NotThatKind) as err:
            self._leave_out(path, str(err))
            return
        yield from self._header(name, entry, entry.size_bytes)
        if first is not None:
            yield from plain(first)
            for piece in pieces:
                yield from plain(piece)
        yield bytes(padding_bytes(entry.size_bytes))

    def _header(self, name: str, entry: Entry, size_bytes: int) -> Iterator[bytes]:
        info = tarfile.TarInfo(name + ("/" if entry.kind is Kind.FOLDER else ""))
        info.type, info.size, info.linkname = _TYPES[entry.kind], size_bytes, entry.link
        info.mode = _MODES[entry.kind] if entry.mode is None else entry.mode & 0o1777
        info.uid, info.gid = entry.uid or 0, entry.gid or 0
        info.mtime = 0 if entry.modified_ns is None else entry.modified_ns // 1_000_000_000
        yield _buffer(info)

    def _leave_out(self, path: Path, reason: str) -> None:
        if len(self.left_out) < _LEFT_OUT_MAX:
            self.left_out.append(f"{shown(path)}: {reason}")


def plain(piece: Piece) -> Iterator[bytes]:
    """A piece as bytes, the zeros of holes too."""
    if not isinstance(piece, Hole):
        yield piece
        return
    left = piece.length
    while left:
        count = min(left, len(_ZEROS))
        yield _ZEROS if count == len(_ZEROS) else bytes(count)
        left -= count


def shown(path: Path) -> str:
    """A path as it can be written anywhere: what is no UTF-8, and what ends lines, by escapes."""
    return printable(joined(path).encode("utf-8", "surrogateescape"))


def printable(data: bytes) -> str:
    text = data.decode("utf-8", "backslashreplace")
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


def _buffer(info: tarfile.TarInfo) -> bytes:
    return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")


def padding_bytes(size_bytes: int) -> int:
    """How many zeros follow what has this size."""
    return -size_bytes % BLOCK_BYTES
