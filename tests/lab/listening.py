"""Waiting for a server's UNIX socket.

The rule: ready is a connection that was accepted: the socket's file is there from `bind` on, and until `listen` nobody
is let in.
"""

from __future__ import annotations

import socket
import subprocess
import time
from pathlib import Path
from typing import Any

_PATIENCE_S = 120.0


def accepts(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(str(path)) == 0


def wait_listening(path: Path, server: subprocess.Popen[Any]) -> None:
    """Until it lets a client in. AssertionError: it has ended, or does not."""
    deadline = time.monotonic() + _PATIENCE_S
    while not accepts(path):
        assert server.poll() is None, f"{server.args!r} ended with {server.returncode}"
        assert time.monotonic() < deadline, f"{server.args!r} does not listen"
        time.sleep(0.005)
