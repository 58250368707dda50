"""Backup runs: one machine or image, from the request to an acknowledged restore point.

The rule: a run either ends with a point that counts, or leaves nothing that counts and nothing on the host; a killed
run is undone by the next start. Success is said only after the manifest is durable.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from appliance.catalog.errors import CatalogError
from appliance.doing import Subject, about, machine_of
from appliance.errors import StrongroomError
from appliance.hypervisor.protocol import (
    DiskDevice,
    DiskInfo,
    DiskSource,
    Hypervisor,
    MachineInfo,
    SourceKind,
)
from appliance.models import CleanupAction, ReadKind, RunRecord, RunState, new_id
from appliance.ownership import InUse
from appliance.progress import SILENT, Progress
from appliance.services import spawning
from appliance.services.backup.captured import CONSISTENCY_OFFLINE, Capture, CapturedDisk
from appliance.services.backup.planning import DiskPlan, plan_disks
from appliance.services.backup.recorded import Recorded
from appliance.services.backup.storing import Storer, entry_kind, machine_files
from appliance.services.backup.watching import living, watched
from appliance.services.cleaning import CleaningService, attempted
from appliance.services.upkeep import UpkeepService
from imaging import images
from imaging.manifest import Machine, ManifestDraft
from imaging.packing import PackWriter
from imaging.pending import PendingIndex
from imaging.raw import RawFileSource
from imaging.repository import Point, Run
from imaging.source import NbdSource, Source

if TYPE_CHECKING:
    from appliance.bootstrap import Appliance
    from appliance.services.inventory import HostedMachine

IMAGE_DISK = "disk"


class NotUndone(StrongroomError):
    """An attempt cannot begin beside what the one before left."""

    retryable = True

    def __init__(self, name: str) -> None:
        super().__init__(
            f"what an earlier attempt at {name} left on its host is not undone yet",
            hint="'strongroom status' tells what, and what keeps it from being undone.",
            name=name,
        )


@dataclass(frozen=True, slots=True)
class RunResult:
    """A run that made a point. `partial`: a disk is missing from it, or a note needs an admin's eyes."""

    run: RunRecord
    point: Point

    @property
    def partial(self) -> bool:
        return self.run.state is RunState.PARTIAL


