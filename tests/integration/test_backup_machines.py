"""Backups of machines whose disks are written through QEMU: what is on a point is the disk, bit for bit."""

from __future__ import annotations

import os
import subprocess
import time
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path

import libvirt
import pytest

from tests.integration.backing_up import (
    MIB,
    Disk,
    Rig,
    bitmaps,
    blank,
    checkpoints,
    firmware_machine,
    plain,
    qmp,
    qmp_run,
    read_of,
    reads,
    rig,
    standing,
    tool,
    tpm_states,
)
from tests.integration.recovering import wait_until
from tests.lab import Lab, LabDisk, LabGuest
from tests.lab.listening import wait_listening

pytestmark = pytest.mark.integration

FIRST = "first restore point of this machine"


@pytest.fixture(scope="module")
def strongroom() -> Iterator[Rig]:
    with rig() as made:
        yield made


def written(lab: Lab, guest_name: str, size_bytes: int = 64 * MIB, *, start: bool = True) -> tuple[Disk, LabGuest]:
    """A machine with one disk that holds some data."""
    disk = blank(lab, "vda", size_bytes, name=guest_name)
    guest = firmware_machine(lab, [disk.disk], guest_name)
    guest.start(wait=False)
    disk.write_noise(guest, 3 * MIB + 512, 10 * MIB)
    disk.write_noise(guest, size_bytes - 2 * MIB, 2 * MIB)
    if not start:
        guest.kill()
    return disk, guest


def test_full_and_incrementals_are_the_disk_bit_for_bit(lab: Lab, strongroom: Rig) -> None:
    disk, guest = written(lab, "one", 96 * MIB)
    full = strongroom.backup(guest)
    assert reads(full) == {"vda": ("full", FIRST)}
    assert not full.partial
    contents = [(full.point, bytes(disk.truth))]
    for run in range(4):
        disk.write_noise(guest, (7 * run + 1) * MIB, 300_032)
        disk.write_noise(guest, (60 + 3 * run) * MIB + 1536, 4096)
        disk.discard(guest, (4 + run) * MIB, 128 * 1024)
        result = strongroom.backup(guest)
        assert reads(result) == {"vda": ("incremental", None)}
        assert read_of(result).read_bytes < 24 * MIB
        contents.append((result.point, bytes(disk.truth)))
        # a chain of one: the newest point's checkpoint, and nothing else of ours or of QEMU's
        assert checkpoints(guest) == bitmaps(guest) == {result.point.manifest.checkpoint}
    disk.write_noise(guest, 50 * MIB, 1 * MIB)
    asked = strongroom.backup(guest, full=True)
    assert reads(asked) == {"vda": ("full", "a full read was asked for")}
    contents.append((asked.point, bytes(disk.truth)))
    after = strongroom.backup(guest)
    assert reads(after) == {"vda": ("incremental", None)}
    contents.append((after.point, bytes(disk.truth)))
    for point, content in contents:
        assert strongroom.content(point) == content
    strongroom.assert_nothing_left(guest)


