"""Restore a machine over itself, where it is or was.

The rule: everything that can be refused is refused before anything is touched; a machine is never switched off; while
its disks are half old and half new it is undefined, so that nobody starts it then, and its definition is kept in the
home. Whatever ends the restore before it is defined again says so, and doing it again finishes it.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from appliance.hypervisor.errors import HypervisorError, MachineNotFound
from appliance.hypervisor.protocol import Attached, Hypervisor, MachineInfo
from appliance.progress import Progress
from appliance.services.restore.disks import DiskRestorer
from appliance.services.restore.errors import LeftUndefined, MachineRuns, NameTaken, PointDamaged, WouldOverwrite
from appliance.services.restore.kept import Kept, KeptDefinition
from appliance.services.restore.parts import MachineParts, RestoredDisk
from appliance.services.restore.planning import MachinePlan, PlannedDisk, plan_in_place
from imaging import images
from imaging.errors import TargetRefused
from imaging.soundness import known_damage

if TYPE_CHECKING:
    from appliance.bootstrap import Appliance
    from imaging.points import Point


@dataclass(frozen=True, slots=True)
class Ahead:
    """What a restore in place would do, as everything is now. `there`: paths at which something is; `stays`: those of
    disks that are written over, the rest is replaced. `interrupted`: what an earlier attempt has kept."""

    plan: MachinePlan
    existing: MachineInfo | None
    interrupted: Kept | None
    kept: KeptDefinition
    uuid: str
    there: frozenset[str]
    stays: frozenset[str]
    attached: Attached | None


@dataclass(frozen=True, slots=True)
class DoneInPlace:
    plan: MachinePlan
    disks: tuple[RestoredDisk, ...]
    notes: tuple[str, ...]


class InPlace:
    """One restore of one machine. Borrows all it is given."""

    def __init__(
        self, appliance: Appliance, hypervisor: Hypervisor, point: Point, disks: DiskRestorer, progress: Progress
    ) -> None:
        self._appliance = appliance
        self._hypervisor = hypervisor
        self._point = point
        self._disks = disks
        self._parts = MachineParts(hypervisor, appliance.repository, point, disks)
        self._progress = progress

    def look_ahead(self, force: bool, owner: str) -> Ahead:
        """Touches nothing. MachineRuns, NameTaken, WouldOverwrite, NoPlaceForDisk, TargetRefused, HypervisorError."""
        hypervisor, machine = self._hypervisor, self._point.manifest.machine
        existing = self._existing()
        uuid = existing.uuid if existing is not None else machine.uuid or machine.name
        kept = KeptDefinition(self._appliance.settings, hypervisor.host.name, uuid)
        interrupted = kept.read() if existing is None else None
        plan = plan_in_place(
            self._point.manifest,
            interrupted.definition if interrupted is not None else existing,
            hypervisor.facts().accelerator,
            hypervisor.storage.volume_path,
            owner,
        )
        there = [disk for disk in plan.disks if os.path.lexists(disk.path)]
        stays = self._what_stays(there, existing, force)
        attached = None if existing is None else hypervisor.machines.attached(existing.uuid)
        return Ahead(plan, existing, interrupted, kept, uuid, frozenset(disk.path for disk in there), stays, attached)

    def restore(self, force: bool, owner: str) -> DoneInPlace:
        """Before anything is touched: what `look_ahead` raises, and PointDamaged. After that: LeftUndefined, with what
        failed as its cause."""
        hypervisor = self._hypervisor
        ahead = self.look_ahead(force, owner)
        plan, existing, interrupted, kept = ahead.plan, ahead.existing, ahead.interrupted, ahead.kept
        self._refuse_damaged(plan, kept.path if interrupted is not None else None)
        lost = _lost(plan.name if existing is None else existing.name, ahead.attached)
        try:
            if existing is not None:
                kept.keep(existing.inactive_xml, existing.autostart)
                hypervisor.machines.undefine(existing.uuid, keep_nvram=True)
            disks = tuple(self._put(disk, disk.path in ahead.stays) for disk in plan.disks)
            self._parts.put_files(plan)
            defined = hypervisor.machines.define(plan.xml)
        except BaseException as err:
            if existing is not None or interrupted is not None:
                self._tell(err, plan, ahead.uuid, kept, lost)
            raise
        autostart = existing.autostart if existing is not None else interrupted is not None and interrupted.autostart
        notes = (*plan.notes, *lost, *(self._start_with_host(defined) if autostart else ()))
        kept.forget()
        return DoneInPlace(plan, disks, notes)

    def _existing(self) -> MachineInfo | None:
        """The machine that the point was made of, if the host still has it. MachineRuns, NameTaken."""
        machine, machines = self._point.manifest.machine, self._hypervisor.machines
        try:
            existing = machines.get(machine.uuid or machine.name)
        except MachineNotFound:
            if machines.exists(machine.name):
                raise NameTaken(self._hypervisor.host.name, machine.name) from None
            return None
        if existing.running:
            raise MachineRuns(self._hypervisor.host.name, existing.name)
        return existing

    def _what_stays(self, there: Sequence[PlannedDisk], existing: MachineInfo | None, force: bool) -> frozenset[str]:
        """Paths of those disks that have the right size and that nobody uses: they are written over."""
        if not force and (existing is not None or there):
            raise WouldOverwrite(there[0].path if existing is None else f"machine {existing.name}")
        stays = frozenset(disk.path for disk in there if not self._has_another_size(disk))
        for disk in there:
            self._disks.refuse_if_in_use(Path(disk.path), disk.format)
        return stays

    def _has_another_size(self, disk: PlannedDisk) -> bool:
        """Whether the file that is there has to be replaced, as the disk was resized since.

        TargetRefused, ImageRefused. A larger block device stays as it is: what lies behind the disk's end is not the
        disk's.
        """
        path, wanted = Path(disk.path), disk.entry.size_bytes
        found = images.check_chain(path, disk.format).size_bytes
        if not path.is_block_device():
            return found != wanted
        if found < wanted:
            raise TargetRefused(
                disk.path, f"it holds {found} bytes, and the disk has {wanted}", hint="enlarge it first"
            )
        return False

    def _refuse_damaged(self, plan: MachinePlan, kept: Path | None) -> None:
        manifest = self._point.manifest
        names = {planned.name for planned in plan.files}
        self._progress.start(f"checking restore point {manifest.id[:8]}", None)
        damage = known_damage(
            self._appliance.repository,
            [*(disk.entry for disk in plan.disks), *(file for file in manifest.files if file.name in names)],
        )
        self._progress.finish()
        if damage:
            raise PointDamaged(manifest.id, manifest.machine.name, damage, kept)

    def _put(self, disk: PlannedDisk, stays: bool) -> RestoredDisk:
        if stays:
            return self._parts.put_disk_over(disk)
        if not Path(disk.path).parent.exists():
            self._hypervisor.files.prepare_folder(os.path.dirname(disk.path))
        return self._parts.put_new_disk(disk, force=True)

    def _tell(
        self, err: BaseException, plan: MachinePlan, uuid: str, kept: KeptDefinition, lost: tuple[str, ...]
    ) -> None:
        """Raise what an admin has to know beside the failure, unless the machine is as it was."""
        with contextlib.suppress(HypervisorError):  # a host that does not answer cannot say that it is
            if self._hypervisor.machines.exists(uuid):
                kept.forget()
                return
        left = LeftUndefined(plan.name, self._hypervisor.host.name, kept.path, err, lost)
        if isinstance(err, Exception):
            raise left from err
        self._progress.note(f"{left}\n{left.hint}")  # an interruption stays one

    def _start_with_host(self, uuid: str) -> tuple[str, ...]:
        try:
            self._hypervisor.machines.set_autostart(uuid, True)
        except HypervisorError as err:
            return (f"it does not start with its host any more: {err}",)
        return ()


def _lost(name: str, attached: Attached | None) -> tuple[str, ...]:
    """What libvirt forgets with the definition."""
    lost: list[str] = []
    if attached is not None and attached.snapshots:
        names = ", ".join(attached.snapshots)
        lost.append(f"libvirt has dropped the snapshots of {name}, as its disks are others now: {names}")
    if attached is not None and attached.saved_state:
        lost.append(f"the saved state of {name} was dropped: it went with its disks as they were")
    return tuple(lost)
