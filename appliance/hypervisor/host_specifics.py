"""What in a definition belongs to the host and the run it was taken from, and how to take it out. Pure.

The rule: nothing that two machines cannot share survives: labels, aliases, placement, options for QEMU itself, and what
`host_devices` and `consoles` know of devices. What is left out that an admin could miss is told.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET

from appliance.hypervisor.consoles import move_consoles
from appliance.hypervisor.domain_xml import remove_all
from appliance.hypervisor.host_devices import part_devices

# What says on which of the host's processors, memory and groups the machine may run.
_PLACEMENT = ("numatune", "cputune", "blkiotune", "memtune", "resource", "memoryBacking", "keywrap", "launchSecurity")
_SPOKEN_OF = {
    "memoryBacking": "huge pages or shared memory of the old host were left out",
    "launchSecurity": "memory encryption of the old host was left out",
}
# Of what hypervisors add below names of their own, what only says how the guest's own devices look.
_QEMU = "{http://libvirt.org/schemas/domain/qemu/1.0}"
_HARMLESS_ADDITIONS = frozenset({f"{_QEMU}capabilities", f"{_QEMU}deprecation", f"{_QEMU}override"})


def drop_host_specifics(root: ET.Element, warnings: list[str], *, console_folder: str | None, in_place: bool) -> None:
    _drop_run_state(root)
    if in_place:
        return
    for tag in _PLACEMENT:
        if root.find(tag) is not None and tag in _SPOKEN_OF:
            warnings.append(_SPOKEN_OF[tag])
        remove_all(root, tag)
    vcpu = root.find("vcpu")
    if vcpu is not None:
        vcpu.attrib.pop("cpuset", None)
    _drop_additions(root, warnings)
    _drop_firmware_files(root, warnings)
    devices = root.find("devices")
    if devices is not None:
        part_devices(root, devices, warnings)
        move_consoles(devices, console_folder, warnings)


def _drop_run_state(root: ET.Element) -> None:
    """What libvirt writes about a running machine, and would take as an order in a new one."""
    remove_all(root, "seclabel")
    for parent in list(root.iter()):
        for alias in parent.findall("alias"):
            # An alias that an admin gave begins with ua-, and their QEMU options may refer to it.
            if not alias.get("name", "").startswith("ua-"):
                parent.remove(alias)
        remove_all(parent, "privateData")
        if parent.tag == "source":
            remove_all(parent, "seclabel")
            parent.attrib.pop("index", None)
        if parent.tag == "target":
            parent.attrib.pop("state", None)


def _drop_additions(root: ET.Element, warnings: list[str]) -> None:
    """Options for QEMU itself may name any file, socket or device; which, only QEMU knows."""
    for addition in list(root):
        if addition.tag.startswith("{") and addition.tag not in _HARMLESS_ADDITIONS:
            root.remove(addition)
            name = addition.tag.rpartition("}")[2]
            warnings.append(
                f"{len(addition)} options that go past libvirt ({name}) were left out: they may lead anywhere"
            )


def _drop_firmware_files(root: ET.Element, warnings: list[str]) -> None:
    """Firmware that is written to: its variables are in `nvram` (see `domain_rewriting`), or start anew."""
    loader = root.find("os/loader")
    if loader is not None and loader.get("type") == "pflash" and loader.get("readonly") != "yes":
        loader.set("readonly", "yes")
        warnings.append("its firmware could write to a file of the old host; it can only read it now")
    for store in root.findall("os/varstore"):
        if store.attrib.pop("path", None) is not None:
            warnings.append("its firmware's variables were in a file of the old host; they start anew")
