"""Network cards of a machine that is made beside another one. Pure.

The rule: the guest sees the same cards; what is behind them is what was asked for, and "as before" never means a
device, socket or port of the host that only one machine can have.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from enum import StrEnum
from secrets import token_bytes

from appliance.hypervisor.domain_xml import remove_all

# Of a network card, what belongs to the network that it was on.
_OF_ONE_NETWORK = (
    *("source", "virtualport", "vlan", "filterref", "bandwidth", "portForward", "ip", "route", "script", "downscript"),
    *("driver", "tune", "port", "mtu", "coalesce", "teaming"),
)
# What any number of machines can be plugged into; "ethernet" is a tap that libvirt makes, unless it is told not to.
_SHARED = ("network", "bridge", "direct", "ethernet", "user", "mcast", "internal", "null", "vds")
_IDENTITIES = ("interfaceid", "instanceid")  # of a port on a virtual switch


class Network(StrEnum):
    """What cards are plugged into: one of these, or the name of a libvirt network."""

    NONE = "none"  # the network cards stay, with nothing behind them
    KEEP = "keep"


def rewire(root: ET.Element, network: str, warnings: list[str], *, new_macs: bool) -> None:
    for card in root.findall("devices/interface"):
        if new_macs:
            _new_mac(card)
        managed_tap = card.find("target[@managed='no']") is None
        remove_all(card, "target")  # the tap's name on the old host
        remove_all(card, "backend")
        if network == Network.NONE:
            _unplug(card)
        elif network != Network.KEEP:
            _forget_network(card)
            card.set("type", "network")
            card.insert(0, ET.Element("source", network=network))
        elif _is_shared(card, managed_tap):
            _keep(card, warnings)
        else:
            warnings.append(
                f"a network card was on a {card.get('type')} that is the old host's; nothing is plugged in now"
            )
            _unplug(card)


def _is_shared(card: ET.Element, managed_tap: bool) -> bool:
    """`direct` in mode passthrough takes the host's card for itself."""
    alone = card.find("source[@mode='passthrough']") is not None or not managed_tap
    return card.get("type") in _SHARED and not alone


def _keep(card: ET.Element, warnings: list[str]) -> None:
    for parameters in card.findall("virtualport/parameters"):
        identities = [name for name in _IDENTITIES if parameters.attrib.pop(name, None) is not None]
        if identities:
            warnings.append("a network card's port on its virtual switch is the old machine's; it gets another")
    if card.find("portForward") is not None:
        remove_all(card, "portForward")
        warnings.append("ports of the old host that were forwarded to the machine are not any more")


def _forget_network(card: ET.Element) -> None:
    for tag in _OF_ONE_NETWORK:
        remove_all(card, tag)
    card.attrib.pop("managed", None)
    card.attrib.pop("trustGuestRxFilters", None)


def _unplug(card: ET.Element) -> None:
    # Not type='null': starting such a machine kills libvirtd 9.0 (it follows a null pointer). The guest cannot raise a
    # link that the host holds down, and nothing passes it.
    _forget_network(card)
    card.set("type", "user")
    remove_all(card, "link")
    ET.SubElement(card, "link", state="down")


def _new_mac(card: ET.Element) -> None:
    mac = card.find("mac")
    if mac is None:
        mac = ET.Element("mac")
        card.insert(0, mac)
    # QEMU's own range of locally administered addresses.
    mac.set("address", ":".join(f"{byte:02x}" for byte in b"\x52\x54\x00" + token_bytes(3)))
