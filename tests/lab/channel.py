"""Commands to the test guest over its second serial port.

The rule: nothing is sent before the guest answered a greeting with this call's own token (what is sent right after
boot is lost), and only an answer with that token counts, so late answers of an earlier, abandoned call do no harm.
"""

from __future__ import annotations

import base64
import secrets
import socket
import time
from pathlib import Path

GREETING_PAUSE_S = 0.5
GREETING_TIMEOUT_S = 120.0


class GuestSilent(RuntimeError):
    """The guest did not answer in time."""


class CommandFailed(RuntimeError):
    """A command ended in the guest with another status than 0."""

    def __init__(self, command: str, status: int, output: bytes, errors: bytes) -> None:
        self.status = status
        self.output = output
        self.errors = errors
        said = (errors or output).decode(errors="replace").strip()
        super().__init__(f"{command!r} ended with status {status} in the guest: {said}")


class _Line:
    """The connection of one call. QEMU serves one client at a time, so it is closed after each."""

    def __init__(self, path: Path, deadline: float) -> None:
        self._path = path
        self.deadline = deadline
        self._received = b""
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._socket.settimeout(self._left_s())
            self._socket.connect(str(path))
        except OSError as err:
            self._socket.close()
            raise GuestSilent(f"{path}: the guest's command port cannot be reached: {err}") from err

    def close(self) -> None:
        self._socket.close()

    def send(self, text: str) -> None:
        self._socket.settimeout(self._left_s())
        try:
            self._socket.sendall(text.encode() + b"\n")
        except OSError as err:
            raise GuestSilent(f"{self._path}: the guest's command port broke: {err}") from err

    def line_that_starts_with(self, start: str, timeout_s: float) -> str | None:
        """The first such line, or None after `timeout_s` without one. GuestSilent when the guest went away."""
        until = min(time.monotonic() + timeout_s, self.deadline)
        while True:
            while b"\n" in self._received:
                line, self._received = self._received.split(b"\n", 1)
                text = line.decode("ascii", errors="replace").strip()
                if text.startswith(start):
                    return text
            left_s = until - time.monotonic()
            if left_s <= 0:
                return None
            self._socket.settimeout(left_s)
            try:
                received = self._socket.recv(1 << 16)
            except TimeoutError:
                return None
            except OSError as err:
                raise GuestSilent(f"{self._path}: the guest's command port broke: {err}") from err
            if not received:
                raise GuestSilent(f"{self._path}: the guest's command port was closed")
            self._received += received

    def _left_s(self) -> float:
        left_s = self.deadline - time.monotonic()
        if left_s <= 0:
            raise GuestSilent(f"{self._path}: the guest took no command in time")
        return left_s


def run_in_guest(path: Path, command: str, *, timeout_s: float) -> bytes:
    """Run one shell command in the guest and return its standard output. CommandFailed, GuestSilent.

    `timeout_s` is the command's own, from when the guest has answered the greeting.
    """
    token = secrets.token_hex(8)
    line = _Line(path, time.monotonic() + GREETING_TIMEOUT_S)
    try:
        while True:
            # The empty line ends what an earlier, abandoned call may have left half sent.
            line.send(f"\nhello {token}")
            if line.line_that_starts_with(f"hello {token}", GREETING_PAUSE_S) is not None:
                break
        line.deadline = time.monotonic() + timeout_s
        line.send(f"run {token} {base64.b64encode(command.encode()).decode()}")
        answer = line.line_that_starts_with(f"done {token} ", timeout_s)
    finally:
        line.close()
    if answer is None:
        raise GuestSilent(f"{path}: {command!r} did not end in the guest within {timeout_s:g} s")
    _, _, status, output, errors = answer.split(" ")
    if int(status):
        raise CommandFailed(command, int(status), _decoded(output), _decoded(errors))
    return _decoded(output)


def _decoded(field: str) -> bytes:
    return b"" if field == "-" else base64.b64decode(field, validate=True)
