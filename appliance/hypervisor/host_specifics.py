"""What in a definition belongs to the host and the run it was taken from, and how to take it out. Pure.

The rule: nothing that two machines cannot share survives: labels, aliases, ports, sockets, console files (QEMU empties
a console file when it starts, so a second machine would wipe the first one's log).
"""

from __future__ import annotations

import xml.etree.ElementTree as ET

_CONSOLES = ("serial", "parallel", "console", "channel")
_GRAPHICS_PORTS = ("port", "tlsPort", "websocket", "websocketGenerated", "socket", "autoport")
# What says on which of the host's processors, memory and groups the machine may run.
_PLACEMENT = ("numatune", "cputune", "blkiotune", "memtune", "resource", "memoryBacking", "keywrap", "launchSecurity")
_SPOKEN_OF = {
    "memoryBacking": "huge pages or shared memory of the old host were left out",
    "launchSecurity": "memory encryption of the old host was left out",
}


def remove_all(parent: ET.Element, tag: str) -> None:
    for child in parent.findall(tag):
        parent.remove(child)


_SOCKET_PATH_BYTES_MAX = 107  # a longer one would keep the machine from starting


def drop_host_specifics(root: ET.Element, warnings: list[str], *, console_folder: str | None, in_place: bool) -> None:
    _drop_run_state(root)
    if in_place:
        return
    devices = root.find("devices")
    if devices is None:
        return
    for tag in _PLACEMENT:
        if root.find(tag) is not None and tag in _SPOKEN_OF:
            warnings.append(_SPOKEN_OF[tag])
        remove_all(root, tag)
    vcpu = root.find("vcpu")
    if vcpu is not None:
        vcpu.attrib.pop("cpuset", None)
    remove_all(devices, "emulator")
    _drop_host_devices(devices, warnings)
    for graphics in devices.findall("graphics"):
        _free_ports(graphics)
    for kind in _CONSOLES:
        for number, console in enumerate(devices.findall(kind)):
            _move_console(console, f"{kind}{number}", console_folder, warnings)


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


def _drop_host_devices(devices: ET.Element, warnings: list[str]) -> None:
    for tag, meaning in (("hostdev", "device of the old host"), ("filesystem", "folder of the old host")):
        found = devices.findall(tag)
        if found:
            warnings.append(f"{len(found)} {meaning}{'s' if len(found) > 1 else ''} passed through was left out")
        remove_all(devices, tag)
    for tag in ("redirdev", "smartcard", "shmem", "lease", "pstore"):
        remove_all(devices, tag)
    for tpm in devices.findall("tpm"):
        backend = tpm.find("backend")
        if backend is not None and backend.get("type") != "emulator":
            devices.remove(tpm)
            warnings.append("the TPM of the old host was left out")
        elif backend is not None:
            remove_all(backend, "source")
            remove_all(backend, "encryption")
    for generator in devices.findall("rng"):
        backend = generator.find("backend")
        if backend is not None and backend.get("model") == "egd":
            devices.remove(generator)
            warnings.append("a random number generator fed by a socket of the old host was left out")


def _free_ports(graphics: ET.Element) -> None:
    """A fixed port would clash with the old machine's."""
    for attribute in _GRAPHICS_PORTS:
        graphics.attrib.pop(attribute, None)
    for listen in graphics.findall("listen"):
        if listen.get("type") == "socket":
            listen.attrib.pop("socket", None)
    if graphics.get("type") in ("vnc", "spice") and graphics.find("listen[@type='socket']") is None:
        graphics.set("autoport", "yes")


def _move_console(console: ET.Element, label: str, folder: str | None, warnings: list[str]) -> None:
    for log in console.findall("log"):
        if folder is None:
            console.remove(log)
        else:
            log.set("file", f"{folder}/{label}.log")
    kind = console.get("type", "pty")
    if kind in ("spicevmc", "spiceport", "null", "vc", "stdio", "dbus", "qemu-vdagent"):
        return
    target = console.find("target")
    if console.tag == "channel" and kind == "unix" and target is not None and target.get("type") == "virtio":
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
        warnings.append(f"{label.rsplit('-', 1)[-1]} was connected to a {kind} of the old host; it is a terminal now")
