"""Whole commands under a clock that is more than a year off, in either direction (libfaketime, from Debian's package).

A lease is dead when its counter stands still for long enough by the observer's monotonic clock, and points follow one
another by their generations: no time that a machine states decides anything, but retention, which refuses.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tests.unit.cli_runner import PROJECT, CommandLine, Ran

pytestmark = pytest.mark.faults
MIB = 1 << 20
SHIFTS = ["+400d", "-400d"]


def library() -> str:
    found = sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))
    assert found, "Debian's package libfaketime is missing: '.ci/setup --test' installs it"
    return str(found[0])


@pytest.fixture
def strongroom(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> CommandLine:
    return CommandLine.new(tmp_path / "a", capsys)


def run(line: CommandLine, shift: str | None, *arguments: str, code: int = 0) -> Ran:
    """A command by another clock, which is a process of its own; or by the right one, which is quicker in this one."""
    done = line(*arguments) if shift is None else line.process(*arguments, LD_PRELOAD=library(), FAKETIME=shift)
    assert done.code == code, done.err
    return done


def image(line: CommandLine, name: str, content: bytes) -> list[str]:
    """The words of a backup of a raw image with this content."""
    path = line.folder / f"{name}.raw"
    path.write_bytes(content)
    return ["backup", "--image", str(path), "--format", "raw", "--name", name, "--json"]


def restored(line: CommandLine, name: str, point: str) -> bytes:
    target = line.folder / "restored.raw"
    target.unlink(missing_ok=True)
    run(line, None, "restore", name, "--point", point, "--to", str(target), "--format", "raw")
    return target.read_bytes()


@pytest.mark.parametrize("shift", SHIFTS)
def test_points_follow_one_another_and_none_expires(strongroom: CommandLine, shift: str) -> None:
    contents = [os.urandom(MIB) for _ in range(3)]
    ids = [
        run(strongroom, each, *image(strongroom, "web", content)).json()["id"]
        for each, content in zip([None, shift, None], contents, strict=True)
    ]
    times = [datetime.fromisoformat(each["created_utc"]) for each in strongroom("point", "list", "--json").json()]
    off = [each for each in times if abs(each - datetime.now(UTC)) > timedelta(days=390)]
    assert len(off) == 1, "the clock was not shifted"

    assert "web" in run(strongroom, None, "prune", "--keep-last", "1", "--yes", code=3).err
    assert len(strongroom("point", "list", "--json").json()) == 3

    run(strongroom, shift, "repository", "collect")
    run(strongroom, shift, "repository", "verify", "--read-data")
    for point, content in zip(ids, contents, strict=True):
        assert restored(strongroom, "web", point) == content
    assert restored(strongroom, "web", "latest") == contents[-1], "what was made last, whatever the clock said"


@pytest.mark.parametrize("shift", SHIFTS)
def test_a_collection_by_another_clock_takes_nothing_from_a_run_under_way(strongroom: CommandLine, shift: str) -> None:
    """At its last moment: all of its packs are there, its manifest too, and neither counts yet."""
    gone = run(strongroom, None, *image(strongroom, "web", os.urandom(MIB))).json()["id"]
    content = os.urandom(MIB)
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.faults.crash", "imaging.running:Run._end", "before-SIGSTOP", "1",
         *image(strongroom, "other", content)],
        cwd=PROJECT, env=strongroom.environment, text=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        _, status = os.waitpid(process.pid, os.WUNTRACED)
        assert os.WIFSTOPPED(status), "it was not suspended"
        run(strongroom, shift, "point", "delete", gone, "--yes")
        told = run(strongroom, shift, "repository", "collect", "--wait", "0", "--json", code=3).json()
        assert len(told["waiting_for"]) == 1, "it sleeps, and is not dead"
    finally:
        process.send_signal(signal.SIGCONT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert restored(strongroom, "other", json.loads(out)["id"]) == content
    run(strongroom, shift, "repository", "collect")
    run(strongroom, None, "repository", "verify", "--read-data")
