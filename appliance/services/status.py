"""How everything stands, in one look.

The rule: status never fails because a part does: what cannot be asked is told as a problem, and the catalog's copy is
shown for it. It asks no hypervisor, so that it answers at once. Of other appliances that share the catalog it shows
what they have recorded; whether their processes live, it cannot know.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from appliance import home
from appliance.doing import Subject, about, machine_of
from appliance.errors import StrongroomError
from appliance.models import (
    ApplianceRecord,
    CleanupRecord,
    ExportRecord,
    HostRecord,
    MachineRecord,
    OwedThaw,
    RecoveryRecord,
    RunRecord,
    RunState,
)
from appliance.patience import StillWaiting, within
from appliance.services.cleaning import attempted
from appliance.services.fleet import FleetService
from appliance.services.guard import GuardService, Told
from appliance.services.locks import LockService, LockState
from appliance.services.points import PointService
from appliance.services.queue.hanging import hanging
from appliance.services.restore.kept import kept_files
from appliance.services.scheduling import SchedulingService, Standing
from appliance.services.spawning import WORKERS
from imaging.errors import ImagingError

if TYPE_CHECKING:
    from appliance.bootstrap import Appliance
    from imaging.points import Hold

_PATIENCE_S = 60.0


class NothingToDismiss(StrongroomError):
    def __init__(self, name: str) -> None:
        super().__init__(
            f"no run of {name!r} waits to be dismissed: its last one did not fail, or there is none",
            hint="'strongroom status' names the machines whose last run failed.",
            name=name,
        )


@dataclass(frozen=True, slots=True)
class ActiveRun:
    run: RunRecord
    alive: bool | None  # False: its process is dead, and the next run cleans up; None: of another appliance


@dataclass(frozen=True, slots=True)
class ActiveExport:
    export: ExportRecord
    alive: bool | None


@dataclass(frozen=True, slots=True)
class RepositoryState:
    id: str | None
    location: str
    reachable: bool
    free_bytes: int | None
    lock: LockState | None  # None where nothing is to be locked


@dataclass(frozen=True, slots=True)
class Status:
    home: str
    me: str  # the id of this appliance
    appliances: tuple[ApplianceRecord, ...]
    names: Mapping[str, str]  # what to call each, by its id
    repository: RepositoryState
    hosts: tuple[HostRecord, ...]
    machines: tuple[MachineRecord, ...]
    last_runs: tuple[RunRecord, ...]  # the last of each machine
    runs: tuple[ActiveRun, ...]
    waiting: tuple[RunRecord, ...]  # in the queue, oldest first
    policies: Standing
    workers: bool  # whether anybody here takes runs from the queue
    recoveries: tuple[RecoveryRecord, ...]
    exports: tuple[ActiveExport, ...]
    holds: tuple[Hold, ...]
    requests: tuple[Told, ...]  # open ones, of a guarded repository
    owed_thaws: tuple[OwedThaw, ...]
    cleanups: tuple[CleanupRecord, ...]  # of owners that are dead; of other appliances, what was tried in vain
    problems: tuple[str, ...]

    @property
    def failed_runs(self) -> tuple[RunRecord, ...]:
        """Last runs that made no point, and that nobody has dismissed."""
        return tuple(run for run in self.last_runs if _waits(run))

    @property
    def unserved(self) -> int:
        """How many runs wait here although nobody takes them."""
        return 0 if self.workers else sum(run.appliance == self.me for run in self.waiting)

    def whose(self, appliance: str) -> str | None:
        """What to call the appliance that something is of; None: this one, or there is no other."""
        return None if appliance == self.me else self.names.get(appliance, appliance[:12])


class StatusService:
    """Borrows the appliance."""

    def __init__(self, appliance: Appliance) -> None:
        self._appliance = appliance

    def status(self) -> Status:
        """NoRepositoryYet when there is nothing to tell of."""
        appliance = self._appliance
        if not home.in_use(appliance.settings):
            raise home.NoRepositoryYet(appliance.settings.home)
        catalog = appliance.catalog
        problems: list[str] = []
        repository, holds = self._answering(problems)
        requests = self._requests(problems) if repository.reachable else ()
        fleet = FleetService(appliance)
        problems += [
            f"a restore in place has not come to its end: the machine's definition is kept in {path}; restore it again"
            for path in kept_files(appliance.settings)
        ]
        if (found := hanging(appliance)) is not None:
            problems.append(found[1])
        problems += attempted("the home's own catalog", self._left_behind, fleet)
        return Status(
            home=str(appliance.settings.home),
            me=catalog.me,
            appliances=catalog.appliances.list(),
            names=fleet.names(),
            repository=repository,
            hosts=catalog.hosts.list(),
            machines=catalog.points.machines(),
            last_runs=catalog.runs.last(),
            runs=tuple(
                ActiveRun(run, self._alive(run.appliance, f"run-{run.id}"))
                for run in catalog.runs.list(state=RunState.RUNNING)
            ),
            waiting=catalog.queue.waiting(everyones=True),
            policies=SchedulingService(appliance).standing(),
            workers=appliance.alive(WORKERS),
            recoveries=catalog.recoveries.list(ended=False, everyones=True),
            exports=tuple(
                ActiveExport(each, self._alive(each.appliance, f"export-{each.id}"))
                for each in catalog.exports.list(everyones=True)
            ),
            holds=holds,
            requests=requests,
            owed_thaws=catalog.thaws.list(everyones=True),
            cleanups=tuple(
                record
                for record in catalog.cleanups.list(everyones=True)
                if (record.attempts if record.appliance != catalog.me else not appliance.alive(record.owner))
            ),
            problems=tuple(problems),
        )

    def _alive(self, whose: str, owner: str) -> bool | None:
        return self._appliance.alive(owner) if whose == self._appliance.catalog.me else None

    def _left_behind(self, fleet: FleetService) -> list[str]:
        left = ", ".join(f"{what} {count}" for what, count in fleet.left_behind().items())
        told = (
            f"the home's own catalog, {self._appliance.settings.catalog_file}, has something under way ({left}):"
            " 'STRONGROOM_CATALOG_URL= strongroom status' shows it"
        )
        return [told] if left else []

    def dismiss(self, name: str) -> tuple[RunRecord, ...]:
        """Take the failed last run of a machine or image (by name, UUID, vm:NAME or image:NAME) off the list of what
        needs an eye, until the next one fails; by the id of a run, that one alone. NothingToDismiss.
        """
        runs, now = self._appliance.catalog.runs, self._appliance.clock.now_utc()
        found = tuple(
            replace(run, dismissed_utc=now)
            for run in runs.last()
            if _waits(run) and name in (run.id, run.name, run.uuid, f"{run.machine_kind}:{run.name}")
        )
        if not found:
            raise NothingToDismiss(name)
        for run in found:
            runs.save(run)
            machine = machine_of(run.machine_kind, run.name, run.uuid, run.host)
            about(Subject.of_machine(machine), run=run.id)
        return found

    def _answering(self, problems: list[str]) -> tuple[RepositoryState, tuple[Hold, ...]]:
        """A repository that neither answers nor fails keeps nothing else from being told."""
        found: list[str] = []
        try:
            answer = within(_PATIENCE_S, lambda: self._repository(found), "repository")
        except StillWaiting:
            problems.append(f"the repository: it has not answered within {_PATIENCE_S:g} s")
            return self._away(LockService(self._appliance).state())
        problems += found
        return answer

    def _repository(self, problems: list[str]) -> tuple[RepositoryState, tuple[Hold, ...]]:
        location = str(home.location_of(self._appliance.settings))
        lock = LockService(self._appliance).state()
        if lock is not None and (concern := lock.concern(self._appliance.clock.now_utc())) is not None:
            problems.append(f"Object Lock: {concern}; 'strongroom repository lock' sees to it, every night")
        try:
            repository = self._appliance.repository
            problems += [f"the repository: {loss}" for loss in repository.losses]
            for damaged in PointService(self._appliance).refresh():
                problems.append(f"restore point {damaged.id} cannot be read: {damaged.error}")
            holds, unread = repository.survey_holds()
            problems += [f"hold {each.id} cannot be read, so nothing is deleted: {each.error}" for each in unread]
            state = RepositoryState(repository.id.hex(), location, True, repository.store.free_bytes(), lock)
            return state, tuple(holds)
        except (ImagingError, StrongroomError) as err:
            problems.append(f"the repository: {err}")
        return self._away(lock)

    def _away(self, lock: LockState | None) -> tuple[RepositoryState, tuple[Hold, ...]]:
        record = self._appliance.catalog.repository()
        location = str(home.location_of(self._appliance.settings))
        return RepositoryState(None if record is None else record.id, location, False, None, lock), ()

    def _requests(self, problems: list[str]) -> tuple[Told, ...]:
        try:
            found, damaged = GuardService(self._appliance).requests()
        except (ImagingError, StrongroomError) as err:
            problems.append(f"the repository's guard: {err}")
            return ()
        problems += [f"request {each.id} cannot be read: {each.error}" for each in damaged]
        return found


def _waits(run: RunRecord) -> bool:
    return run.state in (RunState.FAILED, RunState.INTERRUPTED) and run.dismissed_utc is None
