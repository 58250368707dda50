"""Definitions are read strictly, and rewritten so that two machines never share what they cannot share."""

from __future__ import annotations

import struct
import xml.etree.ElementTree as ET

import pytest

from appliance.hypervisor.domain_rewriting import (
    Changes,
    OverlayDisk,
    RestoredDisk,
    Rewritten,
    restore_settings,
    rewrite,
)
from appliance.hypervisor.domain_xml import parse_machine, parse_xml
from appliance.hypervisor.errors import DomainXmlInvalid
from appliance.hypervisor.image_header import Qcow2Header, read_qcow2_header
from appliance.hypervisor.inventory import judge_disk
from appliance.hypervisor.protocol import DiskDevice, SourceKind

UUID = "11111111-2222-4333-8444-555555555555"
NEW_UUID = "aaaaaaaa-bbbb-4ccc-8ddd-eeeeeeeeeeee"

RICH = f"""
<domain type='kvm' id='7' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
  <name>web-1</name>
  <uuid>{UUID}</uuid>
  <genid>99999999-2222-4333-8444-555555555555</genid>
  <metadata><note xmlns='urn:admin'>keep me</note></metadata>
  <maxMemory slots='16' unit='GiB'>64</maxMemory>
  <memory unit='GiB'>4</memory>
  <currentMemory unit='GiB'>4</currentMemory>
  <memoryBacking><hugepages/></memoryBacking>
  <vcpu placement='static' cpuset='0-3'>4</vcpu>
  <iothreads>1</iothreads>
  <cputune><vcpupin vcpu='0' cpuset='0'/></cputune>
  <sysinfo type='smbios'><system><entry name='uuid'>{UUID}</entry></system></sysinfo>
  <os>
    <type arch='x86_64' machine='pc-q35-7.2'>hvm</type>
    <loader readonly='yes' type='pflash'>/usr/share/OVMF/OVMF_CODE.fd</loader>
    <nvram template='/usr/share/OVMF/OVMF_VARS.fd'>/var/lib/libvirt/qemu/nvram/web-1_VARS.fd</nvram>
  </os>
  <features><acpi/><apic/><hyperv mode='custom'><relaxed state='on'/></hyperv><kvm><hidden state='on'/></kvm>
    <ioapic driver='kvm'/></features>
  <cpu mode='host-passthrough' check='none' migratable='on'>
    <topology sockets='1' dies='1' cores='4' threads='1'/>
    <numa><cell id='0' cpus='0-3' memory='4' unit='GiB'/></numa>
  </cpu>
  <clock offset='utc'><timer name='rtc' tickpolicy='catchup'/><timer name='kvmclock' present='yes'/></clock>
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>
    <disk type='file' device='disk'>
      <driver name='qemu' type='qcow2' cache='none' io='native' discard='unmap' error_policy='report' iothread='1'/>
      <source file='/vm/web-1.qcow2' index='2'><seclabel model='dac' relabel='no'/></source>
      <backingStore type='file' index='3'><format type='qcow2'/><source file='/vm/base.qcow2'/>
        <backingStore type='network'><format type='raw'/><source protocol='nbd'><host transport='unix' socket='/run/n'/>
        </source><backingStore/></backingStore></backingStore>
      <target dev='vda' bus='virtio'/><serial>S-1</serial><boot order='1'/>
      <alias name='virtio-disk0'/><address type='pci' domain='0x0000' bus='0x04' slot='0x00' function='0x0'/>
    </disk>
    <disk type='block' device='disk'><driver name='qemu' type='raw'/><source dev='/dev/vg/data'/>
      <target dev='vdb' bus='virtio'/><shareable/></disk>
    <disk type='volume' device='disk'><driver name='qemu' type='qcow2'/><source pool='fast' volume='v1'/>
      <target dev='vdc' bus='virtio'/><readonly/></disk>
    <disk type='network' device='disk'><driver name='qemu' type='raw'/>
      <source protocol='rbd' name='pool/image'><host name='mon1' port='6789'/></source>
      <target dev='vdd' bus='virtio'/></disk>
    <disk type='file' device='cdrom'><source file='/iso/debian.iso'/><target dev='sda' bus='sata'/><readonly/></disk>
    <disk type='file' device='cdrom'><target dev='sdb' bus='sata'/><readonly/></disk>
    <interface type='bridge'><mac address='52:54:00:11:22:33'/><source bridge='br0'/><target dev='vnet3'/>
      <model type='virtio'/><driver name='vhost'/><filterref filter='clean-traffic'/><alias name='net0'/></interface>
    <serial type='file'><source path='/var/log/web-1.log'/><target port='0'/></serial>
    <serial type='unix'><source mode='bind' path='/run/web-1.sock'/><target port='1'/></serial>
    <console type='file'><source path='/var/log/web-1.log'/><target type='serial' port='0'/></console>
    <channel type='unix'><source mode='bind' path='/var/lib/libvirt/qemu/channel/target/domain-7/a'/>
      <target type='virtio' name='org.qemu.guest_agent.0' state='connected'/></channel>
    <tpm model='tpm-crb'><backend type='emulator' version='2.0'/></tpm>
    <graphics type='vnc' port='5901' autoport='no' listen='0.0.0.0' passwd='secret'><listen type='address'/></graphics>
    <hostdev mode='subsystem' type='pci' managed='yes'>
      <source><address domain='0' bus='1' slot='0' function='0'/></source></hostdev>
    <filesystem type='mount'><source dir='/srv'/><target dir='srv'/></filesystem>
    <memory model='dimm'><target><size unit='GiB'>1</size><node>0</node></target></memory>
  </devices>
  <seclabel type='dynamic' model='apparmor' relabel='yes'><label>x</label></seclabel>
  <qemu:commandline><qemu:arg value='-no-hpet'/></qemu:commandline>
</domain>
"""