def test_disks_of_every_kind_in_one_machine(lab: Lab, strongroom: Rig) -> None:
    kinds = [
        blank(lab, "vda", 32 * MIB, 1),
        blank(lab, "vdb", 16 * MIB, 2, format="raw"),
        blank(lab, "vdc", 16 * MIB, 3, compat="0.10"),
    ]
    fixed = lab.ext4_disk("vdd", 16 * MIB)
    medium = lab.path("medium.iso")
    medium.write_bytes(os.urandom(MIB))
    shared = lab.path("shared")
    shared.mkdir()

    def add_drives(domain: ET.Element) -> None:
        devices = domain.find("devices")
        assert devices is not None
        drives = f"""<drives>
            <disk type='file' device='cdrom'><driver name='qemu' type='raw'/><source file='{medium}'/>
                <target dev='hda' bus='ide'/><readonly/></disk>
            <disk type='file' device='cdrom'><target dev='hdb' bus='ide'/><readonly/></disk>
            <disk type='dir' device='disk'><driver name='qemu' type='fat'/><source dir='{shared}'/>
                <target dev='vde' bus='virtio'/><readonly/></disk>
        </drives>"""
        devices.extend(ET.fromstring(drives))

    readonly = LabDisk(fixed.path, "vdd", readonly=True)
    guest = firmware_machine(lab, [*(kind.disk for kind in kinds), readonly], "kinds", edit=add_drives)
    guest.start(wait=False)
    for disk in kinds:
        disk.write_noise(guest, 5 * MIB, 3 * MIB)
    first = strongroom.backup(guest)
    assert all(read == ("full", FIRST) for read in reads(first).values())
    for disk in kinds:
        disk.write_noise(guest, 9 * MIB, MIB)
    result = strongroom.backup(guest)
    assert reads(result) == {
        "vda": ("incremental", None),
        "vdb": ("full", "a raw disk keeps no bitmap of what changes"),
        "vdc": ("full", "a qcow2 disk keeps no bitmap of what changes"),
        "vdd": ("full", "a qcow2 disk that is read-only keeps no bitmap of what changes"),
    }
    skipped = {entry.name: entry.reason for entry in result.point.manifest.skipped}
    assert skipped["hda"] == "it is a cdrom drive"
    assert skipped["hdb"] == "it is a cdrom drive without a medium"
    assert "is not a file, a block device or network storage" in skipped["vde"]
    assert result.partial, "the folder that the guest sees as a disk is missing from the point"
    by_command = subprocess.run(
        strongroom.command("backup", guest.name), env=strongroom.process_environment(), capture_output=True, text=True,
        check=False, timeout=180,
    )  # fmt: skip
    assert by_command.returncode == 3
    assert "not on the point: vde: its source" in by_command.stderr
    for disk in kinds:
        assert strongroom.content(result.point, disk.disk.target) == disk.truth
    assert strongroom.content(result.point, "vdd") == plain(fixed.path)
    strongroom.assert_nothing_left(guest)


def test_block_devices_and_network_storage(lab: Lab, strongroom: Rig) -> None:
    backing, served = lab.path("backing"), lab.path("served")
    backing.write_bytes(os.urandom(16 * MIB))
    served.write_bytes(os.urandom(16 * MIB))
    device = tool("losetup", "--find", "--show", backing).strip()
    listen = lab.path("nbd")
    server = subprocess.Popen(["nbdkit", "-f", "-U", listen, "file", served], stdin=subprocess.DEVNULL)
    try:
        wait_listening(listen, server)
        listen.chmod(0o777)
        network = f"""<disk type='network' device='disk'><driver name='qemu' type='raw'/>
            <source protocol='nbd'><host transport='unix' socket='{listen}'/></source>
            <target dev='vdb' bus='virtio'/></disk>"""
        block = f"""<disk type='block' device='disk'><driver name='qemu' type='raw'/><source dev='{device}'/>
            <target dev='vda' bus='virtio'/></disk>"""

        def add_disks(domain: ET.Element) -> None:
            devices = domain.find("devices")
            assert devices is not None
            devices.extend([ET.fromstring(block), ET.fromstring(network)])

        guest = firmware_machine(lab, [], "storage", edit=add_disks)
        guest.start(wait=False)
        result = strongroom.backup(guest)
        assert {name: read for name, (read, _) in reads(result).items()} == {"vda": "full", "vdb": "full"}
        assert not result.partial
        assert strongroom.content(result.point, "vda") == backing.read_bytes()
        assert strongroom.content(result.point, "vdb") == served.read_bytes()
        strongroom.assert_nothing_left(guest)
        guest.kill()
        result = strongroom.backup(guest)
        assert {name: read for name, (read, _) in reads(result).items()} == {"vda": "full"}
        assert result.partial
        (skipped,) = result.point.manifest.skipped
        assert skipped.name == "vdb"
        assert "network storage" in skipped.reason
        assert "the machine is off" in skipped.reason
        assert strongroom.content(result.point, "vda") == backing.read_bytes()
    finally:
        guest.kill()
        server.kill()
        server.wait()
        subprocess.run(["losetup", "--detach", device], check=True)


