"""A screen for a machine that is recovered, so that it can be worked with from afar. Pure.

The rule: nobody reaches it but through the hypervisor's own connection (no port, no socket in the file system), and the
guest finds no device that it did not have. A machine without a screen whose serial port is a terminal shows that one
there (QEMU draws it), as nothing else can be typed into. It is for as long as the machine is a recovered one.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET

from appliance.hypervisor.domain_xml import remove_all

_SCREEN = "vnc"
_TERMINAL = "pty"
_DRAWN = "vc"


def add_screen(devices: ET.Element) -> None:
    """If it has none that can be shown. One without a picture and without a terminal stays as it is."""
    if devices.find(f"graphics[@type='{_SCREEN}']") is not None:
        return
    if _has_no_picture(devices):
        terminals = _terminals(devices)
        if not terminals:
            return
        for terminal in terminals:
            terminal.set("type", _DRAWN)
        remove_all(devices, "video")
        ET.SubElement(ET.SubElement(devices, "video"), "model", type="none")
    ET.SubElement(ET.SubElement(devices, "graphics", type=_SCREEN), "listen", type="none")


def take_back_screen(devices: ET.Element, original: ET.Element) -> None:
    """What `add_screen` did, out of a definition whose original is known."""
    if original.find(f"graphics[@type='{_SCREEN}']") is None:
        for graphics in devices.findall(f"graphics[@type='{_SCREEN}']"):
            if graphics.find("listen[@type='none']") is not None:
                devices.remove(graphics)
    if original.find(f"*[@type='{_DRAWN}']") is None:
        for drawn in devices.findall(f"*[@type='{_DRAWN}']"):
            drawn.set("type", _TERMINAL)


def _has_no_picture(devices: ET.Element) -> bool:
    if devices.find("graphics") is not None:
        return False
    models = [model.get("type") for model in devices.findall("video/model")]
    return not models or models == ["none"]


def _terminals(devices: ET.Element) -> list[ET.Element]:
    """The port that a guest has its console on; libvirt tells the first serial port twice, as a console too."""
    serial, console = devices.find("serial"), devices.find("console")
    found = [] if serial is None else [serial]
    if console is not None and (serial is None or _is_serial(console)):
        found.append(console)
    return found if found and all(each.get("type", _TERMINAL) == _TERMINAL for each in found) else []


def _is_serial(console: ET.Element) -> bool:
    target = console.find("target")
    return target is None or target.get("type", "serial") == "serial"
