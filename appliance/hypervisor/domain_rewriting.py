"""New definitions out of old ones: a machine recovered from the repository, restored, moved. Pure.

The rule: what the guest sees stays (buses, slots, serials, boot order); what belongs to the host it came from goes
(paths, ports, labels, pinning), so that the new machine disturbs neither that host nor the old machine beside it. Every
change that an admin could miss is returned as a warning, in words.
"""

from __future__ import annotations

import uuid as uuid_module
import xml.etree.ElementTree as ET
from collections.abc import Mapping
from dataclasses import dataclass, field
from secrets import token_bytes

from appliance.hypervisor.domain_xml import (
    MARKER_NAMESPACE,
    disks_of,
    is_plain_target,
    parse_xml,
    remove_all,
    target_of,
)
from appliance.hypervisor.errors import DomainXmlInvalid
from appliance.hypervisor.host_specifics import drop_host_specifics
from appliance.hypervisor.network_cards import Network, rewire
from appliance.hypervisor.screens import add_screen, take_back_screen
from appliance.hypervisor.virtualization import override_cpus, override_memory, use_tcg

# Of a disk's driver, what says how the host does its input and output. Kept aside while a disk stands on an export.
_HOST_IO = (
    "cache",
    "io",
    "iothread",
    "queues",
    "error_policy",
    "rerror_policy",
    "discard",
    "detect_zeroes",
    "copy_on_read",
)
_DURING_EXPORT = {"error_policy": "stop", "rerror_policy": "stop"}


@dataclass(frozen=True, slots=True)
class OverlayDisk:
    """A disk that stands on an export: a qcow2 overlay whose backing is an NBD server on a UNIX socket."""

    path: str
    nbd_socket: str
    export: str = ""


@dataclass(frozen=True, slots=True)
class RestoredDisk:
    path: str
    format: str
    block_device: bool = False


NewDisk = OverlayDisk | RestoredDisk


@dataclass(frozen=True, slots=True)
class Changes:
    """What the new machine shall be. `disks` names all that the point holds, by target; others are left out."""

    name: str
    uuid: str
    disks: Mapping[str, NewDisk]
    network: str = Network.KEEP  # or the name of a libvirt network
    new_macs: bool = True
    kvm_available: bool = True  # otherwise a machine made for KVM is turned into an emulated one
    tcg: bool = False  # emulate although KVM is there
    memory_bytes: int | None = None
    vcpus: int | None = None
    nvram_path: str | None = None  # where the restored NVRAM was put; None: libvirt makes one from its template
    console_folder: str | None = None  # where consoles that were files or sockets go; None: they become terminals
    screen: bool = False  # it shall have one that `Machines.open_screen` can open
    in_place: bool = False  # the same machine on the same host: host devices, media and ports are kept
    made_by: str = ""  # put into the metadata, so that the machine can be told as ours (`parse_machine().marker`)


@dataclass(frozen=True, slots=True)
class Rewritten:
    xml: str
    warnings: tuple[str, ...] = field(default=())


def rewrite(xml: str, changes: Changes) -> Rewritten:
    """The definition for a recovered or restored machine.

    DomainXmlInvalid when a disk named is not in it, or has a name that could lead anywhere.
    """
    root = parse_xml(xml)
    warnings: list[str] = []
    _rename(root, changes)
    _replace_disks(root, changes, warnings)
    drop_host_specifics(root, warnings, console_folder=changes.console_folder, in_place=changes.in_place)
    devices = root.find("devices")
    if changes.screen and devices is not None:
        add_screen(devices)
    _place_nvram(root, changes)
    if not changes.in_place:
        rewire(root, changes.network, warnings, new_macs=changes.new_macs)
    if root.get("type") == "kvm" and (changes.tcg or not changes.kvm_available):
        use_tcg(root, warnings)
    if changes.memory_bytes is not None:
        override_memory(root, changes.memory_bytes, warnings)
    if changes.vcpus is not None:
        override_cpus(root, changes.vcpus, warnings)
    _mark(root, changes.made_by)
    return Rewritten(ET.tostring(root, encoding="unicode"), tuple(warnings))


def restore_settings(current_xml: str, original_xml: str) -> str:
    """The admin's own settings put back into a migrated machine's inactive definition.

    While a disk stands on an export it stops the guest on errors and leaves caching to QEMU; afterwards the settings of
    the original hold again, from the next start on. So they do for the screen, if it was made for the recovery.
    """
    current, original = parse_xml(current_xml), parse_xml(original_xml)
    devices, before_devices = current.find("devices"), original.find("devices")
    if devices is not None and before_devices is not None:
        take_back_screen(devices, before_devices)
    before = {target_of(disk): disk.find("driver") for disk in disks_of(original)}
    for disk in disks_of(current):
        driver, old = disk.find("driver"), before.get(target_of(disk))
        if driver is None or target_of(disk) not in before:
            continue
        for attribute in _HOST_IO:
            driver.attrib.pop(attribute, None)
            value = old.get(attribute) if old is not None else None
            # An I/O thread is only put back where the machine still has one.
            if value is not None and (attribute != "iothread" or current.find("iothreads") is not None):
                driver.set(attribute, value)
    return ET.tostring(current, encoding="unicode")


def put_below(xml: str, target: str, overlay: OverlayDisk) -> str:
    """A definition in which the disk stands on its export, whatever it stood on."""
    root = parse_xml(xml)
    for disk in disks_of(root):
        if target_of(disk) == target:
            remove_all(disk, "backingStore")
            disk.append(_backing_of(overlay))
    return ET.tostring(root, encoding="unicode")


