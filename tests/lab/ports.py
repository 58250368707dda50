"""Ports for servers that have to be told one.

The rule: below those that the kernel gives to clients, and to servers that take any, so that only another caller of
this could take one before its server does.
"""

from __future__ import annotations

import contextlib
import random
import socket

_any = random.SystemRandom()  # not the one that a test may have seeded as another process has


def free_port() -> int:
    """Nobody listens there now."""
    while True:
        port = _any.randrange(22_000, 32_000)
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            return port
