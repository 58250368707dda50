"""The definition of a lab machine as libvirt's XML. Pure."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.lab.disks import LabDisk

AGENT_PORT = "org.qemu.guest_agent.0"


@dataclass(frozen=True, slots=True)
class MachineSpec:
    name: str
    kernel: Path
    initrd: Path
    serial_log: Path
    command_socket: Path
    disks: Sequence[LabDisk]
    agent: bool
    memory_mib: int
    cpus: int
    virt_type: str


@dataclass(frozen=True, slots=True)
class Ports:
    """Where a defined machine talks: the file its console goes to, and the socket its commands come from."""

    serial_log: Path
    command_socket: Path


def machine_xml(spec: MachineSpec) -> ET.Element:
    """ACPI and APIC must be on: without them the virtio disks of this kernel get no interrupts."""
    domain = ET.Element("domain", type=spec.virt_type)
    _text(domain, "name", spec.name)
    _text(domain, "memory", str(spec.memory_mib), unit="MiB")
    _text(domain, "vcpu", str(spec.cpus))
    system = ET.SubElement(domain, "os")
    _text(system, "type", "hvm", arch="x86_64", machine="pc")
    _text(system, "kernel", str(spec.kernel))
    _text(system, "initrd", str(spec.initrd))
    # The kernel's own errors (level 3) are to be seen on the console, its chatter is not. What it would try of its
    # ciphers and its clock takes a sixth of a boot.
    _text(system, "cmdline", "console=tty0 console=ttyS0 loglevel=4 panic=-1 cryptomgr.notests tsc=reliable")
    features = ET.SubElement(domain, "features")
    ET.SubElement(features, "acpi")
    ET.SubElement(features, "apic")
    _text(domain, "on_reboot", "restart")
    _text(domain, "on_crash", "destroy")
    devices = ET.SubElement(domain, "devices")
    for disk in spec.disks:
        _add_disk(devices, disk)
    _add_serial(devices, 0, "file", path=str(spec.serial_log))
    _add_serial(devices, 1, "unix", mode="bind", path=str(spec.command_socket))
    if spec.agent:
        channel = ET.SubElement(devices, "channel", type="unix")
        ET.SubElement(channel, "source", mode="bind")
        ET.SubElement(channel, "target", type="virtio", name=AGENT_PORT)
    ET.SubElement(devices, "memballoon", model="none")
    return domain


def ports_of(definition: str) -> Ports:
    """Where a machine that was defined from such XML, or recovered from its backup, talks."""
    devices = ET.fromstring(definition).find("devices")
    assert devices is not None
    log = devices.find("serial[@type='file']/source")
    commands = devices.find("serial[@type='unix']/source")
    if log is None or commands is None:
        raise ValueError("this is no lab machine: it lacks the console file or the command port")
    return Ports(Path(log.attrib["path"]), Path(commands.attrib["path"]))


def disk_paths(definition: str) -> dict[str, Path]:
    """Target → file, of all disks that are files, as the definition has them now."""
    found: dict[str, Path] = {}
    for disk in ET.fromstring(definition).findall("devices/disk"):
        source, target = disk.find("source"), disk.find("target")
        if source is not None and target is not None and "file" in source.attrib:
            found[target.attrib["dev"]] = Path(source.attrib["file"])
    return found


def _add_disk(devices: ET.Element, disk: LabDisk) -> None:
    element = ET.SubElement(devices, "disk", type="file", device="disk")
    ET.SubElement(element, "driver", name="qemu", type=disk.format, discard="unmap")
    ET.SubElement(element, "source", file=str(disk.path))
    ET.SubElement(element, "target", dev=disk.target, bus="virtio")
    if disk.serial:
        _text(element, "serial", disk.serial)
    if disk.readonly:
        ET.SubElement(element, "readonly")


def _add_serial(devices: ET.Element, port: int, kind: str, **source: str) -> None:
    serial = ET.SubElement(devices, "serial", type=kind)
    ET.SubElement(serial, "source", source)
    ET.SubElement(serial, "target", port=str(port))


def _text(parent: ET.Element, tag: str, text: str, **attributes: str) -> None:
    ET.SubElement(parent, tag, attributes).text = text
