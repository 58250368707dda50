"""Disks that are not what they were at the last run: only what cannot be trusted is read in full, and what is stored is
right in any case."""

from __future__ import annotations

import os
import shutil
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.backing_up import (
    MIB,
    Disk,
    Rig,
    blank,
    firmware_machine,
    qmp_run,
    read_of,
    reads,
    rig,
    tool,
)
from tests.lab import Lab, LabDisk, LabGuest

pytestmark = [pytest.mark.integration, pytest.mark.faults]


@pytest.fixture(scope="module")
def strongroom() -> Iterator[Rig]:
    with rig() as made:
        yield made


def two_disks(lab: Lab, name: str) -> tuple[Disk, Disk, LabGuest]:
    first = blank(lab, "vda", 64 * MIB, 1, name=f"{name}-a")
    second = blank(lab, "vdb", 64 * MIB, 2, name=f"{name}-b")
    guest = firmware_machine(lab, [first.disk, second.disk], name)
    guest.start(wait=False)
    for disk in (first, second):
        disk.write_noise(guest, 0, 3 * MIB)
        disk.write_noise(guest, 62 * MIB, 2 * MIB)
    return first, second, guest


def redefine(guest: LabGuest, lab: Lab, change: dict[str, Path]) -> None:
    """Other files behind the targets of a machine that is off."""
    domain = ET.fromstring(guest.domain.XMLDesc())
    for disk in domain.findall("devices/disk"):
        target, source = disk.find("target"), disk.find("source")
        assert target is not None
        assert source is not None
        if target.get("dev") in change:
            source.set("file", str(change[target.attrib["dev"]]))
    lab.connection().defineXML(ET.tostring(domain, encoding="unicode"))


@pytest.mark.parametrize("running", [True, False], ids=["running", "off"])
def test_grown_and_shrunk(lab: Lab, strongroom: Rig, running: bool) -> None:
    disk, other, guest = two_disks(lab, f"resized-{running}")
    strongroom.backup(guest)
    if running:
        guest.domain.blockResize("vda", 80 * 1024, 0)
    else:
        guest.kill()
        tool("qemu-img", "resize", "-q", "-f", "qcow2", disk.path, "80M")
    disk.truth.extend(bytes(16 * MIB))
    if running:
        disk.write_noise(guest, 78 * MIB, MIB)
    result = strongroom.backup(guest)
    assert reads(result) == {
        "vda": ("full", f"it was resized from {64 * MIB} to {80 * MIB} bytes"),
        "vdb": ("incremental", None),
    }
    assert strongroom.content(result.point) == disk.truth
    guest.kill()
    # qemu-img shrinks no file that holds bitmaps, so QEMU itself does
    guest.start(wait=False)
    guest.domain.blockResize("vda", 24 * 1024, 0)
    if not running:
        guest.kill()
    del disk.truth[24 * MIB :]
    result = strongroom.backup(guest)
    assert reads(result) == {
        "vda": ("full", f"it was resized from {80 * MIB} to {24 * MIB} bytes"),
        "vdb": ("incremental", None),
    }
    assert strongroom.content(result.point) == disk.truth
    assert strongroom.content(result.point, "vdb") == other.truth
    assert reads(strongroom.backup(guest)) == {"vda": ("incremental", None), "vdb": ("incremental", None)}
    strongroom.assert_nothing_left(guest)


@pytest.mark.parametrize("written_after", [False, True], ids=["untouched", "written"])
def test_shrunk_and_grown_back(lab: Lab, strongroom: Rig, written_after: bool) -> None:
    """The bitmap calls clean what is gone: found in the run itself, which reads that disk in full."""
    disk, other, guest = two_disks(lab, f"shrunk-{written_after}")
    disk.write_noise(guest, 40 * MIB, 8 * MIB)
    before = strongroom.backup(guest)
    content_before = bytes(disk.truth)
    guest.domain.blockResize("vda", 32 * 1024, 0)
    guest.domain.blockResize("vda", 64 * 1024, 0)
    disk.truth[32 * MIB :] = bytes(32 * MIB)
    if written_after:
        disk.write_noise(guest, 50 * MIB, 2 * MIB)
    other.write_noise(guest, 20 * MIB, MIB)
    result = strongroom.backup(guest)
    read, reason = reads(result)["vda"]
    assert read == "full"
    assert "clean where allocated data is gone" in (reason or "")
    assert reads(result)["vdb"] == ("incremental", None)
    assert result.partial, "a bitmap that lied needs an admin's eyes"
    assert any("vda was read in full" in note for note in result.point.manifest.notes)
    assert strongroom.content(result.point) == disk.truth
    assert strongroom.content(result.point, "vdb") == other.truth
    assert strongroom.content(before.point) == content_before
    assert reads(strongroom.backup(guest)) == {"vda": ("incremental", None), "vdb": ("incremental", None)}
    strongroom.assert_nothing_left(guest)


