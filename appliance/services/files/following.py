"""A tar that passes on its way to a file, and what it says that it lacks.

The rule: `tarring` made it, on another appliance: every member is in the folder that is the first one, but for the file
at the end that names what was left out, and nothing of a guest can be called so. What passes is not changed, and no
more of it is kept than that file, and what is told of one member.
"""

from __future__ import annotations

import tarfile
from collections.abc import Generator, Iterator
from typing import IO, Any, Final, cast

from appliance.services.files.tarring import END_BYTES, LEFT_OUT, padding_bytes, printable

_READ_BYTES: Final = 1 << 20
_KEPT_BYTES_MAX: Final = 64 << 20
"""By far: the longest path and link, twice, and the text at the end."""


class TarUnfit(Exception):
    """What passes is no tar, or none of ours, or it breaks off."""


class Following:
    """`left_out`: as a `Tar` has it, once all of it has passed."""

    def __init__(self) -> None:
        self.left_out: list[str] = []

    def stream(self, pieces: Iterator[bytes]) -> Iterator[bytes]:
        """The pieces. TarUnfit."""
        passing = _Passing(pieces)
        source = cast("IO[bytes]", passing)  # of which tarfile calls no more than `read`
        try:
            with tarfile.open(fileobj=source, mode="r|", bufsize=_READ_BYTES, errors="surrogateescape") as tar:
                end = yield from self._members(tar, passing)
        except (tarfile.TarError, ValueError) as err:
            raise TarUnfit(str(err)) from err
        while passing.read(_READ_BYTES):
            yield from passing.passed()
        if passing.read_bytes != end + END_BYTES:
            raise TarUnfit("its end is not where it must be")

    def _members(self, tar: tarfile.TarFile, passing: _Passing) -> Generator[bytes, None, int]:
        """Returns where the last one ends."""
        folder, end = None, 0
        members: list[tarfile.TarInfo] = cast("Any", tar).members  # all that were: there may be two millions
        while (member := tar.next()) is not None:
            yield from passing.passed()
            members.clear()
            folder = member.name if folder is None else folder
            is_told = member.name == f"{folder}{LEFT_OUT}"
            text = bytearray()
            data = tar.extractfile(member) if member.isreg() else None
            while data is not None and (piece := data.read(_READ_BYTES)):
                yield from passing.passed()
                if is_told:
                    text += piece
                    _check(len(text))
            if is_told:
                self.left_out += map(printable, bytes(text).removesuffix(b"\n").split(b"\n"))
            end = member.offset_data + member.size + padding_bytes(member.size)
        yield from passing.passed()
        return end


class _Passing:
    """What tarfile reads of it is kept until it is passed on."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._kept: list[bytes] = []
        self._kept_bytes = 0
        self.read_bytes = 0

    def read(self, _: int) -> bytes:
        """As much as comes; nothing at the end. TarUnfit."""
        piece = next(self._pieces, b"")
        self.read_bytes += len(piece)
        self._kept_bytes += len(piece)
        self._kept.append(piece)
        _check(self._kept_bytes)
        return piece

    def passed(self) -> Iterator[bytes]:
        kept, self._kept, self._kept_bytes = self._kept, [], 0
        yield from kept


def _check(kept_bytes: int) -> None:
    """TarUnfit."""
    if kept_bytes > _KEPT_BYTES_MAX:
        raise TarUnfit(f"more than {_KEPT_BYTES_MAX} bytes of what is told of one member")
