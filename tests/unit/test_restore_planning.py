"""Where the parts of a restored machine go, decided without touching anything."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from appliance.hypervisor.domain_xml import parse_machine
from appliance.hypervisor.protocol import (
    Accelerator,
    DiskDevice,
    DiskInfo,
    DiskSource,
    MachineInfo,
    MachineState,
    PoolInfo,
    SourceKind,
)
from appliance.services.restore.errors import NameInvalid, NoPlaceForDisk, NotAMachine, PoolUnusable
from appliance.services.restore.planning import check_name, folder_in, plan_in_place, plan_new
from imaging.manifest import DiskEntry, FileEntry, Machine, Manifest, Statistics

UUID = "11111111-2222-3333-4444-555555555555"
XML = f"""
<domain type='kvm'>
  <name>web-1</name><uuid>{UUID}</uuid><memory unit='MiB'>512</memory><vcpu>2</vcpu>
  <os><type arch='x86_64' machine='q35'>hvm</type>
    <loader readonly='yes' type='pflash'>/usr/share/OVMF/OVMF_CODE.fd</loader><nvram>/var/nvram/web-1.fd</nvram></os>
  <devices>
    <disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='/old/a.qcow2'/>
      <target dev='vda' bus='virtio'/></disk>
    <disk type='block' device='disk'><driver name='qemu' type='raw'/><source dev='/dev/vg/b'/>
      <target dev='vdb' bus='virtio'/></disk>
    <disk type='volume' device='disk'><driver name='qemu' type='qcow2'/><source pool='fast' volume='c'/>
      <target dev='vdc' bus='virtio'/></disk>
    <interface type='network'><mac address='52:54:00:00:00:01'/><source network='default'/></interface>
    <tpm model='tpm-crb'><backend type='emulator' version='2.0'/></tpm>
  </devices>