def changes(**other: object) -> Changes:
    chosen: dict[str, object] = {
        "name": "web-1-recovered",
        "uuid": NEW_UUID,
        "disks": {"vda": OverlayDisk("/over/vda.qcow2", "/run/r1.sock")},
    }
    return Changes(**(chosen | other))  # type: ignore[arg-type]


def devices(result: Rewritten) -> ET.Element:
    found = parse_xml(result.xml).find("devices")
    assert found is not None
    return found


def only(parent: ET.Element, path: str) -> ET.Element:
    found = parent.findall(path)
    assert len(found) == 1, f"{len(found)} of {path}"
    return found[0]


# --- reading ---------------------------------------------------------------------------------------------------------


def test_definition_is_read() -> None:
    machine = parse_machine(RICH)
    assert (machine.name, machine.uuid, machine.domain_type) == ("web-1", UUID, "kvm")
    assert machine.memory_bytes == 4 << 30
    assert machine.vcpus == 4
    assert machine.nvram_path == "/var/lib/libvirt/qemu/nvram/web-1_VARS.fd"
    assert machine.tpm_emulated
    assert machine.agent_channel
    assert machine.agent_connected
    disks = {disk.target: disk for disk in machine.disks}
    assert list(disks) == ["vda", "vdb", "vdc", "vdd", "sda", "sdb"]
    assert disks["vda"].backing == ("/vm/base.qcow2", "nbd:/run/n/")
    assert disks["vda"].nbd_sockets == ("/run/n",)
    assert disks["vda"].serial == "S-1"
    assert (disks["vdb"].source.kind, disks["vdb"].source.path) == (SourceKind.BLOCK, "/dev/vg/data")
    assert disks["vdc"].volume == ("fast", "v1")
    assert disks["vdd"].source.description == "rbd:mon1:6789/pool/image"
    assert disks["sdb"].source.kind is SourceKind.NONE


