"""A run: one writer of one series, from its lease to its restore point (docs/locking.md has the reasons for the order).

Rules: lease visible → condemned list read → its epoch recorded → parent checked → packs → index objects → manifest →
end of the lease; only the end makes the point count, and whoever ends the lease first decides. A run that fails
anywhere leaves nothing that counts; a failing clean-up never hides the first error.
"""

from __future__ import annotations

import logging
import re
import secrets
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from types import TracebackType
from typing import Final, Self

from imaging import canonical, manifest
from imaging.canonical import Fields
from imaging.clock import Clock
from imaging.envelope import ObjectType
from imaging.errors import Damaged, Fenced, ImagingError, NoSpace, ObjectExists, ObjectMissing, SeriesBusy
from imaging.index_objects import count_rows, encode_index
from imaging.leases import LeaseEnd, Leases, LeaseWatcher, lease_object
from imaging.manifest import Manifest, ManifestDraft
from imaging.objects import SealedObjects
from imaging.places import PackRows
from imaging.points import Point, Points
from imaging.series_locks import SeriesLock, SeriesLocks
from imaging.storage.contract import Store

_log = logging.getLogger(__name__)

BEAT_S: Final = 60.0
_JOIN_S: Final = 10.0
"""A heartbeat that hangs in a store call is left behind: whatever it still writes, the lease has ended."""

BACKUP: Final = "backup"
COLLECTION: Final = "collection"
_ATTEMPTS: Final = 5
_ROWS_PER_INDEX_OBJECT: Final = 500_000
_ROOM_BYTES: Final = 256 << 10
_CLAIM: Final = re.compile(r"claims/[0-9a-f]{32}/[0-9]{10}")
_EPOCH: Final = re.compile(r"epochs/[0-9]{10}")


@dataclass(frozen=True, slots=True)
class Appliance:
    """Who runs: 16 random bytes that this appliance keeps, and what its admin calls its machine."""

    id: bytes
    host: str


@dataclass(frozen=True, slots=True)
class RunContext:
    """What runs of a repository share. Borrowed by each."""

    objects: SealedObjects
    leases: Leases
    points: Points
    watcher: LeaseWatcher
    locks: SeriesLocks
    clock: Clock
    appliance: Appliance
    recovery_slot: Callable[[], bytes]
    committed: Callable[[Sequence[str]], None]
    beat_s: float = BEAT_S


