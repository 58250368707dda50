"""What goes between a session and its worker: frames over a socket, each with a kind and a bounded length.

    kind (1 byte)  length (4 bytes, big endian)  payload

    from the session   ASK      JSON: one request; the worker answers with any number of others and then DONE or FAILED
                       BYTES    what READ asked for; empty where the disk could not be read, which ends the request
    from the worker    READ     disk (4 bytes), offset (8), length (4): wants bytes of a disk
                       ITEM     JSON: a volume, or an entry
                       DATA     content of a file
                       HOLE     8 bytes: so many zeros of a file
                       DONE     JSON: the request is answered
                       FAILED   JSON: why it is not

The rule: a length is looked at before anything of it is read, and what is longer ends the conversation. Who waits only
so long (`left_s`) is asked before every wait, not for every frame: a byte now and then holds up nobody.
"""

from __future__ import annotations

import json
import socket
import struct
from collections.abc import Callable
from enum import IntEnum
from typing import Final

READ_BYTES_MAX: Final = 1 << 20
JSON_BYTES_MAX: Final = 64 << 10
ALLOWANCE_BYTES: Final = 64 << 20
"""Of content: for so much there is as much time again as for a request."""
Left = Callable[[], float]
"""How long one may still wait, in seconds, above 0. TimeoutError: no longer."""
_HEAD: Final = struct.Struct(">BI")
READ_REQUEST: Final = struct.Struct(">IQI")
HOLE_LENGTH: Final = struct.Struct(">Q")


class Frame(IntEnum):
    ASK = 1
    BYTES = 2
    READ = 3
    ITEM = 4
    DATA = 5
    HOLE = 6
    DONE = 7
    FAILED = 8


_MOST: Final = {
    Frame.ASK: 1 << 20,
    Frame.BYTES: READ_BYTES_MAX,
    Frame.READ: READ_REQUEST.size,
    Frame.ITEM: JSON_BYTES_MAX,
    Frame.DATA: READ_BYTES_MAX,
    Frame.HOLE: HOLE_LENGTH.size,
    Frame.DONE: JSON_BYTES_MAX,
    Frame.FAILED: JSON_BYTES_MAX,
}


class Garbled(Exception):
    """What came is no frame, or the other side is gone (`ended`)."""

    def __init__(self, reason: str, *, ended: bool = False) -> None:
        super().__init__(reason)
        self.ended = ended


def send(
    connection: socket.socket, frame: Frame, payload: bytes | memoryview = b"", left_s: Left | None = None
) -> None:
    """OSError, TimeoutError."""
    assert len(payload) <= _MOST[frame]
    for part in (_HEAD.pack(frame, len(payload)), payload):
        if part:
            if left_s is not None:
                connection.settimeout(left_s())  # of all that `sendall` does
            connection.sendall(part)


def send_json(connection: socket.socket, frame: Frame, value: object, left_s: Left | None = None) -> None:
    send(connection, frame, json.dumps(value, separators=(",", ":")).encode("ascii"), left_s)


def receive(connection: socket.socket, left_s: Left | None = None) -> tuple[Frame, bytes]:
    """Garbled; OSError, TimeoutError."""
    kind, length = _HEAD.unpack(_exactly(connection, _HEAD.size, left_s))
    try:
        frame = Frame(kind)
    except ValueError as err:
        raise Garbled(f"a frame of kind {kind}") from err
    if length > _MOST[frame]:
        raise Garbled(f"a frame {frame.name} of {length} bytes")
    return frame, _exactly(connection, length, left_s)


def parse(payload: bytes) -> dict[str, object]:
    """An object of JSON. Garbled."""
    try:
        value = json.loads(payload)
    except (ValueError, RecursionError) as err:
        raise Garbled("a payload that is no JSON") from err
    if not isinstance(value, dict):
        raise Garbled("a payload that is no object")
    return value


def _exactly(connection: socket.socket, length: int, left_s: Left | None) -> bytes:
    buffer = bytearray(length)
    view, have = memoryview(buffer), 0
    while have < length:
        if left_s is not None:
            connection.settimeout(left_s())
        count = connection.recv_into(view[have:])
        if count == 0:
            raise Garbled("the other side has closed", ended=True)
        have += count
    return bytes(buffer)
