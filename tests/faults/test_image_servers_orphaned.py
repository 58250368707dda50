"""Servers of images die with whoever started them, at whatever moment that happens."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from imaging.images import dying_with_parent

pytestmark = pytest.mark.faults

STARTS = """
import subprocess, sys, time
from imaging.images import dying_with_parent
command = dying_with_parent(["sh", "-c", 'echo "$$" >"$1"; exec sleep 60', "sh", sys.argv[1]])
subprocess.Popen(command)
time.sleep(60)
"""


def gone(pid: int) -> bool:
    try:
        return "\nState:\tZ" in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):  # before, or while, it is read
        return True


def test_a_killed_process_takes_its_servers_along(tmp_path: Path) -> None:
    told = tmp_path / "pid"
    parent = subprocess.Popen([sys.executable, "-c", STARTS, told])
    try:
        deadline = time.monotonic() + 120
        while not (told.exists() and told.read_text().strip()):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        child = int(told.read_text())
        assert not gone(child)
    finally:
        parent.send_signal(signal.SIGKILL)
        parent.wait()
    deadline = time.monotonic() + 120
    while not gone(child):
        assert time.monotonic() < deadline, "it outlives who started it"
        time.sleep(0.01)


def test_one_that_is_killed_while_it_starts_a_server_leaves_none(tmp_path: Path) -> None:
    """Killed after the fork, and before the kernel was told to take the child along: who starts it is not there."""
    mark = tmp_path / "mark"
    command = dying_with_parent(["touch", str(mark)])
    assert subprocess.run(command, check=False).returncode == 0
    mark.unlink()
    # The same command, but its parent is another than the process that made it, as it is for an orphan.
    assert subprocess.run(["sh", "-c", '"$@" & wait "$!"', "sh", *command], check=False).returncode == 1
    assert not mark.exists()
    assert str(os.getpid()) in command
