"""A machine that is off, with a disk that QEMU encrypts beside one that it does not."""

from __future__ import annotations

import pytest

from tests.integration.backing_up import MIB, blank, firmware_machine, rig
from tests.integration.encrypted import make_encrypted
from tests.lab import Lab, LabDisk

pytestmark = pytest.mark.integration


def test_an_encrypted_disk_is_left_out_with_the_reason_and_the_others_are_backed_up(lab: Lab) -> None:
    disk = blank(lab, "vda", 8 * MIB)
    disk.write_off(MIB, b"plain" * 1000)
    secret = LabDisk(make_encrypted(lab.path("secret.qcow2"), 8 * MIB), "vdb")
    guest = firmware_machine(lab, [disk.disk, secret], "luks")
    with rig() as strongroom:
        result = strongroom.backup(guest)
        assert result.partial
        (left_out,) = result.point.manifest.skipped
        assert left_out.name == "vdb"
        assert "encrypted" in left_out.reason
        assert strongroom.content(result.point) == disk.truth
        strongroom.assert_nothing_left()
