"""Raw images and block devices, read without a server between: half the CPU of reading them through one.

Rules: what a file's holes are is asked of the file system; a file that got shorter is an error, never zeros: behind
its end there are no data to seek to either, so the end is looked at after every answer about holes, and once more when
all was read. QEMU's image locks are not taken here: whoever reads a disk that a machine may open keeps a
`images.serve` of it beside.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Final

from imaging.errors import ImageUnreadable, SourceError
from imaging.extents import ByteRange, clip
from imaging.source import PIECE_BYTES, BlockStatus

_SECTOR_BYTES: Final = 512
_ZEROS: Final = memoryview(bytes(_SECTOR_BYTES))


def holes(descriptor: int, start: int, stop: int) -> list[ByteRange]:
    """Parts of [start, stop) that a file's file system knows to be holes. None where it cannot tell. What lies behind
    the file's end is one, too: whoever expects more there looks at the end."""
    found: list[ByteRange] = []
    position = start
    while position < stop:
        try:
            data = os.lseek(descriptor, position, os.SEEK_DATA)
        except OSError as err:
            if err.errno == errno.ENXIO:  # no data up to the end
                found.append(ByteRange(position, stop))
            return found
        if data > position:
            found.append(ByteRange(position, min(data, stop)))
        if data >= stop:
            break
        position = os.lseek(descriptor, data, os.SEEK_HOLE)
    return found


class RawFileSource:
    """A raw image file or block device, as QEMU shows it: whole sectors, zeros behind the end of the file.

    Implements source.Source. A context manager that closes its descriptor and, where the body came through, raises
    SourceError if the file has become shorter meanwhile. Raises ImageUnreadable.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            mode = os.fstat(self._descriptor).st_mode
            self._end = os.lseek(self._descriptor, 0, os.SEEK_END)
        except OSError as err:
            raise ImageUnreadable(str(path), err.strerror or str(err)) from err
        self._has_holes = stat.S_ISREG(mode)
        self.size_bytes = -(-self._end // _SECTOR_BYTES) * _SECTOR_BYTES
        self.piece_bytes = PIECE_BYTES

    def __enter__(self) -> RawFileSource:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, err: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._check_end()
        finally:
            os.close(self._descriptor)

    def status(self, start: int, stop: int) -> BlockStatus:
        """See Source."""
        found = holes(self._descriptor, start, min(stop, self._end)) if self._has_holes else []
        self._check_end()
        return BlockStatus(zero=clip(found, start, stop))

    def _check_end(self) -> None:
        try:
            end = os.lseek(self._descriptor, 0, os.SEEK_END)
        except OSError as err:
            raise SourceError(0, self._end, err.strerror or str(err)) from err
        if end < self._end:
            raise self._shorter(end, self._end - end, f"from {self._end} to {end} bytes")

    def _shorter(self, offset: int, length: int, how: str = "") -> SourceError:
        return SourceError(
            offset,
            length,
            f"{self._path} has become shorter while it was read{', ' if how else ''}{how}",
            hint="see what resized the image, and back it up again when nothing writes to it",
        )

    def read(self, requests: Sequence[tuple[int, memoryview]]) -> None:
        """See Source."""
        for offset, view in requests:
            at = 0
            try:
                while at < len(view):
                    if offset + at >= self._end:
                        view[at:] = _ZEROS[: len(view) - at]
                        break
                    count = os.preadv(self._descriptor, [view[at:]], offset + at)
                    if count == 0:
                        raise self._shorter(offset + at, len(view) - at)
                    at += count
            except OSError as err:
                raise SourceError(offset + at, len(view) - at, err.strerror or str(err)) from err
