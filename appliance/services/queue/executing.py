"""An attempt at a run of the queue, of whatever kind, in the process that a worker has started for it.

The rule: what a run does is done by the service that does it for a person, too; here is only told how it begins, how it
is recorded, and in which sentence it ended.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from appliance.amounts import size
from appliance.errors import StrongroomError
from appliance.models import RunArguments, RunKind, RunRecord, RunState
from appliance.ownership import InUse
from appliance.progress import SILENT, Progress
from appliance.services.access import SYSTEM, Access, Act, Subject, about
from appliance.services.backup import BackupService
from appliance.services.backup.recorded import Recorded
from appliance.services.backup.watching import living, watched
from appliance.services.upkeep import UpkeepService

if TYPE_CHECKING:
    from appliance.bootstrap import Appliance
    from appliance.services.maintenance import MaintenanceService, PrunePlan
    from imaging.errors import PointHeld

_COLLECTION_WAIT_S = 600.0


class RepositoryDamaged(StrongroomError):
    """A verification has found it."""

    def __init__(self, objects: int, points: int, first: str) -> None:
        super().__init__(
            f"{objects} objects of the repository are damaged or missing, {points} restore points touched: {first}",
            hint="'strongroom repository verify' names them all; 'repository repair' and a copy may heal them.",
            objects=objects,
        )


@dataclass(frozen=True, slots=True)
class _Done:
    """`notes` need an admin's eyes."""

    result: str
    notes: tuple[str, ...] = ()


class Executor:
    """Borrows the appliance. `interrupt` ends this process's work in order, from another thread."""

    def __init__(self, appliance: Appliance, interrupt: Callable[[], None]) -> None:
        self._appliance = appliance
        self._interrupt = interrupt

    def execute(self, id: str, progress: Progress = SILENT) -> RunState | None:
        """How it ended; None: it is not there to be taken, or needs no attempt any more. What goes wrong is written on
        the run, and then raised. RecordMissing, StrongroomError, ImagingError."""
        asked = self._appliance.catalog.runs.get(id)
        if asked.kind is RunKind.BACKUP:
            made = BackupService(self._appliance, self._interrupt).run_queued(id, progress=progress)
            return None if made is None else made.run.state
        for problem in UpkeepService(self._appliance).here():
            progress.note(f"left from an earlier run: {problem}")
        with ExitStack() as stack:
            try:
                stack.enter_context(living(self._appliance, id))
            except InUse:
                return None  # another process has got it
            run = self._appliance.catalog.queue.claim(id, self._appliance.clock.now_utc())
            if run is None:
                return None
            record = stack.enter_context(Recorded(self._appliance, run).told())
            watching = stack.enter_context(watched(self._appliance, id, self._interrupt, progress))
            self._appliance.attach()
            done = _WORK[run.kind](self._appliance, run, run.arguments or RunArguments(), watching)
            record.did(done.result, done.notes)
            return record.run.state


def _restore(appliance: Appliance, run: RunRecord, asked: RunArguments, progress: Progress) -> _Done:
    from appliance.services.restore import RestoreService

    service = RestoreService(appliance)
    point, name = asked.point or "", run.uuid or run.name  # it may have another name by now than on the point
    if asked.target is not None:
        image_format = asked.image_format or "qcow2"
        disk = service.disk(
            name, point, asked.disk, Path(asked.target), image_format, force=asked.force, progress=progress
        )
        return _Done(f"{disk.disk} is restored to {disk.target}: {size(disk.size_bytes)}")
    machine = service.machine(
        name, point, run.host or "", new_name=asked.new_name, force=asked.force, storage=asked.storage,
        progress=progress,
    )  # fmt: skip
    return _Done(f"{machine.name} is restored to {machine.host}; it is off", machine.notes)


def _verify(appliance: Appliance, _run: RunRecord, asked: RunArguments, progress: Progress) -> _Done:
    from appliance.services.repositories import RepositoryService

    report = RepositoryService(appliance).verify_as(
        read_data=asked.read_data, every_days=asked.every_days, hashes_only=asked.hashes_only, progress=progress
    )
    if not report.ok:
        first = report.problems[0].name if report.problems else report.affected[0].detail
        raise RepositoryDamaged(len(report.problems), len(report.affected), first)
    read = f", {size(report.read_bytes)} of data read" if report.read_data else ""
    return _Done(f"nothing is damaged: {report.points} restore points, {report.objects} objects{read}")


def _collect(appliance: Appliance, _run: RunRecord, _asked: RunArguments, progress: Progress) -> _Done:
    from appliance.services.maintenance import MaintenanceService

    done = MaintenanceService(appliance).collect(wait_s=_COLLECTION_WAIT_S, progress=progress)
    waits = f"; {done.waiting_packs} packs wait for backups to end" if done.waiting_packs else ""
    return _Done(f"{size(done.freed_bytes - done.copied_bytes)} are freed{waits}", tuple(done.problems))


def _prune(appliance: Appliance, run: RunRecord, _asked: RunArguments, _progress: Progress) -> _Done:
    from appliance.services.maintenance import MaintenanceService

    service = MaintenanceService(appliance)
    plan = service.plan_policies()
    held = _deleted(appliance, service, plan, run) if plan.going else ()
    doubts = tuple(str(each.doubt) for each in plan.machines if each.doubt is not None)
    machines = sum(bool(each.going) for each in plan.machines)
    guarded = f"; {len(plan.guarded)} more stay, as the repository's guard keeps them" if plan.guarded else ""
    gone = len(plan.going) - len(held)
    return _Done(f"{gone} restore points of {machines} machines are deleted{guarded}", (*map(str, held), *doubts))


def _deleted(
    appliance: Appliance, service: MaintenanceService, plan: PrunePlan, run: RunRecord
) -> tuple[PointHeld, ...]:
    """Which points went is in the audit, as when a person deletes them."""
    with Access(appliance).performing(SYSTEM, Act.POINT_PRUNE, Subject("repository")):
        about(run=run.id)
        return service.prune(plan)


def _copy(appliance: Appliance, _run: RunRecord, asked: RunArguments, progress: Progress) -> _Done:
    from appliance.services.copying import CopyService

    with appliance.of_home(Path(asked.home or "")) as target:
        service = CopyService(appliance, target)
        copied = list(service.copy(service.plan(asked.names), progress=progress))
    if not copied:
        return _Done("every restore point is copied already")
    return _Done(f"{len(copied)} restore points are copied: {size(sum(each.stored_bytes for each in copied))} stored")


_WORK: Final[Mapping[RunKind, Callable[[Appliance, RunRecord, RunArguments, Progress], _Done]]] = {
    RunKind.RESTORE: _restore,
    RunKind.VERIFY: _verify,
    RunKind.COLLECT: _collect,
    RunKind.COPY: _copy,
    RunKind.PRUNE: _prune,
}