def test_only_the_disk_whose_bitmap_is_gone_is_read_in_full(lab: Lab, strongroom: Rig) -> None:
    disks = [blank(lab, "vda", 32 * MIB, 1), blank(lab, "vdb", 32 * MIB, 2)]
    guest = firmware_machine(lab, [disk.disk for disk in disks], "bitmap-gone")
    guest.start(wait=False)
    for disk in disks:
        disk.write_noise(guest, 0, 4 * MIB)
    first = strongroom.backup(guest)
    node = next(
        found["node-name"]
        for found in qmp(guest, "query-named-block-nodes")
        if found["file"] == str(disks[1].path) and found.get("dirty-bitmaps")
    )
    qmp_run(guest, "block-dirty-bitmap-remove", node=node, name=first.point.manifest.checkpoint)
    for disk in disks:
        disk.write_noise(guest, 10 * MIB, MIB)
    result = strongroom.backup(guest)
    assert reads(result)["vda"] == ("incremental", None)
    assert reads(result)["vdb"][0] == "full"
    assert "bitmap" in (reads(result)["vdb"][1] or "")
    for disk in disks:
        assert strongroom.content(result.point, disk.disk.target) == disk.truth
    assert reads(strongroom.backup(guest)) == {"vda": ("incremental", None), "vdb": ("incremental", None)}
    strongroom.assert_nothing_left(guest)


def test_firmware_and_tpm_state_are_kept(lab: Lab, strongroom: Rig) -> None:
    nvram = lab.folder / "nvram.fd"

    def uefi(domain: ET.Element) -> None:
        system = domain.find("os")
        devices = domain.find("devices")
        assert system is not None
        assert devices is not None
        ET.SubElement(system, "loader", readonly="yes", type="pflash").text = "/usr/share/OVMF/OVMF_CODE_4M.fd"
        ET.SubElement(system, "nvram", template="/usr/share/OVMF/OVMF_VARS_4M.fd").text = str(nvram)
        tpm = ET.SubElement(devices, "tpm", model="tpm-tis")
        ET.SubElement(tpm, "backend", type="emulator", version="2.0")

    disk = blank(lab, "vda", 16 * MIB)
    guest = firmware_machine(lab, [disk.disk], "uefi", edit=uefi)
    guest.start(wait=False)
    disk.write_noise(guest, 0, MIB)
    guest.domain.suspend()  # its firmware would go on writing both, and be compared with itself at another moment
    uuid = guest.domain.UUIDString()
    result, (variables, states) = standing(
        lambda: strongroom.backup(guest), lambda: (nvram.read_bytes(), tpm_states(uuid))
    )
    kept = {entry.name: entry for entry in result.point.manifest.files}
    assert strongroom.file_content(kept["nvram"]) == variables
    assert kept["nvram"].path == str(nvram)
    tpm = {name for name in kept if name.startswith("tpm/")}
    assert "tpm/tpm2/tpm2-00.permall" in tpm
    for name in tpm:
        assert strongroom.file_content(kept[name]) == states[name.removeprefix("tpm/")]
    assert strongroom.content(result.point) == disk.truth
    strongroom.assert_nothing_left(guest)


def test_a_transient_machine_is_incremental_even_when_it_is_started_anew(lab: Lab, strongroom: Rig) -> None:
    disk, guest = written(lab, "transient", start=False)
    definition = guest.domain.XMLDesc()
    guest.domain.undefine()
    lab.connection().createXML(definition)
    strongroom.backup(guest)
    disk.write_noise(guest, 20 * MIB, MIB)
    second = strongroom.backup(guest)
    assert reads(second) == {"vda": ("incremental", None)}
    assert strongroom.content(second.point) == disk.truth
    guest.kill()
    wait_until(lambda: not guest.exists, "libvirt has forgotten it")
    lab.connection().createXML(definition)
    assert checkpoints(guest) == set()
    disk.write_noise(guest, 30 * MIB, MIB)
    third = strongroom.backup(guest)
    assert reads(third) == {"vda": ("incremental", None)}
    assert strongroom.content(third.point) == disk.truth
    strongroom.assert_nothing_left(guest)


