"""An existing image file or block device as a target that can be overwritten, by a writable qemu-nbd.

Rules: the format is stated, never probed; QEMU's own locks see to it that nobody else, a running machine above all,
has the image open; it is on stable storage when the context ends well.
"""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

import nbd

from imaging import images
from imaging.errors import ImageUnreadable, SourceError, TargetFailed, TargetRefused
from imaging.extents import ByteRange
from imaging.source import NbdSource
from imaging.storage.contract import Buffer

_REQUEST_BYTES: Final = 4 << 20
_CONNECTIONS: Final = 4


class NbdTarget:
    """The export of a writable server. Thread-safe. Owns its connections."""

    blank = False

    def __init__(self, listen: Path, name: str) -> None:
        self.name = name
        self._listen = listen
        self._source = NbdSource(listen, connections=_CONNECTIONS)
        self._mine = threading.local()
        self._writers: list[nbd.NBD] = []
        self._lock = threading.Lock()
        self.size_bytes = self._source.size_bytes

    def read(self, offset: int, length: int) -> bytes:
        buffer = bytearray(length)
        try:
            self._source.read([(offset, memoryview(buffer))])
        except SourceError as err:
            raise OSError(errno.EIO, str(err)) from err
        return bytes(buffer)

    def known_zero(self, start: int, stop: int) -> list[ByteRange]:
        try:
            return self._source.status(start, stop).zero
        except SourceError as err:
            raise OSError(errno.EIO, str(err)) from err

    def write(self, offset: int, data: Buffer) -> None:
        view = memoryview(data)
        for at in range(0, len(view), _REQUEST_BYTES):
            part = view[at : at + _REQUEST_BYTES]
            self._ask(lambda handle, part=part, at=at: handle.pwrite(bytes(part), offset + at))  # type: ignore[misc]

    def zero(self, offset: int, length: int) -> None:
        self._ask(lambda handle: handle.zero(length, offset))

    def flush(self) -> None:
        self._ask(lambda handle: handle.flush())

    def close(self) -> None:
        self._source.close()
        for handle in self._writers:
            with suppress(nbd.Error):
                handle.shutdown()
        self._writers = []
        self._mine = threading.local()

    def _ask(self, operation: Callable[[nbd.NBD], object]) -> None:
        try:
            handle = getattr(self._mine, "handle", None)
            if handle is None:
                handle = nbd.NBD()
                handle.connect_unix(str(self._listen))
                with self._lock:
                    self._writers.append(handle)
                self._mine.handle = handle
            operation(handle)
        except nbd.Error as err:
            raise OSError(err.errnum or errno.EIO, err.string) from err


@contextmanager
def overwriting(path: Path, image_format: str, size_bytes: int, folder: Path) -> Iterator[NbdTarget]:
    """The image, which must be at least as large as the disk; sockets go below `folder`. TargetRefused, TargetFailed.

    The caller has checked that the image leads nowhere that it should not.
    """
    try:
        with images.serve(path, image_format, folder, connections=2 * _CONNECTIONS, writable=True) as listen:
            target = NbdTarget(listen, str(path))
            try:
                if target.size_bytes < size_bytes:
                    detail = f"it holds {target.size_bytes} bytes, and the disk has {size_bytes}"
                    raise TargetRefused(str(path), detail, hint="choose a larger one")
                yield target
                try:
                    target.flush()
                except OSError as err:
                    raise TargetFailed(str(path), err.strerror or str(err)) from err
            finally:
                target.close()
    except ImageUnreadable as err:
        if "another process" in str(err):
            hint = "switch off whatever uses it, then restore again"
            raise TargetRefused(str(path), "another process has it open", hint=hint) from err
        raise TargetRefused(str(path), str(err), hint=err.hint) from err
