"""Object Lock: keeping restore points locked in their bucket, telling until when, and undoing what was done to them.

The rule: what a point promises is told as the last sweep left it, and never more; what is to be undone is planned by
the same code that does it.
"""

from __future__ import annotations

import shutil
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property
from typing import TYPE_CHECKING

from appliance import home
from appliance.errors import StrongroomError
from appliance.progress import SILENT, Progress
from appliance.services.points import PointService
from imaging.errors import ObjectMissing
from imaging.index_files import IndexFolder
from imaging.lock_log import LockLog
from imaging.slots import MachineKey, Secret
from imaging.storage.locations import BucketPrefix, open_store, open_versions
from imaging.undoing import Happened, Undo, Undoing, Undone

if TYPE_CHECKING:
    from appliance.bootstrap import Appliance
    from imaging.lock_sweep import Swept
    from imaging.points import Point
    from imaging.storage.locations import Location
    from imaging.storage.versions import Versions

_OVERDUE = timedelta(days=2)


class NotLocked(StrongroomError):
    def __init__(self, location: Location) -> None:
        way_out = "Set s3.lock_mode in strongroom.toml: 'Object Lock' in docs/operations.md says what it takes."
        if not isinstance(location, BucketPrefix):
            way_out = (
                f"Nothing can be locked in {location}: only in a bucket of S3 that has Object Lock does Strongroom lock"
                " what restore points need (docs/operations.md)."
            )
        super().__init__("the settings do not say that this repository is locked", hint=way_out)


@dataclass(frozen=True, slots=True)
class LockState:
    """`swept_utc` and `until_utc` are what the last sweep from this home left: until when every restore point of then
    is locked. None: no sweep has told, or something is not locked."""

    mode: str
    days: int
    swept_utc: datetime | None
    until_utc: datetime | None

    def left_days(self, now_utc: datetime) -> int | None:
        """Whole days; 0 where nothing is left."""
        return whole_days(self.until_utc, now_utc)

    def concern(self, now_utc: datetime) -> str | None:
        """Why somebody should look."""
        if self.swept_utc is None:
            return "no sweep has told until when restore points are locked"
        if self.until_utc is None:
            return "not everything that restore points need is locked"
        if self.until_utc < now_utc + timedelta(days=self.days) - _OVERDUE:
            return f"restore points are locked for {self.left_days(now_utc)} days more, and should be for {self.days}"
        return None


def whole_days(until_utc: datetime | None, now_utc: datetime) -> int | None:
    return None if until_utc is None else max(0, (until_utc - now_utc) // timedelta(days=1))


class LockService:
    """Borrows the appliance."""

    def __init__(self, appliance: Appliance) -> None:
        self._appliance = appliance

    @cached_property
    def _versions(self) -> Versions:
        """NotLocked."""
        location = home.location_of(self._appliance.settings)
        versions = open_versions(location)
        if versions is None:
            raise NotLocked(location)
        return versions

    # Keeping points locked

    def sweep(self, *, dry_run: bool, ask_all: bool, progress: Progress = SILENT) -> Swept:
        """NotLocked; ImagingError."""
        versions = self._versions
        return self._appliance.repository.sweep_locks(
            versions, progress, dry_run=dry_run, ask_all=ask_all, connections=self._connections
        )

    def state(self) -> LockState | None:
        """None where nothing is to be locked. Asks nobody."""
        s3 = self._appliance.settings.s3
        if not s3.bucket or not s3.lock_mode:
            return None
        promise = LockLog(self._appliance.settings.cache_directory).promise()
        if promise is None:
            return LockState(s3.lock_mode, s3.lock_days, None, None)
        return LockState(s3.lock_mode, s3.lock_days, promise.swept_utc, promise.until_utc)

    def promise(self, point: Point) -> datetime | None:
        """Until when the point is locked: its manifest now, and everything else as the last sweep left it. None where
        that is not known, or nothing is locked. NotLocked; ImagingError."""
        state = self.state()
        if state is None:
            raise NotLocked(home.location_of(self._appliance.settings))
        try:
            own = self._versions.retention(point.name)
        except ObjectMissing:
            own = None
        if own is None or state.until_utc is None:
            return None
        return min(own.until_utc, state.until_utc)

    @property
    def _connections(self) -> int:
        return self._appliance.settings.s3.connections

    # Undoing

    def happened(self) -> tuple[Happened, ...]:
        """NotLocked; StoreError."""
        return tuple(self._undoing(SILENT).happened())

    def plan_undo(self, since_utc: datetime, secret: Secret | None, *, progress: Progress = SILENT) -> Undo:
        """Changes nothing. Without a secret, this home's own key is used. NotLocked, NoRepositoryYet; ImagingError."""
        own = secret or MachineKey(home.read_machine_key(self._appliance.settings))
        return self._undoing(progress).plan(since_utc, own)

    def undo(self, undo: Undo, *, progress: Progress = SILENT) -> Undone:
        """StoreError: then some of it was done, and it may be repeated. What this home remembers of the repository is
        forgotten."""
        settings = self._appliance.settings
        undone = self._undoing(progress).execute(undo)
        with suppress(FileNotFoundError):
            shutil.rmtree(settings.cache_directory / "objects")
        with suppress(FileNotFoundError):
            IndexFolder(settings.cache_directory / "index").discard()
        if home.in_use(settings):
            PointService(self._appliance).refresh()
        return undone

    def _undoing(self, progress: Progress) -> Undoing:
        versions = self._versions
        store = open_store(home.location_of(self._appliance.settings))
        return Undoing(store, versions, self._appliance.clock, progress, self._connections)