@pytest.mark.parametrize("lost_while", ["running", "off"])
def test_incremental_although_libvirt_forgot_the_checkpoint(lab: Lab, strongroom: Rig, lost_while: str) -> None:
    disk, guest = written(lab, f"forgotten-{lost_while}")
    strongroom.backup(guest)
    disk.write_noise(guest, 20 * MIB, MIB)
    if lost_while == "running":
        for checkpoint in guest.domain.listAllCheckpoints():
            checkpoint.delete(libvirt.VIR_DOMAIN_CHECKPOINT_DELETE_METADATA_ONLY)
    else:
        guest.kill()
        definition = guest.domain.XMLDesc()
        guest.domain.undefineFlags(libvirt.VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA)
        lab.connection().defineXML(definition)
        guest.start(wait=False)
    assert checkpoints(guest) == set()
    assert len(bitmaps(guest)) == 1
    disk.write_noise(guest, 40 * MIB, MIB)
    result = strongroom.backup(guest)
    assert reads(result) == {"vda": ("incremental", None)}
    assert strongroom.content(result.point) == disk.truth
    strongroom.assert_nothing_left(guest)


def test_an_external_snapshot_and_its_commit_keep_incrementals_right(lab: Lab, strongroom: Rig) -> None:
    disk, guest = written(lab, "external")
    strongroom.backup(guest)
    disk.write_noise(guest, 20 * MIB, MIB)
    overlay = lab.path("overlay.qcow2")
    take_external_snapshot(guest, overlay)
    disk.write_noise(guest, 25 * MIB, MIB)
    commit_overlay(guest)
    disk.write_noise(guest, 30 * MIB, MIB)
    result = strongroom.backup(guest)
    assert reads(result) == {"vda": ("incremental", None)}
    assert strongroom.content(result.point) == disk.truth
    strongroom.assert_nothing_left(guest)


def test_a_backup_while_on_an_external_snapshot(lab: Lab, strongroom: Rig) -> None:
    disk, guest = written(lab, "on-overlay")
    strongroom.backup(guest)
    take_external_snapshot(guest, lab.path("overlay.qcow2"))
    disk.write_noise(guest, 25 * MIB, MIB)
    result = strongroom.backup(guest)
    assert reads(result) == {"vda": ("full", f"its source was {disk.path}")}
    assert strongroom.content(result.point) == disk.truth
    disk.write_noise(guest, 26 * MIB, MIB)
    result = strongroom.backup(guest)
    assert reads(result) == {"vda": ("incremental", None)}
    assert strongroom.content(result.point) == disk.truth
    commit_overlay(guest)
    disk.write_noise(guest, 27 * MIB, MIB)
    result = strongroom.backup(guest)
    assert reads(result)["vda"][0] == "full"
    assert strongroom.content(result.point) == disk.truth
    strongroom.assert_nothing_left(guest)


def take_external_snapshot(guest: LabGuest, overlay: Path) -> None:
    flags = libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_DISK_ONLY | libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_NO_METADATA
    disk = f"<disk name='vda' snapshot='external'><source file='{overlay}'/></disk>"
    guest.domain.snapshotCreateXML(f"<domainsnapshot><disks>{disk}</disks></domainsnapshot>", flags)


def commit_overlay(guest: LabGuest) -> None:
    domain = guest.domain
    domain.blockCommit("vda", None, None, 0, libvirt.VIR_DOMAIN_BLOCK_COMMIT_ACTIVE)
    deadline = time.monotonic() + 120
    while True:
        try:
            domain.blockJobAbort("vda", libvirt.VIR_DOMAIN_BLOCK_JOB_ABORT_PIVOT)
        except libvirt.libvirtError as err:
            # not yet: it still copies
            if err.get_error_code() != libvirt.VIR_ERR_BLOCK_COPY_ACTIVE or time.monotonic() > deadline:
                raise
            time.sleep(0.05)
        else:
            return


