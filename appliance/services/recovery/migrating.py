"""Move a running machine's disks off the repository, one after the other, in small steps.

The rule: a job that vanished proves nothing; a disk is moved when neither the live machine nor its next start knows
an export any more, and nothing of it is in QEMU's memory alone. While it lasts, exports are kept up and the machine is
resumed if it lost one. A host or a repository that is away is waited for; nothing that was there before is overwritten.
"""

from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

from appliance.errors import StrongroomError
from appliance.hypervisor.errors import HostUnreachable, HypervisorError, ImageToolFailed, MachineBusy, MachineInState
from appliance.hypervisor.protocol import BlockJob, BlockJobKind, CopyTarget, Hypervisor, MachineState
from appliance.models import MigrationMethod, RecoveryDisk, RecoveryRecord, RecoveryState
from appliance.progress import Progress
from appliance.services.recovery.errors import (
    DestinationTaken,
    DestinationUnusable,
    MachineIsOff,
    MigrationStuck,
    OverlayFull,
    PullNotWritten,
)
from appliance.services.recovery.lifecycle import Recovery
from imaging.errors import ExportFailed

LOOK_S = 0.2
_ATTEMPTS = 20
_FOLDER_POOLS = ("dir", "fs", "netfs")


def destinations(hypervisor: Hypervisor, record: RecoveryRecord, to: str | None, image_format: str) -> RecoveryRecord:
    """The record with a method and, for a copy, where each disk that is not moved yet goes.

    `to`: a folder or a storage pool; None: into the overlays. StorageNotFound, DestinationUnusable, DestinationTaken.
    """
    folder = None if to is None else PurePosixPath(_folder(hypervisor, to))
    disks = []
    for disk in record.disks:
        if disk.migrated:
            disks.append(disk)
        elif folder is None:
            disks.append(replace(disk, destination=None, destination_format=None))
        else:
            path = str(folder / f"{record.machine_name}-{disk.target}.{image_format}")
            if hypervisor.files.exists(path):
                raise DestinationTaken(path)
            disks.append(replace(disk, destination=path, destination_format=image_format))
    method = MigrationMethod.PULL if folder is None else MigrationMethod.COPY
    return replace(record, method=method, disks=tuple(disks))


def _folder(hypervisor: Hypervisor, to: str) -> str:
    if to.startswith("/"):
        if not Path(to).is_dir():  # recoveries run on hosts whose paths are ours
            raise DestinationUnusable(to, "there is no such folder", "Make it, or give another one.")
        return to
    pool = hypervisor.storage.pool(to)
    if pool.kind not in _FOLDER_POOLS or pool.path is None:
        raise DestinationUnusable(
            f"pool {to}",
            f"it is of kind {pool.kind!r}, and disks are moved into folders only",
            f"Give a pool of kind {', '.join(_FOLDER_POOLS)}, or a folder.",
        )
    if not pool.active:
        raise DestinationUnusable(f"pool {to}", "it is not active", f"Start it: virsh pool-start {to}.")
    return pool.path


