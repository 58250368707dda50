"""Which disks are trusted to be read incrementally, and what the point says where they are not."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import pytest

from appliance.hypervisor.protocol import DiskDevice, DiskInfo, DiskSource, MachineInfo, MachineState, SourceKind
from appliance.models import ReadKind
from appliance.services.backup.planning import plan_disks
from imaging.manifest import DiskEntry, Machine, Manifest, Statistics

VDA = DiskInfo(
    target="vda", device=DiskDevice.DISK, source=DiskSource(SourceKind.FILE, "/a.qcow2", "/a.qcow2"), format="qcow2",
    serial="s1", size_bytes=1 << 30, readonly=False, shareable=False, transient=False, can_hold_bitmap=True,
    skip_reason=None, backing=(),
)  # fmt: skip
VDB = replace(VDA, target="vdb", source=DiskSource(SourceKind.FILE, "/b.qcow2", "/b.qcow2"), serial=None)
ENTRY = DiskEntry("vda", 1 << 30, None, "/a.qcow2", "qcow2", "full", serial="s1", checkpoint=True)
ENTRY_B = DiskEntry("vdb", 1 << 30, None, "/b.qcow2", "qcow2", "full", checkpoint=True)


def machine(*disks: DiskInfo) -> MachineInfo:
    return MachineInfo(
        uuid="u", name="vm", state=MachineState.RUNNING, state_reason="", persistent=True, autostart=False,
        domain_type="qemu", memory_bytes=1, vcpus=1, disks=disks, nvram_path=None, tpm_state_folder=None,
        agent_channel=False, agent_connected=False, live_xml="", inactive_xml="",
    )  # fmt: skip


def point(*disks: DiskEntry, checkpoint: str | None = "c1") -> Manifest:
    return Manifest(
        Machine("vm", "vm"), datetime(2026, 1, 1, tzinfo=UTC), "full", "crash", disks, Statistics(),
        checkpoint=checkpoint, id="0" * 32, series="1" * 32, generation=1, predecessor=None, lease="2" * 32,
    )  # fmt: skip


def test_an_unchanged_disk_is_read_incrementally() -> None:
    plan = plan_disks(machine(VDA, VDB), point(ENTRY, ENTRY_B), full=False)
    assert plan.incremental == ("vda", "vdb")
    assert plan.checkpoint == "c1"
    assert not plan.needs_eyes


@pytest.mark.parametrize(
    ("disk", "parent", "reason"),
    [
        (VDA, None, "first restore point"),
        (replace(VDA, size_bytes=2 << 30), point(ENTRY), "resized from 1073741824 to 2147483648"),
        (replace(VDA, serial="s2"), point(ENTRY), "serial number was s1"),
        (replace(VDA, source=VDB.source), point(ENTRY), "source was /a.qcow2"),
        (VDB, point(ENTRY), "not in the previous"),
        (replace(VDA, can_hold_bitmap=False, format="raw"), point(ENTRY), "a raw disk keeps no bitmap"),
        (replace(VDA, can_hold_bitmap=False, readonly=True), point(ENTRY), "read-only"),
        (VDA, point(ENTRY, checkpoint=None), "left no checkpoint"),
        (VDA, point(replace(ENTRY, checkpoint=False)), "left no checkpoint"),
    ],
)
def test_what_cannot_be_trusted_is_read_in_full(disk: DiskInfo, parent: Manifest | None, reason: str) -> None:
    plan = plan_disks(machine(disk), parent, full=False)
    assert plan.disks[0].read is ReadKind.FULL
    assert reason in (plan.disks[0].reason or "")


def test_swapped_disks_are_both_read_in_full() -> None:
    swapped = machine(replace(VDA, source=VDB.source), replace(VDB, source=VDA.source))
    assert plan_disks(swapped, point(ENTRY, ENTRY_B), full=False).incremental == ()


def test_one_untrusted_disk_leaves_the_others_incremental() -> None:
    plan = plan_disks(machine(replace(VDA, size_bytes=5), VDB), point(ENTRY, ENTRY_B), full=False)
    assert plan.incremental == ("vdb",)
    assert plan.in_full("vdb", "its bitmap is inconsistent").incremental == ()


def test_full_on_demand() -> None:
    plan = plan_disks(machine(VDA), point(ENTRY), full=True)
    assert (plan.disks[0].read, plan.disks[0].reason) == (ReadKind.FULL, "a full read was asked for")


def test_skipped_disks_are_listed_and_only_data_needs_eyes() -> None:
    cdrom = replace(VDA, target="sda", device=DiskDevice.CDROM, skip_reason="a CD-ROM")
    lun = replace(VDA, target="sdb", device=DiskDevice.LUN, skip_reason="a LUN passed through")
    assert not plan_disks(machine(VDA, cdrom), None, full=False).needs_eyes
    plan = plan_disks(machine(VDA, cdrom, lun), None, full=False)
    assert plan.needs_eyes
    assert [(s.name, s.reason) for s in plan.skipped] == [("sda", "a CD-ROM"), ("sdb", "a LUN passed through")]


def test_persistent_memory_is_told_as_left_out() -> None:
    plan = plan_disks(replace(machine(VDA), memory_files=("/srv/nvdimm",)), None, full=False)
    assert [(each.name, each.reason) for each in plan.skipped] == [
        ("memory0", "it is persistent memory in /srv/nvdimm, which is not read")
    ]
    assert plan.needs_eyes
