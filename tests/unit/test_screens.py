"""Which recovered machine gets a screen, and that it is gone afterwards."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import pytest

from appliance.hypervisor.screens import add_screen, take_back_screen

SERIAL = "<serial type='{0}'><target port='0'/></serial><console type='{0}'><target type='serial' port='0'/></console>"
HEADLESS = SERIAL.format("pty")
SPICE = "<graphics type='spice' autoport='yes'/><video><model type='qxl'/></video>"
VNC = "<graphics type='vnc' autoport='yes' listen='0.0.0.0'/><video><model type='virtio'/></video>"
VIRTIO_CONSOLE = "<console type='pty'><target type='virtio' port='0'/></console>"
LOGGED = SERIAL.format("file")


def devices(inner: str) -> ET.Element:
    return ET.fromstring(f"<devices>{inner}</devices>")


def plain(element: ET.Element) -> str:
    return ET.tostring(element, encoding="unicode")


def test_a_terminal_is_drawn_and_no_device_is_added() -> None:
    found = devices(HEADLESS)
    add_screen(found)
    assert [found.find(kind).get("type") for kind in ("serial", "console")] == ["vc", "vc"]  # type: ignore[union-attr]
    assert found.find("video/model[@type='none']") is not None
    assert found.find("graphics[@type='vnc']/listen[@type='none']") is not None


def test_a_virtio_console_is_drawn_if_there_is_no_serial_port() -> None:
    found = devices(VIRTIO_CONSOLE)
    add_screen(found)
    assert found.find("console[@type='vc']/target[@type='virtio']") is not None


def test_beside_a_serial_port_a_virtio_console_stays() -> None:
    found = devices(f"<serial type='pty'/>{VIRTIO_CONSOLE}")
    add_screen(found)
    assert found.find("serial[@type='vc']") is not None
    assert found.find("console[@type='pty']") is not None


def test_the_picture_of_another_protocol_is_shown_by_vnc_too() -> None:
    found = devices(SPICE + HEADLESS)
    add_screen(found)
    assert [each.get("type") for each in found.findall("graphics")] == ["spice", "vnc"]
    assert found.find("serial[@type='pty']") is not None


@pytest.mark.parametrize("inner", [VNC, VNC + HEADLESS, LOGGED, ""], ids=["vnc", "both", "log", "nothing"])
def test_what_has_one_or_nothing_to_show_stays_as_it_is(inner: str) -> None:
    found = devices(inner)
    add_screen(found)
    assert plain(found) == plain(devices(inner))


@pytest.mark.parametrize("inner", [HEADLESS, SPICE + HEADLESS, VNC + HEADLESS, VIRTIO_CONSOLE])
def test_afterwards_it_is_gone(inner: str) -> None:
    found = devices(inner)
    add_screen(found)
    take_back_screen(found, devices(inner))
    for video in found.findall("video[model]"):
        if video.find("model[@type='none']") is not None:  # libvirt keeps to it: no picture, as before
            found.remove(video)
    assert plain(found) == plain(devices(inner))


def test_an_admins_own_screen_without_an_address_is_kept() -> None:
    inner = "<graphics type='vnc'><listen type='none'/></graphics><serial type='vc'/>"
    found = devices(inner)
    add_screen(found)
    take_back_screen(found, devices(inner))
    assert plain(found) == plain(devices(inner))
