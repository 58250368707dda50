"""Verifying a repository: every object, and which restore points what is wrong reaches.

Rules: what is checked comes from the store, never from a cache; one problem never hides another; nothing is deleted
but verdicts that hold no more. Packs found damaged or missing get one, so that the next run, of whichever appliance,
stores anew what it finds again at its source. What may pass (a store that cannot be reached) is reported, and is no
verdict.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import TYPE_CHECKING, Protocol

from imaging import running
from imaging.clock import Clock
from imaging.damage import NAMES_MAX, Damage, Namer, told
from imaging.envelope import ObjectType
from imaging.errors import Damaged, ImagingError, ObjectMissing, StoreUnavailable, WrongVersion
from imaging.index_objects import decode_index
from imaging.indexing import IndexKeeper
from imaging.leases import Leases
from imaging.manifest import DiskEntry, FileEntry
from imaging.objects import SealedObjects
from imaging.packs import iter_rows, listed_packs, pack_name
from imaging.places import PackRows, PackState
from imaging.points import Point, Points
from imaging.readlog import ReadLog
from imaging.reconciling import read_unlisted_packs
from imaging.scrub_maps import MapWalk
from imaging.scrub_objects import Findings, check_ends, check_object, check_pairs
from imaging.scrub_packs import PackVerdict, check_packs
from imaging.verdicts import DAMAGED, MISSING, Verdict

if TYPE_CHECKING:
    from imaging.repository import Repository


class VerifyProgress(Protocol):
    """Who watches a verification."""

    def start(self, label: str, total_bytes: int | None) -> None: ...
    def advance(self, count_bytes: int) -> None: ...
    def note(self, text: str) -> None: ...
    def finish(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Reading:
    """What of the packs is read whole: everything that is read in `every_days` runs, a share each time, those first
    that were read the longest ago."""

    every_days: int = 1


@dataclass(frozen=True, slots=True)
class Problem:
    """One object that is damaged or missing. `error` says what and the way out."""

    name: str
    error: ImagingError


@dataclass(frozen=True, slots=True)
class AffectedPoint:
    """A restore point that cannot be restored whole: what of its disks (or files) is hit, or nothing when its manifest
    is."""

    id: str
    name: str
    machine: str | None
    damage: tuple[Damage, ...]
    detail: str

    @property
    def disks(self) -> tuple[str, ...]:
        return tuple(each.disk for each in self.damage)


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """What was looked at, and what is wrong. `read_packs` of the packs were read whole. `unknown` are names that the
    format does not have: left alone."""

    objects: int
    size_bytes: int
    packs: int
    points: int
    read_data: bool
    read_packs: int
    read_bytes: int
    problems: tuple[Problem, ...]
    affected: tuple[AffectedPoint, ...]
    unknown: tuple[str, ...]

    @property
    def ok(self) -> bool:
        return not self.problems and not self.affected


def verify(
    repository: Repository,
    objects: SealedObjects,
    keeper: IndexKeeper,
    clock: Clock,
    *,
    log: ReadLog,
    reading: Reading | None,
    progress: VerifyProgress | None = None,
    namer: Namer | None = None,
) -> VerifyReport:
    """Without `reading` the packs' tables are read, and not what is in them. `namer` is asked what lies in what is
    damaged. StoreError."""
    watcher = progress or _Silent()
    findings = Findings()
    objects = objects.uncached()
    leases = Leases(objects)
    keeper.refresh()
    watcher.start("objects", None)
    for listed in objects.store.list(""):
        packs = len(findings.packs)
        check_object(objects, listed, findings)
        if len(findings.packs) == packs:
            watcher.advance(listed.size_bytes)
    check_pairs(objects, findings)
    check_ends(objects, leases, findings)
    today = clock.now_utc().date().toordinal()
    whole: frozenset[bytes] = frozenset()
    if reading is not None:
        log.keep_only(findings.packs)
        everything = reading.every_days == 1
        whole = frozenset(findings.packs) if everything else log.due(findings.packs, reading.every_days, today)
    read_bytes = sum(findings.packs[pack] for pack in whole)
    index = _Index(objects, leases, findings)
    try:
        bad = _Packs(objects, keeper, findings, index, whole, lambda pack: log.note(pack, today)).check(watcher)
    finally:
        log.save()
    read_unlisted_packs(keeper.index, objects.store, objects.keys)
    survey = Points(objects, leases, clock).survey()
    for damaged in survey.damaged:
        findings.add(damaged.name, damaged.error)
    points = [point for point in survey.points if point.name in findings.manifests]  # not those that came meanwhile
    watcher.start("disk maps", None)
    affected = list(_affected(repository, points, findings, bad, watcher, namer))
    affected += [AffectedPoint(each.id, each.name, None, (), str(each.error)) for each in survey.damaged]
    watcher.finish()
    return VerifyReport(
        objects=findings.objects,
        size_bytes=findings.size_bytes,
        packs=len(findings.packs),
        points=len(points) + len(survey.damaged),
        read_data=reading is not None,
        read_packs=len(whole),
        read_bytes=read_bytes,
        problems=tuple(Problem(name, error) for name, error in sorted(findings.problems.items())),
        affected=tuple(sorted(affected, key=lambda point: point.name)),
        unknown=tuple(findings.unknown),
    )


class _Silent:
    def start(self, label: str, total_bytes: int | None) -> None: ...
    def advance(self, count_bytes: int) -> None: ...
    def note(self, text: str) -> None: ...
    def finish(self) -> None: ...


# Packs and the index


class _Index:
    """What the index objects that count say of packs, read again when asked: rarely, and for few."""

    def __init__(self, objects: SealedObjects, leases: Leases, findings: Findings) -> None:
        self._objects = objects
        self._leases = leases
        self._findings = findings
        self._where: dict[bytes, str] = {}

    def packs(self) -> Iterator[PackRows]:
        for name in self._findings.indexes:
            for entry in self._entries(name):
                self._where[entry.pack] = name
                yield entry

    def _entries(self, name: str) -> list[PackRows]:
        try:
            if not self._leases.standing(name[6:38]).counts:
                return []
        except (Damaged, WrongVersion, StoreUnavailable):
            return []  # the lease's end is what is damaged, and is named
        try:
            return decode_index(self._objects.read(ObjectType.INDEX, name).body, name)
        except ObjectMissing:
            return []  # a collection has put another in its place
        except (Damaged, WrongVersion, StoreUnavailable) as error:
            self._findings.add(name, error)
            return []

    def lists(self, pack: bytes) -> bool:
        """After packs() has been gone through."""
        return pack in self._where

    def rows_of(self, pack: bytes) -> PackRows | None:
        """After packs() has been gone through."""
        name = self._where.get(pack)
        return next((entry for entry in self._entries(name) if entry.pack == pack), None) if name else None


Bad = Mapping[bytes, frozenset[bytes] | None]
"""The packs that are not whole, each with the ids in it that cannot be read (None: any of them)."""


@dataclass(slots=True)
class _Packs:
    """The packs of one verification, judged."""

    objects: SealedObjects
    keeper: IndexKeeper
    findings: Findings
    index: _Index
    whole: frozenset[bytes]
    was_read: Callable[[bytes], None]
    bad: dict[bytes, frozenset[bytes] | None] = field(default_factory=dict)

    def check(self, progress: VerifyProgress) -> Bad:
        findings = self.findings
        missing: dict[bytes, ImagingError] = {}
        for entry in self.index.packs():
            name = pack_name(entry.pack)
            found = findings.packs.get(entry.pack)
            if found is None:
                missing[entry.pack] = ObjectMissing(name)
            elif found != entry.size_bytes:
                findings.add(name, Damaged(name, f"it has {found} bytes and should have {entry.size_bytes}"))
        progress.start("packs", sum(findings.packs[pack] for pack in self.whole) if self.whole else None)
        objects = self.objects
        states = {pack: each.state for pack, each in self.keeper.index.packs().items()}
        verdicts = check_packs(objects.store, objects.keys, findings.packs, self.whole, self.index.rows_of)
        for verdict in verdicts:
            if verdict.pack in self.whole:
                progress.advance(verdict.size_bytes)
                if not isinstance(verdict.problem, StoreUnavailable):
                    self.was_read(verdict.pack)
            if isinstance(verdict.problem, ObjectMissing):
                missing[verdict.pack] = verdict.problem
                continue
            if states.get(verdict.pack) is PackState.GONE and not isinstance(verdict.problem, StoreUnavailable):
                self.keeper.index.returned([verdict.pack])
            if verdict.problem is not None:
                self._is_bad(verdict, verdict.problem)
                progress.note(str(verdict.problem))
            else:
                self._opens(verdict.pack, states.get(verdict.pack))
                _compare(self.keeper, verdict, findings)
        self._are_missing(missing)
        for pack in findings.verdicts:
            if pack not in findings.packs and not self.index.lists(pack):
                self.keeper.verdicts.take_back(pack)  # collected since; nobody will ask for it again
        return self.bad

    def _is_bad(self, verdict: PackVerdict, problem: ImagingError) -> None:
        self.findings.add(pack_name(verdict.pack), problem)
        self.bad[verdict.pack] = verdict.bad_ids
        if isinstance(problem, Damaged):
            self._pass_on(Verdict(verdict.pack, DAMAGED, problem.detail, verdict.bad_ids))

    def _are_missing(self, missing: Mapping[bytes, ImagingError]) -> None:
        """Packs that a collection has condemned may go at any time; what was needed of them is in new ones."""
        if not missing:
            return
        try:
            condemned = running.newest_epoch(self.objects)[1]
        except (Damaged, WrongVersion, StoreUnavailable):
            condemned = frozenset()
        for pack, error in missing.items():
            self.bad[pack] = None
            if pack not in condemned:
                self.findings.add(pack_name(pack), error)
                self._pass_on(Verdict(pack, MISSING, "it is listed, and not there", None))
        if not condemned.isdisjoint(missing):
            self.keeper.refresh()
            self.findings.packs |= listed_packs(self.objects.store)

    def _pass_on(self, verdict: Verdict) -> None:
        """What is known already is not written again, but for what this looked at more closely."""
        known = self.findings.verdicts.get(verdict.pack)
        same = known is not None and (known.found, known.unreadable) == (verdict.found, verdict.unreadable)
        self.keeper.found_bad(verdict, replace=verdict.pack in self.findings.verdicts and not same)

    def _opens(self, pack: bytes, state: PackState | None) -> None:
        """Nothing was found wrong with it: a verdict holds until the pack was read whole, or if it was but missing,
        until it is there."""
        judged = pack in self.findings.verdicts
        verdict = self.findings.verdicts.get(pack)
        if pack in self.whole or (verdict is not None and verdict.found == MISSING):
            if judged or state in (PackState.DAMAGED, PackState.GONE):
                self.keeper.found_good(pack)
        elif judged:
            name = pack_name(pack)
            self.bad[pack] = verdict.unreadable if verdict is not None else None
            self.findings.add(name, verdict.as_error() if verdict is not None else _unread_verdict(name))


def _unread_verdict(name: str) -> Damaged:
    return Damaged(
        name,
        "so it was found once, and the verdict that says of what cannot be read",
        hint="run 'strongroom repository verify --read-data' to see whether it still is",
    )


def _compare(keeper: IndexKeeper, verdict: PackVerdict, findings: Findings) -> None:
    """Whether the index places the pack's blobs where its own table does; packs that no object lists are passed
    over."""
    if verdict.rows is None:
        return
    rows = iter_rows(verdict.rows.rows)
    located = keeper.locate_many([identity for identity, _ in rows])
    for (identity, place), places in zip(rows, located, strict=True):
        mine = [each for each in places if each.pack == verdict.pack]
        if mine and all(each.offset_bytes != place & 0x1FFFFFF for each in mine):
            name = pack_name(verdict.pack)
            findings.add(name, Damaged(name, f"the index places blob {identity.hex()} elsewhere than its own table"))
            return


def _affected(
    repository: Repository,
    points: Sequence[Point],
    findings: Findings,
    bad: Bad,
    progress: VerifyProgress,
    namer: Namer | None,
) -> Iterator[AffectedPoint]:
    def is_good(pack: bytes, identity: bytes) -> bool:
        if pack not in findings.packs:
            return False
        unreadable = bad.get(pack, frozenset())
        return unreadable is not None and identity not in unreadable

    def readable(ids: Sequence[bytes]) -> list[bool]:
        located = repository.index.locate_many(ids)
        return [
            any(is_good(place.pack, identity) for place in places)
            for identity, places in zip(ids, located, strict=True)
        ]

    walk = MapWalk(repository.blobs.node, readable)
    for point in points:
        parts: list[DiskEntry | FileEntry] = [*point.manifest.disks, *point.manifest.files]
        found = [(part, damage) for part in parts if (damage := walk.damage(part)) is not None]
        hit = tuple(_named(point, part, damage, namer, progress) for part, damage in found)
        problem = findings.problems.get(point.name)
        if hit or problem is not None:
            detail = str(problem) if problem is not None else f"data is damaged or missing: {told(hit)}"
            yield AffectedPoint(point.id, point.name, point.manifest.machine.name, hit, detail)
            progress.note(f"restore point {point.id} of {point.manifest.machine.name}: {detail}")


def _named(
    point: Point, part: DiskEntry | FileEntry, damage: Damage, namer: Namer | None, progress: VerifyProgress
) -> Damage:
    if namer is None:
        return damage
    try:
        return replace(damage, names=tuple(islice(namer.names(point, part, damage.ranges), NAMES_MAX)))
    except ImagingError as error:
        progress.note(f"what lies there in {part.name} of restore point {point.id} cannot be named: {error}")
        return damage
