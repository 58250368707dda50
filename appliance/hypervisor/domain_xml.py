"""A machine's definition, read: pure, no libvirt, no files.

The rule: a definition is input like any other. It may come out of a restore point made on another host, so its size is
limited, a document type (and so every entity) is refused before it is parsed, what is missing is an error that says
so, never a guess, and a name that leads to files (`is_plain_target`) is one word. `domain_rewriting` makes new
definitions out of old ones.
"""

from __future__ import annotations

import itertools
import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from dataclasses import dataclass
from xml.parsers import expat

from appliance.hypervisor.errors import DomainXmlInvalid
from appliance.hypervisor.protocol import DiskDevice, DiskSource, SourceKind

MAX_XML_BYTES = 4 * 1024 * 1024
AGENT_CHANNEL = "org.qemu.guest_agent.0"
MARKER_NAMESPACE = "urn:strongroom:machine"
# One of its own, as whoever sets the metadata of a namespace (virsh metadata) replaces all of it.
TAGS_NAMESPACE = "urn:strongroom:tags"
MAX_TAGS = 64

# Prefixes that libvirt and management tools use: kept as they are when a definition is written again.
for _prefix, _namespace in (
    ("qemu", "http://libvirt.org/schemas/domain/qemu/1.0"),
    ("libosinfo", "http://libosinfo.org/xmlns/libvirt/domain/1.0"),
    ("cockpit_machines", "https://github.com/cockpit-project/cockpit/tree/main/pkg/machines"),
    ("strongroom", MARKER_NAMESPACE),
    ("strongroom_tags", TAGS_NAMESPACE),
):
    ET.register_namespace(_prefix, _namespace)

# As libvirt's schema has it (basictypes, diskTarget). Its parser, which alone decides, takes anything after vd, sd, hd:
# "vda/../../tmp/x" too.
_TARGET = re.compile(r"[A-Za-z0-9_-]{1,64}")

_TAG = re.compile(r"[^\W_][\w.:=/@+-]{0,63}")

_KINDS = {
    "file": SourceKind.FILE,
    "block": SourceKind.BLOCK,
    "network": SourceKind.NETWORK,
    "volume": SourceKind.VOLUME,
}
_DEVICES = {device.value: device for device in DiskDevice}


@dataclass(frozen=True, slots=True)
class DiskDefinition:
    """One <disk> as the definition has it; what only a look at the file can tell is in `protocol.DiskInfo`."""

    target: str
    device: DiskDevice
    source: DiskSource
    volume: tuple[str, str] | None  # pool and volume name
    format: str
    serial: str | None
    readonly: bool
    shareable: bool
    transient: bool
    backing: tuple[str, ...]
    nbd_sockets: tuple[str, ...]  # UNIX sockets of NBD servers anywhere in the chain, the source included


@dataclass(frozen=True, slots=True)
class MachineDefinition:
    name: str
    uuid: str
    domain_type: str
    memory_bytes: int
    vcpus: int
    disks: tuple[DiskDefinition, ...]
    nvram_path: str | None
    tpm_emulated: bool
    tpm_state_folder: str | None  # only where the definition states it
    agent_channel: bool
    agent_connected: bool
    memory_files: tuple[str, ...]  # of persistent memory (NVDIMM, virtio-pmem), which is no disk
    marker: str | None  # what `domain_rewriting` put there: which recovery or restore made this machine
    tags: frozenset[str]  # what its admin put there, for policies to select by


def parse_xml(xml: str) -> ET.Element:
    """The <domain> element; DomainXmlInvalid for anything else."""
    if len(xml.encode()) > MAX_XML_BYTES:
        raise DomainXmlInvalid(f"it is longer than {MAX_XML_BYTES} bytes")
    guard = expat.ParserCreate()
    guard.StartDoctypeDeclHandler = _refuse_doctype
    try:
        guard.Parse(xml, True)
        root = ET.fromstring(xml)  # noqa: S314 - no document type, so no entities: checked just above
    except (expat.ExpatError, ET.ParseError) as error:
        raise DomainXmlInvalid(f"it is not well-formed XML ({error})") from error
    if root.tag != "domain":
        raise DomainXmlInvalid(f"its root is <{root.tag[:40]}>, not <domain>")
    return root


def _refuse_doctype(name: str, system_id: str | None, public_id: str | None, has_internal: int) -> None:
    raise DomainXmlInvalid("it carries a document type, which no definition of a machine does")


def parse_machine(xml: str) -> MachineDefinition:
    root = parse_xml(xml)
    name = text_of(root, "name")
    uuid = text_of(root, "uuid")
    if not name or not uuid:
        raise DomainXmlInvalid("it lacks <name> or <uuid>")
    channel = agent_channel(root)
    target = channel.find("target") if channel is not None else None
    tpm = root.find("devices/tpm/backend[@type='emulator']")
    tpm_source = tpm.find("source[@type='dir']") if tpm is not None else None
    marker = root.find(f"metadata/{{{MARKER_NAMESPACE}}}machine")
    return MachineDefinition(
        name=name,
        uuid=uuid,
        domain_type=root.get("type", ""),
        memory_bytes=memory_bytes(root.find("memory")),
        vcpus=_integer(text_of(root, "vcpu") or "1", "vcpu"),
        disks=tuple(parse_disk(disk) for disk in disks_of(root)),
        nvram_path=_nvram_path(root),
        tpm_emulated=tpm is not None,
        tpm_state_folder=tpm_source.get("path") if tpm_source is not None else None,
        agent_channel=channel is not None,
        agent_connected=target is not None and target.get("state") == "connected",
        memory_files=tuple(
            path for module in root.findall("devices/memory") if (path := text_of(module, "source/path"))
        ),
        marker=marker.get("by") if marker is not None else None,
        tags=tags_of(root),
    )