@pytest.mark.parametrize(
    ("xml", "says"),
    [
        ("<domain", "not well-formed"),
        ("<network/>", "root is <network>"),
        ("<domain><name>a</name></domain>", "lacks <name> or <uuid>"),
        (f"<domain><name>a</name><uuid>{UUID}</uuid></domain>", "lacks <memory>"),
        (f"<domain><name>a</name><uuid>{UUID}</uuid><memory>many</memory></domain>", "not a number"),
        (f"<domain><name>a</name><uuid>{UUID}</uuid><memory>{'9' * 30}</memory></domain>", "not a number"),
        (f"<domain><name>a</name><uuid>{UUID}</uuid><memory unit='furlong'>1</memory></domain>", "furlong"),
        ("<!DOCTYPE domain [<!ENTITY a 'b'>]><domain>&a;</domain>", "document type"),
        ("<!DOCTYPE domain SYSTEM 'file:///etc/passwd'><domain/>", "document type"),
        ("<domain>" + " " * (4 << 20) + "</domain>", "longer than"),
        (
            f"<domain><name>a</name><uuid>{UUID}</uuid><memory>1</memory><devices><disk/></devices></domain>",
            "no <target",
        ),
    ],
)
def test_broken_or_hostile_definition_is_refused(xml: str, says: str) -> None:
    with pytest.raises(DomainXmlInvalid, match=says):
        parse_machine(xml)


def test_billion_laughs_costs_nothing() -> None:
    entities = "".join(f"<!ENTITY e{n} '{f'&e{n - 1};' * 10}'>" for n in range(1, 10))
    with pytest.raises(DomainXmlInvalid, match="document type"):
        parse_xml(f"<!DOCTYPE domain [<!ENTITY e0 'ha'>{entities}]><domain>&e9;</domain>")


def tagged(inner: str) -> frozenset[str]:
    return parse_machine(RICH.replace("<metadata>", f"<metadata>{inner}")).tags


def test_tags_are_read_as_libvirt_writes_them_and_as_people_do() -> None:
    assert parse_machine(RICH).tags == frozenset()
    written = "<t:tags xmlns:t='urn:strongroom:tags'><t:tag>gold</t:tag><t:tag>site=berlin</t:tag></t:tags>"
    assert tagged(written) == {"gold", "site=berlin"}
    assert tagged("<t:tags xmlns:t='urn:strongroom:tags'><tag> gold </tag></t:tags>") == {"gold"}
    assert tagged("<tags><tag>gold</tag></tags>") == frozenset(), "not of our namespace"


def test_what_is_no_tag_keeps_no_machine_from_being_read() -> None:
    long, many = f"<tag>{'a' * 65}</tag>", "".join(f"<tag>t{n}</tag>" for n in range(5000))
    odd = "<tag/><tag>two words</tag><tag>../x</tag><tag>&lt;script></tag><tag><b/>x</tag><other>y</other>"
    found = tagged(f"<tags xmlns='urn:strongroom:tags'>{long}{odd}<tag>größe=5</tag>{many}</tags>")
    assert len(found) == 64
    assert "größe=5" in found
    assert all(tag == "größe=5" or tag.startswith("t") for tag in found)


# --- judging disks ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "running", "reason"),
    [
        ("vda", True, None),
        ("vdb", False, None),
        ("vdd", True, None),
        ("vdd", False, "network storage"),
        ("sda", True, "cdrom drive"),
        ("sdb", True, "without a medium"),
    ],
)
def test_disk_that_cannot_be_backed_up_says_why(target: str, running: bool, reason: str | None) -> None:
    disk = next(disk for disk in parse_machine(RICH).disks if disk.target == target)
    found = judge_disk(disk, disk.source, 1 << 30, None, running, missing="")
    if reason is None:
        assert found.skip_reason is None
    else:
        assert reason in (found.skip_reason or "")


HOSTILE_TARGETS = ("vda/../../../../tmp/x", "vda/x", "..", "vd a", "vda\u00e9", "vda;x", "vd" + "a" * 63)


@pytest.mark.parametrize("target", HOSTILE_TARGETS)
@pytest.mark.parametrize("running", [True, False])
def test_disk_whose_target_could_lead_anywhere_is_skipped(target: str, running: bool) -> None:
    """It is the admin of one machine who writes it, and the appliance, as root, that would use it in paths."""
    disks = parse_machine(RICH.replace("dev='vda'", f"dev='{target}'")).disks
    disk = next(disk for disk in disks if disk.target == target)
    assert "no plain name" in (judge_disk(disk, disk.source, 1 << 30, None, running, missing="").skip_reason or "")


