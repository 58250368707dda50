"""An open repository: the parts that hold one idea each, put together.

Rules: everything that it decides is in the store; the cache folder only makes it faster, and may be lost, shared
between processes or unwritable. The index is opened when it is first needed, so that a process may fork before. One
Repository per process and cache.
"""

from __future__ import annotations

import contextlib
import logging
import secrets
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self

from imaging import configuration, running
from imaging.blobs import BlobReader
from imaging.clock import Clock, SystemClock
from imaging.configuration import RepositoryConfig, Unlocked, unlock
from imaging.envelope import CLEAR_BYTES_MAX
from imaging.errors import (
    Damaged,
    ImagingError,
    IndexUnavailable,
    NoSpace,
    ObjectMissing,
)
from imaging.founding import found
from imaging.index import ChunkIndex
from imaging.keys import KeyBundle, Keys
from imaging.leases import DEAD_AFTER_S, Leases, LeaseWatcher
from imaging.object_cache import ObjectCache
from imaging.objects import SealedObjects
from imaging.pending import PendingIndex
from imaging.places import Location, PackState
from imaging.points import DamagedPoint, Hold, Point, Points, Survey
from imaging.reconciling import Reconciled, read_unlisted_packs, reconcile
from imaging.running import BEAT_S, Appliance, Run, RunContext
from imaging.series_locks import SeriesLocks
from imaging.slots import Argon2Cost, RecoveryKey, Secret, Slot, make_slot
from imaging.storage.contract import Store

if TYPE_CHECKING:
    from imaging.collecting import Collected, Collection, Exclusive, Options
    from imaging.collection import CollectionPlan
    from imaging.scrub import VerifyProgress, VerifyReport

__all__ = [
    "Appliance",
    "DamagedPoint",
    "Hold",
    "Point",
    "Repository",
    "RepositoryConfig",
    "Run",
    "Survey",
]

_log = logging.getLogger(__name__)
_TABLES_EVERY_S: Final = 60.0


