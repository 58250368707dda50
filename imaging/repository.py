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
import time
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from imaging import running
from imaging.blobs import BlobReader
from imaging.clock import Clock, SystemClock
from imaging.configuration import RepositoryConfig, Unlocked, unlock
from imaging.errors import Damaged, ImagingError
from imaging.founding import found
from imaging.guard.acts import RemoveKey, deletion_of
from imaging.index import ChunkIndex
from imaging.indexing import IndexKeeper
from imaging.key_slots import KeySlots
from imaging.keys import KeyBundle, Keys, derive_key
from imaging.leases import DEAD_AFTER_S, Leases, LeaseWatcher
from imaging.object_cache import ObjectCache
from imaging.objects import SealedObjects
from imaging.pending import PendingIndex
from imaging.points import DamagedHold, DamagedPoint, Hold, Point, Points, Survey, doomed
from imaging.reconciling import Reconciled
from imaging.repository_blobs import RepositoryBlobs
from imaging.running import BEAT_S, Appliance, Run, RunContext
from imaging.series_locks import SeriesLocks
from imaging.slots import Argon2Cost, RecoveryKey, Secret, Slot
from imaging.storage.contract import Store
from imaging.storage.pace import NEAR, Pace
from imaging.verdicts import DAMAGED, Verdict, Verdicts

if TYPE_CHECKING:
    from imaging.collecting import Collected, Collection, Exclusive, Options
    from imaging.collection import CollectionPlan
    from imaging.damage import Namer
    from imaging.guard.guard import Guard
    from imaging.healing import Healed, OpenCopy
    from imaging.ledger import Ledger
    from imaging.lock_sweep import Swept
    from imaging.repairing import Repair, Repaired
    from imaging.scrub import Reading, VerifyProgress, VerifyReport
    from imaging.storage.versions import Versions

__all__ = [
    "Appliance",
    "DamagedHold",
    "DamagedPoint",
    "Hold",
    "Point",
    "Repository",
    "RepositoryConfig",
    "Run",
    "Survey",
]

