"""A run and its record in the catalog, from the moment in which it runs to its end.

The rule: a point that was committed is a success, whatever happens after, a signal and a request to cancel included;
one that found another run at work on the same machine never began; what else ended without a point is written down, or
queued again by the rules of `policy.retries`. Should the catalog not learn how it ended, or the repository not say, the
next start of this appliance tells it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import TYPE_CHECKING

from appliance.catalog.errors import CatalogError
from appliance.errors import StrongroomError
from appliance.hypervisor.errors import BackupBusy
from appliance.models import RunDisk, RunRecord, RunState
from appliance.policy.retries import Ending, after
from appliance.services.cleaning import CleaningService
from appliance.services.points import PointService
from imaging.errors import ImagingError, SeriesBusy
from imaging.repository import Point

if TYPE_CHECKING:
    from appliance.bootstrap import Appliance


class RunBusy(StrongroomError):
    """Another run is at work on the same machine."""

    retryable = True

    def __init__(self, name: str, holder: str, hint: str) -> None:
        super().__init__(f"{name} is being backed up already, by {holder}", hint=hint, name=name, holder=holder)


class Recorded:
    """Borrows the appliance. `needs_eyes`: a disk with data is left out. `committing`: from here on, there may be a
    point."""

    def __init__(self, appliance: Appliance, run: RunRecord) -> None:
        self._appliance = appliance
        self._attempt = run  # as the catalog has it
        self._ended = False
        self.run = run
        self.needs_eyes = False
        self.committing = False

    @contextmanager
    def told(self) -> Iterator[Recorded]:
        """However the body ends, the catalog is told."""
        try:
            yield self
        except BaseException as err:
            if not self._ended:
                with suppress(CatalogError):
                    if not (self.committing and self._has_made()):
                        self._ended_by(err)
            raise

    def is_of(self, name: str, uuid: str) -> None:
        """The machine that was found, of a run that was queued by its name."""
        if (self.run.name, self.run.uuid) != (name, uuid):
            self.run = self._attempt = replace(self.run, name=name, uuid=uuid)
            self._appliance.catalog.queue.identify(self.run.id, name, uuid)

    def done(self, point: Point, disks: Sequence[RunDisk], notes: Sequence[str]) -> None:
        state = RunState.PARTIAL if self.needs_eyes or notes else RunState.SUCCEEDED
        now = self._appliance.clock.now_utc()
        self.run = replace(
            self._attempt, state=state, ended_utc=now, error=None, point=point.manifest.id, disks=tuple(disks),
            notes=tuple(notes),
        )  # fmt: skip
        self._appliance.catalog.queue.settle(self._attempt, self.run, now)
        self._ended = True
        PointService(self._appliance).record(point)

    def did(self, result: str, notes: Sequence[str] = ()) -> None:
        """What was no backup is done; `notes` need an admin's eyes."""
        state = RunState.PARTIAL if notes else RunState.SUCCEEDED
        now = self._appliance.clock.now_utc()
        ended = replace(self._attempt, state=state, ended_utc=now, error=None, result=result, notes=tuple(notes))
        self.run = self._appliance.catalog.queue.settle(self._attempt, ended, now)
        self._ended = True

    def _has_made(self) -> bool:
        """Whether the run has a point after all, or nobody can tell now: then the next start does."""
        try:
            return CleaningService(self._appliance).settle_made(self._attempt)
        except ImagingError:
            return True

    def _ended_by(self, err: BaseException) -> None:
        ending = _ending(err)
        if isinstance(err, SeriesBusy) and not self.run.from_queue:
            self._appliance.catalog.runs.remove(self.run.id)
            return
        now = self._appliance.clock.now_utc()
        words = str(RunBusy(self.run.name, err.holder, err.hint)) if isinstance(err, SeriesBusy) else _words(err)
        run = after(self._attempt, ending, words, now, self._appliance.settings.queue)
        self.run = self._appliance.catalog.queue.settle(self._attempt, run, now)


def _ending(err: BaseException) -> Ending:
    if isinstance(err, (SeriesBusy, BackupBusy)):
        return Ending.BUSY
    if isinstance(err, (StrongroomError, ImagingError)):
        return Ending.FAILED_FOR_NOW if err.retryable else Ending.FAILED
    return Ending.FAILED if isinstance(err, Exception) else Ending.MADE_WAY


def _words(err: BaseException) -> str:
    return str(err) or ("it was interrupted" if isinstance(err, KeyboardInterrupt) else type(err).__name__)
