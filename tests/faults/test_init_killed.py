"""SIGKILL in the middle of `init`: the home is either in use and works, or it is unused and can be made again."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.unit.cli_runner import PROJECT, CommandLine

pytestmark = pytest.mark.faults

MOMENTS = 8


def init(line: CommandLine, *program: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, *(program or ("-m", "appliance.cli")), "init", "--repository", str(line.repository)],
        cwd=PROJECT,
        env=line.environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def line_in(folder: Path, capsys: pytest.CaptureFixture[str]) -> CommandLine:
    folder.mkdir()
    return CommandLine(folder, capsys)


def assert_works(line: CommandLine) -> None:
    """After an `init` that was killed, whenever that was."""
    if not (line.home / "keys" / "machine.key").exists():
        again = line("init", "--repository", str(line.repository))
        if again.code != 0:  # the repository was made, and nobody has its recovery key: the passphrase opens it
            assert "a repository is there" in again.error()
            assert line("repository", "adopt", str(line.repository)).code == 0
    assert line("repository", "verify", "--read-data").code == 0
    assert line.backup(b"x" * 5000)["kind"] == "full"


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
        assert_works(line)


@pytest.mark.parametrize(
    ("place", "when"),
    [
        ("imaging.repository:Repository.create", "before"),
        ("appliance.services.repositories:_take_on", "before"),
        ("appliance.home:write_machine_key", "before"),
        ("appliance.home:write_machine_key", "after"),
    ],
)
def test_so_does_one_that_is_killed_between_repository_and_key(
    place: str, when: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = line_in(tmp_path / "line", capsys)
    assert init(line, "-m", "tests.faults.crash", place, when, "1").wait(120) == -signal.SIGKILL
    assert_works(line)