def test_a_machine_that_is_off_is_incremental_too(lab: Lab, strongroom: Rig) -> None:
    disk, guest = written(lab, "off", start=False)
    full = strongroom.backup(guest)
    assert (full.point.manifest.consistency, reads(full)) == ("offline", {"vda": ("full", FIRST)})
    contents = [(full.point, bytes(disk.truth))]
    disk.write_off(20 * MIB, os.urandom(MIB))
    second = strongroom.backup(guest)
    assert (second.point.manifest.consistency, reads(second)) == ("offline", {"vda": ("incremental", None)})
    assert read_of(second).read_bytes < 24 * MIB
    contents.append((second.point, bytes(disk.truth)))
    strongroom.assert_nothing_left(guest)
    guest.start(wait=False)
    disk.write_noise(guest, 33 * MIB, MIB)
    third = strongroom.backup(guest)
    assert (third.point.manifest.consistency, reads(third)) == ("crash", {"vda": ("incremental", None)})
    contents.append((third.point, bytes(disk.truth)))
    disk.write_noise(guest, 44 * MIB, MIB)
    guest.kill()
    fourth = strongroom.backup(guest)
    assert reads(fourth) == {"vda": ("incremental", None)}
    contents.append((fourth.point, bytes(disk.truth)))
    for point, content in contents:
        assert strongroom.content(point) == content
    assert plain(disk.path) == disk.truth
    strongroom.assert_nothing_left(guest)


def test_forgetting_checkpoints_makes_an_internal_snapshot_revertible_again(lab: Lab, strongroom: Rig) -> None:
    from appliance.services.inventory import InventoryService

    disk, guest = written(lab, "internal")
    snapshot = guest.domain.snapshotCreateXML("<domainsnapshot><name>before</name></domainsnapshot>", 0)
    then = bytes(disk.truth)
    disk.write_noise(guest, 20 * MIB, MIB)
    made = strongroom.backup(guest)
    with pytest.raises(libvirt.libvirtError, match="bitmap"):
        guest.domain.revertToSnapshot(snapshot)
    if not guest.running:
        guest.start(wait=False)
    forgotten = InventoryService(strongroom.appliance).forget_checkpoints(guest.name)
    assert forgotten.deleted == (made.point.manifest.checkpoint,)
    assert forgotten.left == ()
    assert bitmaps(guest) == set()
    guest.domain.revertToSnapshot(guest.domain.snapshotLookupByName("before"))
    disk.truth[:] = then
    disk.write_noise(guest, 30 * MIB, MIB)
    result = strongroom.backup(guest)
    assert reads(result)["vda"][0] == "full"
    assert strongroom.content(result.point) == disk.truth
    assert reads(strongroom.backup(guest)) == {"vda": ("incremental", None)}
    strongroom.assert_nothing_left(guest)


def test_forgetting_takes_ours_of_a_machine_that_was_backed_up_while_off_and_leaves_those_of_others(
    lab: Lab, strongroom: Rig
) -> None:
    from appliance.services.inventory import InventoryService

    _, guest = written(lab, "theirs")
    theirs = (
        "<domaincheckpoint><name>theirs</name><disks><disk name='vda' checkpoint='bitmap'/></disks></domaincheckpoint>"
    )
    guest.domain.checkpointCreateXML(theirs, 0)
    guest.domain.destroy()
    made = strongroom.backup(guest)  # its bitmap is one that libvirt has no checkpoint for
    assert bitmaps(guest) == {"theirs", made.point.manifest.checkpoint}
    service = InventoryService(strongroom.appliance)
    forgotten = service.forget_checkpoints(guest.name)
    assert forgotten.deleted == (made.point.manifest.checkpoint,)
    assert forgotten.left == ("theirs",)
    assert bitmaps(guest) == {"theirs"}
    assert service.forget_checkpoints(guest.name, others=True).left == ()
    assert bitmaps(guest) == set()


def test_a_deleted_newest_point_leaves_no_checkpoint_behind(lab: Lab, strongroom: Rig) -> None:
    from appliance.services.points import PointService

    disk, guest = written(lab, "deleted")
    strongroom.backup(guest)
    disk.write_noise(guest, 20 * MIB, MIB)
    newest = strongroom.backup(guest)
    PointService(strongroom.appliance).delete(newest.point.manifest.id)
    disk.write_noise(guest, 30 * MIB, MIB)
    result = strongroom.backup(guest)
    assert reads(result)["vda"][0] == "full"
    assert strongroom.content(result.point) == disk.truth
    strongroom.assert_nothing_left(guest)