@pytest.mark.parametrize("target", HOSTILE_TARGETS)
def test_disk_whose_target_could_lead_anywhere_is_not_restored(target: str) -> None:
    with pytest.raises(DomainXmlInvalid, match="the name of its disk"):
        rewrite(RICH.replace("dev='vda'", f"dev='{target}'"), changes(disks={target: OverlayDisk("/o", "/s")}))


def test_lun_is_skipped_while_running_only() -> None:
    xml = RICH.replace("<disk type='block' device='disk'>", "<disk type='block' device='lun'>")
    disk = next(disk for disk in parse_machine(xml).disks if disk.target == "vdb")
    assert disk.device is DiskDevice.LUN
    assert "SCSI" in (judge_disk(disk, disk.source, 1, None, True, "").skip_reason or "")
    assert judge_disk(disk, disk.source, 1, None, False, "").skip_reason is None


def test_a_qcow2_file_is_as_large_as_its_whole_sectors() -> None:
    """As QEMU counts them: of another size than it says, it would refuse a scratch file."""
    head = struct.pack(">4sIQIIQ", b"QFI\xfb", 2, 0, 0, 16, 5 * 512 + 100)
    assert read_qcow2_header(head) == Qcow2Header(2, 5 * 512, has_backing=False, external_data=False)


@pytest.mark.parametrize(
    ("target", "header", "expected"),
    [
        ("vda", Qcow2Header(3, 1, False, False), True),
        ("vda", Qcow2Header(2, 1, False, False), False),
        ("vda", Qcow2Header(3, 1, False, True), False),
        ("vda", None, False),
        ("vdb", Qcow2Header(3, 1, False, False), False),  # shareable
        ("vdc", Qcow2Header(3, 1, False, False), False),  # read-only
    ],
)
def test_where_a_bitmap_can_live(target: str, header: Qcow2Header | None, expected: bool) -> None:
    disk = next(disk for disk in parse_machine(RICH).disks if disk.target == target)
    assert judge_disk(disk, disk.source, 1, header, True, "").can_hold_bitmap is expected


# --- rewriting -------------------------------------------------------------------------------------------------------


def test_recovered_machine_is_another_one() -> None:
    root = parse_xml(rewrite(RICH, changes(made_by="recovery-1")).xml)
    assert root.get("id") is None
    assert root.findtext("name") == "web-1-recovered"
    assert root.findtext("uuid") == root.findtext("sysinfo/system/entry") == NEW_UUID
    assert root.findtext("genid") not in (None, "99999999-2222-4333-8444-555555555555")
    assert root.find("seclabel") is None
    assert parse_machine(ET.tostring(root, encoding="unicode")).marker == "recovery-1"
    assert root.find("metadata/{urn:admin}note") is not None
    assert "vnet3" not in ET.tostring(root, encoding="unicode")


def test_recovered_disk_stands_on_the_export_and_stops_on_errors() -> None:
    result = rewrite(RICH, changes())
    disk = only(devices(result), "disk[@device='disk']")
    driver = only(disk, "driver")
    assert driver.attrib == {"name": "qemu", "type": "qcow2", "error_policy": "stop", "rerror_policy": "stop"}
    assert only(disk, "source").attrib == {"file": "/over/vda.qcow2"}
    assert only(disk, "backingStore/source/host").attrib == {"transport": "unix", "socket": "/run/r1.sock"}
    assert len(only(disk, "backingStore/backingStore")) == 0
    assert only(disk, "target").get("dev") == "vda"
    assert disk.findtext("serial") == "S-1"
    assert disk.find("address") is not None
    assert disk.find("boot") is not None
    for target in ("vdb", "vdc", "vdd"):
        assert any(f"disk {target} is not part" in warning for warning in result.warnings)


