"""Backup runs: one machine or image, from the request to an acknowledged restore point.

The rule: a run either ends with a point that counts, or leaves nothing that counts and nothing on the host; a killed
run is undone by the next start. Success is said only after the manifest is durable.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from appliance.catalog.errors import CatalogError
from appliance.hypervisor.protocol import (
    DiskDevice,
    DiskInfo,
    DiskSource,
    Hypervisor,
    MachineInfo,
    SourceKind,
)
from appliance.models import CleanupAction, ReadKind, RunDisk, RunRecord, RunState, new_id
from appliance.progress import SILENT, Progress
from appliance.services import spawning
from appliance.services.backup.captured import CONSISTENCY_OFFLINE, Capture, CapturedDisk
from appliance.services.backup.planning import DiskPlan, plan_disks
from appliance.services.backup.storing import Storer, entry_kind, machine_files
from appliance.services.cleaning import CleaningService
from appliance.services.points import PointService
from appliance.services.upkeep import UpkeepService
from imaging import images
from imaging.errors import SeriesBusy
from imaging.manifest import Machine, ManifestDraft
from imaging.packing import PackWriter
from imaging.pending import PendingIndex
from imaging.raw import RawFileSource
from imaging.repository import Point, Run
from imaging.source import NbdSource, Source

if TYPE_CHECKING:
    from appliance.bootstrap import Appliance

IMAGE_DISK = "disk"


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

    def __init__(self, appliance: Appliance) -> None:
        self._appliance = appliance
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
        with self._pursued(run), self._recorded(run) as record, self._appliance.connect(found.host) as hypervisor:
            machine = hypervisor.machines.get(found.machine.uuid)
            try:
                result = self._machine(record, hypervisor, machine, full, progress)
            finally:
                for problem in self._cleaning.settle_owner(f"run-{run.id}", hypervisor):
                    progress.note(f"not cleaned up, tried again at the next run: {problem}")
            return result

    def run_image(self, path: Path, image_format: str, name: str, *, progress: Progress = SILENT) -> RunResult:
        """Back up an image file or block device under a name. It is read in full; what is known is not stored again."""
        images.check_alone(path, image_format)
        for problem in UpkeepService(self._appliance).here():
            progress.note(f"left from an earlier run: {problem}")
        run = self._run(name, "image", None, None)
        with self._recorded(run) as record:
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
                    reading = (
                        RawFileSource(path) if image_format == "raw" else NbdSource(listen, connections=connections)
                    )
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

    def _machine(self, record: _Recorded, hypervisor: Hypervisor, machine: MachineInfo, full: bool,
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
                quiescer = Quiescer(appliance, hypervisor)
                capture = capture_running(hypervisor, machine, plan, guard, quiescer, appliance.settings)
            else:
                capture = capture_off(hypervisor, machine, plan, guard, appliance.settings)
            return self._store(
                record, lease, Machine(kind="vm", uuid=machine.uuid, name=machine.name, host=host), capture, progress,
                xml=machine.inactive_xml, files=lambda: machine_files(hypervisor, machine),
            )  # fmt: skip

    def _store(self, record: _Recorded, lease: Run, machine: Machine, capturing: AbstractContextManager[Capture],
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
                checkpoint=capture.checkpoint, policy=None, run=record.run.id, notes=notes,
                statistics=storer.statistics(round((self._appliance.clock.monotonic_s() - started) * 1000)),
            )  # fmt: skip
            point = lease.commit(draft)
        record.done(point, storer.disks, notes)
        return RunResult(record.run, point)

    def _run(self, name: str, kind: str, uuid: str | None, host: str | None) -> RunRecord:
        return RunRecord(new_id(), name, kind, uuid, host, RunState.RUNNING, self._appliance.clock.now_utc())

    @contextmanager
    def _pursued(self, run: RunRecord) -> Iterator[None]:
        """A job that could not be ended with the run is, by a process of its own: its scratch is not watched now."""
        try:
            yield
        finally:
            with suppress(CatalogError):
                left = self._appliance.catalog.cleanups.list(f"run-{run.id}")
                if any(record.action is CleanupAction.END_BACKUP_JOB for record in left):
                    spawning.pay_debts(self._appliance.settings)

    @contextmanager
    def _recorded(self, run: RunRecord) -> Iterator[_Recorded]:
        """The run in the catalog from its first moment to its end; its lock tells others that it lives.

        One that found another at work on the same machine never began.
        """
        appliance = self._appliance
        try:
            with appliance.own(f"run-{run.id}", f"run {run.id}"):
                record = _Recorded(appliance, run)
                appliance.catalog.runs.save(run)
                try:
                    yield record
                except SeriesBusy:
                    appliance.catalog.runs.remove(run.id)
                    raise
                except BaseException as err:
                    if record.run.state is RunState.RUNNING:
                        record.end(RunState.FAILED, error=_words(err))
                    raise
        finally:
            (appliance.settings.run_directory / f"run-{run.id}.lock").unlink(missing_ok=True)


class _Recorded:
    """A run and its record in the catalog."""

    def __init__(self, appliance: Appliance, run: RunRecord) -> None:
        self._appliance = appliance
        self.run = run
        self.needs_eyes = False

    def done(self, point: Point, disks: Sequence[RunDisk], notes: Sequence[str]) -> None:
        state = RunState.PARTIAL if self.needs_eyes or notes else RunState.SUCCEEDED
        self.run = replace(self.run, point=point.manifest.id, disks=tuple(disks), notes=tuple(notes))
        self.end(state)
        PointService(self._appliance).record(point)

    def end(self, state: RunState, error: str | None = None) -> None:
        self.run = replace(self.run, state=state, ended_utc=self._appliance.clock.now_utc(), error=error)
        self._appliance.catalog.runs.save(self.run)


def _words(err: BaseException) -> str:
    return str(err) or ("it was interrupted" if isinstance(err, KeyboardInterrupt) else type(err).__name__)
