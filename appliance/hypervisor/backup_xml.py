"""The documents that begin a backup: pure.

The rule: every disk of the machine is named, in the backup and in the checkpoint, with what shall happen to it. What is
not named libvirt decides, and one raw disk then makes the whole begin fail.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Iterable, Mapping

from appliance.hypervisor.domain_xml import MAX_XML_BYTES, text_of
from appliance.hypervisor.errors import HypervisorError
from appliance.hypervisor.protocol import BackupRequest, CheckpointInfo, RunningBackup

# libvirt keeps a checkpoint's description: other tools name theirs by UUIDs too.
_MARK = "made by Strongroom"


def backup_xml(request: BackupRequest, all_targets: Iterable[str]) -> str:
    root = ET.Element("domainbackup", mode="pull")
    ET.SubElement(root, "server", transport="unix", socket=request.socket)
    disks = ET.SubElement(root, "disks")
    wanted = {disk.target: disk for disk in request.disks}
    for target in all_targets:
        backup = wanted.get(target)
        if backup is None:
            ET.SubElement(disks, "disk", name=target, backup="no")
            continue
        disk = ET.SubElement(disks, "disk", name=target, backup="yes", type="file")
        if backup.incremental_from is None:
            disk.set("backupmode", "full")
        else:
            disk.set("backupmode", "incremental")
            disk.set("incremental", backup.incremental_from)
        disk.set("exportname", target)
        disk.set("exportbitmap", export_bitmap(target))
        ET.SubElement(disk, "driver", type="qcow2")
        ET.SubElement(disk, "scratch", file=backup.scratch)
    return ET.tostring(root, encoding="unicode")


def export_bitmap(target: str) -> str:
    return f"backup-{target}"


def dirty_context(target: str) -> str:
    return f"qemu:dirty-bitmap:{export_bitmap(target)}"


def checkpoint_xml(name: str, disks: Mapping[str, bool]) -> str:
    """A new checkpoint: for each target, whether a bitmap is to record there."""
    return ET.tostring(_ours(name, disks), encoding="unicode")


def redefinition_xml(name: str, disks: Mapping[str, bool]) -> str:
    """The least that makes libvirt know a checkpoint again; creationTime is required, its value is not used."""
    root = _ours(name, disks)
    ET.SubElement(root, "creationTime").text = "1"
    return ET.tostring(root, encoding="unicode")


def _ours(name: str, disks: Mapping[str, bool]) -> ET.Element:
    root = ET.Element("domaincheckpoint")
    ET.SubElement(root, "name").text = name
    ET.SubElement(root, "description").text = _MARK
    parent = ET.SubElement(root, "disks")
    for target, bitmap in disks.items():
        ET.SubElement(parent, "disk", name=target, checkpoint="bitmap" if bitmap else "no")
    return root


def checkpoint_info(xml: str) -> CheckpointInfo:
    """Of what libvirt says of a checkpoint."""
    root = _parse(xml, "domaincheckpoint")
    disks = tuple(disk.get("name", "") for disk in root.findall("disks/disk") if disk.get("checkpoint") == "bitmap")
    return CheckpointInfo(text_of(root, "name") or "", disks, ours=text_of(root, "description") == _MARK)


def running_backup(xml: str) -> RunningBackup:
    root = _parse(xml, "domainbackup")
    server = root.find("server")
    scratches = [scratch.get("file", "") for scratch in root.findall("disks/disk/scratch")]
    return RunningBackup(
        socket=server.get("socket") if server is not None else None,
        scratches=tuple(path for path in scratches if path),
    )


def _parse(xml: str, tag: str) -> ET.Element:
    """What libvirtd itself answers; still limited in size."""
    if len(xml) > MAX_XML_BYTES:
        raise HypervisorError(f"libvirt's <{tag}> is longer than {MAX_XML_BYTES} bytes")
    root = ET.fromstring(xml)  # noqa: S314 - written by libvirtd, which the appliance has to trust
    if root.tag != tag:
        raise HypervisorError(f"libvirt answered <{root.tag[:40]}> where <{tag}> was asked for")
    return root