class Run:
    """The lease of one run. A context manager: left without a commit, it is abandoned. Owns its lock and heartbeat."""

    def __init__(
        self,
        context: RunContext,
        lock: SeriesLock,
        lease_id: str,
        series: str,
        generation: int,
        parent: Point | None,
        condemned: frozenset[bytes],
    ) -> None:
        self._context = context
        self._lock = lock
        self.lease_id = lease_id
        self.series = series
        self.generation = generation
        self.parent = parent
        self.condemned = condemned
        self._index_names: list[str] = []
        self._publishing = threading.Lock()
        self._over = False
        self._fenced: LeaseEnd | None = None
        self._wanted: LeaseEnd | None = None
        self._stop = threading.Event()
        self._heart = threading.Thread(target=self._beat, name=f"lease-{lease_id[:8]}", daemon=True)
        self._heart.start()

    def put_index(self, packs: Sequence[PackRows]) -> None:
        """Publishes packs that are durable, under this lease: they count once it commits. Fenced."""
        with self._publishing:
            self._check()
            for part in _parts(packs):
                name = f"index/{self.lease_id}-{len(self._index_names):06}"
                self._context.objects.create(
                    ObjectType.INDEX, name, encode_index(part), clear=self._context.recovery_slot()
                )
                self._index_names.append(name)

    def conclude(self) -> None:
        """Makes the index objects count, for a collection that moved blobs: no point comes of it. Fenced,
        StoreError."""
        self._check()
        self._end(LeaseEnd("collected"))

    def check(self) -> None:
        """Raises Fenced if somebody else ended this lease, as the store says now: before what cannot be undone."""
        self._check()
        end = self._context.leases.end(self.lease_id)
        if end is not None:
            self._fenced = end
            raise self._fenced_error(end)

    def commit(self, draft: ManifestDraft) -> Point:
        """Makes the point count, or raises: Fenced, StoreError, NoSpace. Then it does not, unless the store failed
        again and again at the very last step: abandon() learns that, and it shows in what points there are."""
        self._check()
        context = self._context
        made = Manifest(
            **{each.name: getattr(draft, each.name) for each in fields(ManifestDraft)},
            id=secrets.token_hex(16),
            series=self.series,
            generation=self.generation,
            predecessor=self.parent.hash if self.parent else None,
            lease=self.lease_id,
        )
        body = manifest.encode(made)
        made = manifest.decode(body, made.name)
        digest = context.objects.create(ObjectType.MANIFEST, made.name, body, keep=True)
        self._end(LeaseEnd("committed", manifest=made.name, hash=digest))
        return Point(made.name, digest, made)

    def _end(self, wanted: LeaseEnd) -> None:
        self._wanted = wanted
        end = self._context.leases.finish(self.lease_id, wanted)
        if end != wanted:
            self._fenced = end
            raise self._fenced_error(end)
        self._counts()

    def _counts(self) -> None:
        """What makes later runs faster and the repository tidier: what was written counts, whatever fails here."""
        steps: tuple[Callable[[], None], ...] = (
            self._close,
            lambda: self._context.committed(self._index_names),
            lambda: self._context.leases.tidy(self.lease_id),
            self._drop_older_claims,
        )
        for step in steps:
            try:
                step()
            except ImagingError as error:
                _log.warning("what run %s wrote counts, but: %s", self.lease_id, error)
            except Exception:  # noqa: BLE001 - whatever it is, the run has succeeded
                _log.exception("what run %s wrote counts, but then something failed", self.lease_id)

    def _drop_older_claims(self) -> None:
        store = self._context.objects.store
        mine = _claim(self.series, self.generation)
        store.delete_many([name for name in _claims(store, self.series) if name < mine])

    def abandon(self) -> None:
        """Ends the lease without a point; harmless after a commit. What cannot be written now, the next run settles."""
        if self._over:
            return
        self._close()
        try:
            end = self._context.leases.finish(self.lease_id, LeaseEnd("abandoned"))
        except ImagingError as error:
            _log.warning("lease %s could not be ended, the next run of this series will: %s", self.lease_id, error)
            return
        if end == self._wanted:
            _log.warning("what run %s wrote counts, though it was told that the store failed", self.lease_id)
            self._counts()

    def _close(self) -> None:
        self._over = True
        self._stop.set()
        if threading.current_thread() is not self._heart:
            self._heart.join(timeout=_JOIN_S)
        self._lock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.abandon()

    def _check(self) -> None:
        if self._over:
            raise RuntimeError("this run is over")
        if self._fenced is not None:
            raise self._fenced_error(self._fenced)

    def _fenced_error(self, end: LeaseEnd) -> Fenced:
        return Fenced(self.lease_id, f"appliance {end.by}" if end.by else "somebody else")

    def _beat(self) -> None:
        """Moves the counter: a new number, then the former goes. Also notices, long before the commit, that it was
        fenced."""
        number = 0
        while not self._stop.wait(self._context.beat_s):
            try:
                end = self._context.leases.end(self.lease_id)
                if end is not None:
                    self._fenced = end
                    return
                name = lease_object(self.lease_id, f"beat/{number + 1:010}")
                self._context.objects.create_json(ObjectType.LEASE, name, {})
                number += 1
                if number > 1:
                    self._context.objects.store.delete(lease_object(self.lease_id, f"beat/{number - 1:010}"))
            except ObjectExists:
                number += 1  # written last time, though the answer was lost
            except ImagingError as error:
                _log.warning("lease %s could not be renewed: %s", self.lease_id, error)
            except Exception:  # noqa: BLE001 - a heart that stops is taken for a dead run
                _log.exception("lease %s could not be renewed", self.lease_id)


def _parts(packs: Sequence[PackRows]) -> Iterator[list[PackRows]]:
    part: list[PackRows] = []
    for pack in packs:
        if part and count_rows(part) + count_rows([pack]) > _ROWS_PER_INDEX_OBJECT:
            yield part
            part = []
        part.append(pack)
    if part:
        yield part


def begin(context: RunContext, series: str, host: str | None, purpose: str = BACKUP) -> Run:
    """The lease of a new run, in force. SeriesBusy; Damaged when the condemned list cannot be read; StoreError."""
    if purpose == BACKUP:
        _check_room(context.objects.store)
    lock = context.locks.take(series)
    if lock is None:
        raise SeriesBusy(series, "of another process", f"this appliance ({context.appliance.host})", 0)
    try:
        for _ in range(_ATTEMPTS):
            run = _attempt(context, lock, series, host, purpose)
            if run is not None:
                return run
        raise SeriesBusy(series, "that changes hands", "several appliances at once", 0)
    except BaseException:
        lock.close()
        raise


def _check_room(store: Store) -> None:
    """A backup that begins in a full store would live off what is set aside for the collection that empties it."""
    free = store.free_bytes()
    if free is not None and free < _ROOM_BYTES:
        raise NoSpace("begin a backup in", store.describe(), f"no space is left, but for {free >> 10} KiB")


