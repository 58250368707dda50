"""SIGTERM and SIGHUP end a command in order: what it undoes on its way out is undone, and the exit code tells."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import pytest

from appliance.bootstrap import Appliance
from appliance.models import RunState
from appliance.services.repositories import RepositoryService
from appliance.settings import load
from tests.unit.cli_runner import PROJECT, CommandLine

ENDING = [signal.SIGTERM, signal.SIGHUP]


@pytest.fixture
def strongroom(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> CommandLine:
    line = CommandLine(tmp_path, capsys)
    line.init()
    return line


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    before = {number: signal.signal(number, signal.SIG_DFL) for number in ENDING}  # tests may be run by nohup
    yield
    now = [signal.getsignal(number) for number in ENDING]
    for number, handler in before.items():
        signal.signal(number, handler)
    assert now == [signal.SIG_DFL, signal.SIG_DFL], "a command leaves no handler behind"


def signals_itself(number: signal.Signals) -> NoReturn:
    """And clean-up gets the same signal again, which must not cut it short."""
    try:
        os.kill(os.getpid(), number)
        time.sleep(60)
        raise AssertionError("it was not ended")
    finally:
        os.kill(os.getpid(), number)
        time.sleep(0)
        Path(os.environ["STRONGROOM_HOME"], "cleaned-up").touch()


@pytest.mark.parametrize("number", ENDING)
def test_a_signal_ends_a_command_as_ctrl_c_does(
    strongroom: CommandLine, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    monkeypatch.setattr(RepositoryService, "info", lambda _: signals_itself(number))
    done = strongroom("repository", "info")
    assert done.code == 128 + number
    assert done.err.strip().endswith(f"error: interrupted by {number.name}")
    assert (strongroom.home / "cleaned-up").exists()


def test_what_was_started_to_ignore_a_closing_terminal_goes_on(
    strongroom: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = RepositoryService.info

    def closing(service: RepositoryService) -> object:
        os.kill(os.getpid(), signal.SIGHUP)
        return info(service)

    monkeypatch.setattr(RepositoryService, "info", closing)
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert strongroom("repository", "info").code == 0
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_backup_that_is_told_to_end_leaves_nothing(strongroom: CommandLine) -> None:
    first = strongroom.backup(os.urandom(300_000), "web")
    image = strongroom.folder / "image.raw"
    place = ("appliance.services.backup.storing:Storer.store_disk", "before-SIGTERM", "1")
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults.crash", *place,
         "backup", "--image", str(image), "--format", "raw", "--name", "web"],
        cwd=PROJECT, env=strongroom.environment, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 143, done.stderr
    with Appliance(load(strongroom.environment)) as appliance:
        run = appliance.catalog.runs.list(limit=1)[0]
        assert (run.state, run.error) == (RunState.FAILED, "it was ended by SIGTERM")
        assert [point.id for point in appliance.repository.points()] == [first["id"]]
        assert not list(appliance.settings.run_directory.glob("run-*"))
    assert strongroom.backup(image.read_bytes(), "web")["id"] != first["id"]


@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 143), ("SIGINT", 1)])
def test_packs_that_wait_under_a_low_limit_hold_up_no_end(strongroom: CommandLine, name: str, code: int) -> None:
    """At a byte a second both packs under way would wait for half a year."""
    image = strongroom.folder / "image.raw"
    image.write_bytes(os.urandom(36 << 20))
    backup = ("backup", "--image", str(image), "--format", "raw", "--name", "web")
    place = ("appliance.cli.signals:Ending.wait", f"before-{name}", "2")
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults.crash", *place, *backup, "--limit", "1"],
        cwd=PROJECT, env=strongroom.environment, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert (done.returncode, "interrupted" in done.stderr) == (code, True), done.stderr
    assert strongroom("point", "list", "--json").json() == []
    assert list((strongroom.repository / "packs").rglob("*")) == []
    assert strongroom(*backup).code == 0


def test_a_terminal_that_is_gone_does_not_spoil_the_end(strongroom: CommandLine) -> None:
    """Whatever is written to it then fails, and something always is."""
    mark = strongroom.folder / "reached"
    script = (
        "import pathlib, sys, time\n"
        "from appliance.services.repositories import RepositoryService\n"
        "from appliance.cli import main\n"
        "from appliance.cli.output import tell\n"
        "def wait(_):\n"
        "    try:\n"
        f"        pathlib.Path({str(mark)!r}).touch(); time.sleep(60)\n"
        "    finally:\n"
        "        tell('cleaning up'); print('and so on', flush=True)\n"
        "RepositoryService.info = wait\n"
        "code = main(['repository', 'info'])\n"
        f"pathlib.Path({str(mark)!r}).write_text(str(code))\n"
    )
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(PROJECT)
        os.execve(sys.executable, [sys.executable, "-c", script], strongroom.environment)
    try:
        deadline = time.monotonic() + 120
        while not mark.exists():
            assert time.monotonic() < deadline, "the command does not get there"
            time.sleep(0.02)
    finally:
        os.close(terminal)
    os.waitpid(pid, 0)
    assert mark.read_text() == "129"
