"""Checkpoints: libvirt's knowledge of the bitmaps that record what changes.

The rule: all that must be kept is a checkpoint's name. libvirt forgets its side (transient and undefined machines, a
lost state folder) while the bitmap in the qcow2 file goes on recording, so a checkpoint is defined anew and validated
before each use; and deleting one ends with the bitmap gone, whatever libvirt still knew and whatever state it was in.
What other tools made is not touched: a checkpoint of ours carries a mark, and a bitmap is known by its recorded name.
"""

from __future__ import annotations

import builtins
from collections.abc import Collection, Iterable

import libvirt

from appliance.hypervisor.backup_xml import checkpoint_info, redefinition_xml
from appliance.hypervisor.bitmaps import Qcow2Bitmaps
from appliance.hypervisor.calls import Domain, Refused
from appliance.hypervisor.connection import Connection, is_uuid
from appliance.hypervisor.domain_xml import parse_machine
from appliance.hypervisor.errors import BitmapUntrusted, HypervisorError, MachineNotFound
from appliance.hypervisor.protocol import BitmapInfo, CheckpointInfo, DiskInfo, Machines

_REDEFINE = libvirt.VIR_DOMAIN_CHECKPOINT_CREATE_REDEFINE
_VALIDATED = _REDEFINE | libvirt.VIR_DOMAIN_CHECKPOINT_CREATE_REDEFINE_VALIDATE
_METADATA_ONLY = libvirt.VIR_DOMAIN_CHECKPOINT_DELETE_METADATA_ONLY


