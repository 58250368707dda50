"""A collection: the removal of what no restore point needs, while backups go on (docs/locking.md).

Rules: one collection at a time, under a lease; what cannot be understood ends it before anything is removed. The order
is all: roll call → deleted points go → everything present is marked → what is needed in emptied packs is copied, and
counts → condemned packs are published → leases older than that have ended → what came since is marked → rescue →
deletion → index. Whatever dies in between, the next one goes on.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Protocol

from imaging import running
from imaging.census import Census, CollectionRefused, Inspector, needed_in
from imaging.collection import REPACK_BELOW, CollectionPlan, plan_collection
from imaging.envelope import ObjectType
from imaging.errors import Damaged, Fenced, ObjectExists, ObjectMissing, WrongVersion
from imaging.forecasting import Attribution
from imaging.holdings import Flags, Holdings
from imaging.leases import LeaseEnd
from imaging.marking import Unresolvable
from imaging.moving import move
from imaging.packs import listed_packs, pack_name
from imaging.places import PackRows
from imaging.points import Point
from imaging.rollcalls import RollCall, RollCalls, RolledBack
from imaging.running import Run, RunContext
from imaging.tidying import Tidying

if TYPE_CHECKING:
    from imaging.repository import Repository

__all__ = ["Collected", "Collection", "CollectionRefused", "Options", "Progress"]

_EPOCH: Final = re.compile(r"epochs/\d{10}")
WAIT_S: Final = 600.0
_POLL_S: Final = 1.0
_INDEX_OBJECTS_MAX: Final = 64
_SMALL_INDEX_ROWS: Final = 100_000
_INDEX_BYTES: Final = 20_000_000
_DELETIONS_UNCHECKED: Final = 16


class Progress(Protocol):
    """Who watches."""

    def start(self, label: str, total_bytes: int | None) -> None: ...
    def advance(self, count_bytes: int) -> None: ...
    def note(self, text: str) -> None: ...
    def finish(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Options:
    """`wait_s`: how long running backups that began before are waited for; what must wait longer, the next collection
    removes. `repack_below`: a pack of which a smaller share is needed is emptied."""

    wait_s: float = WAIT_S
    repack_below: float = REPACK_BELOW


@dataclass(slots=True)
class Collected:
    """What was done. `waiting_packs` are condemned and stay until the runs in `waiting_for` have ended."""

    plan: CollectionPlan
    removed_points: int = 0
    void_objects: int = 0
    deleted_packs: int = 0
    freed_bytes: int = 0
    copied_bytes: int = 0
    rescued_packs: int = 0
    rewritten_objects: int = 0
    waiting_packs: int = 0
    waiting_for: tuple[str, ...] = ()
    problems: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Exclusive:
    """Bytes that each of several sets of points needs alone, and those that none needs."""

    sets_bytes: tuple[int, ...]
    unneeded_bytes: int


class Collection:
    """One collection. Borrows everything."""

    def __init__(
        self,
        repository: Repository,
        context: RunContext,
        rollcalls: RollCalls,
        options: Options,
        progress: Progress,
        sleep: Callable[[float], None],
    ) -> None:
        self._repository = repository
        self._context = context
        self._objects = context.objects
        self._leases = context.leases
        self._rollcalls = rollcalls
        self._options = options
        self._progress = progress
        self._sleep = sleep
        self._tidying = Tidying(context.objects, context.leases, context.points)
        self._inspector = Inspector(
            context.objects, context.clock, repository.damaged_packs, repository.blobs_met_by, repository.ledger_folder
        )

    def forecast(self) -> CollectionPlan:
        """What collect() would do now; changes nothing. CollectionRefused, RolledBack, Unresolvable."""
        earlier = self._earlier()
        _, condemned = self._inspector.condemned()
        leaving = frozenset(self._tidying.deletable())
        points = [point for point in self._inspector.points(earlier) if point.name not in leaving]
        census = self._census(condemned)
        with self._watched("disk maps"):
            needed = self._inspector.mark(census.holdings, points)
        return self._plan(census, needed, earlier, condemned)

    def exclusive(self, sets: Sequence[Sequence[Point]]) -> Exclusive:
        """What each of these sets of points needs alone: deleting all of one frees so much. The sets are to be all
        points, each in one. As forecast."""
        census = self._census(self._inspector.condemned()[1])
        attribution = Attribution(self._inspector.fetch_from(census.holdings), census.holdings)
        with self._watched("disk maps"):
            self._inspector.walk(sets, attribution.add)
            alone, unneeded = attribution.exclusive_bytes(len(sets))
        return Exclusive(tuple(alone), unneeded)

    def collect(self) -> Collected:
        """CollectionRefused, RolledBack, Unresolvable; SeriesBusy while another collection runs; Fenced; StoreError."""
        with self._begin() as run:
            earlier = self._earlier()
            self._inspector.points(earlier)
            self._end_the_dead(run)
            counting = [point.name for point in self._context.points.survey().points]
            census = self._census(self._inspector.condemned()[1])
            unended = [lease for lease in self._leases.list().unended() if lease != run.lease_id]
            leaving = self._tidying.deletable()
            # One that was deleted since it was seen to count leaves too, and would be taken for lost ever after.
            staying = set(counting).difference(leaving)
            known = self._rollcalls.write(earlier, staying, census.unlisted, unended)
            run.check()
            tidied = self._tidying.remove(leaving)
            run.conclude()
        done = self._empty(earlier, known)
        done.removed_points, done.void_objects = tidied.points, tidied.void_objects
        self._rewrite_index(known, done)
        self._repository.refresh_index()
        return done

    # Deciding

    def _earlier(self) -> RollCall:
        try:
            return self._rollcalls.newest()
        except (Damaged, WrongVersion) as error:
            raise CollectionRefused(str(error)) from error

    def _census(self, condemned: frozenset[bytes]) -> Census:
        with self._watched("index"):
            return self._inspector.census(condemned)

    def _plan(self, census: Census, needed: Flags, earlier: RollCall, condemned: frozenset[bytes]) -> CollectionPlan:
        ended = not any(self._leases.is_open(lease) for lease in earlier.leases)
        candidates = census.unlisted & earlier.unlisted if ended else frozenset()
        return plan_collection(
            census.holdings,
            needed,
            orphans={pack: census.present[pack] for pack in candidates - condemned},
            series=self._inspector.series_of(census.lease_of),
            pack_bytes=self._repository.config.pack_bytes,
            repack_below=self._options.repack_below,
        )

    # Doing

    @contextmanager
    def _begin(self, known: RollCall | None = None) -> Iterator[Run]:
        """A lease of the collection, with the index brought up to date under it. Between two leases of one collection
        another may have come: then its roll call is newer than the `known` one, and this one has lost. Fenced."""
        with running.begin(self._context, self._repository.collection_series, None, running.COLLECTION) as run:
            if known is not None and self._earlier().number != known.number:
                raise Fenced(run.lease_id, "another collection")
            self._repository.refresh_index()
            try:
                yield run
            except ObjectExists as error:  # a roll call or an epoch: whoever wrote it had ended this lease before
                raise Fenced(run.lease_id, "another collection") from error
            except (CollectionRefused, RolledBack, Unresolvable):
                run.check()  # what another collection does meanwhile looks like loss to one that was fenced
                raise

    def _empty(self, earlier: RollCall, known: RollCall) -> Collected:
        """Finishes what an earlier collection condemned, and condemns what is needed no more."""
        with self._begin(known) as run:
            epoch, condemned = self._inspector.condemned()
            settled = not self._older(epoch, run)  # before the listing that is marked
            points = self._inspector.points(known)
            census = self._census(condemned)
            with self._watched("disk maps"):
                needed = self._inspector.mark(census.holdings, points)
            plan = self._plan(census, needed, earlier, condemned)
            done = Collected(plan)
            inherited = [pack for pack in condemned if pack in census.present]
            rescue = needed_in(census.holdings, needed, inherited) if settled else []
            emptied = self._copy(run, census.holdings, needed, [*plan.moved, *([pack] for pack in rescue)], done)
            done.rescued_packs += len(rescue)
            run.conclude()
        if settled:
            stuck = set(rescue) - emptied
            self._delete([pack for pack in inherited if pack not in stuck], census.present, known, done)
        moved = [pack for group in plan.moved for pack in group if pack in emptied]
        fresh = [*plan.dead, *moved, *plan.orphans]
        if fresh:
            self._condemn(epoch, fresh, {point.name for point in points}, known, done)
        return done

    def _condemn(self, epoch: int, fresh: Sequence[bytes], marked: set[str], known: RollCall, done: Collected) -> None:
        with self._begin(known) as run:
            newest, condemned = self._inspector.condemned()
            if newest != epoch:
                raise Fenced(run.lease_id, "another collection")
            present = listed_packs(self._objects.store)
            # One that is gone stays condemned while an index object lists it: whoever reads that must not rely on it.
            listed = {pack for packs in self._census(condemned).objects.values() for pack in packs}
            condemned = frozenset({pack for pack in condemned if pack in present or pack in listed} | {*fresh})
            self._publish(epoch + 1, condemned)
            done.waiting_for = self._wait(epoch + 1, run)
            waiting = [pack for pack in condemned if pack in present]
            if done.waiting_for:
                done.waiting_packs = len(waiting)
                run.conclude()
                return
            since = [point for point in self._inspector.points(known) if point.name not in marked]
            rescue: list[bytes] = []
            emptied: set[bytes] = set()
            if since:
                census = self._census(condemned)
                needed = self._inspector.mark(census.holdings, since)
                rescue = needed_in(census.holdings, needed, waiting)
                emptied = self._copy(run, census.holdings, needed, [[pack] for pack in rescue], done)
                done.rescued_packs += len(rescue)
            run.conclude()
        stuck = set(rescue) - emptied
        self._delete([pack for pack in waiting if pack not in stuck], present, known, done)

    def _publish(self, number: int, condemned: frozenset[bytes]) -> None:
        name = f"epochs/{number:010}"
        self._objects.create_json(ObjectType.EPOCH, name, {"condemned": sorted(pack.hex() for pack in condemned)})
        for listed in list(self._objects.store.list("epochs/")):
            if _EPOCH.fullmatch(listed.name) and listed.name < name:
                self._tidying.delete(listed.name)

    def _copy(
        self, run: Run, holdings: Holdings, needed: Flags, groups: Sequence[Sequence[bytes]], done: Collected
    ) -> set[bytes]:
        """Copies what is needed of these packs and publishes it under the run; returns those that were emptied."""
        if not groups:
            return set()
        packs = {pack.pack: pack for pack in holdings.packs}
        with self._watched("moving", sum(packs[pack].size_bytes for group in groups for pack in group)):
            moved = move(
                self._objects.store,
                self._repository.keys,
                groups,
                lambda pack: needed[packs[pack].span],
                pack_bytes=self._repository.config.pack_bytes,
                advance=self._progress.advance,
            )
        if moved.packs:
            run.put_index(moved.packs)
        done.copied_bytes += moved.copied_bytes
        for pack, error in moved.failed.items():
            done.problems.append(str(error))
            self._repository.found_damaged(pack, error)
        return set(moved.emptied)

    def _delete(self, packs: Sequence[bytes], sizes: dict[bytes, int], known: RollCall, done: Collected) -> None:
        if not packs:
            return
        with self._begin(known) as run, self._watched("removing packs", sum(sizes.get(pack, 0) for pack in packs)):
            for number, pack in enumerate(packs):
                if number % _DELETIONS_UNCHECKED == 0:
                    run.check()
                if self._tidying.delete(pack_name(pack)):
                    done.deleted_packs += 1
                    done.freed_bytes += sizes.get(pack, 0)
                self._progress.advance(sizes.get(pack, 0))
            run.conclude()

    def _rewrite_index(self, known: RollCall, done: Collected) -> None:
        """Index objects that list packs which are gone are replaced, and many small ones merged."""
        with self._begin(known) as run:
            verdicts = self._repository.verdicts.packs()  # before the packs: each was on one that was there
            census = self._census(self._inspector.condemned()[1])
            stale = {
                name for name, packs in census.objects.items() if any(pack not in census.present for pack in packs)
            }
            if len(census.objects) > _INDEX_OBJECTS_MAX:
                stale |= {name for name in census.objects if census.rows[name] < _SMALL_INDEX_ROWS}
            for part in _parts(self._packs_of(sorted(stale), census)):
                run.put_index(part)
            run.conclude()
        for name in stale:
            self._tidying.delete(name)
        done.rewritten_objects = len(stale)
        for pack in verdicts.difference(census.present):
            self._repository.verdicts.take_back(pack)

    def _packs_of(self, names: Iterable[str], census: Census) -> Iterator[PackRows]:
        """Each pack that is there, once."""
        written: set[bytes] = set()
        for name in names:
            for pack in self._inspector.index_object(name):
                if pack.pack in census.present and pack.pack not in written:
                    written.add(pack.pack)
                    yield pack

    # Waiting

    def _wait(self, epoch: int, run: Run) -> tuple[str, ...]:
        """Until no lease is older, or for so long; returns those that are left."""
        clock = self._context.clock
        deadline = clock.monotonic_s() + self._options.wait_s
        told = False
        while left := self._older(epoch, run):
            if clock.monotonic_s() >= deadline:
                return tuple(left)
            if not told:
                self._progress.note(f"waiting for {len(left)} runs that began before")
                told = True
            self._sleep(_POLL_S)
            run.check()
        return ()

    def _older(self, epoch: int, run: Run) -> list[str]:
        """Open leases that may rely on what this epoch condemns; those of the dead are ended."""
        return [
            lease
            for lease in self._leases.list().unended()
            if lease != run.lease_id
            and self._leases.is_open(lease)
            and self._epoch_of(lease) < epoch
            and not self._end_if_dead(lease)
        ]

    def _end_the_dead(self, run: Run) -> None:
        """What a run that died has stored goes, also where nothing is condemned that anybody would be waited for, and
        where its machine is never backed up again."""
        for lease in self._leases.list().unended():
            if lease != run.lease_id and self._leases.is_open(lease):
                self._end_if_dead(lease)

    def _epoch_of(self, lease: str) -> int:
        """The epoch that a lease's run has read; below any where it has none yet, or it cannot be told."""
        try:
            return self._objects.read_json(ObjectType.LEASE, f"leases/{lease}/epoch").integer("epoch")
        except (ObjectMissing, Damaged, WrongVersion):
            return -1

    def _end_if_dead(self, lease: str) -> bool:
        context = self._context
        mine = context.appliance.id.hex()
        lock = None
        try:
            start = context.leases.start(lease)
            if start.appliance == mine:
                lock = context.locks.take(start.series)
                if lock is None:
                    return False  # another process of this appliance is at work on it
        except (ObjectMissing, Damaged):
            pass  # whose it is cannot be told: only its counter speaks
        try:
            proven = lock is not None and lock.proves
            if not proven and context.watcher.remaining_s(lease) > 0:
                return False
            context.leases.finish(lease, LeaseEnd("fenced", by=mine))
            return True
        finally:
            if lock is not None:
                lock.close()

    @contextmanager
    def _watched(self, label: str, total_bytes: int | None = None) -> Iterator[None]:
        self._progress.start(label, total_bytes)
        yield
        self._progress.finish()


def _parts(packs: Iterable[PackRows]) -> Iterator[list[PackRows]]:
    part: list[PackRows] = []
    held = 0
    for pack in packs:
        part.append(pack)
        held += len(pack.rows)
        if held >= _INDEX_BYTES:
            yield part
            part, held = [], 0
    if part:
        yield part
