"""The process that parses what guests wrote, with a socket as descriptor 3 and an empty folder as its argument.

The rule: everything is loaded, then everything is given up (`sandbox`), and only then comes the first byte of a disk.
It answers one request after the other; what goes wrong in one is told, and a read of a disk that failed ends it.
"""

from __future__ import annotations

import importlib
import json
import os
import socket
import sys
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from imaging.filesystems import sandbox
from imaging.filesystems.engines import Content, Engine, NotRead, Number
from imaging.filesystems.entries import DEPTH_MAX, FILE_BYTES_MAX, Kind, is_name, joined
from imaging.filesystems.frames import (
    ALLOWANCE_BYTES,
    HOLE_LENGTH,
    READ_BYTES_MAX,
    READ_REQUEST,
    Frame,
    Garbled,
    parse,
    receive,
    send,
)
from imaging.filesystems.volumes import Place, Volumes
from imaging.filesystems.windows import CachedDisk

SOCKET: Final = 3
ENTRIES_MAX: Final = 1_000_000
_KEPT_ENTRIES: Final = 1_200_000
_ENGINES_MAX: Final = 8
_REASON_MAX: Final = 300
_LATER: Final = ("encodings.utf_16_le", "encodings.cp437", "encodings.latin_1", "encodings.ascii", "zlib", "ast")
"""What is loaded only when it is first used, by us or by parsers."""


