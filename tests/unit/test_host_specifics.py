"""What two machines cannot share, element by element of libvirt's domain schema."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from dataclasses import dataclass

import pytest

from appliance.hypervisor.domain_rewriting import Changes, OverlayDisk, Rewritten, rewrite
from appliance.hypervisor.domain_xml import parse_machine, parse_xml
from appliance.hypervisor.host_devices import why_left_out

UUID = "11111111-2222-4333-8444-555555555555"
DISK = "<disk type='file' device='disk'><source file='/vm/a.qcow2'/><target dev='vda' bus='virtio'/></disk>"


def domain(device: str = "", beside: str = "", memory_mib: int = 1024) -> str:
    return f"""<domain type='kvm' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
      <name>web-1</name><uuid>{UUID}</uuid><memory unit='MiB'>{memory_mib}</memory>
      <currentMemory unit='MiB'>{memory_mib}</currentMemory>
      {beside}<devices>{DISK}{device}</devices></domain>"""


def changes(**other: object) -> Changes:
    chosen: dict[str, object] = {"name": "copy", "uuid": UUID, "disks": {"vda": OverlayDisk("/over/a", "/run/s")}}
    return Changes(**(chosen | other))  # type: ignore[arg-type]


def copied(device: str = "", beside: str = "", **other: object) -> Rewritten:
    return rewrite(domain(device, beside), changes(**other))


def rest(result: Rewritten) -> list[ET.Element]:
    """The devices beside the disk."""
    return [device for device in parse_xml(result.xml).findall("devices/*") if device.tag != "disk"]


@dataclass(frozen=True)
class Left:
    """A device that a copy must not have: what it is, and words of the warning."""

    name: str
    xml: str
    warns: str


LEFT_OUT = [
    Left("pci", "<hostdev mode='subsystem' type='pci'><source/></hostdev>", "a pci device of the old host"),
    Left("usb", "<hostdev mode='subsystem' type='usb'><source/></hostdev>", "a usb device of the old host"),
    Left("mdev", "<hostdev mode='subsystem' type='mdev'><source/></hostdev>", "a mdev device of the old host"),
    Left("vhost-scsi", "<hostdev mode='subsystem' type='scsi_host'><source wwpn='n'/></hostdev>", "a scsi_host device"),
    Left("9p", "<filesystem type='mount'><source dir='/srv'/><target dir='x'/></filesystem>", "a folder of the old"),
    Left("virtiofs", "<filesystem type='mount'><source socket='/run/fs'/></filesystem>", "a folder of the old host"),
    Left("shmem", "<shmem name='both'><model type='ivshmem-plain'/></shmem>", "memory both that other processes"),
    Left("shmem-server", "<shmem name='s'><server path='/run/ivshmem'/></shmem>", "memory s that other processes"),
    Left("lease", "<lease><key>k1</key><target path='/leases/a'/></lease>", "the lock lease k1 of the old machine"),
    Left("pstore", "<pstore backend='acpi-erst'><path>/var/erst</path></pstore>", "a crash store in a file"),
    Left("evdev", "<input type='evdev'><source dev='/dev/input/event1' grab='all'/></input>", "an input device"),
    Left("passthrough", "<input type='passthrough'><source evdev='/dev/input/event2'/></input>", "an input device"),
    Left("sdl", "<graphics type='sdl' display=':0' xauth='/root/.Xauthority'/>", "a window on the old host"),
    Left("desktop", "<graphics type='desktop' display=':0'/>", "a window on the old host"),
    Left("egd", "<rng model='virtio'><backend model='egd' type='unix'><source/></backend></rng>", "fed by a socket"),
    Left("tpm", "<tpm><backend type='passthrough'><device path='/dev/tpm0'/></backend></tpm>", "the TPM of the old"),
    Left("tpm-external", "<tpm><backend type='external'><source path='/run/t'/></backend></tpm>", "the TPM of the old"),
    Left("usb-tcp", "<redirdev bus='usb' type='tcp'><source host='h' service='4000'/></redirdev>", "a tcp connection"),
    Left("smartcard", "<smartcard mode='host'/>", "a smart card of the old host"),
    Left("smartcard-tcp", "<smartcard mode='passthrough' type='tcp'><source/></smartcard>", "a smart card of the old"),
    Left("unknown", "<teleporter><source path='/dev/tele'/></teleporter>", "a <teleporter>, of which it is not known"),
]  # fmt: skip


@pytest.mark.parametrize("case", LEFT_OUT, ids=lambda case: case.name)
def test_device_that_is_the_old_hosts_is_left_out_and_told(case: Left) -> None:
    result = copied(case.xml)
    assert rest(result) == []
    (warning,) = [warning for warning in result.warnings if "was left out" in warning]
    assert case.warns in warning


@pytest.mark.parametrize("case", LEFT_OUT, ids=lambda case: case.name)
def test_device_stays_where_the_machine_stays(case: Left) -> None:
    result = copied(case.xml, in_place=True)
    assert len(rest(result)) == 1
    assert result.warnings == ()


def test_several_of_a_kind_are_told_once() -> None:
    result = copied("<hostdev type='pci'/><hostdev type='pci'/><hostdev type='usb'/>")
    assert [warning for warning in result.warnings if "left out" in warning] == [
        "a pci device of the old host, passed through, was left out (2 of them)",
        "a usb device of the old host, passed through, was left out",
    ]


STAYS = [
    "<controller type='usb' index='0' model='qemu-xhci'/>",
    "<input type='tablet' bus='usb'/>",
    "<hub type='usb'/>",
    "<sound model='ich9'><audio id='1'/></sound>",
    "<audio id='1' type='spice'/>",
    "<audio id='1' type='none'/>",
    "<video><model type='virtio'/></video>",
    "<watchdog model='i6300esb' action='reset'/>",
    "<memballoon model='virtio'/>",
    "<panic model='isa'/>",
    "<iommu model='intel'/>",
    "<crypto model='virtio' type='qemu'><backend model='builtin' queues='1'/></crypto>",
    "<rng model='virtio'><backend model='random'>/dev/urandom</backend></rng>",
    "<rng model='virtio'><backend model='builtin'/></rng>",
    "<redirdev bus='usb' type='spicevmc'/>",
    "<smartcard mode='passthrough' type='spicevmc'/>",
    "<tpm model='tpm-crb'><backend type='emulator' version='2.0'/></tpm>",
    "<memory model='dimm'><target><size unit='MiB'>256</size><node>0</node></target></memory>",
    "<memory model='virtio-mem'><target><size unit='MiB'>256</size></target></memory>",
    "<channel type='spicevmc'><target type='virtio' name='com.redhat.spice.0'/></channel>",
    "<channel type='qemu-vdagent'><target type='virtio' name='com.redhat.spice.0'/></channel>",
    "<serial type='pty'><target port='0'/></serial>",
    "<vsock model='virtio'><cid auto='yes'/></vsock>",
]


@pytest.mark.parametrize("xml", STAYS)
def test_device_that_is_the_guests_own_stays_as_it_is(xml: str) -> None:
    (device,) = rest(copied(xml))
    assert ET.canonicalize(ET.tostring(device, encoding="unicode")) == ET.canonicalize(xml)
    assert not any("left out" in warning for warning in copied(xml).warnings)
    assert why_left_out(ET.fromstring(xml)) is None


@dataclass(frozen=True)
class Parted:
    """A device that stays: what of it goes, what it then looks like (a path in ElementTree's words), and a warning."""

    name: str
    xml: str
    gone: str
    has: str
    warns: str = ""


PARTED = [
    Parted("vsock", "<vsock><cid auto='no' address='4242'/></vsock>", "4242", "vsock/cid[@auto='yes']", "address 4242"),
    Parted("vsock-live", "<vsock><cid auto='yes' address='4242'/></vsock>", "4242", "vsock/cid[@auto='yes']"),
    Parted(
        "audio-file",
        "<audio id='2' type='file' path='/srv/a.wav'><input/></audio>",
        "a.wav",
        "audio[@type='none']",
        "a file",
    ),
    Parted(
        "audio-oss", "<audio id='2' type='oss'><output dev='/dev/dsp0'/></audio>", "dsp0", "audio[@id='2']", "a oss"
    ),
    Parted("vnc", "<graphics type='vnc' port='5901' websocket='5701'/>", "01'", "graphics[@autoport='yes']"),
    Parted("spice", "<graphics type='spice' tlsPort='5901'/>", "5901", "graphics[@autoport='yes']"),
    Parted("rdp", "<graphics type='rdp' port='3389'/>", "3389", "graphics[@autoport='yes']"),
    Parted(
        "vnc-socket",
        "<graphics type='vnc'><listen type='socket' socket='/run/v'/></graphics>",
        "/run/v",
        "graphics/listen",
    ),
    Parted("dbus", "<graphics type='dbus' address='unix:path=/run/bus'/>", "/run/bus", "graphics[@type='dbus']"),
    Parted("egl", "<graphics type='egl-headless'><gl rendernode='/dev/dri/x'/></graphics>", "dri", "graphics/gl"),
    Parted(
        "render",
        "<video><model type='virtio'><acceleration rendernode='/dev/dri/x'/></model></video>",
        "dri",
        "video/model",
    ),
    Parted(
        "tpm",
        "<tpm><backend type='emulator'><source type='dir' path='/srv/t'/></backend></tpm>",
        "/srv/t",
        "tpm/backend",
    ),
    Parted(
        "tpm-key",
        "<tpm><backend type='emulator'><encryption secret='s1'/></backend></tpm>",
        "?",
        "tpm/backend/encryption",
        "secret s1",
    ),
    Parted(
        "dimm", "<memory model='dimm'><source><nodemask>1</nodemask></source><target/></memory>", "nodemask", "memory"
    ),
    Parted(
        "serial-tcp",
        "<serial type='tcp'><source mode='bind' host='0' service='77'/><protocol/></serial>",
        "77",
        "serial[@type='pty']",
        "a tcp of",
    ),
    Parted(
        "serial-dev",
        "<serial type='dev'><source path='/dev/ttyS0'/></serial>",
        "ttyS0",
        "serial[@type='pty']",
        "a dev of",
    ),
    Parted(
        "parallel",
        "<parallel type='dev'><source path='/dev/parport0'/></parallel>",
        "parport",
        "parallel[@type='pty']",
        "a dev of",
    ),
    Parted("pipe", "<serial type='pipe'><source path='/run/pipe'/></serial>", "pipe", "serial[@type='pty']"),
    Parted("log", "<serial type='pty'><log file='/var/log/x' append='on'/></serial>", "/var/log", "serial"),
    Parted(
        "channel",
        "<channel type='unix'><source mode='connect' path='/run/d'/><target type='virtio' name='c'/></channel>",
        "/run/d",
        "channel/source[@mode='bind']",
        "channel c was connected",
    ),
    Parted(
        "guestfwd",
        "<channel type='tcp'><source host='h'/><target type='guestfwd' port='1'/></channel>",
        "'h'",
        "channel[@type='pty']",
    ),
]


@pytest.mark.parametrize("case", PARTED, ids=lambda case: case.name)
def test_device_that_stays_loses_what_is_the_old_hosts(case: Parted) -> None:
    result = copied(case.xml)
    text = "".join(ET.tostring(device, encoding="unicode") for device in rest(result))
    assert case.gone not in text.replace('"', "'")
    assert parse_xml(result.xml).find(f"devices/{case.has}") is not None
    if case.warns:
        assert any(case.warns in warning for warning in result.warnings), result.warnings
    assert case.gone in rewrite(domain(case.xml), changes(in_place=True)).xml.replace('"', "'") or case.gone == "?"


@pytest.mark.parametrize("model", ["nvdimm", "virtio-pmem"])
def test_memory_in_a_file_is_left_out_and_the_rest_does_not_grow(model: str) -> None:
    xml = f"""<memory model='{model}' access='shared'><source><path>/srv/pmem.img</path></source>
      <target><size unit='MiB'>256</size></target></memory>"""
    result = copied(xml)
    assert rest(result) == []
    assert (
        f"256 MiB of {model} memory in /srv/pmem.img, which is not on the restore point, was left out"
        in result.warnings
    )
    assert parse_machine(result.xml).memory_bytes == (1024 - 256) << 20
    assert parse_xml(result.xml).findtext("currentMemory") == str((1024 - 256) << 10)
    assert parse_machine(domain(xml)).memory_files == ("/srv/pmem.img",)
    assert parse_machine(result.xml).memory_files == ()


def test_options_that_go_past_libvirt_are_left_out_and_told() -> None:
    options = """<qemu:commandline><qemu:arg value='-drive'/><qemu:arg value='file=/srv/live.img'/></qemu:commandline>
      <qemu:capabilities><qemu:del capability='x'/></qemu:capabilities>"""
    result = copied(beside=options)
    assert "live.img" not in result.xml
    assert "2 options that go past libvirt (commandline) were left out: they may lead anywhere" in result.warnings
    assert "capabilities" in result.xml
    assert "live.img" in copied(beside=options, in_place=True).xml


def test_firmware_is_not_written_to() -> None:
    result = copied(beside="<os><loader type='pflash'>/srv/firmware.fd</loader><varstore path='/srv/vars.json'/></os>")
    loader = parse_xml(result.xml).find("os/loader")
    assert loader is not None
    assert loader.get("readonly") == "yes"
    assert "vars.json" not in result.xml
    assert sum("firmware" in warning for warning in result.warnings) == 2


@pytest.mark.parametrize(
    ("card", "kept"),
    [
        ("<interface type='network'><source network='n'/></interface>", True),
        ("<interface type='bridge'><source bridge='b'/></interface>", True),
        ("<interface type='direct'><source dev='eth0' mode='bridge'/></interface>", True),
        ("<interface type='direct'><source dev='eth0' mode='passthrough'/></interface>", False),
        ("<interface type='ethernet'><target dev='t'/></interface>", True),
        ("<interface type='ethernet'><target dev='t' managed='no'/></interface>", False),
        ("<interface type='hostdev' managed='yes'><source/><teaming type='transient'/></interface>", False),
        ("<interface type='vhostuser'><source type='unix' path='/run/ovs' mode='server'/></interface>", False),
        ("<interface type='vdpa'><source dev='/dev/vhost-vdpa-0'/></interface>", False),
        ("<interface type='server'><source address='0.0.0.0' port='77'/></interface>", False),
        ("<interface type='udp'><source address='h' port='77'><local port='1'/></source></interface>", False),
        ("<interface type='client'><source address='h' port='77'/></interface>", False),
    ],
)  # fmt: skip
def test_network_as_before_is_never_what_one_machine_alone_can_have(card: str, kept: bool) -> None:
    result = copied(card)
    (found,) = rest(result)
    assert (found.get("type") == ET.fromstring(card).get("type")) is kept
    assert (found.find("link[@state='down']") is None) is kept
    assert any("nothing is plugged in now" in warning for warning in result.warnings) is not kept
    if not kept:
        assert {child.tag for child in found} == {"mac", "link"}


def test_port_of_a_virtual_switch_and_forwarded_ports_are_the_old_machines() -> None:
    result = copied(f"""<interface type='bridge'><source bridge='ovs'/><virtualport type='openvswitch'>
      <parameters interfaceid='{UUID}' profileid='p'/></virtualport></interface>
      <interface type='user'><portForward proto='tcp'><range start='22'/></portForward></interface>""")
    parameters = parse_xml(result.xml).find("devices/interface/virtualport/parameters")
    assert parameters is not None
    assert parameters.attrib == {"profileid": "p"}
    assert "portForward" not in result.xml
    assert sum("virtual switch" in warning or "forwarded" in warning for warning in result.warnings) == 2
