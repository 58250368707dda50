"""What outlives a command has nothing of who started it: not his folder, not his secrets."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from appliance.services import spawning
from appliance.settings import Settings, load
from tests.unit.cli_runner import PROJECT

# Acts in a folder with a hostile `appliance` package; then dies with the watchdog in force, or asks for a process.
_DIES = """
import os, sys
sys.path.insert(0, sys.argv[2])
from appliance.services import spawning
from appliance.settings import load
settings = load(os.environ)
os.chdir(sys.argv[1])
if sys.argv[3] == "watchdog":
    with spawning.watchdog(settings):
        os._exit(7)
spawning.pay_debts(settings)
os._exit(7)
"""


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setenv("STRONGROOM_HOME", str(tmp_path / "home"))
    for name in ("PASSPHRASE", "NEW_PASSPHRASE", "PERSON_PASSPHRASE", "RECOVERY_KEY_FILE"):
        monkeypatch.setenv(f"STRONGROOM_{name}", "told to nobody")
    made = load(os.environ)
    made.log_directory.mkdir(parents=True)
    return made


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    """A folder whose modules leave a mark when they are run."""
    folder = tmp_path / "hostile"
    mark = f"open({str(tmp_path / 'mark')!r}, 'w').close()\n"
    for package in ("appliance", "appliance/cli", "click", "json"):
        (folder / package).mkdir(parents=True)
        (folder / package / "__init__.py").write_text(mark)
    (folder / "appliance/cli/__main__.py").write_text(mark)
    return folder


def said_and_over(settings: Settings) -> str:
    """What the process said, once it has ended: it alone has the log open."""
    log = settings.log_directory / "debts.log"
    waiting = subprocess.run(
        ["/bin/sh", "-c", 'while ls -l /proc/[0-9]*/fd/1 2>/dev/null | grep -q "$1"; do sleep 0.1; done', "sh", log],
        timeout=120, check=False,
    )  # fmt: skip
    assert waiting.returncode == 0
    return log.read_text()


@pytest.mark.parametrize("way", ["watchdog", "process"])
def test_modules_of_the_current_folder_are_never_run(
    settings: Settings, hostile: Path, tmp_path: Path, way: str
) -> None:
    done = subprocess.run([sys.executable, "-c", _DIES, str(hostile), str(PROJECT), way], check=False, timeout=60)
    assert done.returncode == 7
    assert said_and_over(settings) == "", "it found nothing to complain of"
    assert (settings.home / "catalog.sqlite").exists(), "it ran"
    assert not (tmp_path / "mark").exists()


def shell_since(before: set[str], settings: Settings) -> Path:
    """The folder in /proc of this home's watchdog; its words are there a moment after it is."""
    home = f"STRONGROOM_HOME={settings.home}".encode()
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        for name in set(os.listdir("/proc")) - before:
            with contextlib.suppress(OSError):
                words, variables = (Path("/proc", name, file).read_bytes() for file in ("cmdline", "environ"))
                if b"strongroom-watchdog" in words and home in variables.split(b"\0"):
                    return Path("/proc", name)
    raise AssertionError("there is no watchdog")


def test_neither_folder_nor_secrets_are_handed_on(settings: Settings) -> None:
    before = set(os.listdir("/proc"))
    with spawning.watchdog(settings):
        shell = shell_since(before, settings)
        assert os.readlink(shell / "cwd") == "/"
        assert b"told to nobody" not in (shell / "environ").read_bytes()
        assert os.getsid(int(shell.name)) == int(shell.name), "Ctrl-C and a closing terminal do not reach it"
    assert not (settings.home / "catalog.sqlite").exists(), "it is not needed"


def test_it_runs_although_the_log_cannot_be_written(settings: Settings, tmp_path: Path) -> None:
    (settings.log_directory / "debts.log").mkdir()
    before = set(os.listdir("/proc"))
    with spawning.watchdog(settings):
        assert shell_since(before, settings).exists()