class Line:
    """To whoever asks. When nobody is there, or a disk could not be read (which they know), this process ends: no
    parser has to pass that on."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection

    def send(self, frame: Frame, payload: bytes = b"") -> None:
        try:
            send(self._connection, frame, payload)
        except OSError:
            os._exit(0)

    def say(self, frame: Frame, value: object) -> None:
        self.send(frame, json.dumps(value, separators=(",", ":")).encode("ascii"))

    def receive(self) -> tuple[Frame, bytes]:
        try:
            return receive(self._connection)
        except (Garbled, OSError):
            os._exit(0)

    def fetcher(self, disk: int) -> Callable[[int, int], bytes]:
        def fetch(offset: int, length: int) -> bytes:
            self.send(Frame.READ, READ_REQUEST.pack(disk, offset, length))
            frame, data = self.receive()
            if frame is not Frame.BYTES or len(data) != length:
                os._exit(0)
            return data

        return fetch


class Refused(Exception):
    """A request that has no answer: `code` says which error it is for whoever asked."""

    def __init__(self, code: str, path: str = "", detail: str = "") -> None:
        super().__init__(code)
        self.code, self.path, self.detail = code, path, detail


@dataclass(slots=True)
class Folder:
    """Names by which its entries are found; `order`: as they are shown."""

    numbers: dict[str, tuple[Kind | None, Number]]
    order: list[str]
    refused: int


class Worker:
    def __init__(self, line: Line, disks: list[tuple[str, int]]) -> None:
        self._line = line
        self._volumes = Volumes(
            [(name, CachedDisk(line.fetcher(index), size)) for index, (name, size) in enumerate(disks)]
        )
        self._engines: OrderedDict[str, Engine] = OrderedDict()
        self._folders: OrderedDict[tuple[str, Number], Folder] = OrderedDict()

    def answer(self, request: dict[str, object]) -> None:
        """Sends everything, DONE or FAILED at the end."""
        sandbox.allow()
        what = request["what"]
        try:
            if what == "volumes":
                for place in self._volumes.places.values():
                    self._item(place.volume, journal=place.volume.journal.value)
                self._line.say(Frame.DONE, {})
                return
            name, path = str(request["volume"]), _names(request["path"])
            engine = self._engine(name)
            number = self._find(name, engine, path)
            if what == "list":
                self._list(name, engine, number, path, int(str(request["offset"])), int(str(request["limit"])))
            elif what == "stat":
                self._entry(engine, path[-1] if path else "", number)
                self._line.say(Frame.DONE, {})
            else:
                self._read(engine, path, number)
        except Refused as err:
            self._failed(err.code, err.path, err.detail)
        except NotRead as err:
            self._failed("unreadable", "", str(err))
        except MemoryError:
            self._engines.clear()
            self._folders.clear()
            self._failed("unreadable", "", "it needs more memory than it may have")
        except Exception as err:  # noqa: BLE001  # parsers of hostile data raise anything
            self._failed("unreadable", "", f"it is damaged ({type(err).__name__}: {err})")

    def _failed(self, code: str, path: str, detail: str) -> None:
        self._line.say(Frame.FAILED, {"code": code, "path": path, "detail": detail[:_REASON_MAX]})

    def _engine(self, name: str) -> Engine:
        place = self._volumes.places.get(name)
        if place is None:
            raise Refused("volume", name)
        if place.volume.problem:
            raise NotRead(place.volume.problem)
        engine = self._engines.get(name)
        if engine is None:
            engine = self._opened(place)
            self._engines[name] = engine
            if len(self._engines) > _ENGINES_MAX:
                self._engines.popitem(last=False)
        self._engines.move_to_end(name)
        return engine

    def _opened(self, place: Place) -> Engine:
        return self._volumes.engine(place)

    def _find(self, volume: str, engine: Engine, path: tuple[str, ...]) -> Number:
        number = engine.root
        for depth, name in enumerate(path, 1):
            known = self._folder(volume, engine, number).numbers.get(name)
            if known is None:
                raise Refused("missing", joined(path[:depth]))
            kind, number = known
            if depth < len(path) and (kind or engine.stat(number).kind) is not Kind.FOLDER:
                raise Refused("no-folder", joined(path[:depth]), engine.stat(number).kind.value)
        return number

    def _folder(self, volume: str, engine: Engine, number: Number) -> Folder:
        key = (volume, number)
        folder = self._folders.get(key)
        if folder is None:
            folder = _folder(engine.children(number))
            self._folders[key] = folder
            while len(self._folders) > 1 and sum(len(each.order) for each in self._folders.values()) > _KEPT_ENTRIES:
                self._folders.popitem(last=False)
        self._folders.move_to_end(key)
        return folder

    def _list(
        self, volume: str, engine: Engine, number: Number, path: tuple[str, ...], offset: int, limit: int
    ) -> None:
        kind = engine.stat(number).kind
        if kind is not Kind.FOLDER:
            raise Refused("no-folder", joined(path), kind.value)
        folder = self._folder(volume, engine, number)
        for name in folder.order[offset : offset + limit]:
            self._entry(engine, name, folder.numbers[name][1])
        self._line.say(Frame.DONE, {"total": len(folder.order), "refused": folder.refused})

    def _entry(self, engine: Engine, name: str, number: Number) -> None:
        fields: dict[str, object] = {"name": name, "number": str(number)}
        try:
            found = engine.stat(number)
            fields |= {
                "kind": found.kind.value, "size_bytes": found.size_bytes, "modified_ns": found.modified_ns,
                "mode": found.mode, "uid": found.uid, "gid": found.gid, "link": found.link,
                "problem": found.problem[:_REASON_MAX],
            }  # fmt: skip
        except MemoryError:
            raise
        except Exception as err:  # noqa: BLE001
            reason = f"it is damaged ({type(err).__name__}: {err})"[:_REASON_MAX]
            fields |= {"kind": "other", "size_bytes": 0, "problem": reason}
        self._line.say(Frame.ITEM, fields)

    def _read(self, engine: Engine, path: tuple[str, ...], number: Number) -> None:
        found = engine.stat(number)
        if found.kind is not Kind.FILE:
            raise Refused("no-file", joined(path), found.kind.value)
        if found.size_bytes and not 0 <= found.size_bytes <= FILE_BYTES_MAX:
            raise NotRead(f"it claims a size of {found.size_bytes} bytes")
        if found.size_bytes:
            self._send_content(engine.content(number))
        self._line.say(Frame.DONE, {})

    def _send_content(self, content: Content) -> None:
        at = allowed = 0
        for offset, length in (*content.holes, (content.size_bytes, 0)):
            if offset > at:
                content.file.seek(at)
            while at < offset:
                wanted = min(READ_BYTES_MAX, offset - at)
                data = content.file.read(wanted)
                if len(data) != wanted:
                    raise NotRead(f"it ends after {at + len(data)} of {content.size_bytes} bytes")
                if data.count(0) == wanted:
                    self._line.send(Frame.HOLE, HOLE_LENGTH.pack(wanted))
                else:
                    self._line.send(Frame.DATA, data)
                at += wanted
                if at - allowed >= ALLOWANCE_BYTES:
                    sandbox.allow()
                    allowed = at
            if length:
                self._line.send(Frame.HOLE, HOLE_LENGTH.pack(length))
                at += length

    def _item(self, value: object, **others: object) -> None:
        fields = {name: getattr(value, name) for name in value.__dataclass_fields__}  # type: ignore[attr-defined]
        self._line.say(Frame.ITEM, fields | others)


def _names(value: object) -> tuple[str, ...]:
    assert isinstance(value, list)
    names = tuple(str(name) for name in value)
    if len(names) > DEPTH_MAX or not all(is_name(name) for name in names):
        raise Refused("missing", "")
    return names


def _folder(children: Iterable[tuple[str, Kind | None, Number]]) -> Folder:
    numbers: dict[str, tuple[Kind | None, Number]] = {}
    refused = 0
    for name, kind, number in children:
        if name in (".", ".."):
            continue
        if not is_name(name) or name in numbers:
            refused += 1
            continue
        if len(numbers) >= ENTRIES_MAX:
            raise NotRead(f"it has more than {ENTRIES_MAX} entries")
        numbers[name] = (kind, number)
    order = sorted(numbers, key=lambda name: (numbers[name][0] is not Kind.FOLDER, name.casefold(), name))
    return Folder(numbers, order, refused)


def main() -> None:
    line = Line(socket.socket(fileno=SOCKET))
    os.environ["TZ"] = "UTC"
    time.tzset()
    for name in _LATER:
        importlib.import_module(name)
    sandbox.enter(SOCKET + 1, sys.argv[1])
    disks = parse(line.receive()[1])["disks"]
    assert isinstance(disks, list)
    worker = Worker(line, [(str(name), int(size)) for name, size in disks])
    line.say(Frame.DONE, {})
    while True:
        worker.answer(parse(line.receive()[1]))


if __name__ == "__main__":
    main()