class Migration:
    """Moves the disks of one recovery. Borrows everything; to be thrown away when the recovery's lock is given up for
    good.
    """

    def __init__(self, recovery: Recovery, bandwidth_bytes_s: int | None, progress: Progress) -> None:
        self.recovery = recovery
        self._progress = progress
        self._wanted_bandwidth = bandwidth_bytes_s
        self._moving = ""
        self._told_bytes = 0
        self._attempts = 0
        self._furthest_bytes = 0
        self._last_note = ""

    def run(self) -> None:
        """Until every disk stands alone. MachineIsOff, MigrationStuck, HypervisorError, ImagingError."""
        while not self.step():
            self.recovery.appliance.clock.sleep(LOOK_S)

    def step(self) -> bool:
        """One look at the disk that is under way; True when all was done, and the recovery has ended.

        What ends the migration before is kept in the record, which says `running` again, and raised.
        """
        record = self.recovery.record
        disk = next((disk for disk in record.disks if not disk.migrated), None)
        if disk is None:
            self.recovery.finish()
            return True
        try:
            self._look(disk)
        except (HostUnreachable, MachineBusy, MachineInState, ExportFailed, OverlayFull) as err:
            self._note(str(err))  # a restarting libvirtd, a repository that is away, a job that just ends: look again
        except StrongroomError as err:
            if isinstance(err, ImageToolFailed) and self._attempts < _ATTEMPTS:
                self._attempts += 1  # a slow medium, which is nearer to its end each time; a machine that just starts
                self._note(str(err))
                return False
            if self.recovery.record.state is RecoveryState.MIGRATING:
                self._give_up(err)
            raise
        return False

    def _look(self, disk: RecoveryDisk) -> None:
        uuid, jobs = self.recovery.record.machine_uuid, self.recovery.hypervisor.block_jobs
        self._tell_start(disk)
        for done in self.recovery.tend():
            self._progress.note(done)
        job = self._job(disk)
        if job is not None:
            self._follow(disk, job)
        elif jobs.depends_on(uuid, disk.target, disk.host_socket):
            self._begin(disk)
        elif disk.destination is not None or self._flushed(disk):  # a copy was flushed by QEMU
            self._moved(disk)
        self._last_note = ""

    def _job(self, disk: RecoveryDisk) -> BlockJob | None:
        uuid, hypervisor = self.recovery.record.machine_uuid, self.recovery.hypervisor
        try:
            return hypervisor.block_jobs.info(uuid, disk.target)
        except HypervisorError:
            if hypervisor.machines.state(uuid).state is MachineState.OFF:
                return None  # a machine that is off cannot even be asked
            raise

    def _follow(self, disk: RecoveryDisk, job: BlockJob) -> None:
        uuid, jobs = self.recovery.record.machine_uuid, self.recovery.hypervisor.block_jobs
        if job.kind is BlockJobKind.COPY and job.ready:
            jobs.pivot(uuid, disk.target)
            return
        if self._wanted_bandwidth is not None and job.bandwidth_bytes_s != self._wanted_bandwidth:
            jobs.set_bandwidth(uuid, disk.target, self._wanted_bandwidth)
        if job.current_bytes > self._furthest_bytes:
            self._furthest_bytes = job.current_bytes
            self._attempts = 0
        if job.end_bytes:
            done = job.current_bytes * disk.size_bytes // job.end_bytes
            self._progress.advance(max(0, done - self._told_bytes))
            self._told_bytes = max(self._told_bytes, done)

    def _begin(self, disk: RecoveryDisk) -> None:
        """Start the job; a machine that is off can have none. One whose QEMU died is started first."""
        record, hypervisor = self.recovery.record, self.recovery.hypervisor
        if not hypervisor.machines.get(record.machine_uuid).running and not self.recovery.start_crashed():
            raise MachineIsOff(record.machine_name)
        self._attempts += 1
        if self._attempts > _ATTEMPTS:
            folder = record.folder if disk.destination is None else str(PurePosixPath(disk.destination).parent)
            free_bytes = hypervisor.files.free_bytes(folder)
            raise MigrationStuck(record.machine_name, disk.target, _ATTEMPTS, free_bytes, folder)
        bandwidth = self._wanted_bandwidth
        if bandwidth is None:
            bandwidth = self.recovery.appliance.settings.recovery.migrate_bandwidth_bytes_s
        if disk.destination is None:
            self._update(disk, pulled_in=hypervisor.machines.state(record.machine_uuid).run)
            hypervisor.block_jobs.pull(record.machine_uuid, disk.target, bandwidth)
        else:
            # What a copy that vanished had begun: there was nothing when the migration was decided.
            self._remove_unused(disk.destination)
            target = CopyTarget(disk.destination, disk.destination_format or "qcow2")
            hypervisor.block_jobs.copy(record.machine_uuid, disk.target, target, bandwidth)

    def _flushed(self, disk: RecoveryDisk) -> bool:
        """Whether all that was pulled is on the medium; False: to be looked at again.

        At the end of a pull QEMU has taken the export from below the overlay, and has in its memory alone where in the
        overlay a part of that lies which it has pulled. It writes that out when the guest flushes, and when the machine
        is paused: should it die before, the disk would have lost it.
        """
        record, hypervisor = self.recovery.record, self.recovery.hypervisor
        state = hypervisor.machines.state(record.machine_uuid)
        if state.state is MachineState.OFF:  # also by its own guest: nothing tells in which run that was
            self.recovery.put_exports_below()
            return False
        if disk.pulled_in not in (None, state.run):
            raise PullNotWritten(record.machine_name, disk.target)
        if state.state is not MachineState.PAUSED:
            hypervisor.overlays.sync(disk.overlay)  # the most of it, so that the pause is short
            self._update(disk, flushing=True)
            hypervisor.machines.suspend(record.machine_uuid)
        elif not disk.flushing:
            raise MachineInState(record.machine_name, f"the end of moving {disk.target}", "it is paused: resume it")
        hypervisor.machines.resume(record.machine_uuid)
        return hypervisor.machines.state(record.machine_uuid).run == state.run

    def _update(self, disk: RecoveryDisk, **changes: Any) -> None:
        disks = self.recovery.record.disks
        self.recovery.update(
            disks=tuple(replace(each, **changes) if each.target == disk.target else each for each in disks)
        )

    def _moved(self, disk: RecoveryDisk) -> None:
        self._update(disk, migrated=True, flushing=False)
        self._progress.advance(disk.size_bytes - self._told_bytes)
        self._progress.finish()

    def _give_up(self, err: StrongroomError) -> None:
        """Back to `running`; what was begun of the disks that were not moved is taken away."""
        record, hypervisor = self.recovery.record, self.recovery.hypervisor
        disks = []
        for disk in record.disks:
            if disk.flushing:
                with contextlib.suppress(MachineInState):  # it is not paused
                    hypervisor.machines.resume(record.machine_uuid)
                disk = replace(disk, flushing=False)
            if not disk.migrated and disk.destination is not None:
                try:
                    hypervisor.block_jobs.abort(record.machine_uuid, disk.target)
                    self._remove_unused(disk.destination)
                    disk = replace(disk, destination=None, destination_format=None)
                except HypervisorError as left:  # a discard still knows of it
                    self._progress.note(f"{disk.destination} is not removed: {left}")
            disks.append(disk)
        self.recovery.update(state=RecoveryState.RUNNING, error=str(err), disks=tuple(disks))

    def _remove_unused(self, path: str) -> None:
        """MachineBusy when the machine stands on it already, whatever went wrong after that."""
        record, hypervisor = self.recovery.record, self.recovery.hypervisor
        machine = hypervisor.machines.get(record.machine_uuid)
        if path in machine.inactive_xml or path in (machine.live_xml or ""):
            raise MachineBusy(record.machine_name, f"it uses {path} already")
        hypervisor.files.remove(path)

    def _tell_start(self, disk: RecoveryDisk) -> None:
        if self._moving != disk.target:
            self._progress.start(f"moving {disk.target}", disk.size_bytes)
            self._moving = disk.target
            self._told_bytes = self._attempts = self._furthest_bytes = 0

    def _note(self, text: str) -> None:
        if text != self._last_note:
            self._progress.note(text)
        self._last_note = text
