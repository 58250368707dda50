"""What is told of a restore to a file before it is asked for."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from appliance.bootstrap import Appliance
from appliance.services.restore.errors import Asked, NotPossible
from appliance.services.restore.foreseeing import ForeseeingService
from appliance.settings import load
from tests.unit.cli_runner import CommandLine


def test_where_no_file_can_be_is_told_of_the_target(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = CommandLine(tmp_path, capsys)
    line.init()
    point = line.backup(os.urandom(4096), "web")["id"]
    there = tmp_path / "there"
    there.write_bytes(b"")
    long = "x" * 300
    with Appliance(load(line.environment)) as appliance:
        foreseeing = ForeseeingService(appliance)
        (disk,) = foreseeing.disk(point, None, tmp_path / "new", "raw").disks
        assert (disk.path, disk.size_bytes) == (str(tmp_path / "new"), 4096)
        for target, why in (
            (there, "exists already"), (there / "in a file", "Not a directory"), (tmp_path / "no" / "x", "folder"),
            (tmp_path / long, "too long"), (tmp_path / long / "x", "too long"),
        ):  # fmt: skip
            with pytest.raises(NotPossible, match=why) as refused:
                foreseeing.disk(point, None, target, "raw")
            assert refused.value.part is Asked.TARGET