def tags_of(root: ET.Element) -> frozenset[str]:
    """What is no plain tag is passed over, and so are those after the first `MAX_TAGS`: a machine stays readable."""
    # As libvirt writes it, both elements have the namespace; written by hand, often the outer one only.
    found = (text_of(tag, ".") or "" for tag in root.findall(f"metadata/{{{TAGS_NAMESPACE}}}tags/{{*}}tag"))
    return frozenset(itertools.islice((tag for tag in found if _TAG.fullmatch(tag)), MAX_TAGS))


def disks_of(root: ET.Element) -> list[ET.Element]:
    return root.findall("devices/disk")


def agent_channel(root: ET.Element) -> ET.Element | None:
    for channel in root.findall("devices/channel"):
        target = channel.find("target")
        if target is not None and target.get("name") == AGENT_CHANNEL:
            return channel
    return None


def parse_disk(disk: ET.Element) -> DiskDefinition:
    target = target_of(disk)
    kind = disk.get("type", "file")
    source = disk.find("source")
    driver = disk.find("driver")
    device = disk.get("device", "disk")
    chain = list(_backing_chain(disk))
    volume = None
    if kind == "volume" and source is not None:
        volume = (source.get("pool", ""), source.get("volume", ""))
    return DiskDefinition(
        target=target,
        device=_DEVICES.get(device, DiskDevice.DISK),
        source=_describe(kind, source),
        volume=volume,
        format=(driver.get("type") if driver is not None else None) or "raw",
        serial=text_of(disk, "serial"),
        readonly=disk.find("readonly") is not None,
        shareable=disk.find("shareable") is not None,
        transient=disk.find("transient") is not None,
        backing=tuple(_describe(store.get("type", "file"), store.find("source")).description for store in chain),
        nbd_sockets=tuple(nbd_sockets(disk)),
    )


def mirror_ready(xml: str, target: str) -> bool:
    """Of a live definition: whether the disk's mirror has caught up."""
    return any(
        disk.find("mirror[@ready='yes']") is not None for disk in disks_of(parse_xml(xml)) if target_of(disk) == target
    )


def target_of(disk: ET.Element) -> str:
    target = disk.find("target")
    name = target.get("dev", "") if target is not None else ""
    if not name:
        raise DomainXmlInvalid("a disk has no <target dev=…>")
    return name


def is_plain_target(name: str) -> bool:
    """Whether a disk's target may name files, sockets and exports."""
    return _TARGET.fullmatch(name) is not None


def _backing_chain(disk: ET.Element) -> Iterator[ET.Element]:
    """The <backingStore> elements below a disk, nearest first; an empty one ends the chain."""
    store = disk.find("backingStore")
    while store is not None and store.find("source") is not None:
        yield store
        store = store.find("backingStore")


def nbd_sockets(disk: ET.Element) -> Iterator[str]:
    for source in disk.iter("source"):
        if source.get("protocol") == "nbd":
            host = source.find("host")
            yield (host.get("socket") or host.get("name") or "") if host is not None else ""


def _describe(kind: str, source: ET.Element | None) -> DiskSource:
    if source is None:
        return DiskSource(SourceKind.NONE, None, "")
    if kind == "file":
        path = source.get("file")
        return DiskSource(SourceKind.FILE if path else SourceKind.NONE, path, path or "")
    if kind == "block":
        path = source.get("dev")
        return DiskSource(SourceKind.BLOCK if path else SourceKind.NONE, path, path or "")
    if kind == "volume":
        return DiskSource(SourceKind.VOLUME, None, f"{source.get('pool', '')}/{source.get('volume', '')}")
    if kind == "network":
        return DiskSource(SourceKind.NETWORK, None, _describe_network(source))
    return DiskSource(SourceKind.OTHER, None, kind)


def _describe_network(source: ET.Element) -> str:
    hosts = [
        host.get("socket") or ":".join(part for part in (host.get("name"), host.get("port")) if part)
        for host in source.findall("host")
    ]
    return f"{source.get('protocol', '')}:{','.join(hosts)}/{source.get('name', '')}"


def _nvram_path(root: ET.Element) -> str | None:
    nvram = root.find("os/nvram")
    if nvram is None:
        return None
    source = nvram.find("source")
    if source is not None:
        return source.get("file")
    return (nvram.text or "").strip() or None


_UNITS = {
    "b": 1,
    "bytes": 1,
    "kb": 10**3,
    "k": 2**10,
    "kib": 2**10,
    "mb": 10**6,
    "m": 2**20,
    "mib": 2**20,
    "gb": 10**9,
    "g": 2**30,
    "gib": 2**30,
    "tb": 10**12,
    "t": 2**40,
    "tib": 2**40,
}


def memory_bytes(element: ET.Element | None) -> int:
    """A <memory>-like element in bytes; libvirt's default unit is KiB."""
    if element is None:
        raise DomainXmlInvalid("it lacks <memory>")
    unit = _UNITS.get(element.get("unit", "KiB").lower())
    if unit is None:
        raise DomainXmlInvalid(f"the unit {element.get('unit')!r} of <{element.tag}> is not known")
    return _integer(element.text or "", element.tag) * unit


def _integer(text: str, what: str) -> int:
    text = text.strip()
    if not text.isascii() or not text.isdigit() or len(text) > 18:
        raise DomainXmlInvalid(f"<{what}> is {text[:40]!r}, not a number")
    return int(text)


def text_of(element: ET.Element, path: str) -> str | None:
    found = element.find(path)
    return (found.text or "").strip() or None if found is not None else None


def remove_all(parent: ET.Element, tag: str) -> None:
    for child in parent.findall(tag):
        parent.remove(child)