def _attempt(context: RunContext, lock: SeriesLock, series: str, host: str | None, purpose: str) -> Run | None:
    """One try; None when something moved underneath, and the next try will see where to."""
    # The number first: a claim that somebody makes from now on is either seen by settling, or has taken this number.
    generation = 1 + max(context.points.generations(series), default=0)
    _settle(context, lock, series)
    survey = context.points.survey(series)
    parent = survey.points[-1] if survey.points else None
    lease_id = secrets.token_hex(16)
    objects = context.objects
    objects.create_json(
        ObjectType.LEASE,
        lease_object(lease_id, "start"),
        {
            "appliance": context.appliance.id.hex(),
            "created_utc": canonical.utc_text(context.clock.now_utc()),
            "generation": generation,
            "host": host or context.appliance.host,
            "parent": parent.name if parent else None,
            "purpose": purpose,
            "series": series,
        },
    )
    try:
        try:
            objects.create_json(ObjectType.CLAIM, _claim(series, generation), {"lease": lease_id})
        except ObjectExists:
            context.leases.finish(lease_id, LeaseEnd("abandoned"))
            return None
        if max(context.points.generations(series)) > generation:
            # It was made with a number from long ago, whose claim a later run has already cleared away.
            context.leases.finish(lease_id, LeaseEnd("abandoned"))
            return None
        epoch, condemned = newest_epoch(objects)
        objects.create_json(ObjectType.LEASE, lease_object(lease_id, "epoch"), {"epoch": epoch})
        if parent is not None and not context.points.is_there(parent.name):
            context.leases.finish(lease_id, LeaseEnd("abandoned"))
            return None
    except BaseException:
        _give_up(context, lease_id)
        raise
    return Run(context, lock, lease_id, series, generation, parent, condemned)


def _give_up(context: RunContext, lease_id: str) -> None:
    try:
        context.leases.finish(lease_id, LeaseEnd("abandoned"))
    except ImagingError as error:
        _log.warning("lease %s could not be ended, the next run of this series will: %s", lease_id, error)


def _settle(context: RunContext, lock: SeriesLock, series: str) -> None:
    """Makes sure that nobody else writes the series: fences what is dead, raises SeriesBusy for what may live."""
    try:
        claimant = _claimant(context.objects, series)
        told = True
    except Damaged as error:
        _log.warning("who claimed series %s last cannot be told, so every open lease is looked at: %s", series, error)
        claimant, told = None, False
    if claimant is not None and context.leases.is_open(claimant):
        _fence_if_dead(context, lock, series, claimant)
    for lease in context.leases.list().unended():
        if lease == claimant or not context.leases.is_open(lease):
            continue
        try:
            start = context.leases.start(lease)
        except (ObjectMissing, Damaged):
            concerned = not told  # of which series it is cannot be told either
        else:
            own = start.appliance == context.appliance.id.hex()
            concerned = start.series == series and (own or not told)
        if concerned:
            _fence_if_dead(context, lock, series, lease)


def _claimant(objects: SealedObjects, series: str) -> str | None:
    """The lease of the highest claim: the only one that may be writing."""
    claims = _claims(objects.store, series)
    if not claims:
        return None
    return objects.read_json(ObjectType.CLAIM, claims[-1]).hex("lease", 16).hex()


def _fence_if_dead(context: RunContext, lock: SeriesLock, series: str, lease: str) -> None:
    try:
        start = context.leases.start(lease)
        own = start.appliance == context.appliance.id.hex()
        holder = f"appliance {start.appliance[:8]}" + (f" ({start.host})" if start.host else "")
    except (ObjectMissing, Damaged):
        own, holder = False, "an appliance that cannot be named"
    remaining_s = 0.0 if own and lock.proves else context.watcher.remaining_s(lease)
    if remaining_s > 0:
        raise SeriesBusy(series, lease, holder, remaining_s)
    context.leases.finish(lease, LeaseEnd("fenced", by=context.appliance.id.hex()))


def _claim(series: str, generation: int) -> str:
    return f"claims/{series}/{generation:010}"


def _claims(store: Store, series: str) -> list[str]:
    """Names of the series' claims, the highest last."""
    return [listed.name for listed in store.list(f"claims/{series}/") if _CLAIM.fullmatch(listed.name)]


def newest_epoch(objects: SealedObjects) -> tuple[int, frozenset[bytes]]:
    """The number of the newest epoch, and the packs that it condemns; 0 and none before the first collection."""
    while True:
        epochs = [listed.name for listed in objects.store.list("epochs/") if _EPOCH.fullmatch(listed.name)]
        if not epochs:
            return 0, frozenset()
        newest = max(epochs)
        try:
            read: Fields = objects.read_json(ObjectType.EPOCH, newest)
        except ObjectMissing:
            continue  # a newer one was published, and this one removed, since it was listed
        break
    try:
        condemned = frozenset(bytes.fromhex(text) for text in read.texts("condemned", 10_000_000))
    except ValueError as error:
        raise Damaged(newest, "it lists something that is no hash") from error
    return int(newest[7:]), condemned
