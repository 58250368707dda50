"""One consistent moment of a machine, ready to be read disk by disk.

The rule: whatever a capture makes on the host (job, checkpoint, bitmaps, scratch, socket) is written into the catalog
before it is made, so that a killed run can be undone; and it is gone, or wanted, when the capture ends.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath
from uuid import uuid4

from appliance.catalog import Catalog
from appliance.clock import Clock
from appliance.hypervisor.errors import BackupRefused, BitmapUntrusted, HypervisorError
from appliance.hypervisor.protocol import BackupJob, BackupRequest, DiskBackup, Hypervisor, MachineInfo
from appliance.hypervisor.scratch import ScratchWatch
from appliance.models import CleanupAction, CleanupRecord, ReadKind, new_id
from appliance.services import spawning
from appliance.services.backup.captured import CONSISTENCY_OFFLINE, Capture, CapturedDisk
from appliance.services.backup.planning import DiskPlan, Plan
from appliance.services.backup.quiesce import Quiescer
from appliance.settings import Settings
from imaging import images
from imaging.errors import ImageRefused, ImageUnreadable
from imaging.manifest import Skipped
from imaging.source import NbdSource

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class Guard:
    """Writes down what must be undone if the run dies."""

    catalog: Catalog
    clock: Clock
    owner: str
    host: str
    machine: MachineInfo
    written: list[str] = field(default_factory=list)

    def record(
        self, action: CleanupAction, subject: str = "", paths: Sequence[str] = (), disks: Sequence[str] = ()
    ) -> None:
        record = CleanupRecord(
            new_id(), self.owner, action, self.clock.now_utc(), self.host, self.machine.uuid, self.machine.name,
            subject, tuple(paths), tuple(disks),
        )  # fmt: skip
        self.catalog.cleanups.add(record)
        self.written.append(record.id)

    def record_checkpoints(self, plan: Plan, *names: str | None) -> None:
        """The one that is replaced, if the run succeeds, and the new one, if it does not: settling knows which."""
        holders = [disk for disk in plan.disks if disk.disk.can_hold_bitmap]
        paths = [disk.disk.source.path for disk in holders if disk.disk.source.path is not None]
        for name in names:
            if name is not None:
                self.record(CleanupAction.DELETE_CHECKPOINT, name, paths, [disk.target for disk in holders])


@contextmanager
def capture_running(hypervisor: Hypervisor, machine: MachineInfo, plan: Plan, guard: Guard, quiescer: Quiescer,
                    settings: Settings) -> Iterator[Capture]:  # fmt: skip
    """A pull-mode backup job over the whole body; it is ended when the body ends, however that is.

    Should this process die, its job is ended at once: nobody would watch the scratch, and a full one pauses the guest.
    """
    plan = trusted(hypervisor, machine, plan)
    with spawning.watchdog(settings):
        yield from _capturing(hypervisor, machine, plan, guard, quiescer, settings)


def _capturing(hypervisor: Hypervisor, machine: MachineInfo, plan: Plan, guard: Guard, quiescer: Quiescer,
               settings: Settings) -> Iterator[Capture]:  # fmt: skip
    checkpoint = str(uuid4())
    folder = PurePosixPath(settings.scratch.directory) / guard.owner[:16]  # the path of a socket is 107 bytes at most
    request_socket = str(folder / "nbd")
    scratches = {disk.target: str(folder / str(number)) for number, disk in enumerate(plan.disks)}
    guard.record_checkpoints(plan, plan.checkpoint, checkpoint)
    guard.record(CleanupAction.REMOVE_FILES, paths=[str(folder)])
    guard.record(CleanupAction.END_BACKUP_JOB, request_socket, paths=[request_socket, *scratches.values()])
    hypervisor.files.prepare_folder(str(folder))
    try:
        with quiescer.frozen(machine) as quiesced:
            plan, job = _begin(hypervisor, machine, plan, checkpoint, request_socket, scratches)
            created = guard.clock.now_utc()
        with ExitStack() as stack:
            watch = stack.enter_context(
                ScratchWatch(hypervisor, job, settings.scratch.limit_bytes, settings.scratch.reserve_bytes)
            )
            local_socket = stack.enter_context(hypervisor.files.carry(job.socket))
            yield Capture(
                created, quiesced.consistency, job.checkpoint,
                tuple(_running_disk(disk, job, local_socket, settings) for disk in plan.disks),
                plan.skipped, tuple(quiesced.notes), watch.check, partial(watch.check, after_failure=True),
            )  # fmt: skip
    finally:
        try:
            hypervisor.backups.end(machine.uuid, request_socket, scratches.values())
            hypervisor.files.remove(str(folder))
        except HypervisorError as err:
            # Neither a point that counts by now nor the error that ended the run is to be lost over this: it is
            # recorded, so that the end of the run tries it again and tells.
            _log.warning("the backup job of %s is not cleaned up yet: %s", machine.name, err)


def trusted(hypervisor: Hypervisor, machine: MachineInfo, plan: Plan) -> Plan:
    """The plan, without the disks whose bitmap the hypervisor does not vouch for."""
    checkpoint = plan.checkpoint
    if checkpoint is None or not plan.incremental:
        return plan
    try:
        hypervisor.checkpoints.redefine(machine.uuid, checkpoint, plan.incremental)
    except BitmapUntrusted:
        for target in plan.incremental:
            try:
                hypervisor.checkpoints.redefine(machine.uuid, checkpoint, [target])
            except BitmapUntrusted as err:
                plan = plan.in_full(target, err.reason)
        if plan.incremental:
            hypervisor.checkpoints.redefine(machine.uuid, checkpoint, plan.incremental)
    return plan


def _begin(hypervisor: Hypervisor, machine: MachineInfo, plan: Plan, checkpoint: str, listen: str,
           scratches: dict[str, str]) -> tuple[Plan, BackupJob]:  # fmt: skip
    """Begin, reading in full whatever turns out at this moment not to be trusted."""
    if not plan.disks:
        raise BackupRefused(machine.name, "it has no disk that can be backed up", "See its skipped disks in vm list.")
    for _ in range(len(plan.disks) + 1):
        disks = tuple(
            DiskBackup(
                disk.target, scratches[disk.target], plan.checkpoint if disk.read is ReadKind.INCREMENTAL else None
            )
            for disk in plan.disks
        )
        try:
            return plan, hypervisor.backups.begin(BackupRequest(machine.uuid, checkpoint, listen, disks))
        except BitmapUntrusted as err:
            if not plan.incremental:
                raise
            plan = plan.in_full(err.disk, err.reason)
    raise BackupRefused(machine.name, "its checkpoints cannot be used, nor done without")


def _running_disk(plan: DiskPlan, job: BackupJob, listen: Path, settings: Settings) -> CapturedDisk:
    export = next(item for item in job.exports if item.target == plan.target)
    dirty = export.dirty_context if plan.read is ReadKind.INCREMENTAL else None
    return CapturedDisk(
        plan,
        export.checkpointed,
        lambda: NbdSource(listen, export.export, dirty_bitmap=dirty, connections=settings.backup.connections),
    )


@contextmanager
def capture_off(hypervisor: Hypervisor, machine: MachineInfo, plan: Plan, guard: Guard,
                settings: Settings) -> Iterator[Capture]:  # fmt: skip
    """The disks of a machine that is off, by qemu-nbd; their bitmaps make incrementals as true as those of a running
    one.

    QEMU's image locks keep the machine from being started while a disk is read.
    """
    if not hypervisor.files.local:
        raise BackupRefused(
            machine.name, "it is off, and its host is remote", "Start it, or run strongroom on its own host."
        )
    notes: list[str] = []
    skipped = list(plan.skipped)
    disks: list[DiskPlan] = []
    for disk in plan.disks:
        try:
            images.check_chain(_path(disk), disk.disk.format)
        except (ImageRefused, ImageUnreadable) as err:
            skipped.append(Skipped(disk.target, str(err)))
            notes.append(f"disk {disk.target} is not in this point: {err}")
        else:
            disks.append(_trusted_file(hypervisor, disk, plan.checkpoint))
    if not disks:
        raise BackupRefused(machine.name, "none of its disks can be read: " + "; ".join(s.reason for s in skipped))
    checkpoint = str(uuid4())
    holders = [disk for disk in disks if disk.disk.can_hold_bitmap]
    guard.record_checkpoints(plan, plan.checkpoint, checkpoint)
    for disk in holders:
        hypervisor.bitmaps.add(str(_path(disk)), checkpoint)
    captured = tuple(_off_disk(disk, plan.checkpoint, disk in holders, settings) for disk in disks)
    yield Capture(
        guard.clock.now_utc(), CONSISTENCY_OFFLINE, checkpoint if holders else None, captured, tuple(skipped),
        tuple(notes),
    )  # fmt: skip


def _path(plan: DiskPlan) -> Path:
    if plan.disk.source.path is None:
        raise ImageUnreadable(plan.disk.source.description, "it is no file or block device of this host")
    return Path(plan.disk.source.path)


def _trusted_file(hypervisor: Hypervisor, disk: DiskPlan, checkpoint: str | None) -> DiskPlan:
    if disk.read is not ReadKind.INCREMENTAL or checkpoint is None:
        return disk
    try:
        hypervisor.bitmaps.check(str(_path(disk)), checkpoint)
    except BitmapUntrusted as err:
        return DiskPlan(disk.disk, ReadKind.FULL, err.reason)
    return disk


def _off_disk(plan: DiskPlan, checkpoint: str | None, checkpointed: bool, settings: Settings) -> CapturedDisk:
    bitmap = checkpoint if plan.read is ReadKind.INCREMENTAL else None

    @contextmanager
    def opened() -> Iterator[NbdSource]:
        connections = settings.backup.connections
        context = None if bitmap is None else f"qemu:dirty-bitmap:{bitmap}"
        with (
            images.serve(
                _path(plan), plan.disk.format, settings.run_directory, bitmap=bitmap, connections=connections
            ) as listen,
            NbdSource(listen, dirty_bitmap=context, connections=connections) as source,
        ):
            yield source

    return CapturedDisk(plan, checkpointed, opened)
