"""Restore a disk to a file, or a whole machine to a host.

The rule: everything that can be refused is refused before anything is touched; what a new machine needs is recorded
before it is made, so that a killed restore leaves nothing. `in_place` has the rule for a machine that is written over.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from appliance.doing import Subject, about, machine_of
from appliance.hypervisor.protocol import Hypervisor
from appliance.models import CleanupAction, CleanupRecord, new_id
from appliance.progress import SILENT, Progress
from appliance.services.choosing import choose_disk
from appliance.services.cleaning import CleaningService
from appliance.services.holds import held_meanwhile
from appliance.services.points import PointService
from appliance.services.restore.disks import DiskRestorer
from appliance.services.restore.errors import HostIsRemote, NotAMachine
from appliance.services.restore.foreseeing import plan_beside
from appliance.services.restore.in_place import InPlace
from appliance.services.restore.parts import MachineParts, RestoredDisk
from appliance.services.restore.planning import MachinePlan, check_name

if TYPE_CHECKING:
    from appliance.bootstrap import Appliance
    from imaging.points import Point


@dataclass(frozen=True, slots=True)
class DiskRestored:
    disk: str
    target: Path
    image_format: str
    size_bytes: int
    written_bytes: int
    duration_ms: int


@dataclass(frozen=True, slots=True)
class MachineRestored:
    """The machine is defined, and off."""

    host: str
    name: str
    uuid: str
    disks: tuple[RestoredDisk, ...]
    notes: tuple[str, ...]
    duration_ms: int


class RestoreService:
    """Borrows the appliance."""

    def __init__(self, appliance: Appliance) -> None:
        self._appliance = appliance

    def disk(
        self,
        name: str,
        point: str,
        disk: str | None,
        target: Path,
        image_format: str,
        *,
        force: bool = False,
        progress: Progress = SILENT,
    ) -> DiskRestored:
        """One disk to a file or block device. TargetRefused before, TargetFailed while it is written; ImagingError."""
        begun_s = self._appliance.clock.monotonic_s()
        found = PointService(self._appliance).resolve(point, name)
        entry = choose_disk(found.manifest, disk)
        about(
            _machine(found), point=found.id, disk=entry.name, target=str(target.absolute()), image_format=image_format,
            force=force,
        )  # fmt: skip
        with held_meanwhile(self._appliance, found, f"restore-{new_id()}"):
            restored = DiskRestorer(self._appliance, progress).to(found, entry, target, image_format, force=force)
        return DiskRestored(
            entry.name, target, image_format, entry.size_bytes, restored.written_bytes, self._since(begun_s)
        )

    def machine(
        self,
        name: str,
        point: str,
        host: str,
        *,
        new_name: str | None = None,
        force: bool = False,
        storage: str | None = None,
        progress: Progress = SILENT,
    ) -> MachineRestored:
        """A whole machine: under `new_name`, its disks in `storage` (a folder or pool); or, without, in place.

        In place needs `force` where something would be overwritten, and the machine has to be off. NotAMachine,
        HostIsRemote, NameInvalid, NameTaken, PoolUnusable, WouldOverwrite, NoPlaceForDisk, TargetRefused,
        HypervisorError; in place what `InPlace.restore` raises.
        """
        begun_s = self._appliance.clock.monotonic_s()
        found = PointService(self._appliance).resolve(point, name)
        about(_machine(found), point=found.id, host=host, new_name=new_name, storage=storage, force=force)
        if found.manifest.machine.kind != "vm":
            raise NotAMachine(found.manifest.machine.name)
        if new_name is not None:
            check_name(new_name)
        owner = f"restore-{new_id()}"
        with self._appliance.connect(host) as hypervisor:
            if not hypervisor.files.local:
                raise HostIsRemote(host)
            restorer = DiskRestorer(self._appliance, progress)
            with self._owning(owner, owner), held_meanwhile(self._appliance, found, owner):
                if new_name is not None:
                    plan, disks = self._new(hypervisor, found, new_name, storage, owner, restorer)
                    notes = plan.notes
                else:
                    done = InPlace(self._appliance, hypervisor, found, restorer, progress).restore(force, owner)
                    plan, disks, notes = done.plan, done.disks, done.notes
        return MachineRestored(host, plan.name, plan.uuid, disks, notes, self._since(begun_s))

    def _new(self, hypervisor: Hypervisor, found: Point, name: str, storage: str | None, owner: str,
             restorer: DiskRestorer) -> tuple[MachinePlan, tuple[RestoredDisk, ...]]:  # fmt: skip
        plan = plan_beside(self._appliance, hypervisor, found, name, storage, owner)
        folder = plan.folder or ""
        made_folder = not os.path.lexists(folder)
        self._record_cleanups(hypervisor, plan, owner, made_folder)
        try:
            hypervisor.files.prepare_folder(folder)
            parts = MachineParts(hypervisor, self._appliance.repository, found, restorer)
            disks = tuple(parts.put_new_disk(disk) for disk in plan.disks)
            parts.put_files(plan)
            hypervisor.machines.define(plan.xml)
        except BaseException:
            # The first error is what the caller has to see; what could not be undone stays recorded and is tried again.
            with contextlib.suppress(Exception):
                CleaningService(self._appliance).settle_owner(owner, hypervisor)
            raise
        self._appliance.catalog.cleanups.drop_owner(owner)
        return plan, disks

    def _record_cleanups(self, hypervisor: Hypervisor, plan: MachinePlan, owner: str, made_folder: bool) -> None:
        """What a killed restore would leave, before it is made."""
        paths: list[str] = []
        for disk in plan.disks:
            paths += [f"{disk.path}.strongroom-part", f"{disk.path}.strongroom-part.lock", disk.path]
        paths += [file.path for file in plan.files]
        if made_folder and plan.folder is not None:
            paths.append(plan.folder)
        steps: tuple[tuple[CleanupAction, tuple[str, ...]], ...] = (
            (CleanupAction.REMOVE_FILES, tuple(paths)),
            (CleanupAction.UNDEFINE_MACHINE, ()),
        )
        host, now = hypervisor.host.name, self._appliance.clock.now_utc()
        for action, subject in steps:
            record = CleanupRecord(new_id(), owner, action, now, host, plan.uuid, plan.name, paths=subject)
            self._appliance.catalog.cleanups.add(record)

    @contextmanager
    def _owning(self, owner: str, restore: str) -> Iterator[None]:
        """At work as `owner`, whose lock is of no use to anybody afterwards, however it ended."""
        try:
            with self._appliance.own(owner, f"restore {restore}"):
                yield
        finally:
            (self._appliance.settings.run_directory / f"{owner}.lock").unlink(missing_ok=True)

    def _since(self, begun_s: float) -> int:
        return round((self._appliance.clock.monotonic_s() - begun_s) * 1000)


def _machine(point: Point) -> Subject:
    machine = point.manifest.machine
    return Subject.of_machine(machine_of(machine.kind, machine.name, machine.uuid, machine.host))
