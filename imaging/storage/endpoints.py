"""Which addresses an object store may have.

The rule: a URL names a server and nothing else, and never one that hands out the credentials of the machine we run on
(metadata services of clouds), however its address is spelled; whatever is sent without TLS stays on this machine,
unless somebody said otherwise. Nothing is looked up: a name that leads to a refused address is not noticed here.
"""

from __future__ import annotations

import re
import socket
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Final, TypeAlias
from urllib.parse import SplitResult, urlsplit

from imaging.errors import AddressRefused

Address: TypeAlias = IPv4Address | IPv6Address

_PORTS: Final = {"http": 80, "https": 443}
_LOCAL_NAME: Final = "localhost"
_NAME: Final = re.compile(r"(?!-)[a-z0-9_-]{1,63}(?<!-)(?:\.(?!-)[a-z0-9_-]{1,63}(?<!-))*")
_NUMBER: Final = re.compile(r"(?:0x[0-9a-f]*|[0-9]+)(?:\.(?:0x[0-9a-f]*|[0-9]+))*")
"""What inet_aton(3), and with it any resolver, reads as an address: 2852039166, 0xa9fea9fe, 169.254.43518."""

_METADATA_NAMES: Final = frozenset({"metadata", "metadata.google.internal", "metadata.goog", "instance-data"})
_METADATA: Final = frozenset(
    ip_address(each)
    for each in (
        "100.100.100.200",  # Alibaba Cloud
        "168.63.129.16",  # Azure's host
        "192.0.0.192",  # Oracle Cloud
        "fd00:ec2::254",  # EC2
        "fd00:42::42",  # Scaleway
        "fd20:ce::254",  # Google
    )
)
"""Those that are not link-local, which 169.254.169.254 is."""

_NAT64: Final = ip_network("64:ff9b::/96")
_COMPATIBLE: Final = ip_network("::/96")


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A server of objects. `url` is in one spelling: lower case, without a slash at its end or the usual port."""

    url: str
    loopback: bool
    encrypted: bool

    def __str__(self) -> str:
        return self.url


def parse_endpoint(url: str, *, allow_plain: bool = False) -> Endpoint:
    """AddressRefused, which never repeats what could be a password. With `allow_plain`, http also to other
    machines."""
    if not url.isascii() or not url.isprintable() or re.search(r"[\s\\%]", url):
        raise AddressRefused("the endpoint", "it has characters that no address of a server has")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise AddressRefused("the endpoint", "it is no URL") from error
    if parts.scheme not in _PORTS:
        raise AddressRefused("the endpoint", "it does not begin with https:// or http://")
    if "@" in parts.netloc:
        raise AddressRefused("the endpoint", "it has a user or a password in it", hint="set the credentials apart")
    if "?" in url or "#" in url or parts.path not in ("", "/"):
        raise AddressRefused("the endpoint", "it has more than scheme, host and port")
    if port == 0 or parts.netloc.endswith(":"):
        raise AddressRefused(url, "its port is none")
    host, address = _host(url, parts)
    loopback = host == _LOCAL_NAME if address is None else _stays_here(address)
    if parts.scheme == "http" and not (loopback or allow_plain):
        hint = "use https://, or allow plain http explicitly where the network is your own"
        raise AddressRefused(url, "plain http to another machine can be read and changed on its way", hint=hint)
    shown = f"[{host}]" if isinstance(address, IPv6Address) else host
    suffix = "" if port in (None, _PORTS[parts.scheme]) else f":{port}"
    return Endpoint(f"{parts.scheme}://{shown}{suffix}", loopback, parts.scheme == "https")


def _host(url: str, parts: SplitResult) -> tuple[str, Address | None]:
    """The host in one spelling, and its address if it is one."""
    name = parts.hostname or ""
    bracketed = "[" in parts.netloc
    name = name if bracketed else name.removesuffix(".")
    if name in _METADATA_NAMES:
        raise AddressRefused(url, "it leads to the metadata of the machine, where credentials are")
    address = _address(url, name, bracketed)
    if address is not None:
        _refuse_if_special(url, address)
        return str(address), address
    if len(name) > 253 or not _NAME.fullmatch(name):
        raise AddressRefused(url, "its host is none")
    return name, None


def _address(url: str, name: str, bracketed: bool) -> Address | None:
    try:
        if bracketed:
            return IPv6Address(name)
        if _NUMBER.fullmatch(name):
            return IPv4Address(socket.inet_aton(name))
    except (ValueError, OSError) as error:
        raise AddressRefused(url, "its address is none") from error
    if re.fullmatch(r"(?:.*\.)?(?:[0-9]+|0x[0-9a-f]*)", name):
        raise AddressRefused(url, "its address is none")  # no top-level domain is a number
    return None


def _stays_here(address: Address) -> bool:
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return (mapped or address).is_loopback


def _plain(address: Address) -> Address:
    """The IPv4 address that an IPv6 address stands for, where it does."""
    if isinstance(address, IPv4Address):
        return address
    inner = address.ipv4_mapped or address.sixtofour
    if inner is None and (address in _NAT64 or (address in _COMPATIBLE and int(address) > 1)):
        inner = IPv4Address(int(address) & 0xFFFFFFFF)
    return inner or address


def _refuse_if_special(url: str, address: Address) -> None:
    plain = _plain(address)
    if plain.is_link_local or plain in _METADATA or address in _METADATA:
        raise AddressRefused(url, "it leads to the metadata of the machine, where credentials are, or to no network")
    if plain.is_unspecified or plain.is_multicast or plain == IPv4Address("255.255.255.255"):
        raise AddressRefused(url, "no server has this address")
