"""Ports for servers that have to be told one.

The rule: below those that the kernel gives to clients, and to servers that take any, so that only another caller of
this could take one before its server does; and to no two callers of this on one machine is the same one given, as long
as the process of the first lives: a name of the kernel's, that goes with the process, says that it is taken.
"""

from __future__ import annotations

import contextlib
import random
import socket
from typing import Final

_any = random.SystemRandom()  # not the one that a test may have seeded as another process has
_taken: Final[list[socket.socket]] = []


def free_port(among: range = range(22_000, 32_000), *, also: int = 0) -> int:
    """Nobody listens there now, nor at the port that is higher by `also`."""
    while True:
        port = _any.choice(among)
        with contextlib.suppress(OSError), contextlib.ExitStack() as given_back:
            names = [given_back.enter_context(_named(number)) for number in {port, port + also}]
            for number in {port, port + also}:
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", number))
            given_back.pop_all()
            _taken.extend(names)
            return port


def _named(port: int) -> socket.socket:
    """OSError: another has it."""
    name = socket.socket(socket.AF_UNIX)
    try:
        name.bind(f"\0strongroom-lab-port-{port}")
    except OSError:
        name.close()
        raise
    return name
