"""Programs run on the hypervisor's host: always an argument list, always with limits.

The rule: an image may be hostile, so a tool that opens one has a limit on CPU time, on memory and on wall time, gets no
input and no secret in its environment, and its answer is bounded.
"""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from typing import Protocol

from appliance.hypervisor.errors import ImageToolFailed
from imaging.images import bare_environment

CPU_LIMIT_S = 60
MEMORY_LIMIT_BYTES = 2 * 1024**3
WALL_LIMIT_S = 120.0
_MAX_ANSWER_BYTES = 16 * 1024 * 1024


class Tools(Protocol):
    def run(self, arguments: Sequence[str], subject: str) -> bytes:
        """Its standard output; ImageToolFailed (naming subject) when it fails or passes a limit."""


def limited(arguments: Sequence[str]) -> list[str]:
    return ["prlimit", f"--cpu={CPU_LIMIT_S}", f"--as={MEMORY_LIMIT_BYTES}", "--core=0", *arguments]


class LocalTools:
    """Runs them here."""

    def run(self, arguments: Sequence[str], subject: str) -> bytes:
        return run_bounded(limited(arguments), arguments[0], subject)


def run_bounded(command: Sequence[str], tool: str, subject: str, timeout_s: float = WALL_LIMIT_S) -> bytes:
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=timeout_s,
            check=False,
            env=bare_environment(),
        )
    except subprocess.TimeoutExpired as error:
        raise ImageToolFailed(tool, subject, f"it took longer than {timeout_s:g} s") from error
    except OSError as error:
        raise ImageToolFailed(tool, subject, f"it could not be run: {error}") from error
    raise_for_tool(tool, subject, done)
    return done.stdout


def raise_for_tool(tool: str, subject: str, done: subprocess.CompletedProcess[bytes]) -> None:
    """ImageToolFailed when it failed, or said more than it may."""
    if done.returncode != 0:
        words = " ".join(done.stderr.decode("utf-8", "replace").split())[:500]
        raise ImageToolFailed(tool, subject, words or f"exit status {done.returncode}")
    if len(done.stdout) > _MAX_ANSWER_BYTES:
        raise ImageToolFailed(tool, subject, f"its answer is longer than {_MAX_ANSWER_BYTES} bytes")