def test_drives_are_left_empty() -> None:
    result = rewrite(RICH, changes())
    for drive in devices(result).findall("disk[@device='cdrom']"):
        assert drive.find("source") is None
    assert any("sda is empty" in warning for warning in result.warnings)
    assert not any("sdb" in warning for warning in result.warnings)


def test_what_two_machines_cannot_share_goes() -> None:
    result = rewrite(RICH, changes())
    found = devices(result)
    text = result.xml
    for gone in ("/var/log/web-1.log", "/run/web-1.sock", "5901", "domain-7", "/vm/", "cpuset", "hugepages", "/srv"):
        assert gone not in text, gone
    assert found.find("hostdev") is None
    assert found.find("alias") is None
    assert only(found, "graphics").get("autoport") == "yes"
    assert only(found, "graphics").get("passwd") == "secret"
    assert only(found, "channel/source").attrib == {"mode": "bind"}
    assert "state" not in only(found, "channel/target").attrib
    assert {serial.get("type") for serial in found.findall("serial")} == {"pty"}
    assert any("passed through" in warning for warning in result.warnings)


def test_consoles_go_to_a_folder_of_their_own() -> None:
    found = devices(rewrite(RICH, changes(console_folder="/state/r1")))
    assert only(found, "serial[@type='file']/source").get("path") == "/state/r1/serial0"
    assert only(found, "serial[@type='unix']/source").get("path") == "/state/r1/serial1"


@pytest.mark.parametrize(("network", "kind"), [("none", "user"), ("keep", "bridge"), ("lab", "network")])
def test_networks(network: str, kind: str) -> None:
    card = only(devices(rewrite(RICH, changes(network=network))), "interface")
    assert card.get("type") == kind
    mac = only(card, "mac").get("address") or ""
    assert mac.startswith("52:54:00:")
    assert mac != "52:54:00:11:22:33"
    assert (card.find("source") is None) == (network == "none")
    assert ((card.find("link[@state='down']")) is not None) == (network == "none")
    if network == "lab":
        assert only(card, "source").attrib == {"network": "lab"}
        assert card.find("filterref") is None


def test_mac_is_kept_when_asked() -> None:
    card = only(devices(rewrite(RICH, changes(new_macs=False))), "interface")
    assert only(card, "mac").get("address") == "52:54:00:11:22:33"


def test_machine_for_kvm_is_emulated_where_there_is_none() -> None:
    result = rewrite(RICH, changes(kvm_available=False))
    root = parse_xml(result.xml)
    assert root.get("type") == "qemu"
    assert only(root, "cpu").attrib == {"mode": "maximum", "check": "none"}
    assert root.find("cpu/topology") is not None
    for gone in ("features/hyperv", "features/kvm", "features/ioapic", "clock/timer[@name='kvmclock']"):
        assert root.find(gone) is None, gone
    assert root.find("clock/timer[@name='rtc']") is not None
    assert any("emulated (TCG)" in warning for warning in result.warnings)
    assert any("host-passthrough" in warning for warning in result.warnings)


def test_machine_for_kvm_stays_so_where_there_is_kvm() -> None:
    result = rewrite(RICH, changes())
    root = parse_xml(result.xml)
    assert root.get("type") == "kvm"
    assert root.find("features/hyperv") is not None
    assert not any("TCG" in warning for warning in result.warnings)


def test_memory_and_processors_are_overridden_whole() -> None:
    result = rewrite(RICH, changes(memory_bytes=1 << 30, vcpus=2))
    root = parse_xml(result.xml)
    machine = parse_machine(result.xml)
    assert machine.memory_bytes == 1 << 30
    assert machine.vcpus == 2
    for gone in ("maxMemory", "devices/memory", "cpu/numa", "cpu/topology"):
        assert root.find(gone) is None, gone
    assert any("1024 MiB instead of 4096 MiB" in warning for warning in result.warnings)