</domain>
"""


def entry(name: str, source: str, image_format: str) -> DiskEntry:
    return DiskEntry(name, 1 << 20, None, source, image_format, "full")


def manifest(**changes: object) -> Manifest:
    made = Manifest(
        machine=Machine("vm", "web-1", UUID, "here"),
        created_utc=datetime(2026, 11, 23, tzinfo=UTC),
        kind="full",
        consistency="crash",
        disks=(
            entry("vda", "/old/a.qcow2", "qcow2"),
            entry("vdb", "/dev/vg/b", "raw"),
            entry("vdc", "fast/c", "qcow2"),
        ),
        statistics=Statistics(),
        files=(
            FileEntry("nvram", "/var/nvram/web-1.fd", 4096, None),
            FileEntry("tpm/tpm2-00.permall", f"/var/lib/libvirt/swtpm/{UUID}/tpm2/tpm2-00.permall", 10, None),
        ),
        domain_xml=XML,
        id="0" * 32,
        series="1" * 32,
        generation=1,
        predecessor=None,
        lease="2" * 32,
    )
    return replace(made, **changes)  # type: ignore[arg-type]


def machine(path: str, image_format: str = "qcow2") -> MachineInfo:
    source = DiskSource(SourceKind.FILE, path, path)
    disk = DiskInfo("vda", DiskDevice.DISK, source, image_format, None, 1 << 20, False, False, False, True, None, ())
    return MachineInfo(
        UUID, "web-1", MachineState.OFF, "", True, False, "kvm", 1, 1, (disk,), None, None, False, False, None, XML
    )


def sources(xml: str) -> dict[str, str]:
    found = {}
    for disk in ET.fromstring(xml).findall("devices/disk"):
        target, source = disk.find("target"), disk.find("source")
        assert target is not None
        assert source is not None
        found[target.get("dev", "")] = source.get("file") or source.get("dev") or ""
    return found


def test_a_new_machine_has_everything_of_its_own() -> None:
    plan = plan_new(manifest(), "web-2", "/machines/web-2", Accelerator.KVM, "restore-1")
    assert plan.uuid != UUID
    assert not plan.in_place
    assert [(disk.path, disk.format, disk.block_device) for disk in plan.disks] == [
        ("/machines/web-2/vda.qcow2", "qcow2", False),
        ("/machines/web-2/vdb.raw", "raw", False),
        ("/machines/web-2/vdc.qcow2", "qcow2", False),
    ]
    assert sources(plan.xml) == {disk.entry.name: disk.path for disk in plan.disks}
    assert UUID not in plan.xml
    assert "52:54:00:00:00:01" not in plan.xml
    assert [file.path for file in plan.files] == [
        "/machines/web-2/nvram",
        f"/var/lib/libvirt/swtpm/{plan.uuid}/tpm2/tpm2-00.permall",
    ]
    assert "/machines/web-2/nvram" in plan.xml
    assert "/var/nvram/web-1.fd" not in plan.xml


def test_without_kvm_it_is_emulated_and_says_so() -> None:
    plan = plan_new(manifest(), "web-2", "/m", Accelerator.TCG, "restore-1")
    assert ET.fromstring(plan.xml).get("type") == "qemu"
    assert any("emulat" in note.lower() for note in plan.notes)


def test_in_place_everything_is_where_it_was() -> None:
    plan = plan_in_place(manifest(), None, Accelerator.KVM, lambda pool, volume: f"/{pool}/{volume}", "restore-1")
    assert (plan.name, plan.uuid, plan.in_place, plan.folder) == ("web-1", UUID, True, None)
    assert [(disk.path, disk.format, disk.block_device) for disk in plan.disks] == [
        ("/old/a.qcow2", "qcow2", False),
        ("/dev/vg/b", "raw", True),
        ("/fast/c", "qcow2", False),
    ]
    assert "52:54:00:00:00:01" in plan.xml
    assert [file.path for file in plan.files] == [file.path for file in manifest().files]


def test_in_place_a_disk_that_was_moved_meanwhile_is_restored_where_it_is_now() -> None:
    plan = plan_in_place(
        manifest(), machine("/moved/a.raw", "raw"), Accelerator.KVM, lambda pool, volume: f"/{pool}/{volume}", "r"
    )
    assert (plan.disks[0].path, plan.disks[0].format) == ("/moved/a.raw", "raw")
    assert sources(plan.xml)["vda"] == "/moved/a.raw"


def test_in_place_after_an_attempt_that_failed_disks_go_where_they_were_before_it() -> None:
    kept = XML.replace("/old/a.qcow2", "/moved/a.raw").replace("type='qcow2'", "type='raw'", 1)
    kept = kept.replace("pool='fast'", "pool='slow'")
    plan = plan_in_place(
        manifest(), parse_machine(kept), Accelerator.KVM, lambda pool, volume: f"/{pool}/{volume}", "restore-1"
    )
    assert [(disk.path, disk.format) for disk in plan.disks] == [
        ("/moved/a.raw", "raw"),
        ("/dev/vg/b", "raw"),
        ("/slow/c", "qcow2"),
    ]


@pytest.mark.parametrize("name", ["a/b", "/", ".", "..", "", "  ", "a\nb", "a\0b", "a\x1bb", "x" * 129, "ü" * 65])
def test_a_name_that_no_machine_can_have_is_named_as_such(name: str) -> None:
    with pytest.raises(NameInvalid) as refused:
        check_name(name)
    assert "no machine can be called" in str(refused.value)
    assert refused.value.exit_code == 2


@pytest.mark.parametrize("name", ["web-1", "Web 1 (copy)", "ü", "..a", "x" * 128])
def test_a_name_that_a_machine_can_have_passes(name: str) -> None:
    check_name(name)


@pytest.mark.parametrize(
    ("pool", "reason"),
    [
        (PoolInfo("lvmpool", "logical", "/dev/lvmpool", True, 0), "it is logical, no folder"),
        (PoolInfo("blocks", "iscsi", None, True, 0), "it is iscsi, no folder"),
        (PoolInfo("nfs", "netfs", "/mnt/nfs", False, 0), "it is not active"),
    ],
)
def test_a_pool_that_is_no_folder_says_so(pool: PoolInfo, reason: str) -> None:
    with pytest.raises(PoolUnusable) as refused:
        folder_in("here", pool, "web-2")
    assert f"storage pool {pool.name} of host here cannot take the disks: {reason}" in str(refused.value)
    assert "--storage" in refused.value.hint


def test_a_pool_that_is_a_folder_takes_the_disks() -> None:
    assert folder_in("here", PoolInfo("images", "dir", "/images", True, 0), "web-2") == "/images/web-2"


def test_a_disk_without_a_place_is_named() -> None:
    file = "type='block' device='disk'><driver name='qemu' type='raw'/><source dev='/dev/vg/b'/>"
    network = "type='network' device='disk'><driver name='qemu' type='raw'/><source protocol='rbd' name='p/i'/>"
    xml = XML.replace(file, network)
    with pytest.raises(NoPlaceForDisk, match="vdb"):
        plan_in_place(manifest(domain_xml=xml), None, Accelerator.KVM, lambda pool, volume: "/x", "r")


def test_an_image_is_no_machine() -> None:
    for wrong in (manifest(machine=Machine("image", "x")), manifest(domain_xml=None)):
        with pytest.raises(NotAMachine):
            plan_new(wrong, "y", "/m", Accelerator.KVM, "r")


@pytest.mark.parametrize("hostile", ["../../etc/passwd", "..", "a/b", "x\0y", "", "a b"])
def test_a_disk_name_never_leads_out_of_the_folder(hostile: str) -> None:
    disks = (entry(hostile, "/old", "qcow2"),)
    with pytest.raises(NoPlaceForDisk):
        plan_new(manifest(disks=disks), "web-2", "/m", Accelerator.KVM, "r")
