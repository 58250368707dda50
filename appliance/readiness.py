"""Tells the service manager how this process stands: systemd's notification protocol (sd_notify(3)).

The rule: where nobody asked to be told (no NOTIFY_SOCKET), nothing happens, and a message that cannot be sent hurts
nothing.
"""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import MutableMapping
from contextlib import suppress

LOOK_S = 1.0
"""How long the main thread waits at once: a signal that comes the moment before it begins to wait does not wake it, and
its handler would run never."""

_SOCKET, _WATCHDOG, _WATCHED = "NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"


class Readiness:
    """Takes what the service manager put into the environment out of it, so that no child speaks for this process."""

    def __init__(self, environment: MutableMapping[str, str] = os.environ) -> None:
        address = environment.pop(_SOCKET, "")
        self._address = "\0" + address[1:] if address.startswith("@") else address
        within_us, watched = environment.pop(_WATCHDOG, ""), environment.pop(_WATCHED, str(os.getpid()))
        self._every_s: float | None = None  # half of what is allowed
        if within_us.isdecimal() and watched == str(os.getpid()):
            self._every_s = int(within_us) / 2_000_000

    def keep_telling(self, status: str, stop: threading.Event) -> None:
        """That this process is ready, then, until `stop`, that it is alive, in the end that it stops."""
        self._send(f"READY=1\nSTATUS={status}")
        while not stop.wait(self._every_s or LOOK_S):
            if self._every_s is not None:
                self._send("WATCHDOG=1")
        self._send("STOPPING=1")

    def _send(self, text: str) -> None:
        if not self._address:
            return
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
            sender.sendto(text.encode(), self._address)
