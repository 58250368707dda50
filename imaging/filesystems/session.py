"""The files within the disks of one restore point, by a worker of its own.

The rule: nothing that the worker says is believed: lengths, kinds, names, numbers, how much it tells and how much it
may still ask for are checked here, as it comes. It has its time for each request (`Budget`), which does not count what
the repository or the reader of a file takes; a worker that is late, or says what it must not, is killed, and that is
one error. What could not be read of the repository is told as what it is.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import Final, Protocol, TypeVar

from imaging.errors import ImagingError
from imaging.filesystems import budgets, entries, frames
from imaging.filesystems.budgets import Budget
from imaging.filesystems.entries import Entry, Journal, Kind, Listing, Path, Volume, is_name, joined
from imaging.filesystems.errors import (
    EntryNotFound,
    FilesError,
    NotThatKind,
    PathRefused,
    ReaderEnded,
    Unreadable,
    VolumeNotFound,
)
from imaging.filesystems.frames import Frame, Garbled

PAGE_MAX: Final = 500
_START_S: Final = 30.0
_TEXT_MAX: Final = 4096
_SIGXCPU: Final = "it took more processor time than it may have"


Made = TypeVar("Made")


class Disk(Protocol):
    """`imaging.reader.DiskReader`."""

    size_bytes: int

    def pread(self, offset: int, length: int) -> bytes: ...


@dataclass(frozen=True, slots=True)
class Hole:
    """So many zeros."""

    length: int


Piece = bytes | Hole


class Session:
    """One request at a time: a reading of a file ends before the next one begins. Borrows the disks."""

    def __init__(self, disks: Sequence[tuple[str, Disk]]) -> None:
        """Raises ReaderEnded."""
        self._disks = tuple(disk for _, disk in disks)
        self._lock = threading.Lock()
        self._volumes: tuple[Volume, ...] | None = None
        self._folder = tempfile.TemporaryDirectory(prefix="files-")
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  # closed with the session
        try:
            self._connection, self._process = self._started()
            payload: dict[str, object] = {"disks": [[name, disk.size_bytes] for name, disk in disks]}
            for _ in self._conversation(payload):
                raise self._distrusted("an answer to nothing")
            self._folder.cleanup()  # it is in there, where nothing can be made any more
        except BaseException:
            self.close()
            raise

    def _started(self) -> tuple[socket.socket, subprocess.Popen[bytes]]:
        ours, theirs = socket.socketpair()
        with ExitStack() as unless_started, theirs:
            unless_started.callback(ours.close)
            process = subprocess.Popen(
                _command(self._folder.name, theirs.fileno()),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=self._errors,
                env=_environment(),
                pass_fds=(theirs.fileno(),),
                cwd="/",
                start_new_session=True,
            )
            unless_started.pop_all()
        return ours, process

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def volumes(self) -> tuple[Volume, ...]:
        """Of all disks. Raises FilesError, and ImagingError of the repository, as all below."""
        if self._volumes is None:
            with self._lock:
                told = self._items({"what": "volumes"}, entries.VOLUMES_MAX)
                self._volumes = tuple(self._checked(_volume, each) for each in told)
        return self._volumes

    def listing(self, volume: str, path: Path, offset: int = 0, limit: int = PAGE_MAX) -> Listing:
        assert 0 < limit <= PAGE_MAX
        request = self._request("list", volume, path) | {"offset": offset, "limit": limit}
        with self._lock:
            found: list[Entry] = []
            end: dict[str, object] = {}
            for fields in self._items(request, limit, volume, end):
                entry = self._checked(_entry, fields)
                if not is_name(entry.name):
                    raise self._distrusted("an entry that was not asked for")
                found.append(entry)
            total, refused = (_whole(end.get(name), 0, 1 << 40) for name in ("total", "refused"))
            if total is None or refused is None:
                raise self._distrusted("no count of entries")
            return Listing(tuple(found), total, refused)

    def stat(self, volume: str, path: Path) -> Entry:
        with self._lock:
            told = self._items(self._request("stat", volume, path), 1, volume)
            found = [self._checked(_entry, fields) for fields in told]
        if len(found) != 1 or found[0].name != (path[-1] if path else ""):
            raise self._distrusted("an entry that was not asked for")
        return found[0]

    def read(self, volume: str, path: Path, size_bytes: int) -> Iterator[Piece]:
        """All of a file of this size, in order. Whoever ends it early closes it, and this session with it."""
        with self._lock:
            left = size_bytes
            finished = False
            try:
                for piece in self._conversation(self._request("read", volume, path), volume):
                    if isinstance(piece, dict):
                        raise self._distrusted("an entry within a file")
                    left -= piece.length if isinstance(piece, Hole) else len(piece)
                    if left < 0:
                        raise self._distrusted("more of a file than there is")
                    yield piece
                if left:
                    raise self._distrusted("less of a file than there is")
                finished = True
            except FilesError:
                finished = True  # the worker may live, and has ended its answer
                raise
            finally:
                if not finished:
                    self._kill()

    def close(self) -> None:
        """Ends the worker. Safe again."""
        if hasattr(self, "_process"):
            self._kill()
            self._connection.close()
        self._errors.close()
        self._folder.cleanup()

    def _request(self, what: str, volume: str, path: Path) -> dict[str, object]:
        if len(path) > entries.DEPTH_MAX or not all(is_name(name) for name in path):
            raise PathRefused(joined(path))
        return {"what": what, "volume": volume, "path": list(path)}

    def _items(
        self, request: dict[str, object], most: int, volume: str = "", end: dict[str, object] | None = None
    ) -> Iterator[dict[str, object]]:
        for count, each in enumerate(self._conversation(request, volume, end), 1):
            if not isinstance(each, dict):
                raise self._distrusted("content where none was asked for")
            if count > most:
                raise self._distrusted(f"more than the {most} that there may be")
            yield each

    def _conversation(
        self, request: dict[str, object], volume: str = "", end: dict[str, object] | None = None
    ) -> Iterator[Piece | dict[str, object]]:
        """What the worker says until it is DONE; what it wants of the disks it gets."""
        if not self.alive:
            raise ReaderEnded(self._last_words())
        budget = Budget(_START_S if "disks" in request else budgets.REQUEST_S)
        try:
            with self._waiting(budget):
                frames.send_json(self._connection, Frame.ASK, request, budget.left_s)
            while True:
                with self._waiting(budget):
                    frame, payload = frames.receive(self._connection, budget.left_s)
                if frame is Frame.READ:
                    self._give(payload, budget)
                elif frame is Frame.DATA or frame is Frame.HOLE:
                    piece = self._piece(frame, payload)
                    budget.content(piece.length if isinstance(piece, Hole) else len(piece))
                    yield piece
                elif frame is Frame.ITEM:
                    if not budget.item(len(payload)):
                        raise Garbled("more than anybody has to tell")
                    yield frames.parse(payload)
                elif frame is Frame.DONE:
                    if end is not None:
                        end |= frames.parse(payload)
                    return
                elif frame is Frame.FAILED:
                    raise self._told(frames.parse(payload), volume)
                else:
                    raise Garbled(f"a frame {frame.name}")
        except Garbled as err:
            if err.ended:
                with suppress(subprocess.TimeoutExpired):
                    self._process.wait(1)
                raise ReaderEnded(self._last_words()) from err
            raise self._distrusted(str(err)) from err
        except OSError as err:
            self._kill()
            raise ReaderEnded(self._last_words()) from err

    @contextmanager
    def _waiting(self, budget: Budget) -> Iterator[None]:
        """For the worker, by its own time."""
        try:
            with budget.running():
                yield
        except TimeoutError as err:
            self._kill()
            raise ReaderEnded(f"it was not done in {budget.given_s:.0f} s") from err

    def _give(self, payload: bytes, budget: Budget) -> None:
        """Bytes of a disk, or its error."""
        if len(payload) != frames.READ_REQUEST.size:
            raise Garbled("a wish of another length")
        number, offset, length = frames.READ_REQUEST.unpack(payload)
        if number >= len(self._disks) or not 0 < length <= frames.READ_BYTES_MAX:
            raise Garbled("a wish for what there is not")
        disk = self._disks[number]
        if offset + length > disk.size_bytes:
            raise Garbled("a wish for what lies behind a disk")
        budget.read(length)
        if budget.exhausted:
            self._kill()
            raise ReaderEnded("it reads the disk without end")
        try:
            data = disk.pread(offset, length)
        except (ImagingError, OSError):
            self._kill()
            raise
        with self._waiting(budget):
            frames.send(self._connection, Frame.BYTES, data, budget.left_s)

    def _piece(self, frame: Frame, payload: bytes) -> Piece:
        if frame is Frame.DATA:
            if not payload:
                raise Garbled("content of no bytes")
            return payload
        if len(payload) != frames.HOLE_LENGTH.size:
            raise Garbled("a hole of another length")
        (length,) = frames.HOLE_LENGTH.unpack(payload)
        if not 0 < length <= entries.FILE_BYTES_MAX:
            raise Garbled("a hole of no size")
        return Hole(length)

    def _told(self, fields: dict[str, object], volume: str) -> FilesError:
        code, path, detail = (_said(fields.get(name)) for name in ("code", "path", "detail"))
        if code == "volume":
            return VolumeNotFound(volume, [each.name for each in self._volumes or () if each.readable])
        if code == "missing":
            return EntryNotFound(path)
        if code == "no-folder":
            return NotThatKind(path, detail, "folder")
        if code == "no-file":
            hint = "Links are not followed: ask for what it leads to." if detail == Kind.LINK else ""
            return NotThatKind(path, detail, "file", hint)
        return Unreadable(path or f"volume {volume}", detail or "nothing is known of why")

    def _checked(self, make: Callable[[dict[str, object]], Made], fields: dict[str, object]) -> Made:
        try:
            return make(fields)
        except ValueError as err:
            raise self._distrusted(f"{err} that is none") from err

    def _distrusted(self, what: str) -> ReaderEnded:
        self._kill()
        return ReaderEnded(f"its reader says what it must not: {what}")

    def _last_words(self) -> str:
        code = self._process.poll()
        if code == -signal.SIGXCPU:
            return _SIGXCPU
        self._errors.seek(0, os.SEEK_END)
        self._errors.seek(max(0, self._errors.tell() - _TEXT_MAX))
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        if lines:
            return f"its reader ended: {lines[-1][:300]}"
        return f"its reader was ended by signal {-code}" if code is not None and code < 0 else "its reader ended"

    def _kill(self) -> None:
        with suppress(ProcessLookupError):
            self._process.kill()
        self._process.wait()


def _command(folder: str, descriptor: int) -> list[str]:
    """The socket becomes descriptor 3: what else was inherited is closed by the worker."""
    program = (
        f"import os; os.dup2({descriptor}, 3) if {descriptor} != 3 else None;"
        " from imaging.filesystems.worker import main; main()"
    )
    return [sys.executable, "-s", "-c", program, folder]


def _environment() -> dict[str, str]:
    """Nothing secret; where this project is, if it is not installed."""
    here = str(FilePath(__file__).resolve().parent.parent.parent)
    return {"PATH": os.defpath, "PYTHONPATH": here, "PYTHONDONTWRITEBYTECODE": "1", "LC_ALL": "C.UTF-8", "TZ": "UTC"}


def _volume(fields: dict[str, object]) -> Volume:
    """ValueError names what is wrong."""
    name, disk, kind, label = (_said(fields.get(each)) for each in ("name", "disk", "kind", "label"))
    if not name:
        raise ValueError("a volume")
    size_bytes = _need(_whole(fields.get("size_bytes"), 0, 1 << 70), "a size")
    return Volume(
        name, disk, kind, label, size_bytes, Journal(_text(fields.get("journal"))), _said(fields.get("problem"))
    )


def _entry(fields: dict[str, object]) -> Entry:
    """ValueError names what is wrong."""
    modified_ns, mode, uid, gid = (fields.get(each) for each in ("modified_ns", "mode", "uid", "gid"))
    number = _text(fields.get("number"))
    if not number.isascii() or not number.isdigit() or len(number) > 40:
        raise ValueError("a number")
    return Entry(
        name=_text(fields.get("name")),
        kind=Kind(_text(fields.get("kind"))),
        size_bytes=_need(_whole(fields.get("size_bytes"), 0, 1 << 64), "a size"),
        modified_ns=_whole(modified_ns, -(1 << 70), 1 << 70),
        mode=_whole(mode, 0, 0o7777),
        uid=_whole(uid, 0, (1 << 32) - 1),
        gid=_whole(gid, 0, (1 << 32) - 1),
        number=int(number),
        link=_text(fields.get("link")),
        problem=_said(fields.get("problem")),
    )


def _text(value: object) -> str:
    return value[:_TEXT_MAX] if isinstance(value, str) else ""


def _said(value: object) -> str:
    """As `_text`, of what is only shown: without halves of characters."""
    return _text(value).encode("utf-8", "backslashreplace").decode()


def _whole(value: object, least: int, most: int) -> int | None:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        return None
    return value


def _need(value: int | None, what: str) -> int:
    if value is None:
        raise ValueError(what)
    return value
