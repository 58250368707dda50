"""SIGKILL of a command that serves a point: its hold does not keep the point, on a home where no supervisor runs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from appliance.bootstrap import Appliance
from appliance.settings import load
from tests.unit.cli_runner import PROJECT, CommandLine

pytestmark = [pytest.mark.integration, pytest.mark.faults]


@pytest.mark.parametrize("next_command", ["delete", "backup"])
def test_the_next_command_lets_go_of_it(tmp_path: Path, capsys: pytest.CaptureFixture[str], next_command: str) -> None:
    strongroom = CommandLine(tmp_path, capsys)
    strongroom.init()
    point = strongroom.backup(os.urandom(300_000), "web")
    served = subprocess.Popen(
        [sys.executable, "-m", "appliance.cli", "export", "serve", "web", "--point", "latest"],
        cwd=PROJECT, env=strongroom.environment, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    with served:
        assert served.stdout is not None
        assert served.stdout.readline().startswith("nbd+unix:")
        assert "held for export" in strongroom("point", "delete", point["id"], "--yes").error()
        served.kill()
    if next_command == "delete":
        done = strongroom("point", "delete", point["id"], "--yes")
        assert done.code == 0, done.err
    else:
        strongroom.backup(os.urandom(4096), "other")
    with Appliance(load(strongroom.environment)) as appliance:
        assert appliance.repository.holds() == []
        assert appliance.catalog.exports.list() == ()
