"""What of a machine is read in a run, and how much of it: a pure decision from the machine and its newest point.

The rule: a bitmap is used only where everything that can be checked without reading says that it belongs to this disk
and to that point; every other disk is read in full, beside the trusted ones, and the reason is kept.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from appliance.hypervisor.protocol import DiskDevice, DiskInfo, MachineInfo
from appliance.models import ReadKind
from imaging.manifest import DiskEntry, Manifest, Skipped

_EXPECTED_WITHOUT_DATA = (DiskDevice.CDROM, DiskDevice.FLOPPY)


@dataclass(frozen=True, slots=True)
class DiskPlan:
    """One disk: `previous` is its entry in the newest point, where an incremental read can start from."""

    disk: DiskInfo
    read: ReadKind
    reason: str | None
    previous: DiskEntry | None = None

    @property
    def target(self) -> str:
        return self.disk.target


@dataclass(frozen=True, slots=True)
class Plan:
    """`checkpoint` is the one that incremental disks start from. `needs_eyes`: a disk with data is left out."""

    disks: tuple[DiskPlan, ...]
    skipped: tuple[Skipped, ...]
    checkpoint: str | None
    needs_eyes: bool

    @property
    def incremental(self) -> tuple[str, ...]:
        """Targets that are read incrementally."""
        return tuple(plan.target for plan in self.disks if plan.read is ReadKind.INCREMENTAL)

    def in_full(self, target: str, reason: str) -> Plan:
        """The same with one disk, or all of them if `target` is empty, read in full."""
        return replace(
            self,
            disks=tuple(
                replace(plan, read=ReadKind.FULL, reason=reason, previous=None)
                if plan.read is ReadKind.INCREMENTAL and target in ("", plan.target)
                else plan
                for plan in self.disks
            ),
        )


def plan_disks(machine: MachineInfo, parent: Manifest | None, *, full: bool) -> Plan:
    """Decide for each disk of the machine; `parent` is its newest restore point."""
    skipped = tuple(Skipped(disk.target, disk.skip_reason) for disk in machine.disks if disk.skip_reason is not None)
    needs_eyes = any(
        disk.skip_reason is not None and disk.device not in _EXPECTED_WITHOUT_DATA for disk in machine.disks
    )
    skipped += tuple(
        Skipped(f"memory{number}", f"it is persistent memory in {path}, which is not read")
        for number, path in enumerate(machine.memory_files)
    )
    needs_eyes |= bool(machine.memory_files)
    disks = tuple(_plan_disk(disk, parent, full) for disk in machine.disks if disk.skip_reason is None)
    return Plan(disks, skipped, None if parent is None else parent.checkpoint, needs_eyes)


def _plan_disk(disk: DiskInfo, parent: Manifest | None, full: bool) -> DiskPlan:
    if full:
        return DiskPlan(disk, ReadKind.FULL, "a full read was asked for")
    if parent is None:
        return DiskPlan(disk, ReadKind.FULL, "first restore point of this machine")
    previous = next((entry for entry in parent.disks if entry.name == disk.target), None)
    reason = _why_untrusted(disk, previous, parent.checkpoint)
    if reason is not None:
        return DiskPlan(disk, ReadKind.FULL, reason)
    return DiskPlan(disk, ReadKind.INCREMENTAL, None, previous)


def _why_untrusted(disk: DiskInfo, previous: DiskEntry | None, checkpoint: str | None) -> str | None:
    if not disk.can_hold_bitmap:
        return f"a {disk.format} disk{' that is read-only' if disk.readonly else ''} keeps no bitmap of what changes"
    if previous is None:
        return "it is not in the previous restore point"
    if checkpoint is None or not previous.checkpoint:
        return "the previous restore point left no checkpoint on it"
    if previous.source != disk.source.description:
        return f"its source was {previous.source}"
    if previous.serial != disk.serial:
        return f"its serial number was {previous.serial or 'none'}"
    if disk.size_bytes is not None and previous.size_bytes != disk.size_bytes:
        return f"it was resized from {previous.size_bytes} to {disk.size_bytes} bytes"
    return None