def _rename(root: ET.Element, changes: Changes) -> None:
    root.attrib.pop("id", None)
    for tag, text in (("name", changes.name), ("uuid", changes.uuid)):
        element = root.find(tag)
        if element is None:
            element = ET.Element(tag)
            root.insert(0, element)
        element.text = text
    # The guest is told that its state went back: a generation id is made for exactly that.
    generation = root.find("genid")
    if generation is not None:
        generation.text = str(uuid_module.UUID(bytes=token_bytes(16), version=4))
    # The BIOS's idea of the machine's uuid has to agree, or libvirt refuses the definition.
    for entry in root.findall("sysinfo/system/entry"):
        if entry.get("name") == "uuid":
            entry.text = changes.uuid


def _replace_disks(root: ET.Element, changes: Changes, warnings: list[str]) -> None:
    devices = root.find("devices")
    found = {target_of(disk) for disk in disks_of(root)}
    missing = sorted(set(changes.disks) - found)
    if devices is None or missing:
        raise DomainXmlInvalid(f"it has no disk {', '.join(missing)}" if missing else "it has no devices")
    strange = [target for target in changes.disks if not is_plain_target(target)]
    if strange:
        raise DomainXmlInvalid(f"the name of its disk {strange[0][:80]!r} is not letters, digits, dash and underscore")
    for disk in disks_of(root):
        target = target_of(disk)
        new = changes.disks.get(target)
        if new is not None:
            _put_on(disk, target, new, warnings, in_place=changes.in_place)
        elif disk.get("device") in ("cdrom", "floppy"):
            if not changes.in_place:
                _eject(disk, warnings)
        elif not changes.in_place:
            devices.remove(disk)
            warnings.append(f"disk {target} is not part of the restore point and was left out")


def _eject(disk: ET.Element, warnings: list[str]) -> None:
    if disk.find("source") is not None:
        warnings.append(f"drive {target_of(disk)} is empty: its medium is not part of the restore point")
    disk.set("type", "file")
    for tag in ("source", "backingStore", "mirror"):
        remove_all(disk, tag)


def _put_on(disk: ET.Element, target: str, new: NewDisk, warnings: list[str], *, in_place: bool) -> None:
    for tag in ("source", "backingStore", "mirror", "auth", "privateData"):
        remove_all(disk, tag)
    if disk.find("encryption") is not None:
        remove_all(disk, "encryption")
        warnings.append(f"disk {target} was encrypted by QEMU; the new one is not")
    if disk.find("readonly") is not None and isinstance(new, OverlayDisk):
        remove_all(disk, "readonly")
        warnings.append(f"disk {target} was read-only; it is writable, so that it can be moved while the machine runs")
    if not in_place:
        _make_ordinary(disk, target, warnings)
    disk.set("device", disk.get("device", "disk"))
    driver = disk.find("driver")
    if driver is None:
        driver = ET.Element("driver")
    else:
        disk.remove(driver)
    driver.set("name", "qemu")
    # Children come first to last as libvirt writes them; it reads them in any order.
    disk.insert(0, driver)
    disk.insert(1, _source_of(disk, driver, new))
    if isinstance(new, OverlayDisk):
        for attribute in _HOST_IO:
            driver.attrib.pop(attribute, None)
        driver.attrib.update(_DURING_EXPORT)
        disk.insert(2, _backing_of(new))


def _make_ordinary(disk: ET.Element, target: str, warnings: list[str]) -> None:
    """The new disk is a file of this machine alone."""
    for tag, words in (
        ("shareable", "was shared with other machines; the new one is this machine's alone"),
        ("transient", "forgot what was written when the machine went off; the new one keeps it"),
    ):
        if disk.find(tag) is not None:
            remove_all(disk, tag)
            warnings.append(f"disk {target} {words}")
    if disk.get("device") == "lun":
        disk.set("device", "disk")
        warnings.append(f"disk {target} passed SCSI commands through; the new one is an ordinary disk")
    for attribute in ("sgio", "rawio", "snapshot"):
        disk.attrib.pop(attribute, None)


def _source_of(disk: ET.Element, driver: ET.Element, new: NewDisk) -> ET.Element:
    if isinstance(new, OverlayDisk):
        disk.set("type", "file")
        driver.set("type", "qcow2")
        return ET.Element("source", file=new.path)
    driver.set("type", new.format)
    if new.block_device:
        disk.set("type", "block")
        return ET.Element("source", dev=new.path)
    disk.set("type", "file")
    return ET.Element("source", file=new.path)


def _backing_of(new: OverlayDisk) -> ET.Element:
    backing = ET.Element("backingStore", type="network")
    ET.SubElement(backing, "format", type="raw")
    source = ET.SubElement(backing, "source", protocol="nbd")
    if new.export:
        source.set("name", new.export)
    ET.SubElement(source, "host", transport="unix", socket=new.nbd_socket)
    ET.SubElement(backing, "backingStore")  # ends the chain: nothing is probed
    return backing


def _place_nvram(root: ET.Element, changes: Changes) -> None:
    nvram = root.find("os/nvram")
    if nvram is None or (changes.in_place and changes.nvram_path is None):
        return
    remove_all(nvram, "source")
    nvram.attrib.pop("type", None)
    nvram.text = changes.nvram_path


def _mark(root: ET.Element, made_by: str) -> None:
    metadata = root.find("metadata")
    if metadata is not None:
        remove_all(metadata, f"{{{MARKER_NAMESPACE}}}machine")
    if not made_by:
        return
    if metadata is None:
        metadata = ET.SubElement(root, "metadata")
    ET.SubElement(metadata, f"{{{MARKER_NAMESPACE}}}machine").set("by", made_by)
