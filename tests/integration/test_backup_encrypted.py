"""A machine that is off, with a disk that QEMU encrypts beside one that it does not."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.integration.backing_up import MIB, blank, firmware_machine, rig, tool
from tests.lab import Lab, LabDisk

pytestmark = pytest.mark.integration


def encrypted(path: Path) -> Path:
    tool("qemu-img", "create", "-q", "-f", "qcow2", "--object", "secret,id=k,data=key", "-o",
         "encrypt.format=luks,encrypt.key-secret=k,encrypt.iter-time=10", path, "8M")  # fmt: skip
    return path


def test_an_encrypted_disk_is_left_out_with_the_reason_and_the_others_are_backed_up(lab: Lab) -> None:
    disk = blank(lab, "vda", 8 * MIB)
    disk.write_off(MIB, b"plain" * 1000)
    secret = LabDisk(encrypted(lab.path("secret.qcow2")), "vdb")
    guest = firmware_machine(lab, [disk.disk, secret], "luks")
    with rig() as strongroom:
        result = strongroom.backup(guest)
        assert result.partial
        (left_out,) = result.point.manifest.skipped
        assert left_out.name == "vdb"
        assert "encrypted" in left_out.reason
        assert strongroom.content(result.point) == disk.truth
        strongroom.assert_nothing_left()
