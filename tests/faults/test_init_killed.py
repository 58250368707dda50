"""SIGKILL in the middle of `init`: the home is either in use and works, or it is unused and can be made again."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.unit.cli_runner import PROJECT, CommandLine

pytestmark = pytest.mark.faults

MOMENTS = 8


def init(line: CommandLine) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "appliance.cli", "init", "--repository", str(line.repository)],
        cwd=PROJECT,
        env=line.environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def line_in(folder: Path, capsys: pytest.CaptureFixture[str]) -> CommandLine:
    folder.mkdir()
    return CommandLine(folder, capsys)


def test_a_killed_init_leaves_nothing_half_done(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = line_in(tmp_path / "whole", capsys)
    began = time.monotonic()
    assert init(whole).wait(120) == 0
    takes_s = time.monotonic() - began
    for number in range(MOMENTS):
        line = line_in(tmp_path / str(number), capsys)
        process = init(line)
        time.sleep(takes_s * (0.4 + 0.6 * number / MOMENTS))  # before that, Python is still importing
        process.kill()
        process.wait(60)
        if not (line.home / "keys" / "machine.key").exists():
            again = line("init", "--repository", str(line.repository))
            if again.code != 0:  # the repository was made, and nobody has its recovery key: the passphrase opens it
                assert "a repository is there" in again.error()
                assert line("repository", "adopt", str(line.repository)).code == 0
        assert line("repository", "verify", "--read-data").code == 0
        assert line.backup(b"x" * 5000)["kind"] == "full"
