"""Readers of restore points, each a process, kept for whoever looks next.

The rule: there are never more than so many, one that nobody uses goes after some minutes, and one that broke at once.
Thread-safe: a reader has one user at a time, and whoever comes while it is at work gets another.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from appliance.services.files.errors import TooManyReaders
from imaging.filesystems.session import Session

if TYPE_CHECKING:
    from appliance.bootstrap import Appliance
    from imaging.points import Point
    from imaging.reader import DiskReader

READERS_MAX: Final = 8
IDLE_S: Final = 180.0
_CACHE_BYTES: Final = 16 << 20


@dataclass(slots=True)
class _Reader:
    point: str
    session: Session
    disks: list[DiskReader]
    used_s: float = 0.0
    busy: bool = field(default=True)

    def close(self) -> None:
        self.session.close()
        for disk in self.disks:
            disk.close()


class Sessions:
    """Borrows the appliance."""

    def __init__(self, appliance: Appliance) -> None:
        self._appliance = appliance
        self._lock = threading.Lock()
        self._readers: list[_Reader] = []
        self._opening = 0
        self._timer: threading.Timer | None = None

    @contextmanager
    def one(self, point: Point) -> Iterator[Session]:
        """A reader of this point for as long as the context lasts. TooManyReaders, ReaderEnded; ImagingError."""
        reader = self._take(point.id) or self._open(point)
        try:
            yield reader.session
        finally:
            self._give_back(reader)

    def close(self) -> None:
        with self._lock:
            readers, self._readers = self._readers, []
            if self._timer is not None:
                self._timer.cancel()
        for reader in readers:
            reader.close()

    def _take(self, point: str) -> _Reader | None:
        with self._lock:
            for reader in self._readers:
                if reader.point == point and not reader.busy and reader.session.alive:
                    reader.busy = True
                    return reader
        return None

    def _open(self, point: Point) -> _Reader:
        from imaging.reader import DiskReader  # with numpy, which no other page needs

        self._make_room()
        try:
            repository = self._appliance.repository
            disks = [
                DiskReader(
                    repository.blobs, entry.root, entry.size_bytes, cache_bytes=_CACHE_BYTES,
                    ahead_bytes=repository.pace.ahead_bytes,
                )
                for entry in point.manifest.disks
            ]  # fmt: skip
            names = [entry.name for entry in point.manifest.disks]
            reader = _Reader(point.id, Session(list(zip(names, disks, strict=True))), disks)
            with self._lock:
                self._readers.append(reader)
            return reader
        finally:
            with self._lock:
                self._opening -= 1

    def _make_room(self) -> None:
        """A place for one more; the one that was used longest ago goes, if nobody is at it. TooManyReaders."""
        with self._lock:
            leaving = None
            if len(self._readers) + self._opening >= READERS_MAX:
                idle = [reader for reader in self._readers if not reader.busy]
                if not idle:
                    raise TooManyReaders(READERS_MAX)
                leaving = min(idle, key=lambda reader: reader.used_s)
                self._readers.remove(leaving)
            self._opening += 1
        if leaving is not None:
            leaving.close()

    def _give_back(self, reader: _Reader) -> None:
        with self._lock:
            reader.busy, reader.used_s = False, self._appliance.clock.monotonic_s()
            broken = not reader.session.alive
            if broken and reader in self._readers:
                self._readers.remove(reader)
            self._look_later()
        if broken:
            reader.close()

    def _look_later(self) -> None:
        if self._timer is None and self._readers:
            self._timer = threading.Timer(IDLE_S / 3, self._look)
            self._timer.daemon = True
            self._timer.start()

    def _look(self) -> None:
        """What nobody has used for long goes."""
        before_s = self._appliance.clock.monotonic_s() - IDLE_S
        with self._lock:
            self._timer = None
            leaving = [reader for reader in self._readers if not reader.busy and reader.used_s <= before_s]
            self._readers = [reader for reader in self._readers if reader not in leaving]
            self._look_later()
        for reader in leaving:
            reader.close()