_log = logging.getLogger(__name__)


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
        pace: Pace = NEAR,
    ) -> None:
        """Use create() or open()."""
        self._closing = contextlib.ExitStack()
        self.store = store
        self.pace = pace
        self.keys: Keys = unlocked.keys
        self.config = unlocked.config
        self.losses = unlocked.losses
        self._bundle = unlocked.bundle
        self._clock = clock or SystemClock()
        usable = _usable(cache)
        self._cache = usable or Path(self._closing.enter_context(_temporary_folder()))
        objects = SealedObjects(store, self.keys, ObjectCache(self._cache / "objects"))
        self._objects = objects
        self._key_slots = KeySlots(store, self.id, self._bundle, self._clock)
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
            recovery_slot=self._key_slots.carried,
            committed=self._take_in,
            beat_s=beat_s,
        )
        self._keeper = IndexKeeper(objects, self._leases, self._clock, self._cache / "index")
        self._blobs = RepositoryBlobs(store, self.keys, self._keeper, pace, usable and usable / "chunks")

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
        pace: Pace = NEAR,
    ) -> Repository:
        """`pace` says how the store wants to be used. NotARepository, WrongVersion, WrongKey, Damaged, StoreError."""
        return cls(
            store,
            unlock(store, secret),
            cache=cache,
            appliance=appliance,
            clock=clock,
            dead_after_s=dead_after_s,
            beat_s=beat_s,
            pace=pace,
        )

    def close(self) -> None:
        self._blobs.close()
        self._keeper.close()
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

    def derive_for_appliance(self, purpose: str) -> bytes:
        """32 bytes that whoever opens this repository can derive, and nobody else; for what is kept elsewhere. No
        purpose of the format begins with "appliance"."""
        return derive_key(f"appliance {purpose}", self._bundle.master)

    # The index, and blobs

    @property
    def index(self) -> ChunkIndex:
        """Opened, and brought up to date, when it is first asked for."""
        return self._keeper.index

    def refresh_index(self, condemned: frozenset[bytes] = frozenset()) -> Reconciled:
        """Brings the index up to date with the store; nothing of `condemned` is relied on."""
        return self._keeper.refresh(condemned)

    def index_has_losses(self) -> bool:
        """Whether packs that points may refer to are known to be damaged or gone: then an incremental run looks
        closer."""
        return self._keeper.has_losses()

    @property
    def verdicts(self) -> Verdicts:
        """What the repository says of packs that are damaged or missing."""
        return self._keeper.verdicts

    def damaged_packs(self) -> frozenset[bytes]:
        """Those on which there is a verdict, and those that only this cache knows of."""
        return self._keeper.damaged()

    def found_damaged(self, pack: bytes, error: ImagingError) -> None:
        """Somebody who read the pack could not open something in it: nothing comes to rely on it any more. Errors that
        say nothing of the pack are passed over."""
        if isinstance(error, Damaged):
            self._keeper.found_bad(Verdict(pack, DAMAGED, error.detail, None))

    def _take_in(self, names: Sequence[str]) -> None:
        """A committed run's index objects."""
        if self._keeper.is_open:
            self._keeper.refresh()

    @property
    def blobs(self) -> BlobReader:
        return self._blobs.reader

    def blobs_met_by(self, ledger: Ledger) -> BlobReader:
        """For map nodes: those that the ledger has just met are found without the index."""
        return self._blobs.met_by(ledger)

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

    @cached_property
    def guard(self) -> Guard:
        """Who has to agree before anything is deleted."""
        from imaging.guard.guard import Guard

        return Guard(self._objects.uncached(), self._points, self._clock, self._context.appliance.id.hex(), self._cache)

    def delete_point(self, point: Point | DamagedPoint, by: str, request: str | None = None) -> str:
        """Writes the tombstone and returns its name; nothing else is removed. PointHeld; StillReadable; Guarded, unless
        `request` has been confirmed (as all that Guard.permit raises)."""
        permit = self.guard.permit(deletion_of([doomed(point)]), request)
        return self._points.delete(point, by, permit)

    def hold(self, point: Point, purpose: str, owner: str) -> Hold:
        """Keeps the point until release(); shown in status, and without expiry. PointNotFound."""
        return self._points.hold(point, purpose, owner)

    def release(self, hold_id: str, request: str | None = None) -> None:
        """HoldNotFound; of a protection, as delete_point: Guarded."""
        self._points.release(hold_id, lambda act: self.guard.permit(act, request))

    def holds(self) -> list[Hold]:
        return self._points.holds()

    def survey_holds(self) -> tuple[list[Hold], list[DamagedHold]]:
        """Those that can be read, oldest first, and the others."""
        return self._points.survey_holds()

    # Runs

    def begin_run(self, series: str, *, host: str | None = None) -> Run:
        """The lease of a new run, with the index brought up to date under it. SeriesBusy, Damaged, StoreError."""
        run = running.begin(self._context, series, host)
        try:
            self._keeper.refresh(run.condemned)
        except BaseException:
            run.abandon()
            raise
        return run

    # Key slots

    def slots(self) -> list[Slot]:
        """The slots that can be read, oldest first."""
        return self._key_slots.list()

    def add_slot(self, secret: Secret, label: str, cost: Argon2Cost | None = None) -> Slot:
        return self._key_slots.add(secret, label, cost)

    def remove_slot(self, slot_id: str, request: str | None = None) -> None:
        """SlotNotFound, LastSlot; as delete_point: Guarded. Revokes nothing for whoever has an older copy of the
        slot."""
        self._key_slots.remove(slot_id, self.guard.permit(RemoveKey(slot_id), request))

    # Collecting

    @property
    def collection_series(self) -> str:
        """The series of collections: of which one runs at a time, as of a machine's backups."""
        return self.keys.series_of("repository", "collection")

    @property
    def ledger_folder(self) -> Path:
        """What collections have learnt is kept there."""
        return self._cache / "ledger"

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

    # Repairing

    def broken_index(self, progress: VerifyProgress) -> tuple[str, ...]:
        """The index objects that repair() would set aside. WrongVersion, StoreError."""
        return self._repair(progress).look()

    def remembered(self, progress: VerifyProgress) -> tuple[str, ...]:
        """The manifests and ends of leases that are lost, and that repair() would put back. StoreError."""
        return self._repair(progress).remembered()

    def repair(self, progress: VerifyProgress) -> Repaired:
        """Lists again what damaged index objects listed, and sets those aside; puts back small objects that are lost
        and in this appliance's cache. SeriesBusy, Fenced, StoreError."""
        return self._repair(progress).mend()

    def heal(self, open_copy: OpenCopy, progress: VerifyProgress, *, dry_run: bool = False) -> Healed:
        """Stores anew what points need and no sound pack holds: out of damaged packs where it still opens, else out of
        copies of the points. Only what is known to be damaged or missing is healed: verify() finds it. With `dry_run`
        all is read and nothing stored. SeriesBusy while a collection runs; Fenced, NoSpace, StoreError; then what
        counted already stays healed."""
        from imaging.healing import Healer
        from imaging.healing_store import LeasedStore, OnlyTold

        points = self.points()
        self.refresh_index()  # afterwards, so that it knows what these points rely on
        with OnlyTold(self) if dry_run else LeasedStore(self, self._context) as store:
            return Healer(self, store, open_copy, progress).heal(points)

    def _repair(self, progress: VerifyProgress) -> Repair:
        from imaging.repairing import Repair

        return Repair(self, self._context, progress)

    # Locking

    def sweep_locks(
        self, versions: Versions, progress: VerifyProgress, *, dry_run: bool, ask_all: bool, connections: int
    ) -> Swept:
        """Lengthens the locks of what restore points need; `versions` are those of this store. LockUnsuitable,
        StoreError."""
        from imaging.lock_log import LockLog
        from imaging.lock_sweep import Sweep

        sweep = Sweep(self._objects, versions, LockLog(self._cache), progress, connections)
        return sweep.run(dry_run=dry_run, ask_all=ask_all)

    # Verifying

    def verify(self, read_data: bool = False, progress: VerifyProgress | None = None,
               reading: Reading | None = None, namer: Namer | None = None) -> VerifyReport:  # fmt: skip
        """Checks every object; with `read_data` every chunk too, or with `reading` a share of them. Marks packs that
        are damaged, so that runs store them anew. `namer` may tell which files lie in what is damaged."""
        from imaging.readlog import ReadLog
        from imaging.scrub import Reading, verify

        log = ReadLog(self._cache / "read-packs")
        if read_data and reading is None:
            reading = Reading()
        return verify(
            self, self._objects, self._keeper, self._clock, log=log, reading=reading, progress=progress, namer=namer
        )


def _temporary_folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="strongroom-cache-", ignore_cleanup_errors=True)


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
