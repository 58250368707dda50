"""How everything stands, in one look.

The rule: status never fails because a part does: what cannot be asked is told as a problem, and the catalog's copy is
shown for it. It asks no hypervisor, so that it answers at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from appliance import home
from appliance.errors import StrongroomError
from appliance.models import (
    CleanupRecord,
    ExportRecord,
    HostRecord,
    MachineRecord,
    OwedThaw,
    RecoveryRecord,
    RunRecord,
    RunState,
)
from appliance.services.points import PointService
from imaging.errors import ImagingError

if TYPE_CHECKING:
    from appliance.bootstrap import Appliance
    from imaging.points import Hold


@dataclass(frozen=True, slots=True)
class ActiveRun:
    run: RunRecord
    alive: bool  # False: its process is dead, and the next run cleans up


@dataclass(frozen=True, slots=True)
class ActiveExport:
    export: ExportRecord
    alive: bool


@dataclass(frozen=True, slots=True)
class RepositoryState:
    id: str | None
    location: str
    reachable: bool
    free_bytes: int | None


@dataclass(frozen=True, slots=True)
class Status:
    home: str
    repository: RepositoryState
    hosts: tuple[HostRecord, ...]
    machines: tuple[MachineRecord, ...]
    last_runs: tuple[RunRecord, ...]  # the last of each machine
    runs: tuple[ActiveRun, ...]
    recoveries: tuple[RecoveryRecord, ...]
    exports: tuple[ActiveExport, ...]
    holds: tuple[Hold, ...]
    owed_thaws: tuple[OwedThaw, ...]
    cleanups: tuple[CleanupRecord, ...]  # of owners that are dead
    problems: tuple[str, ...]


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
        repository, holds = self._repository(problems)
        runs = catalog.runs.list(state=RunState.RUNNING)
        return Status(
            home=str(appliance.settings.home),
            repository=repository,
            hosts=catalog.hosts.list(),
            machines=catalog.points.machines(),
            last_runs=self._last_runs(),
            runs=tuple(ActiveRun(run, appliance.alive(f"run-{run.id}")) for run in runs),
            recoveries=catalog.recoveries.list(ended=False),
            exports=tuple(ActiveExport(each, appliance.alive(f"export-{each.id}")) for each in catalog.exports.list()),
            holds=holds,
            owed_thaws=catalog.thaws.list(),
            cleanups=tuple(record for record in catalog.cleanups.list() if not appliance.alive(record.owner)),
            problems=tuple(problems),
        )

    def _last_runs(self) -> tuple[RunRecord, ...]:
        last: dict[tuple[str, str], RunRecord] = {}
        for run in self._appliance.catalog.runs.list(limit=1000):
            last.setdefault((run.machine_kind, run.uuid or run.name), run)
        return tuple(last.values())

    def _repository(self, problems: list[str]) -> tuple[RepositoryState, tuple[Hold, ...]]:
        location = str(self._appliance.settings.repository.path)
        try:
            repository = self._appliance.repository
            for damaged in PointService(self._appliance).refresh():
                problems.append(f"restore point {damaged.id} cannot be read: {damaged.error}")
            holds = tuple(repository.holds())
            return RepositoryState(repository.id.hex(), location, True, repository.store.free_bytes()), holds
        except (ImagingError, StrongroomError) as err:
            problems.append(f"the repository: {err}")
        record = self._appliance.catalog.repository()
        return RepositoryState(None if record is None else record.id, location, False, None), ()
