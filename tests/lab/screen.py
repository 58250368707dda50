"""A person at a machine's screen: as much of RFB 3.8 (RFC 6143) as typing takes."""

from __future__ import annotations

import socket
import struct
import time
from types import TracebackType
from typing import Final, Self

_SHIFT: Final = 0xFFE1
_ENTER: Final = 0xFF0D
_SHIFTED: Final = '~!@#$%^&*()_+{}|:"<>?'
_STROKE_S: Final = 0.02  # a keyboard's controller has a short memory


class Screen:
    """Owns the stream, as `Machines.open_screen` gives it."""

    def __init__(self, stream: socket.socket) -> None:
        self._stream = stream
        stream.settimeout(120)
        version = self._receive(12)
        assert version.startswith(b"RFB 003."), version
        stream.sendall(b"RFB 003.008\n")
        kinds = self._receive(self._receive(1)[0])
        assert 1 in kinds, f"it asks for a password: {kinds!r}"
        stream.sendall(b"\x01")
        assert self._receive(4) == bytes(4)
        stream.sendall(b"\x01")
        self.width, self.height = struct.unpack(">HH", self._receive(4))
        self._receive(16)
        self.name = self._receive(struct.unpack(">I", self._receive(4))[0]).decode()

    def enter(self, line: str) -> None:
        """Type it, and Enter."""
        for character in line:
            shifted = character in _SHIFTED or character.isupper()
            if shifted:
                self._key(_SHIFT, down=True)
            self._stroke(ord(character))
            if shifted:
                self._key(_SHIFT, down=False)
        self._stroke(_ENTER)

    def _stroke(self, key: int) -> None:
        self._key(key, down=True)
        self._key(key, down=False)

    def _key(self, key: int, *, down: bool) -> None:
        self._stream.sendall(struct.pack(">BBHI", 4, down, 0, key))
        time.sleep(_STROKE_S)

    def _receive(self, count: int) -> bytes:
        received = b""
        while len(received) < count:
            more = self._stream.recv(count - len(received))
            assert more, f"the screen was closed after {received!r}"
            received += more
        return received

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stream.close()
