"""Restore a disk to a file, or a whole machine to a host.

The rule: everything that can be refused is refused before anything is touched; a machine is never switched off; what a
new machine needs is recorded before it is made, so that a killed restore leaves nothing; a machine that is restored in
place is undefined while its disks are half old and half new, so that nobody starts it then, and doing it again
finishes it.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from appliance.hypervisor.errors import MachineNotFound
from appliance.hypervisor.protocol import Hypervisor, MachineInfo
from appliance.models import CleanupAction, CleanupRecord, new_id
from appliance.progress import SILENT, Progress
from appliance.services.cleaning import CleaningService
from appliance.services.points import PointService, choose_disk
from appliance.services.restore.disks import DiskRestorer
from appliance.services.restore.errors import HostIsRemote, MachineRuns, NameTaken, NotAMachine, WouldOverwrite
from appliance.services.restore.planning import MachinePlan, PlannedDisk, plan_in_place, plan_new
from imaging import images
from imaging.errors import HoldNotFound, TargetRefused
from imaging.reader import DiskReader
from imaging.restoring import Restored

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
class RestoredDisk:
    """`kept_bytes` were right already and not written."""

    target: str
    path: str
    format: str
    size_bytes: int
    written_bytes: int
    kept_bytes: int


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
        with self._held(found, f"restore-{new_id()}"):
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
        HostIsRemote, NameTaken, MachineRuns, WouldOverwrite, NoPlaceForDisk, TargetRefused, HypervisorError.
        """
        begun_s = self._appliance.clock.monotonic_s()
        found = PointService(self._appliance).resolve(point, name)
        if found.manifest.machine.kind != "vm":
            raise NotAMachine(found.manifest.machine.name)
        owner = f"restore-{new_id()}"
        with self._appliance.connect(host) as hypervisor:
            if not hypervisor.files.local:
                raise HostIsRemote(host)
            restorer = DiskRestorer(self._appliance, progress)
            with self._appliance.own(owner, f"restore {owner}"), self._held(found, owner):
                if new_name is not None:
                    plan, disks = self._new(hypervisor, found, new_name, storage, owner, restorer)
                else:
                    plan, disks = self._in_place(hypervisor, found, force, owner, restorer)
        self._forget_lock(owner)
        return MachineRestored(host, plan.name, plan.uuid, disks, plan.notes, self._since(begun_s))

    def _new(self, hypervisor: Hypervisor, found: Point, name: str, storage: str | None, owner: str,
             restorer: DiskRestorer) -> tuple[MachinePlan, tuple[RestoredDisk, ...]]:  # fmt: skip
        if hypervisor.machines.exists(name):
            raise NameTaken(hypervisor.host.name, name)
        folder = self._folder(hypervisor, name, storage)
        plan = plan_new(found.manifest, name, folder, hypervisor.facts().accelerator, owner)
        for path in (*(disk.path for disk in plan.disks), *(file.path for file in plan.files)):
            if os.path.lexists(path):
                raise WouldOverwrite(path)
        made_folder = not os.path.lexists(folder)
        self._record_cleanups(hypervisor, plan, owner, made_folder)
        try:
            hypervisor.files.prepare_folder(folder)
            disks = tuple(self._new_disk(hypervisor, found, disk, restorer) for disk in plan.disks)
            self._put_files(hypervisor, found, plan)
            hypervisor.machines.define(plan.xml)
        except BaseException:
            # The first error is what the caller has to see; what could not be undone stays recorded and is tried again.
            with contextlib.suppress(Exception):
                CleaningService(self._appliance).settle_owner(owner, hypervisor)
            raise
        self._appliance.catalog.cleanups.drop_owner(owner)
        return plan, disks

    def _new_disk(
        self,
        hypervisor: Hypervisor,
        found: Point,
        disk: PlannedDisk,
        restorer: DiskRestorer,
        *,
        force: bool = False,
    ) -> RestoredDisk:
        restored = restorer.to(found, disk.entry, Path(disk.path), disk.format, force=force)
        hypervisor.files.give_to_qemu(disk.path)
        return _told(disk, restored)

    def _in_place(self, hypervisor: Hypervisor, found: Point, force: bool, owner: str,
                  restorer: DiskRestorer) -> tuple[MachinePlan, tuple[RestoredDisk, ...]]:  # fmt: skip
        existing = self._existing(hypervisor, found)
        plan = plan_in_place(
            found.manifest, existing, hypervisor.facts().accelerator, hypervisor.storage.volume_path, owner
        )
        there = [disk.path for disk in plan.disks if os.path.lexists(disk.path)]
        if not force and (existing is not None or there):
            raise WouldOverwrite(there[0] if existing is None else f"machine {existing.name}")
        resized = {disk.path for disk in plan.disks if disk.path in there and self._has_another_size(disk)}
        for disk in plan.disks:
            if disk.path in there:
                restorer.refuse_if_in_use(Path(disk.path), disk.format)
        autostart = existing is not None and existing.autostart
        if existing is not None:
            hypervisor.machines.undefine(existing.uuid, keep_nvram=True)
        kept = set(there) - resized
        disks = tuple(self._old_disk(hypervisor, found, disk, disk.path in kept, restorer) for disk in plan.disks)
        self._put_files(hypervisor, found, plan)
        uuid = hypervisor.machines.define(plan.xml)
        if autostart:
            hypervisor.machines.set_autostart(uuid, True)
        return plan, disks

    def _existing(self, hypervisor: Hypervisor, found: Point) -> MachineInfo | None:
        """The machine that the point was made of, if the host still has it. MachineRuns, NameTaken."""
        machine = found.manifest.machine
        try:
            existing = hypervisor.machines.get(machine.uuid or machine.name)
        except MachineNotFound:
            if hypervisor.machines.exists(machine.name):
                raise NameTaken(hypervisor.host.name, machine.name) from None
            return None
        if existing.running:
            raise MachineRuns(hypervisor.host.name, existing.name)
        return existing

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

    def _old_disk(self, hypervisor: Hypervisor, found: Point, disk: PlannedDisk, kept: bool,
                  restorer: DiskRestorer) -> RestoredDisk:  # fmt: skip
        if not kept:
            if not Path(disk.path).parent.exists():
                hypervisor.files.prepare_folder(os.path.dirname(disk.path))
            return self._new_disk(hypervisor, found, disk, restorer, force=True)
        if disk.format == "qcow2":
            # What its bitmaps recorded is not what is going to be written: the next backup reads the disk in full.
            for bitmap in hypervisor.bitmaps.list(disk.path):
                hypervisor.bitmaps.remove(disk.path, bitmap.name)
        return _told(disk, restorer.over(disk.entry, Path(disk.path), disk.format))

    def _put_files(self, hypervisor: Hypervisor, found: Point, plan: MachinePlan) -> None:
        """NVRAM and TPM state."""
        for planned in plan.files:
            file = next(each for each in found.manifest.files if each.name == planned.name)
            reader = DiskReader(self._appliance.repository.blobs, file.root, file.size_bytes)
            folder = os.path.dirname(planned.path)
            if not os.path.isdir(folder):
                hypervisor.files.prepare_folder(folder)
            hypervisor.files.write(planned.path, reader.pread(0, file.size_bytes))

    def _folder(self, hypervisor: Hypervisor, name: str, storage: str | None) -> str:
        if "/" in name or name in (".", "..", ""):
            raise NameTaken(hypervisor.host.name, name)
        if storage is None:
            return str(self._appliance.settings.machines_directory / name)
        if storage.startswith("/"):
            return str(Path(storage) / name)
        pool = hypervisor.storage.pool(storage)
        if pool.path is None:
            raise WouldOverwrite(f"pool {storage} (it is no folder)")
        return str(Path(pool.path) / name)

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
        for action, about in steps:
            record = CleanupRecord(new_id(), owner, action, now, host, plan.uuid, plan.name, paths=about)
            self._appliance.catalog.cleanups.add(record)

    @contextmanager
    def _held(self, point: Point, owner: str) -> Iterator[None]:
        """The point is kept meanwhile; should this process die, the recorded clean-up lets go of it."""
        holder = f"{owner}-hold"
        with self._appliance.own(holder, f"restore {owner}"):
            hold = self._appliance.repository.hold(point, "restore", owner)
            now = self._appliance.clock.now_utc()
            record = CleanupRecord(new_id(), holder, CleanupAction.RELEASE_HOLD, now, subject=hold.id)
            self._appliance.catalog.cleanups.add(record)
            try:
                yield
            finally:
                with contextlib.suppress(HoldNotFound):
                    self._appliance.repository.release(hold.id)
                self._appliance.catalog.cleanups.drop(record.id)
        self._forget_lock(holder)

    def _forget_lock(self, owner: str) -> None:
        (self._appliance.settings.run_directory / f"{owner}.lock").unlink(missing_ok=True)

    def _since(self, begun_s: float) -> int:
        return round((self._appliance.clock.monotonic_s() - begun_s) * 1000)


def _told(disk: PlannedDisk, restored: Restored) -> RestoredDisk:
    written = restored.written_bytes + restored.zeroed_bytes
    return RestoredDisk(disk.entry.name, disk.path, disk.format, disk.entry.size_bytes, written, restored.kept_bytes)
