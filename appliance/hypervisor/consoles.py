"""Serial ports, consoles and channels of a machine that is made beside another one. Pure.

The rule: no file, socket, port or device of the host is used by two machines (QEMU empties a console's file when it
starts, so a second machine would wipe the first one's log): each console gets a place of its own, or becomes a
terminal.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET

from appliance.hypervisor.domain_xml import remove_all

_KINDS = ("serial", "parallel", "console", "channel")
# Nothing of the host is behind these.
_GUESTS_OWN = ("spicevmc", "spiceport", "null", "vc", "stdio", "dbus", "qemu-vdagent")
_SOCKET_PATH_BYTES_MAX = 107  # a longer one would keep the machine from starting


def move_consoles(devices: ET.Element, folder: str | None, warnings: list[str]) -> None:
    """To files and sockets below `folder`; None: to terminals."""
    for kind in _KINDS:
        for number, console in enumerate(devices.findall(kind)):
            _move(console, f"{kind}{number}", folder, warnings)


def _move(console: ET.Element, label: str, folder: str | None, warnings: list[str]) -> None:
    for log in console.findall("log"):
        if folder is None:
            console.remove(log)
        else:
            log.set("file", f"{folder}/{label}.log")
    kind = console.get("type", "pty")
    if kind in _GUESTS_OWN:
        return
    target = console.find("target")
    if console.tag == "channel" and kind == "unix" and target is not None and target.get("type") == "virtio":
        if console.find("source[@mode='connect']") is not None:
            warnings.append(
                f"channel {target.get('name', label)} was connected to a socket of the old host; it waits now"
            )
        # libvirt makes a path of its own for these, as for the guest agent's.
        remove_all(console, "source")
        console.insert(0, ET.Element("source", mode="bind"))
        return
    remove_all(console, "source")
    console.attrib.pop("tty", None)
    if folder is not None and kind == "file":
        console.insert(0, ET.Element("source", path=f"{folder}/{label}"))
    elif folder is not None and kind == "unix" and len(f"{folder}/{label}".encode()) <= _SOCKET_PATH_BYTES_MAX:
        console.insert(0, ET.Element("source", mode="bind", path=f"{folder}/{label}"))
    elif kind != "pty":
        console.set("type", "pty")
        remove_all(console, "protocol")
        warnings.append(f"{label} was connected to a {kind} of the old host; it is a terminal now")