class Repository:
    """Thread-safe. Borrows the store; owns what it opened below `cache` until close()."""

    def __init__(
        self,
        store: Store,
        unlocked: Unlocked,
        *,
        cache: Path | None,
        appliance: Appliance | None = None,
        clock: Clock | None = None,
        dead_after_s: float = DEAD_AFTER_S,
        beat_s: float = BEAT_S,
    ) -> None:
        """Use create() or open()."""
        self._closing = contextlib.ExitStack()
        self.store = store
        self.keys: Keys = unlocked.keys
        self.config = unlocked.config
        self.losses = unlocked.losses
        self._bundle = unlocked.bundle
        self._clock = clock or SystemClock()
        usable = _usable(cache)
        self._cache = usable or self._temporary_folder()
        objects = SealedObjects(store, self.keys, ObjectCache(self._cache / "objects"))
        self._objects = objects
        self._leases = Leases(objects)
        self._points = Points(objects, self._leases, self._clock)
        self._context = RunContext(
            objects=objects,
            leases=self._leases,
            points=self._points,
            watcher=LeaseWatcher(self._leases, self._clock, self._cache / "observed", dead_after_s),
            locks=SeriesLocks(usable and usable / "locks"),
            clock=self._clock,
            appliance=appliance or Appliance(secrets.token_bytes(16), "a machine without a name"),
            recovery_slot=self._recovery_slot,
            committed=self._take_in,
            beat_s=beat_s,
        )
        self._lock = threading.RLock()
        self._index: ChunkIndex | None = None
        self._blobs: BlobReader | None = None
        self._carried_slot: bytes | None = None
        self._tables_read_s = float("-inf")

    # Making, opening, closing

    @classmethod
    def create(
        cls,
        store: Store,
        *,
        passphrase: str | None,
        machine_key: bytes | None,
        compression_level: int = 1,
        like: KeyBundle | None = None,
        cache: Path | None = None,
        appliance: Appliance | None = None,
        clock: Clock | None = None,
        cost: Argon2Cost | None = None,
    ) -> tuple[Repository, RecoveryKey]:
        """A new repository in an empty store, with a slot for each secret and one for the recovery key that is
        returned.

        RepositoryExists, StoreUnsuitable, StoreError. It exists once its configuration does, which is written last.
        """
        made = found(
            store,
            passphrase=passphrase,
            machine_key=machine_key,
            compression_level=compression_level,
            like=like,
            now_utc=(clock or SystemClock()).now_utc(),
            cost=cost,
        )
        return cls(store, made.unlocked, cache=cache, appliance=appliance, clock=clock), made.recovery_key

    @classmethod
    def open(
        cls,
        store: Store,
        secret: Secret,
        *,
        cache: Path,
        appliance: Appliance,
        clock: Clock | None = None,
        dead_after_s: float = DEAD_AFTER_S,
        beat_s: float = BEAT_S,
    ) -> Repository:
        """NotARepository, WrongVersion, WrongKey, Damaged, StoreError."""
        return cls(
            store,
            unlock(store, secret),
            cache=cache,
            appliance=appliance,
            clock=clock,
            dead_after_s=dead_after_s,
            beat_s=beat_s,
        )

    def close(self) -> None:
        with self._lock:
            if self._index is not None:
                self._index.close()
                self._index = None
            self._closing.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def id(self) -> bytes:
        return self.keys.repository_id

    @property
    def key_bundle(self) -> KeyBundle:
        """For create(like=…) of another repository."""
        return self._bundle

    # The index, and blobs

    @property
    def index(self) -> ChunkIndex:
        """Opened, and brought up to date, when it is first asked for."""
        with self._lock:
            if self._index is None:
                self.refresh_index()
            if self._index is None:
                raise RuntimeError("refreshing opens the index")
            return self._index

    def refresh_index(self) -> Reconciled:
        """Brings the index up to date with the store. One that turns out to be broken is made again, and one that
        cannot be kept in the cache folder (full, or open elsewhere in this process) in a temporary one."""
        with self._lock:
            failure: ImagingError | None = None
            for folder in (self._cache / "index", self._cache / "index", None):
                try:
                    if self._index is None:
                        self._index = ChunkIndex.open(folder or self._temporary_folder(), self.id)
                    return self._reconcile(self._index)
                except (IndexUnavailable, NoSpace) as error:
                    _log.warning("making the index cache again: %s", error)
                    failure = error
                    if self._index is not None:
                        self._index.discard()
                        self._index = None
            raise failure or IndexUnavailable(str(self._cache), "it cannot be opened")

    def _temporary_folder(self) -> Path:
        return Path(self._closing.enter_context(tempfile.TemporaryDirectory(prefix="strongroom-index-")))

    def _reconcile(self, index: ChunkIndex) -> Reconciled:
        condemned: frozenset[bytes] = frozenset()
        try:
            _, condemned = running.newest_epoch(self._objects)
        except Damaged as error:  # readers go on; a run reads the list itself, under its lease, and does not
            _log.warning("no new run can begin: %s", error)
        done = reconcile(index, self._objects, self._leases, condemned)
        for loss in done.damaged:
            _log.warning("%s; its packs are read by their own tables where a chunk is missing", loss)
        return done

    def index_has_losses(self) -> bool:
        """Whether packs that points may refer to are known to be damaged or gone: then an incremental run looks
        closer."""
        packs = self.index.counts().packs
        return any(packs[state] for state in (PackState.DAMAGED, PackState.GONE))

    def _take_in(self, names: Sequence[str]) -> None:
        """A committed run's index objects."""
        with self._lock:
            if self._index is not None:
                self.refresh_index()

    @property
    def blobs(self) -> BlobReader:
        with self._lock:
            if self._blobs is None:
                self._blobs = BlobReader(self.store, self.keys, self._locate_many, self._look_again, self._lost)
            return self._blobs

    def _locate_many(self, ids: Sequence[bytes]) -> list[list[Location]]:
        return self.index.locate_many(ids)  # asked each time, as a broken index is replaced

    def _look_again(self) -> None:
        """A blob is missing or damaged wherever it was thought to be: it may have been stored or moved a moment ago.

        Only what index objects cannot say is looked for in the packs' tables, and, as a guest may ask for a lost chunk
        a thousand times a second, not more often than once a minute while they say the same.
        """
        with self._lock:
            done = self.refresh_index()
            now = self._clock.monotonic_s()
            if done.added or done.dropped or now - self._tables_read_s >= _TABLES_EVERY_S:
                self._tables_read_s = now
                read_unlisted_packs(self.index, self.store, self.keys)

    def _lost(self, place: Location, error: ImagingError) -> None:
        """A reader could not have a blob where it should be: from now on runs store anew what its pack held, as after
        verify() has found it."""
        state = PackState.GONE if isinstance(error, ObjectMissing) else PackState.DAMAGED
        if place.state in (state, PackState.UNLISTED):
            return
        try:
            self.index.set_states({place.pack: state})
        except ImagingError as failure:
            _log.warning("pack %s cannot be marked in the index: %s", place.pack.hex(), failure)

    def pending(self) -> PendingIndex:
        """For what one run stores, until it commits. Owned by the caller."""
        return PendingIndex(self._cache)

    # Points and holds

    def series_of(self, kind: str, name: str) -> str:
        """The series of a machine: "vm" and the domain's UUID, or "image" and its name."""
        return self.keys.series_of(kind, name)

    def survey(self, series: str | None = None) -> Survey:
        return self._points.survey(series)

    def points(self, series: str | None = None) -> list[Point]:
        """The points that count, oldest first."""
        return list(self._points.survey(series).points)

    def damaged_points(self, series: str | None = None) -> list[DamagedPoint]:
        return list(self._points.survey(series).damaged)

    def point(self, wanted: str) -> Point:
        """By id, or a unique beginning of one. PointNotFound, PointAmbiguous, Damaged."""
        return self._points.find(wanted)

    def delete_point(self, point: Point, by: str) -> str:
        """Writes the tombstone and returns its name; nothing else is removed. PointHeld."""
        return self._points.delete(point, by)

    def hold(self, point: Point, purpose: str, owner: str) -> Hold:
        """Keeps the point until release(); shown in status, and without expiry. PointNotFound."""
        return self._points.hold(point, purpose, owner)

    def release(self, hold_id: str) -> None:
        """HoldNotFound."""
        self._points.release(hold_id)

    def holds(self) -> list[Hold]:
        return self._points.holds()

    # Runs

    def begin_run(self, series: str, *, host: str | None = None) -> Run:
        """The lease of a new run, with the index brought up to date under it. SeriesBusy, Damaged, StoreError."""
        run = running.begin(self._context, series, host)
        try:
            self.refresh_index()
        except BaseException:
            run.abandon()
            raise
        return run

    # Key slots

    def slots(self) -> list[Slot]:
        """The slots that can be read, oldest first."""
        return configuration.own_slots(self.store, self.id)

    def add_slot(self, secret: Secret, label: str, cost: Argon2Cost | None = None) -> Slot:
        slot = make_slot(secret, self._bundle, self.id, self._clock.now_utc(), label, cost)
        configuration.add_slot(self.store, slot)
        self._carried_slot = None
        return slot

    def remove_slot(self, slot_id: str) -> None:
        """SlotNotFound, LastSlot. Revokes nothing for whoever has an older copy of the slot."""
        configuration.remove_slot(self.store, slot_id, self.id)
        self._carried_slot = None

    def _recovery_slot(self) -> bytes:
        """What index objects carry in the clear, should every copy of the slots be lost: the newest recovery slot."""
        if self._carried_slot is None:
            kept = [slot.data for slot in self.slots() if slot.kind == RecoveryKey.kind]
            self._carried_slot = next((data for data in reversed(kept) if len(data) <= CLEAR_BYTES_MAX), b"")
        return self._carried_slot

    # Collecting

    @property
    def collection_series(self) -> str:
        """The series of collections: of which one runs at a time, as of a machine's backups."""
        return self.keys.series_of("repository", "collection")

    def plan_collection(self, options: Options, progress: VerifyProgress) -> CollectionPlan:
        """What collect() would do; changes nothing. CollectionRefused, RolledBack, Unresolvable, StoreError."""
        return self._collection(options, progress).forecast()

    def exclusive(self, sets: Sequence[Sequence[Point]], progress: VerifyProgress) -> Exclusive:
        """What deleting each of these sets of points would free; together they are all points. As plan_collection."""
        from imaging.collecting import Options

        return self._collection(Options(), progress).exclusive(sets)

    def collect(self, options: Options, progress: VerifyProgress) -> Collected:
        """Removes what no restore point needs. As plan_collection; SeriesBusy, Fenced."""
        return self._collection(options, progress).collect()

    def _collection(self, options: Options, progress: VerifyProgress) -> Collection:
        from imaging.collecting import Collection
        from imaging.rollcalls import RollCalls

        rollcalls = RollCalls(self._objects, self._clock, self._cache)
        return Collection(self, self._context, rollcalls, options, progress, time.sleep)

    # Verifying

    def verify(self, read_data: bool = False, progress: VerifyProgress | None = None) -> VerifyReport:
        """Checks every object; with `read_data` every chunk. Marks damaged packs, so that runs store them anew."""
        from imaging.scrub import verify

        return verify(self, self._objects, self._leases, read_data=read_data, progress=progress)


def _usable(cache: Path | None) -> Path | None:
    """The cache folder if it can be written to; else the repository does without, more slowly."""
    if cache is None:
        return None
    try:
        cache.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=cache):
            return cache
    except OSError as error:
        _log.warning("the cache folder %s cannot be written, doing without: %s", cache, error)
        return None
