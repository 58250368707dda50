"""Files of a host that is this machine: written whole, with nothing left of a killed write, past no link."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from appliance.hypervisor.local_files import LocalFiles
from appliance.hypervisor.parts import part_of
from appliance.hypervisor.protocol import QemuIdentity


@pytest.fixture
def files() -> LocalFiles:
    return LocalFiles(lambda: QemuIdentity(os.geteuid(), os.getegid()))


def test_what_a_killed_write_left_goes_with_the_file(files: LocalFiles, tmp_path: Path) -> None:
    path = str(tmp_path / "scratch")
    Path(part_of(path)).write_bytes(b"half of i")
    files.remove(path)
    assert os.listdir(tmp_path) == []
    Path(part_of(path)).write_bytes(b"half of i")
    files.write(path, b"all of it")
    assert os.listdir(tmp_path) == ["scratch"]
    assert Path(path).read_bytes() == b"all of it"


def test_a_link_where_a_file_is_written_first_is_not_followed(files: LocalFiles, tmp_path: Path) -> None:
    victim, path = tmp_path / "victim", tmp_path / "scratch"
    victim.write_bytes(b"theirs")
    Path(part_of(str(path))).symlink_to(victim)
    files.write(str(path), b"ours")
    assert (victim.read_bytes(), path.read_bytes(), path.is_symlink()) == (b"theirs", b"ours", False)


def test_a_name_as_long_as_names_may_be_is_written(files: LocalFiles, tmp_path: Path) -> None:
    path = tmp_path / ("n" * 255)
    files.write(str(path), b"x")
    assert os.listdir(tmp_path) == [path.name]
