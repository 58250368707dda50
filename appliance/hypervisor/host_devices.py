"""Which devices of a definition two machines cannot share, and how the others are parted. Pure.

The rule: a device stays only if it is known to hold nothing of the host; what is not known is left out, and whatever is
left out is told. So a device that a later libvirt invents never leads a copy into the production machine's files.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Callable, Mapping

from appliance.hypervisor.domain_xml import memory_bytes, remove_all, text_of

_Words = str | None  # what the device is, if it has to be left out; None: it may stay


def _stays(device: ET.Element) -> _Words:
    return None


def _hostdev(device: ET.Element) -> _Words:
    return f"a {device.get('type', 'host')} device of the old host, passed through,"


def _filesystem(device: ET.Element) -> _Words:
    return "a folder of the old host, passed through,"


def _redirdev(device: ET.Element) -> _Words:
    kind = device.get("type")
    return None if kind == "spicevmc" else f"USB redirection from a {kind} connection of the old host"


def _smartcard(device: ET.Element) -> _Words:
    guests_own = device.get("mode") == "passthrough" and device.get("type") == "spicevmc"
    return None if guests_own else "a smart card of the old host"


def _shmem(device: ET.Element) -> _Words:
    return f"memory {device.get('name', '')} that other processes of the old host share"


def _lease(device: ET.Element) -> _Words:
    return f"the lock lease {text_of(device, 'key') or ''} of the old machine"


def _pstore(device: ET.Element) -> _Words:
    return "a crash store in a file of the old host"


def _input(device: ET.Element) -> _Words:
    return None if device.get("type") in ("mouse", "tablet", "keyboard") else "an input device of the old host"


def _graphics(device: ET.Element) -> _Words:
    remote = ("vnc", "spice", "rdp", "dbus", "egl-headless")
    return None if device.get("type") in remote else "a window on the old host's own screen"


def _rng(device: ET.Element) -> _Words:
    backend = device.find("backend")
    kind = backend.get("model") if backend is not None else None
    return None if kind in ("random", "builtin") else "a random number generator fed by a socket of the old host"


def _tpm(device: ET.Element) -> _Words:
    return None if device.find("backend[@type='emulator']") is not None else "the TPM of the old host"


def _memory(device: ET.Element) -> _Words:
    model = device.get("model")
    if model in ("dimm", "virtio-mem", "sgx-epc"):
        return None
    size = memory_bytes(device.find("target/size"))
    return f"{size >> 20} MiB of {model} memory in {text_of(device, 'source/path')}, which is not on the restore point,"


_RULES: Mapping[str, Callable[[ET.Element], _Words]] = {
    # Parted elsewhere: disks and cards by `domain_rewriting`, consoles by `consoles`.
    **dict.fromkeys(("disk", "interface", "serial", "parallel", "console", "channel"), _stays),
    **dict.fromkeys(("controller", "hub", "sound", "audio", "video", "watchdog", "memballoon"), _stays),
    **dict.fromkeys(("nvram", "panic", "iommu", "vsock", "crypto", "redirfilter"), _stays),
    "hostdev": _hostdev,
    "filesystem": _filesystem,
    "redirdev": _redirdev,
    "smartcard": _smartcard,
    "shmem": _shmem,
    "lease": _lease,
    "pstore": _pstore,
    "input": _input,
    "graphics": _graphics,
    "rng": _rng,
    "tpm": _tpm,
    "memory": _memory,
}


def why_left_out(device: ET.Element) -> str | None:
    """What a device is, in words, if two machines cannot share it; None: each can have one like it."""
    rule = _RULES.get(device.tag)
    return rule(device) if rule is not None else f"a <{device.tag[:40]}>, of which it is not known what is behind it,"


def part_devices(root: ET.Element, devices: ET.Element, warnings: list[str]) -> None:
    """Leave out what cannot be shared, and give what stays nothing of the host."""
    remove_all(devices, "emulator")  # the new host has its own
    left_out: Counter[str] = Counter()
    for device in list(devices):
        words = why_left_out(device)
        if words is None:
            continue
        devices.remove(device)
        left_out[words] += 1
        if device.tag == "memory":
            _shrink_memory(root, memory_bytes(device.find("target/size")))
    for words, count in left_out.items():
        warnings.append(f"{words} was left out" + (f" ({count} of them)" if count > 1 else ""))
    if devices.find("redirdev") is None:
        remove_all(devices, "redirfilter")
    for tag, part in _PARTED.items():
        for device in devices.findall(tag):
            part(device, warnings)


def _shrink_memory(root: ET.Element, by_bytes: int) -> None:
    """<memory> counts the modules: without one, the rest must not grow."""
    total = root.find("memory")
    left = memory_bytes(total) - by_bytes
    if total is None or left <= 0:
        return  # of a machine with NUMA cells libvirt adds it up anew
    for tag in ("memory", "currentMemory"):
        element = root.find(tag)
        if element is not None and memory_bytes(element) > left:
            element.set("unit", "KiB")
            element.text = str(left >> 10)


def _part_audio(audio: ET.Element, warnings: list[str]) -> None:
    kind, number = audio.get("type"), audio.get("id")
    if kind in ("none", "spice", "dbus"):
        return
    audio.clear()
    audio.set("type", "none")
    if number is not None:
        audio.set("id", number)
    warnings.append(f"sound went to a {kind} of the old host; it goes nowhere now")


def _part_vsock(vsock: ET.Element, warnings: list[str]) -> None:
    for cid in vsock.findall("cid"):
        if cid.get("auto") != "yes":
            warnings.append(f"the machine's vsock address {cid.get('address', '')} is the old one's; it gets another")
        cid.attrib.clear()
        cid.set("auto", "yes")


_GRAPHICS_PORTS = ("port", "tlsPort", "websocket", "websocketGenerated", "socket", "autoport", "address")


def _part_graphics(graphics: ET.Element, warnings: list[str]) -> None:
    """A fixed port would clash with the old machine's, and another host renders with another device."""
    for attribute in _GRAPHICS_PORTS:
        graphics.attrib.pop(attribute, None)
    for listen in graphics.findall("listen"):
        if listen.get("type") == "socket":
            listen.attrib.pop("socket", None)
    if graphics.get("type") in ("vnc", "spice", "rdp") and graphics.find("listen[@type='socket']") is None:
        graphics.set("autoport", "yes")
    for rendering in graphics.findall("gl"):
        rendering.attrib.pop("rendernode", None)


def _part_video(video: ET.Element, warnings: list[str]) -> None:
    for acceleration in video.findall("model/acceleration"):
        acceleration.attrib.pop("rendernode", None)


def _part_tpm(tpm: ET.Element, warnings: list[str]) -> None:
    for backend in tpm.findall("backend"):
        remove_all(backend, "source")  # libvirt makes a place by the machine's uuid
        encryption = backend.find("encryption")
        if encryption is not None:
            warnings.append(f"its TPM opens with the secret {encryption.get('secret', '')}, which its host has to have")


def _part_memory(memory: ET.Element, warnings: list[str]) -> None:
    remove_all(memory, "source")  # on which of the old host's nodes, in pages of which size


_PARTED: Mapping[str, Callable[[ET.Element, list[str]], None]] = {
    "audio": _part_audio,
    "vsock": _part_vsock,
    "graphics": _part_graphics,
    "video": _part_video,
    "tpm": _part_tpm,
    "memory": _part_memory,
}