def test_a_sample_of_clean_chunks_catches_a_bitmap_that_missed_writes(lab: Lab, strongroom: Rig) -> None:
    """Writes that the bitmap does not know of, as behind QEMU's back: the allocation tells nothing, the sample does."""
    disk, _, guest = two_disks(lab, "missed")
    strongroom.backup(guest)
    # The whole content changes while nothing records, so that a sample of any size meets it.
    node = disk_node(guest, disk)
    checkpoint = strongroom.points()[-1].manifest.checkpoint
    qmp_run(guest, "block-dirty-bitmap-disable", node=node, name=checkpoint)
    disk.write_noise(guest, 0, 3 * MIB)
    disk.write_noise(guest, 62 * MIB, 2 * MIB)
    qmp_run(guest, "block-dirty-bitmap-enable", node=node, name=checkpoint)
    result = strongroom.backup(guest)
    assert reads(result)["vda"][0] == "full"
    assert reads(result)["vdb"] == ("incremental", None)
    assert result.partial
    assert strongroom.content(result.point) == disk.truth
    strongroom.assert_nothing_left(guest)


def disk_node(guest: LabGuest, disk: Disk) -> str:
    nodes = qmp_run(guest, "query-named-block-nodes")
    found = [node for node in nodes if node["file"] == str(disk.path) and node.get("dirty-bitmaps")]
    return str(found[0]["node-name"])


def test_swapped_and_replaced(lab: Lab, strongroom: Rig) -> None:
    first, second, guest = two_disks(lab, "swapped")
    strongroom.backup(guest)
    guest.kill()
    redefine(guest, lab, {"vda": second.path, "vdb": first.path})
    guest.start(wait=False)
    result = strongroom.backup(guest)
    assert reads(result) == {
        "vda": ("full", f"its source was {first.path}"),
        "vdb": ("full", f"its source was {second.path}"),
    }
    assert strongroom.content(result.point, "vda") == second.truth
    assert strongroom.content(result.point, "vdb") == first.truth
    strongroom.assert_nothing_left(guest)
    # a byte copy brings its bitmaps along; what the original missed meanwhile is not in them
    guest.kill()
    copy = lab.path("copy.qcow2")
    shutil.copyfile(first.path, copy)
    redefine(guest, lab, {"vdb": copy})
    guest.start(wait=False)
    first.write_to(guest, "vdb", 30 * MIB, os.urandom(MIB))
    result = strongroom.backup(guest)
    assert reads(result) == {
        "vda": ("incremental", None),
        "vdb": ("full", f"its source was {first.path}"),
    }
    assert strongroom.content(result.point, "vdb") == first.truth
    assert reads(strongroom.backup(guest)) == {"vda": ("incremental", None), "vdb": ("incremental", None)}
    strongroom.assert_nothing_left(guest)


def test_another_serial_number_is_another_disk(lab: Lab, strongroom: Rig) -> None:
    disk = blank(lab, "vda", 16 * MIB)
    guest = firmware_machine(lab, [LabDisk(disk.path, "vda", serial="S-1")], "serial")
    guest.start(wait=False)
    disk.write_noise(guest, 0, MIB)
    strongroom.backup(guest)
    guest.kill()
    definition = guest.domain.XMLDesc().replace("<serial>S-1</serial>", "<serial>S-2</serial>")
    lab.connection().defineXML(definition)
    guest.start(wait=False)
    result = strongroom.backup(guest)
    assert reads(result) == {"vda": ("full", "its serial number was S-1")}
    assert strongroom.content(result.point) == disk.truth
    strongroom.assert_nothing_left(guest)


def test_hot_added_and_unplugged(lab: Lab, strongroom: Rig) -> None:
    first, _, guest = two_disks(lab, "plugged")
    strongroom.backup(guest)
    third = blank(lab, "vdc", 16 * MIB, 3)
    guest.domain.attachDevice(
        f"<disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='{third.path}'/>"
        "<target dev='vdc' bus='virtio'/></disk>"
    )
    third.write_noise(guest, 0, MIB)
    first.write_noise(guest, 20 * MIB, MIB)
    result = strongroom.backup(guest)
    assert reads(result) == {
        "vda": ("incremental", None),
        "vdb": ("incremental", None),
        "vdc": ("full", "it is not in the previous restore point"),
    }
    assert strongroom.content(result.point, "vdc") == third.truth
    # Unplugging needs the guest's help, of which there is none here: off, without, and on again.
    guest.kill()
    definition = ET.fromstring(guest.domain.XMLDesc())
    devices = definition.find("devices")
    assert devices is not None
    devices.remove(devices.findall("disk")[1])
    lab.connection().defineXML(ET.tostring(definition, encoding="unicode"))
    guest.start(wait=False)
    first.write_noise(guest, 30 * MIB, MIB)
    result = strongroom.backup(guest)
    assert reads(result) == {"vda": ("incremental", None)}
    assert strongroom.content(result.point, "vda") == first.truth
    assert result.point.manifest.disk("vdb") is None
    assert read_of(result, "vda").read_bytes < 24 * MIB
    strongroom.assert_nothing_left(guest)
