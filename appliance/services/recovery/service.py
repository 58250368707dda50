"""Instant recovery as an admin asks for it: start, migrate, discard, resume.

The rule: a start that fails leaves nothing behind; anything else that fails leaves the machine as it is, with the
reason in the record.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from appliance.catalog.errors import OfAnotherAppliance
from appliance.doing import Subject, about, machine_of
from appliance.errors import StrongroomError
from appliance.hypervisor.errors import HostUnreachable
from appliance.hypervisor.protocol import Hypervisor, Transport
from appliance.models import RecoveryRecord, RecoveryState
from appliance.ownership import InUse
from appliance.progress import SILENT, Progress
from appliance.proofs import Proof, ProofKind
from appliance.services.access.places import check_place
from appliance.services.access.subjects import Subjects
from appliance.services.fleet import FleetService
from appliance.services.points import PointService
from appliance.services.recovery import locking
from appliance.services.recovery.errors import (
    HostIsRemote,
    HostNotNamed,
    MigrationGoesElsewhere,
    NameTaken,
    NotAMachine,
    RecoveryEnded,
    RecoveryNotRunning,
)
from appliance.services.recovery.lifecycle import Recovery, abandon, tell
from appliance.services.recovery.migrating import Migration, destinations
from appliance.services.recovery.planning import Request, plan_recovery
from appliance.services.spawning import ensure_supervisor, looked_after
from imaging.errors import ImagingError

if TYPE_CHECKING:
    from appliance.bootstrap import Appliance
    from imaging.repository import Point


_Act = Callable[[Recovery, Progress], None]


@dataclass(frozen=True, slots=True)
class Resumed:
    """A recovery that was taken up again, and what is still wrong with it."""

    record: RecoveryRecord
    problems: tuple[str, ...]


class RecoveryService:
    """Borrows the appliance."""

    def __init__(self, appliance: Appliance) -> None:
        self._appliance = appliance

    def start(
        self,
        name: str,
        point: str,
        *,
        host: str | None = None,
        new_name: str | None = None,
        network: str | None = None,
        memory_bytes: int | None = None,
        vcpus: int | None = None,
        progress: Progress = SILENT,
    ) -> RecoveryRecord:
        """Start a machine out of a restore point; returns when its domain is started. What fails leaves nothing behind.

        NotAMachine, NameTaken, HostIsRemote, HostNotNamed, ExportFailed, HypervisorError.
        """
        begun_s = self._appliance.clock.monotonic_s()
        found = PointService(self._appliance).resolve(point, name)
        machine = found.manifest.machine
        about(Subject.of_machine(machine_of(machine.kind, machine.name, machine.uuid, machine.host)), point=found.id)
        if machine.kind != "vm":
            raise NotAMachine(machine.name)
        request = Request(
            host=self._host(machine.name, host, machine.host),
            machine_name=new_name or f"{machine.name}-recovered",
            network=network or self._appliance.settings.recovery.network,
            memory_bytes=memory_bytes,
            vcpus=vcpus,
        )
        about(
            host=request.host, machine_name=request.machine_name, network=request.network, memory_bytes=memory_bytes,
            vcpus=vcpus,
        )  # fmt: skip
        with self._appliance.connect(request.host) as hypervisor:
            record = self._plan(hypervisor, found, request)
            about(recovery=record.id)
            with locking.commanding(self._appliance, record.id):
                record = self._appliance.catalog.recoveries.add(record)
                recovery = Recovery(self._appliance, hypervisor, record)
                try:
                    recovery.begin(found)
                except BaseException as err:
                    self._take_back(recovery, err, progress)
                    raise
                took_ms = round((self._appliance.clock.monotonic_s() - begun_s) * 1000)
                record = recovery.update(start_ms=took_ms)
                now = self._appliance.clock.now_utc()
                proof = Proof(record.id, found.series, found.id, ProofKind.RECOVERY, now, took_ms)
                self._appliance.catalog.proofs.proven(proof)
        ensure_supervisor(self._appliance)
        return record

    def foresee(self, host: str, machine_name: str) -> None:
        """Raises what `start` would, of this host and name as they are now; touches nothing. RecordMissing,
        HostIsRemote, NameTaken, HypervisorError."""
        if self._appliance.catalog.hosts.get(host).config.transport is Transport.SSH:
            raise HostIsRemote(host)
        with self._appliance.connect(host) as hypervisor:
            self._check(hypervisor, host, machine_name)

    def list(self, *, ended: bool = False, everyones: bool = False) -> tuple[RecoveryRecord, ...]:
        """Of this appliance, or of all that share the catalog; oldest first; with those that have ended, if asked."""
        return self._appliance.catalog.recoveries.list(ended=ended, everyones=everyones)

    def show(self, id: str) -> RecoveryRecord:
        """One of any appliance, ended or not, by its id or a unique beginning of it. RecordMissing."""
        return self._appliance.catalog.recoveries.get(id)

    def find(self, id: str) -> RecoveryRecord:
        """One of this appliance that has not ended, by its id or a unique beginning of it. RecordMissing,
        OfAnotherAppliance, RecoveryEnded."""
        return self._open(id)

    def migrate(
        self,
        id: str,
        *,
        to: str | None = None,
        image_format: str = "qcow2",
        bandwidth_bytes_s: int | None = None,
        progress: Progress = SILENT,
    ) -> RecoveryRecord:
        """Move a recovered machine to its own storage while it runs; carries an interrupted migration on.

        `to`: a folder or a storage pool; None: the rest of each disk is pulled into its overlay. Should this process
        die, the supervisor carries on. RecoveryEnded, RecoveryNotRunning, DestinationUnusable, DestinationTaken,
        MigrationGoesElsewhere, MachineIsOff, MigrationStuck, InUse, PlaceNotAllowed.
        """
        check_place(self._appliance.settings.restore.folders, to)
        with self._at_work(id) as recovery:
            about(
                Subjects(self._appliance).recovery(recovery.record),
                recovery=recovery.record.id,
                to=to,
                format=image_format,
            )
            self._decide(recovery, to, image_format)
            try:
                Migration(recovery, bandwidth_bytes_s, progress).run()
            except KeyboardInterrupt:
                progress.note("the migration goes on by itself; see 'strongroom recovery list'")
                raise
            finally:
                if not recovery.record.state.ended:
                    ensure_supervisor(self._appliance)
            return recovery.record

    def begin_migration(self, id: str, *, to: str | None = None, image_format: str = "qcow2") -> RecoveryRecord:
        """As `migrate`, for who does not wait for its end: the supervisor does it, and the record tells how it goes."""
        check_place(self._appliance.settings.restore.folders, to)
        with self._at_work(id) as recovery:
            about(
                Subjects(self._appliance).recovery(recovery.record),
                recovery=recovery.record.id,
                to=to,
                format=image_format,
            )
            self._decide(recovery, to, image_format)
            record = recovery.record
        ensure_supervisor(self._appliance)
        return record

    def _tell(self, record: RecoveryRecord, **details: object) -> None:
        """The audit, of what is done to it."""
        about(Subjects(self._appliance).recovery(record), recovery=record.id, **details)

    def _decide(self, recovery: Recovery, to: str | None, image_format: str) -> None:
        """From now on it is migrating, whoever does it."""
        record = recovery.record
        if record.state is RecoveryState.MIGRATING:
            if to is not None:
                raise MigrationGoesElsewhere(record.id, record.method.value if record.method else "pull")
            if record.error is not None:
                recovery.update(error=None)
        elif record.state in (RecoveryState.RUNNING, RecoveryState.FAILED):
            planned = destinations(recovery.hypervisor, record, to, image_format)
            recovery.update(state=RecoveryState.MIGRATING, method=planned.method, disks=planned.disks, error=None)
        else:
            raise RecoveryNotRunning(record.id, record.state.value)

    def discard(self, id: str) -> RecoveryRecord:
        """Remove the recovered machine, its overlays and exports, and let go of the point. RecoveryEnded, InUse."""
        with self._at_work(id) as recovery:
            self._tell(recovery.record)
            recovery.discard()
            return recovery.record

    def abandon(self, id: str) -> RecoveryRecord:
        """Give up what runs on a host that is gone for good: exports and hold go, the host is not asked.

        What the machine wrote is not removed. RecordMissing, RecoveryEnded, InUse, ExportFailed, ImagingError.
        """
        id = self._open(id).id
        with locking.commanding(self._appliance, id):
            return abandon(self._appliance, self._open(id))

    def open_screen(self, id: str) -> socket.socket:
        """The screen of a recovered machine, also after its migration: see `Machines.open_screen`. RecordMissing,
        OfAnotherAppliance, RecoveryEnded, MachineInState, ScreenUnavailable."""
        record = self._own(id)
        self._tell(record)
        if record.state is RecoveryState.DISCARDED:
            raise RecoveryEnded(record.id, record.state.value)
        with self._appliance.connect(record.host) as hypervisor:
            return hypervisor.machines.open_screen(record.machine_uuid)

    def resume(self, *, progress: Progress = SILENT, supervise: bool = True) -> tuple[Resumed, ...]:
        """Carry every recovery on from where it was left: first all machines run again, then migrations go on.

        Problems are returned, so that one does not stop the others.
        """
        resumed = {record.id: self._try(record, progress, self._revive) for record in self.list()}
        if supervise and any(not each.record.state.ended for each in resumed.values()):
            ensure_supervisor(self._appliance)
        for id, each in resumed.items():
            if each.record.state is RecoveryState.MIGRATING and not each.problems:
                resumed[id] = self._try(each.record, progress, self._carry_on)
        return tuple(resumed.values())

    def _try(self, record: RecoveryRecord, progress: Progress, act: _Act) -> Resumed:
        problems: tuple[str, ...] = ()
        try:
            with self._at_work(record.id) as recovery:
                act(recovery, progress)
        except (InUse, RecoveryEnded):
            pass  # another command is at work on it, or has ended it: it is in good hands
        except (StrongroomError, ImagingError) as err:
            problems = (str(err),)
        return Resumed(self._appliance.catalog.recoveries.get(record.id), problems)

    def _revive(self, recovery: Recovery, _progress: Progress) -> None:
        match recovery.record.state:
            case RecoveryState.DISCARDING:
                recovery.discard()
            case RecoveryState.SERVING:
                recovery.begin()
            case _:
                recovery.revive()
                if recovery.record.error is not None:
                    recovery.update(error=None)

    def _carry_on(self, recovery: Recovery, progress: Progress) -> None:
        if recovery.record.state is RecoveryState.MIGRATING:
            Migration(recovery, None, progress).run()

    def _plan(self, hypervisor: Hypervisor, found: Point, request: Request) -> RecoveryRecord:
        self._check(hypervisor, request.host, request.machine_name)
        settings = self._appliance.settings
        return plan_recovery(
            found, request, hypervisor.facts().accelerator, overlays=settings.overlays.directory,
            run=settings.run_directory, now_utc=self._appliance.clock.now_utc(),
        )  # fmt: skip

    def _check(self, hypervisor: Hypervisor, host: str, machine_name: str) -> None:
        if not hypervisor.files.local:
            raise HostIsRemote(host)
        if hypervisor.machines.exists(machine_name):
            raise NameTaken(host, machine_name)

    def _take_back(self, recovery: Recovery, err: BaseException, progress: Progress) -> None:
        """Undo a start that failed, or that a person interrupted; the caller raises what failed."""
        try:
            recovery.update(error=str(err) or "it was interrupted")
            recovery.discard()
        except (StrongroomError, ImagingError, OSError) as left:
            progress.note(f"what was begun is not removed yet ('strongroom recovery resume' tries again): {left}")

    def _host(self, name: str, wanted: str | None, recorded: str | None) -> str:
        """The host asked for; else the one that the point was made on, or the only one there is."""
        if wanted is not None:
            return self._appliance.catalog.hosts.get(wanted).name
        known = [host.name for host in self._appliance.catalog.hosts.list()]
        if recorded in known:
            return recorded
        if len(known) == 1:
            return known[0]
        raise HostNotNamed(name, recorded, known)

    @contextmanager
    def _at_work(self, id: str) -> Iterator[Recovery]:
        """A recovery that has not ended, its host, and its lock. RecordMissing, RecoveryEnded, InUse."""
        id = self._open(id).id
        with locking.commanding(self._appliance, id), self._reached(self._open(id)) as host:
            yield Recovery(self._appliance, host, self._open(id))

    def _reached(self, record: RecoveryRecord) -> Hypervisor:
        try:
            return self._appliance.connect(record.host)
        except StrongroomError as err:
            if not looked_after(self._appliance):  # else it is told, and taken back, by who looks
                tell(self._appliance, record.id, err)
            if isinstance(err, HostUnreachable):
                err.hint += f" If it is gone for good: strongroom host remove {record.host} --force"
            raise

    def _open(self, id: str) -> RecoveryRecord:
        record = self._own(id)
        if record.state.ended:
            raise RecoveryEnded(record.id, record.state.value)
        return record

    def _own(self, id: str) -> RecoveryRecord:
        record = self._appliance.catalog.recoveries.get(id)
        if record.appliance != self._appliance.catalog.me:
            name = FleetService(self._appliance).name(record.appliance)
            raise OfAnotherAppliance("recovery", record.id, name)
        return record
