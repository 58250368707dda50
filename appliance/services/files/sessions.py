"""Readers of restore points, each a process, kept for whoever looks next.

The rule: there are never more than so many, one that nobody uses goes after some minutes, and one that broke at once.
Its point is held while it is used, and a moment longer; not until it goes, or whoever has looked into a point could not
delete it. Thread-safe: a reader has one user at a time, and whoever comes while it is at work gets another.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from appliance.errors import StrongroomError
from appliance.models import new_id
from appliance.services.files.errors import TooManyReaders
from appliance.services.holds import FILES, held_meanwhile
from imaging.errors import ImagingError
from imaging.filesystems.session import Session

if TYPE_CHECKING:
    from appliance.bootstrap import Appliance
    from imaging.points import Point

READERS_MAX: Final = 8
IDLE_S: Final = 180.0
HELD_S: Final = 20.0
_LOOK_S: Final = 10.0
_CACHE_BYTES: Final = 16 << 20
_log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Reader:
    """`opened`: what closes the session, then its disks. `hold`: what lets go of its point; None: it is not held."""

    point: str
    session: Session
    opened: ExitStack
    hold: ExitStack | None
    used_s: float = 0.0
    busy: bool = field(default=True)

    def close(self) -> None:
        if self.hold is not None:
            _let_go(self.hold)
        self.opened.close()


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
        """A reader of this point for as long as the context lasts. TooManyReaders, ReaderEnded; PointNotFound,
        ImagingError."""
        reader = self._take(point.id) or self._open(point)
        try:
            if reader.hold is None:
                reader.hold = self._held(point)
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
        hold: ExitStack | None = None
        try:
            hold = self._held(point)  # before anything of it is read
            repository = self._appliance.repository
            with ExitStack() as opened:  # of a worker that does not start, the disks are closed
                disks = []
                for entry in point.manifest.disks:
                    disk = DiskReader(
                        repository.blobs, entry.root, entry.size_bytes, cache_bytes=_CACHE_BYTES,
                        ahead_bytes=repository.pace.ahead_bytes,
                    )  # fmt: skip
                    opened.callback(disk.close)
                    disks.append((entry.name, disk))
                session = Session(disks)
                opened.callback(session.close)
                reader = _Reader(point.id, session, opened.pop_all(), hold)
            hold = None
            with self._lock:
                self._readers.append(reader)
            return reader
        finally:
            if hold is not None:
                _let_go(hold)
            with self._lock:
                self._opening -= 1

    def _held(self, point: Point) -> ExitStack:
        """PointNotFound."""
        hold = ExitStack()
        hold.enter_context(held_meanwhile(self._appliance, point, f"{FILES}-{new_id()}"))
        return hold

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
            self._timer = threading.Timer(_LOOK_S, self._look)
            self._timer.daemon = True
            self._timer.start()

    def _look(self) -> None:
        """What nobody has used for long goes; before that, the hold on its point."""
        now_s = self._appliance.clock.monotonic_s()
        with self._lock:
            self._timer = None
            idle = [reader for reader in self._readers if not reader.busy]
            leaving = [reader for reader in idle if reader.used_s <= now_s - IDLE_S]
            self._readers = [reader for reader in self._readers if reader not in leaving]
            holds = []
            for reader in idle:
                if reader.hold is not None and reader.used_s <= now_s - HELD_S:
                    holds.append(reader.hold)
                    reader.hold = None  # whoever takes this reader next holds its point anew
            self._look_later()
        for hold in holds:
            _let_go(hold)
        for reader in leaving:
            reader.close()


def _let_go(hold: ExitStack) -> None:
    try:
        hold.close()
    except (StrongroomError, ImagingError, OSError) as err:
        _log.warning("a hold on a point whose files were read stays for now, and is let go of later: %s", err)