class BackupService:
    """Runs backups, one at a time per instance. Borrows the appliance."""

    def __init__(self, appliance: Appliance, interrupt: Callable[[], None] | None = None) -> None:
        """`interrupt` ends the run in order, as Ctrl-C does; it is called from another thread, when somebody has asked
        for the run to be cancelled. Without it, nobody looks."""
        self._appliance = appliance
        self._interrupt = interrupt
        self._cleaning = CleaningService(appliance)

    def run_machine(
        self, name: str, host: str | None = None, *, full: bool = False, progress: Progress = SILENT
    ) -> RunResult:
        """Back up a virtual machine, by name or UUID. Raises StrongroomError, ImagingError."""
        from appliance.services.inventory import InventoryService

        for problem in UpkeepService(self._appliance).once():
            progress.note(f"left from an earlier run: {problem}")
        found = InventoryService(self._appliance).find(name, host)
        run = self._run(found.machine.name, "vm", found.machine.uuid, found.host)
        _tell(run, full)
        with self._pursued(run), self._recorded(run, progress) as (record, watched):
            return self._hosted(record, found, full, watched)

    def run_image(self, path: Path, image_format: str, name: str, *, progress: Progress = SILENT) -> RunResult:
        """Back up an image file or block device under a name. It is read in full; what is known is not stored again."""
        images.check_alone(path, image_format)
        for problem in UpkeepService(self._appliance).here():
            progress.note(f"left from an earlier run: {problem}")
        run = self._run(name, "image", None, None)
        run = replace(run, image_path=str(path.absolute()), image_format=image_format)  # policies find it by that
        _tell(run, False)
        with self._recorded(run, progress) as (record, watched):
            return self._image(record, path, image_format, watched)

    def run_queued(self, id: str, *, progress: Progress = SILENT) -> RunResult | None:
        """Make an attempt at a run of the queue; None: it is not there to be taken, or needs none any more.

        What goes wrong is written on the run, which is queued again where that may help, and then raised as by the
        others.
        """
        catalog = self._appliance.catalog
        upkeep = UpkeepService(self._appliance)
        asked = catalog.runs.get(id)
        # Before its lock is taken: what an earlier attempt left is undone while nobody is at work as its owner.
        for problem in upkeep.here() if asked.machine_kind == "image" else upkeep.once():
            progress.note(f"left from an earlier run: {problem}")
        with self._pursued(asked), ExitStack() as stack:
            try:
                stack.enter_context(living(self._appliance, id))
            except InUse:
                return None  # another process has got it
            run = catalog.queue.claim(id, self._appliance.clock.now_utc())
            if run is None:
                return None
            record = stack.enter_context(Recorded(self._appliance, run).told())
            watched = stack.enter_context(self._watched(run, progress))
            self._appliance.attach()
            return self._asked(record, watched)

    def _asked(self, record: Recorded, progress: Progress) -> RunResult | None:
        from appliance.services.inventory import InventoryService

        run = record.run
        if run.error is not None:  # there was an earlier attempt
            if self._cleaning.settle_made(run):
                progress.note("an earlier attempt has made its restore point")
                return None
            # Undone by who believes that nobody works as its owner: it must not be this attempt that is undone.
            if self._appliance.catalog.cleanups.list(f"run-{run.id}"):
                raise NotUndone(run.name)
        if run.image_path is not None and run.image_format is not None:
            images.check_alone(Path(run.image_path), run.image_format)
            return self._image(record, Path(run.image_path), run.image_format, progress)
        found = InventoryService(self._appliance).find(run.uuid or run.name, run.host)
        record.is_of(found.machine.name, found.machine.uuid)
        return self._hosted(record, found, run.full_read, progress)

    def _hosted(self, record: Recorded, found: HostedMachine, full: bool, progress: Progress) -> RunResult:
        with self._appliance.connect(found.host) as hypervisor:
            machine = hypervisor.machines.get(found.machine.uuid)
            try:
                result = self._machine(record, hypervisor, machine, full, progress)
            finally:
                owner = f"run-{record.run.id}"
                for problem in attempted("clean-ups", self._cleaning.settle_owner, owner, hypervisor):
                    progress.note(f"not cleaned up, tried again at the next run: {problem}")
            return result

    def _image(self, record: Recorded, path: Path, image_format: str, progress: Progress) -> RunResult:
        name = record.run.name
        disk = DiskInfo(
            target=IMAGE_DISK, device=DiskDevice.DISK,
            source=DiskSource(SourceKind.FILE, str(path.resolve()), str(path.resolve())), format=image_format,
            serial=None, size_bytes=None, readonly=True, shareable=False, transient=False, can_hold_bitmap=False,
            skip_reason=None, backing=(),
        )  # fmt: skip
        plan = DiskPlan(disk, ReadKind.FULL, None)
        connections = self._appliance.settings.backup.connections

        @contextmanager
        def opened() -> Iterator[Source]:
            run = self._appliance.settings.run_directory
            with images.serve(path, image_format, run, connections=connections) as listen:
                # the server holds QEMU's lock in both cases, so that no machine starts on the image meanwhile
                reading = RawFileSource(path) if image_format == "raw" else NbdSource(listen, connections=connections)
                with reading as source:
                    yield source

        capture = Capture(
            self._appliance.clock.now_utc(), CONSISTENCY_OFFLINE, None,
            (CapturedDisk(plan, False, opened),), (), (),
        )  # fmt: skip
        series = self._appliance.repository.series_of("image", name)
        machine = Machine(kind="image", uuid=None, name=name, host=None)
        with self._appliance.repository.begin_run(series, host=None) as lease:
            return self._store(record, lease, machine, nullcontext(capture), progress)

    def _machine(self, record: Recorded, hypervisor: Hypervisor, machine: MachineInfo, full: bool,
                 progress: Progress) -> RunResult:  # fmt: skip
        # here, so that images are backed up without loading what talks to hypervisors
        from appliance.services.backup.capture import Guard, capture_off, capture_running
        from appliance.services.backup.quiesce import Quiescer

        appliance = self._appliance
        repository = appliance.repository
        host = hypervisor.host.name
        with repository.begin_run(repository.series_of("vm", machine.uuid), host=host) as lease:
            plan = plan_disks(machine, None if lease.parent is None else lease.parent.manifest, full=full)
            record.needs_eyes = plan.needs_eyes
            for skipped in plan.skipped:
                progress.note(f"disk {skipped.name} is left out: {skipped.reason}")
            guard = Guard(appliance.catalog, appliance.clock, f"run-{record.run.id}", host, machine)
            if machine.running:
                quiescer = Quiescer(appliance, hypervisor, wanted=record.run.quiesce)
                capture = capture_running(hypervisor, machine, plan, guard, quiescer, appliance.settings)
            else:
                capture = capture_off(hypervisor, machine, plan, guard, appliance.settings)
            return self._store(
                record, lease, Machine(kind="vm", uuid=machine.uuid, name=machine.name, host=host), capture, progress,
                xml=machine.inactive_xml, files=lambda: machine_files(hypervisor, machine),
            )  # fmt: skip

    def _store(self, record: Recorded, lease: Run, machine: Machine, capturing: AbstractContextManager[Capture],
               progress: Progress, *, xml: str | None = None,
               files: Callable[[], Iterable[tuple[str, str, bytes]]] = tuple) -> RunResult:  # fmt: skip
        """Read what was captured, commit the manifest, and only then let the capture end."""
        repository = self._appliance.repository
        started = self._appliance.clock.monotonic_s()
        with ExitStack() as stack:
            pending = PendingIndex(self._appliance.settings.cache_directory)
            stack.callback(pending.close)
            writer = stack.enter_context(PackWriter(
                repository.store, repository.keys, repository.index, pending, lease.put_index,
                compression_level=repository.config.compression_level, pack_bytes=repository.config.pack_bytes,
                uploads=repository.pace.puts,
            ))  # fmt: skip
            capture: Capture = stack.enter_context(capturing)
            former = None if lease.parent is None else lease.parent.manifest
            storer = Storer(repository, writer, self._appliance.settings, progress, former)
            kept = tuple(storer.store_file(*item) for item in files())
            disks = tuple(storer.store_disk(disk, capture) for disk in capture.disks)
            writer.flush()
            notes = (*capture.notes, *storer.notes)
            draft = ManifestDraft(
                machine=machine, created_utc=capture.created_utc, kind=entry_kind(disks),
                consistency=capture.consistency, disks=disks, files=kept, skipped=capture.skipped, domain_xml=xml,
                checkpoint=capture.checkpoint, policy=", ".join(due.policy for due in record.run.due) or None,
                run=record.run.id, notes=notes,
                statistics=storer.statistics(round((self._appliance.clock.monotonic_s() - started) * 1000)),
            )  # fmt: skip
            record.committing = True
            point = lease.commit(draft)
        try:
            record.done(point, storer.disks, notes)
        except CatalogError as err:
            progress.note(f"the restore point counts, and the catalog learns of it when it can be written again: {err}")
        return RunResult(record.run, point)

    def _run(self, name: str, kind: str, uuid: str | None, host: str | None) -> RunRecord:
        return RunRecord(
            new_id(), name, kind, uuid, host, RunState.RUNNING, self._appliance.clock.now_utc(),
            appliance=self._appliance.id,
        )  # fmt: skip

    @contextmanager
    def _pursued(self, run: RunRecord) -> Iterator[None]:
        """A job that could not be ended with the run is, by a process of its own: its scratch is not watched now."""
        try:
            yield
        finally:
            if self._may_have_left_a_job(run):
                spawning.pay_debts(self._appliance.settings)

    def _may_have_left_a_job(self, run: RunRecord) -> bool:
        try:
            left = self._appliance.catalog.cleanups.list(f"run-{run.id}")
        except CatalogError:
            return True
        return any(record.action is CleanupAction.END_BACKUP_JOB for record in left)

    @contextmanager
    def _recorded(self, run: RunRecord, progress: Progress) -> Iterator[tuple[Recorded, Progress]]:
        """A new run in the catalog from its first moment to its end."""
        appliance = self._appliance
        appliance.attach()
        with living(appliance, run.id):
            appliance.catalog.runs.save(run)
            with Recorded(appliance, run).told() as record, self._watched(run, progress) as watched:
                yield record, watched

    @contextmanager
    def _watched(self, run: RunRecord, progress: Progress) -> Iterator[Progress]:
        if self._interrupt is None:
            yield progress
            return
        with watched(self._appliance, run.id, self._interrupt, progress) as watching:
            yield watching


def _tell(run: RunRecord, full: bool) -> None:
    """As the audit has it; the same as of a run of the queue."""
    subject = Subject.of_machine(machine_of(run.machine_kind, run.name, run.uuid, run.host))
    about(subject, run=run.id, full=full, limit_bytes_s=run.limit_bytes_s)
