"""What is done with one recovery, step by step, by whoever holds its lock: a command or the supervisor.

    serving → running → migrating → migrated
         ╰────────┴──────────┴→ discarding → discarded        failed: an admin has to look

The rule: the state is durable before the act that it names, and every act may be done again, so that each state can be
carried on from wherever a process was killed.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

from appliance.hypervisor.domain_rewriting import OverlayDisk, put_below, restore_settings
from appliance.hypervisor.errors import HostUnreachable, HypervisorError, MachineNotFound
from appliance.hypervisor.protocol import Hypervisor, MachineState
from appliance.models import RecoveryRecord, RecoveryState
from appliance.services.recovery import locking
from appliance.services.recovery.beginning import hold_point, prepare
from appliance.services.recovery.errors import MachineGone, OverlayGone
from appliance.services.recovery.exporting import RecoveryExports, stop_exports
from appliance.services.recovery.tending import check, tend
from imaging.errors import HoldNotFound

if TYPE_CHECKING:
    from appliance.bootstrap import Appliance
    from imaging.repository import Point

_RESUMES = 20
_RESUME_PAUSE_S = 0.1


def tell(appliance: Appliance, id: str, err: Exception) -> None:
    """Have `recovery list` show what keeps a recovery from being looked at; the caller holds its lock."""
    record = appliance.catalog.recoveries.get(id)
    if not record.state.ended and record.error != str(err):
        appliance.catalog.recoveries.update(record, now_utc=appliance.clock.now_utc(), error=str(err))


class Recovery:
    """Borrows everything. `record` is what the catalog has."""

    def __init__(self, appliance: Appliance, hypervisor: Hypervisor, record: RecoveryRecord) -> None:
        self.appliance = appliance
        self.hypervisor = hypervisor
        self.record = record

    def update(self, **changes: Any) -> RecoveryRecord:
        now = self.appliance.clock.now_utc()
        self.record = self.appliance.catalog.recoveries.update(self.record, now_utc=now, **changes)
        return self.record

    @property
    def exports(self) -> RecoveryExports:
        return RecoveryExports(self.appliance, self.record)

    # --- serving ------------------------------------------------------------------------------------------------------

    def begin(self, point: Point | None = None) -> None:
        """From `serving` to a started machine. NameTaken, ExportFailed, HypervisorError, ImagingError."""
        point = self.appliance.repository.point(self.record.point) if point is None else point
        self.update(hold=hold_point(self.appliance, point, self.record))
        prepare(self.appliance, self.hypervisor, point, self.record)
        self.update(state=RecoveryState.RUNNING, error=None)
        self.hypervisor.machines.start(self.record.machine_uuid)

    # --- running ------------------------------------------------------------------------------------------------------

    def tend(self) -> tuple[str, ...]:
        """One look; returns what was done. A recovery that only an admin can help becomes `failed`, with the error."""
        try:
            done = tend(self.appliance, self.hypervisor, self.record)
        except (MachineGone, OverlayGone) as err:
            self.update(state=RecoveryState.FAILED, error=str(err))
            raise
        if self.record.state is RecoveryState.FAILED:
            self.update(state=RecoveryState.RUNNING, error=None)
        return done

    def revive(self) -> None:
        """After a crash or a restart of the host: exports up, the machine started if it went off with the host, and
        resumed until it stays up.

        What its own guest shut down stays off.
        """
        self.tend()
        state = check(self.hypervisor, self.record)
        if state.state is MachineState.OFF and not state.shut_down and not self.start_crashed():
            self.put_exports_below()
            self.hypervisor.machines.start(self.record.machine_uuid)
        for _ in range(_RESUMES):
            if not self.tend():
                return
            self.appliance.clock.sleep(_RESUME_PAUSE_S)

    def start_crashed(self) -> bool:
        """Start the machine again if its QEMU died, or its guest crashed (libvirt tells no difference); that is noted
        before.

        QEMU 7.2 may die when the server goes away that a job reads from. HypervisorError.
        """
        if not self.hypervisor.machines.state(self.record.machine_uuid).crashed:
            return False
        self._note(f"{self._died}, and the machine is started again: its guest saw a power cut")
        self.put_exports_below()
        self.hypervisor.machines.start(self.record.machine_uuid)
        return True

    @property
    def _died(self) -> str:
        moving = " while the disks were moved" if self.record.state is RecoveryState.MIGRATING else ""
        return f"QEMU died or its guest crashed{moving}"

    def put_exports_below(self) -> None:
        """Of a machine that is off: below each overlay into which all was pulled, but maybe not written out, its export
        again. What the overlay holds counts before that."""
        uuid = self.record.machine_uuid
        for disk in self.record.disks:
            pulled = not disk.migrated and disk.destination is None
            if pulled and not self.hypervisor.block_jobs.depends_on(uuid, disk.target):
                self.hypervisor.overlays.put_below(disk.overlay, disk.host_socket)
                inactive = self.hypervisor.machines.get(uuid).inactive_xml
                overlay = OverlayDisk(disk.overlay, disk.host_socket)
                self.hypervisor.machines.define(put_below(inactive, disk.target, overlay))

    def _note(self, note: str) -> None:
        if note not in self.record.notes:
            self.update(notes=(*self.record.notes, note))

    # --- the ends -----------------------------------------------------------------------------------------------------

    def finish(self) -> None:
        """Every disk stands alone: the admin's own settings back, exports, unused files and the hold gone.

        The repository is asked last, and only to let go of the point: a machine is saved from one that is dying.
        """
        machine = self.hypervisor.machines.get(self.record.machine_uuid)
        self.hypervisor.machines.define(restore_settings(machine.inactive_xml, self.record.final_xml))
        self.exports.stop()
        used = machine.inactive_xml + (machine.live_xml or "")
        for disk in self.record.disks:
            if disk.overlay not in used:  # it was copied elsewhere
                self.hypervisor.files.remove(disk.overlay)
        if f"{self.record.folder}/" not in used:  # nor NVRAM nor a console are there
            self.hypervisor.files.remove_folder(self.record.folder)
        self._release()
        try:
            self.start_crashed()
        except HostUnreachable:
            raise
        except HypervisorError as err:  # it needs nothing of ours any more
            self._note(f"{self._died}, and the machine could not be started again: {err}")
        self.update(state=RecoveryState.MIGRATED, error=None)
        locking.forget(self.appliance, self.record.id)

    def discard(self) -> None:
        """Machine, exports, files and hold; the state is durable first. What fails is kept in the record and raised."""
        if self.record.state is not RecoveryState.DISCARDING:
            self.update(state=RecoveryState.DISCARDING)
        try:
            with contextlib.suppress(MachineNotFound):  # never defined, or removed already
                self.hypervisor.machines.destroy(self.record.machine_uuid)
                self.hypervisor.machines.undefine(self.record.machine_uuid)
            self.exports.stop()
            for disk in self.record.disks:
                if disk.destination is not None:
                    self.hypervisor.files.remove(disk.destination)
            self.hypervisor.files.remove_folder(self.record.folder)
            self._release()
        except Exception as err:
            self.update(error=str(err))
            raise
        self.update(state=RecoveryState.DISCARDED)
        locking.forget(self.appliance, self.record.id)

    def _release(self) -> None:
        _release(self.appliance, self.record)


def abandon(appliance: Appliance, record: RecoveryRecord) -> RecoveryRecord:
    """Give up a recovery whose host is gone for good; the caller holds its lock.

    Its exports end and the point is let go of. The host is not asked; what the machine wrote stays where it is.
    """
    catalog, clock = appliance.catalog, appliance.clock
    if record.state is not RecoveryState.DISCARDING:
        record = catalog.recoveries.update(record, now_utc=clock.now_utc(), state=RecoveryState.DISCARDING)
    stop_exports(record)
    _release(appliance, record)
    left = ", ".join([record.folder, *(disk.destination for disk in record.disks if disk.destination)])
    told = f"given up with its host {record.host}; what it wrote was left in {left}"
    record = catalog.recoveries.update(record, now_utc=clock.now_utc(), state=RecoveryState.DISCARDED, error=told)
    locking.forget(appliance, record.id)
    return record


def _release(appliance: Appliance, record: RecoveryRecord) -> None:
    """Also a hold that was placed by a process that died before it could note it."""
    for hold in appliance.repository.holds():
        if hold.owner == f"recovery-{record.id}":
            with contextlib.suppress(HoldNotFound):  # what was wanted
                appliance.repository.release(hold.id)