def test_nvram_goes_where_it_was_restored() -> None:
    root = parse_xml(rewrite(RICH, changes(nvram_path="/state/r1/nvram")).xml)
    assert root.findtext("os/nvram") == "/state/r1/nvram"
    assert only(root, "os/nvram").get("template") == "/usr/share/OVMF/OVMF_VARS.fd"
    assert not parse_xml(rewrite(RICH, changes()).xml).findtext("os/nvram")


def test_disk_that_the_definition_lacks_is_named() -> None:
    with pytest.raises(DomainXmlInvalid, match="no disk vdz"):
        rewrite(RICH, changes(disks={"vdz": OverlayDisk("/o", "/s")}))


def test_restored_disks_keep_the_admins_settings() -> None:
    disks = {"vda": RestoredDisk("/new/a.raw", "raw"), "vdb": RestoredDisk("/dev/vg/new", "raw", block_device=True)}
    found = devices(rewrite(RICH, changes(disks=disks)))
    first, second = found.findall("disk[@device='disk']")
    assert only(first, "driver").get("cache") == "none"
    assert only(first, "driver").get("error_policy") == "report"
    assert only(first, "driver").get("type") == "raw"
    assert only(first, "source").attrib == {"file": "/new/a.raw"}
    assert first.find("backingStore") is None
    assert second.get("type") == "block"
    assert only(second, "source").attrib == {"dev": "/dev/vg/new"}


def test_restored_in_place_keeps_what_is_the_hosts() -> None:
    result = rewrite(
        RICH,
        changes(name="web-1", uuid=UUID, in_place=True, disks={"vda": RestoredDisk("/vm/web-1.qcow2", "qcow2")}),
    )
    found = devices(result)
    assert len(found.findall("disk")) == 6
    assert found.find("hostdev") is not None
    assert only(found, "graphics").get("port") == "5901"
    assert only(found, "interface/mac").get("address") == "52:54:00:11:22:33"
    assert found.find("disk/alias") is None
    assert "-no-hpet" in result.xml
    assert "xmlns:qemu=" in result.xml
    assert parse_xml(result.xml).findtext("os/nvram") == "/var/lib/libvirt/qemu/nvram/web-1_VARS.fd"


def test_restored_in_place_a_disk_is_as_its_admin_made_it() -> None:
    xml = RICH.replace("<target dev='vdb' bus='virtio'/>", "<target dev='vdb' bus='scsi'/><transient/>")
    xml = xml.replace(
        "<disk type='block' device='disk'>", "<disk type='block' device='lun' rawio='yes' sgio='filtered'>"
    )
    new = {"vdb": RestoredDisk("/dev/vg/data", "raw", block_device=True)}
    kept = only(devices(rewrite(xml, changes(name="web-1", uuid=UUID, in_place=True, disks=new))), "disk[2]")
    assert (kept.get("device"), kept.get("rawio"), kept.get("sgio")) == ("lun", "yes", "filtered")
    assert kept.find("shareable") is not None
    assert kept.find("transient") is not None
    copied = rewrite(xml, changes(disks=new))
    alone = only(devices(copied), "disk[@device='disk']")
    assert (alone.get("rawio"), alone.find("shareable"), alone.find("transient")) == (None, None, None)
    for words in ("was shared with other machines", "forgot what was written", "passed SCSI commands"):
        assert any(f"disk vdb {words}" in warning for warning in copied.warnings), words


def test_admins_policies_come_back_after_migration() -> None:
    recovered = rewrite(RICH, changes()).xml
    back = parse_xml(restore_settings(recovered, RICH))
    driver = only(back, "devices/disk[@device='disk']/driver")
    assert driver.attrib == {
        "name": "qemu", "type": "qcow2", "cache": "none", "io": "native",
        "discard": "unmap", "error_policy": "report", "iothread": "1",
    }  # fmt: skip


def test_policies_of_a_definition_that_had_none_are_dropped() -> None:
    recovered = rewrite(RICH, changes(disks={"vdb": OverlayDisk("/o", "/s")})).xml
    driver = only(parse_xml(restore_settings(recovered, RICH)), "devices/disk[@device='disk']/driver")
    assert driver.attrib == {"name": "qemu", "type": "qcow2"}