class LibvirtCheckpoints:
    """Implements protocol.Checkpoints. Borrows all it is given."""

    def __init__(self, connection: Connection, machines: Machines, bitmaps: Qcow2Bitmaps) -> None:
        self._connection = connection
        self._machines = machines
        self._bitmaps = bitmaps

    def list(self, machine: str) -> tuple[CheckpointInfo, ...]:
        found = self._connection.domain(machine).checkpoints()
        flags = libvirt.VIR_DOMAIN_CHECKPOINT_XML_NO_DOMAIN
        return tuple(checkpoint_info(handle.call("getXMLDesc", flags)) for handle in found)

    def redefine(self, machine: str, name: str, disks: Iterable[str]) -> None:
        domain = self._connection.domain(machine)
        wanted = tuple(disks)
        absent = [target for target in wanted if target not in _targets(domain)]
        if absent:
            raise BitmapUntrusted(absent[0], name, "the machine no longer has this disk")
        if not domain.active():
            self._check_files(machine, name, wanted)
            self._redefine(domain, name, wanted, _REDEFINE)
            return
        try:
            self._redefine(domain, name, wanted, _VALIDATED)
        except Refused as error:
            disk = wanted[0] if len(wanted) == 1 else _disk_named_in(error.words, wanted)
            raise BitmapUntrusted(disk, name, error.words) from error

    def _check_files(self, machine: str, name: str, targets: Iterable[str]) -> None:
        info = self._machines.get(machine)
        for target in targets:
            disk = info.disk(target)
            if disk is None or disk.source.path is None or not disk.can_hold_bitmap:
                raise BitmapUntrusted(target, name, "the disk cannot hold a bitmap any more")
            self._bitmaps.check(disk.source.path, name, target)

    def _redefine(self, domain: Domain, name: str, targets: Iterable[str], flags: int) -> None:
        wanted = set(targets)
        domain.checkpoint_create(redefinition_xml(name, {disk: disk in wanted for disk in _targets(domain)}), flags)

    def delete(self, machine: str, name: str, disks: Iterable[str] = ()) -> None:
        try:
            domain = self._connection.domain(machine)
            if not domain.active():
                self._delete_off(machine, domain, name)
                return
            covered = self._known_disks(domain, name)
            if not self._delete_known(domain, name, 0):
                covered = ()
            # What libvirt forgot, or was told again for some disks only, may be there still: tell it once more,
            # unvalidated, disk by disk, as one disk without the bitmap makes the whole deletion fail.
            for target in disks:
                if target not in covered:
                    self._delete_leaked(domain, name, target)
        except MachineNotFound:
            return

    def _known_disks(self, domain: Domain, name: str) -> tuple[str, ...]:
        """Where libvirt would delete the checkpoint's bitmaps."""
        try:
            xml = domain.checkpoint(name).call("getXMLDesc", libvirt.VIR_DOMAIN_CHECKPOINT_XML_NO_DOMAIN)
        except Refused as error:
            if error.code == libvirt.VIR_ERR_NO_DOMAIN_CHECKPOINT:
                return ()
            raise
        return checkpoint_info(xml).disks

    def _delete_known(self, domain: Domain, name: str, flags: int) -> bool:
        """False: libvirt does not know it, or knows it without being able to delete it with its bitmaps."""
        try:
            domain.checkpoint(name).call("delete", flags)
        except Refused as error:
            if error.code == libvirt.VIR_ERR_NO_DOMAIN_CHECKPOINT:
                return False
            if flags == _METADATA_ONLY or "bitmap" not in error.words.lower():
                raise
            # A bitmap of it is gone already: drop what libvirt knows; the disks are then gone through one by one.
            domain.checkpoint(name).call("delete", _METADATA_ONLY)
            return False
        return True

    def _delete_leaked(self, domain: Domain, name: str, target: str) -> None:
        if target not in _targets(domain):
            return
        try:
            self._redefine(domain, name, (target,), _REDEFINE)
        except Refused as error:
            if "bitmap" in error.words.lower():
                return  # not on this disk
            raise
        self._delete_known(domain, name, 0)

    def _delete_off(self, machine: str, domain: Domain, name: str) -> None:
        self._delete_known(domain, name, _METADATA_ONLY)
        for disk in self._local_qcow2(machine):
            self._bitmaps.remove(disk.source.path or "", name)

    def bitmaps(self, machine: str) -> tuple[BitmapInfo, ...]:
        found: builtins.list[BitmapInfo] = []
        for disk in self._local_qcow2(machine):
            for bitmap in self._bitmaps.list(disk.source.path or ""):
                found.append(
                    BitmapInfo(disk.target, bitmap.name, bitmap.granularity_bytes, bitmap.recording, bitmap.in_use)
                )
        return tuple(found)

    def _local_qcow2(self, machine: str) -> builtins.list[DiskInfo]:
        return [disk for disk in self._machines.get(machine).disks if disk.can_hold_bitmap and disk.source.path]

    def forget(self, machine: str, names: Collection[str] = (), *, others: bool = False) -> tuple[str, ...]:
        chosen = {
            checkpoint.name: set(checkpoint.disks)
            for checkpoint in self.list(machine)
            if others or checkpoint.ours or checkpoint.name in names
        }
        for bitmap in self.bitmaps(machine):
            if bitmap.name in chosen or bitmap.name in names or (others and is_uuid(bitmap.name)):
                chosen.setdefault(bitmap.name, set()).add(bitmap.disk)
        for name, disks in chosen.items():
            self.delete(machine, name, sorted(disks))
        left = [checkpoint.name for checkpoint in self.list(machine) if checkpoint.name in chosen]
        if left:
            raise HypervisorError(
                f"{machine} still has checkpoints {', '.join(left)}",
                hint=f"virsh checkpoint-delete {machine} NAME --metadata drops libvirt's side of one.",
            )
        return tuple(sorted(chosen))


def _targets(domain: Domain) -> tuple[str, ...]:
    return tuple(disk.target for disk in parse_machine(domain.xml(0)).disks)


def _disk_named_in(words: str, targets: Iterable[str]) -> str:
    """libvirt names the disk in quotes, where it names it."""
    return next((target for target in targets if f"'{target}'" in words), "")
