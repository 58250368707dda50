"""Measured commands.

The rule: where time matters, all dirty pages are written back before, so that no command pays for what another left;
output goes to files, so that a server which outlives its command cannot hold the benchmark up.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

METER = Path(__file__).with_name("meter.py")
_TOLD_BYTES = 2000


class BenchError(Exception):
    """The benchmark cannot go on; one sentence."""


class CommandFailed(BenchError):
    def __init__(self, command: Sequence[str], code: int, said: str) -> None:
        super().__init__(f"exit code {code}: {shlex.join(command)}\n{said.strip()[-_TOLD_BYTES:]}")
        self.code = code


@dataclass(frozen=True, slots=True)
class Usage:
    """What a command cost. RSS is the largest process's; anonymous memory that of all of them together, and of the
    command's own process, both sampled every 50 ms. `disk_read_mib`: what did not come from the page cache."""

    seconds: float
    cpu_s: float
    disk_read_mib: float
    peak_rss_mib: float
    peak_anonymous_mib: float
    command_anonymous_mib: float
    left_running: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Measured:
    usage: Usage
    output: str


def measure(
    command: Sequence[str],
    *,
    environment: Mapping[str, str] | None = None,
    folder: Path | None = None,
    accepted: Sequence[int] = (0,),
    settle: bool = True,
) -> Measured:
    """Run a command to its end and say what it cost and printed. `settle`: write back first what others left dirty.

    Raises CommandFailed.
    """
    if settle:
        os.sync()
    with tempfile.TemporaryDirectory(prefix="strongroom-bench-") as scratch:
        result, out, err = (Path(scratch) / name for name in ("result.json", "out", "err"))
        with out.open("wb") as stdout, err.open("wb") as stderr:
            meter = subprocess.Popen(
                [sys.executable, "-S", str(METER), str(result), *command],
                env={**os.environ, **(environment or {})},
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
            )
            try:
                code = meter.wait()
            except BaseException:
                meter.terminate()  # which the meter hands to the command
                meter.wait()
                raise
        said = err.read_text(errors="replace")
        if code not in accepted or not result.exists():
            raise CommandFailed(command, code, said or out.read_text(errors="replace"))
        report = json.loads(result.read_text())
        report["left_running"] = tuple(report["left_running"])
        return Measured(Usage(**report), out.read_text(errors="replace"))


def say(text: str) -> None:
    """What is being done now, for whoever waits."""
    print(f"bench: {text}", file=sys.stderr, flush=True)


def run(command: Sequence[str], *, folder: Path | None = None) -> str:
    """An unmeasured step. Returns its output; raises CommandFailed."""
    done = subprocess.run(command, cwd=folder, capture_output=True, stdin=subprocess.DEVNULL, check=False)
    if done.returncode != 0:
        raise CommandFailed(command, done.returncode, (done.stderr or done.stdout).decode(errors="replace"))
    return done.stdout.decode(errors="replace")


def disk_usage_bytes(path: Path) -> int:
    """What a folder occupies on disk, as du counts it."""
    seen: set[tuple[int, int]] = set()
    total = 0
    for folder, _, names in os.walk(path):
        for entry in (folder, *(os.path.join(folder, name) for name in names)):
            found = os.lstat(entry)
            if (found.st_dev, found.st_ino) not in seen:
                seen.add((found.st_dev, found.st_ino))
                total += found.st_blocks * 512
    return total


def warm(path: Path) -> None:
    """Read a file, or every file of a folder, so that it lies in the page cache."""
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    buffer = bytearray(1 << 20)
    for file in files:
        with file.open("rb", buffering=0) as opened:
            while opened.readinto(buffer):
                pass
