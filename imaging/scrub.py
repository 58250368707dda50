"""Verifying a repository: every object, and which restore points what is wrong reaches.

Rules: what is checked comes from the store, never from a cache; one problem never hides another; nothing is deleted.
Packs found damaged or missing are marked in the index, so that the next run stores anew what it finds again at its
source.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Protocol

from imaging import manifest
from imaging.configuration import CONFIG_NAMES, open_configuration
from imaging.envelope import ObjectType, parse
from imaging.errors import Damaged, ImagingError, ObjectMissing, StoreUnavailable, WrongVersion
from imaging.index_objects import decode_index
from imaging.leases import Leases, Standing, lease_object
from imaging.manifest import DiskEntry, FileEntry
from imaging.objects import SealedObjects
from imaging.packs import digest_of_name, iter_rows, pack_name
from imaging.places import PackRows, PackState
from imaging.points import Point
from imaging.reconciling import read_unlisted_packs
from imaging.scrub_maps import MapWalk
from imaging.scrub_packs import PackVerdict, check_packs
from imaging.slots import copy_name, parse_slot, slot_name
from imaging.storage.contract import Listed

if TYPE_CHECKING:
    from imaging.repository import Repository

_ID: Final = "[0-9a-f]{32}"
_TYPES: Final = (
    (re.compile(rf"index/{_ID}-\d{{6}}"), ObjectType.INDEX),
    (re.compile(rf"manifests/{_ID}/\d{{10}}-{_ID}"), ObjectType.MANIFEST),
    (re.compile(rf"tombstones/{_ID}/\d{{10}}-{_ID}"), ObjectType.TOMBSTONE),
    (re.compile(rf"leases/{_ID}/(?:start|epoch|end|beat/\d{{10}})"), ObjectType.LEASE),
    (re.compile(rf"claims/{_ID}/\d{{10}}"), ObjectType.CLAIM),
    (re.compile(rf"holds/{_ID}"), ObjectType.HOLD),
    (re.compile(r"epochs/\d{10}"), ObjectType.EPOCH),
    (re.compile(r"rollcalls/\d{10}"), ObjectType.ROLL_CALL),
)
_SLOT: Final = re.compile(rf"(keys|keys\.copy)/({_ID})")
_COMES_AND_GOES: Final = (ObjectType.LEASE, ObjectType.CLAIM, ObjectType.HOLD)


class VerifyProgress(Protocol):
    """Who watches a verification."""

    def start(self, label: str, total_bytes: int | None) -> None: ...
    def advance(self, count_bytes: int) -> None: ...
    def note(self, text: str) -> None: ...
    def finish(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Problem:
    """One object that is damaged or missing. `error` says what and the way out."""

    name: str
    error: ImagingError


@dataclass(frozen=True, slots=True)
class AffectedPoint:
    """A restore point that cannot be restored whole: its disks (or files) that are hit, or none when its manifest
    is."""

    id: str
    name: str
    machine: str | None
    disks: tuple[str, ...]
    detail: str


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """What was looked at, and what is wrong. `unknown` are names that the format does not have: left alone."""

    objects: int
    size_bytes: int
    packs: int
    points: int
    read_data: bool
    problems: tuple[Problem, ...]
    affected: tuple[AffectedPoint, ...]
    unknown: tuple[str, ...]

    @property
    def ok(self) -> bool:
        return not self.problems and not self.affected


@dataclass(slots=True)
class _Findings:
    objects: int = 0
    size_bytes: int = 0
    problems: dict[str, ImagingError] = field(default_factory=dict)
    unknown: list[str] = field(default_factory=list)
    packs: dict[bytes, int] = field(default_factory=dict)
    indexes: list[str] = field(default_factory=list)

    def add(self, name: str, error: ImagingError) -> None:
        self.problems.setdefault(name, error)


def verify(
    repository: Repository,
    objects: SealedObjects,
    leases: Leases,
    *,
    read_data: bool,
    progress: VerifyProgress | None = None,
) -> VerifyReport:
    """Without `read_data` the packs' tables are read, and not what is in them. StoreError."""
    watcher = progress or _Silent()
    findings = _Findings()
    repository.refresh_index()
    watcher.start("objects", None)
    for listed in objects.store.list(""):
        _check_object(repository, objects, listed, findings)
        if digest_of_name(listed.name) is None:
            watcher.advance(listed.size_bytes)
    _check_pairs(repository, findings)
    _check_ends(objects, leases, findings)
    listed_rows = _Index(objects, leases, findings)
    bad = _check_packs(repository, findings, listed_rows, read_data, watcher)
    read_unlisted_packs(repository.index, repository.store, repository.keys)
    survey = repository.survey()
    for damaged in survey.damaged:
        findings.add(damaged.name, damaged.error)
    watcher.start("disk maps", None)
    affected = list(_affected(repository, survey.points, findings, bad, watcher))
    affected += [AffectedPoint(each.id, each.name, None, (), str(each.error)) for each in survey.damaged]
    watcher.finish()
    return VerifyReport(
        objects=findings.objects,
        size_bytes=findings.size_bytes,
        packs=len(findings.packs),
        points=len(survey.points) + len(survey.damaged),
        read_data=read_data,
        problems=tuple(Problem(name, error) for name, error in sorted(findings.problems.items())),
        affected=tuple(sorted(affected, key=lambda point: point.name)),
        unknown=tuple(findings.unknown),
    )


class _Silent:
    def start(self, label: str, total_bytes: int | None) -> None: ...
    def advance(self, count_bytes: int) -> None: ...
    def note(self, text: str) -> None: ...
    def finish(self) -> None: ...


# Small objects


def _check_object(repository: Repository, objects: SealedObjects, listed: Listed, findings: _Findings) -> None:
    name = listed.name
    digest = digest_of_name(name)
    if digest is not None:
        findings.packs[digest] = listed.size_bytes
        findings.objects += 1
        findings.size_bytes += listed.size_bytes
        return
    kind = next((kind for pattern, kind in _TYPES if pattern.fullmatch(name)), None)
    slot = _SLOT.fullmatch(name)
    if kind is None and slot is None and name not in CONFIG_NAMES:
        findings.unknown.append(name)
        return
    findings.objects += 1
    findings.size_bytes += listed.size_bytes
    if kind == ObjectType.INDEX:
        findings.indexes.append(name)
    try:
        data = objects.store.get(name)
        if slot is not None:
            found = parse_slot(data, name)
            if found.id != slot[2] or found.envelope.repository_id != repository.id:
                raise Damaged(name, "another key slot is stored under this name")
        elif kind is None:
            open_configuration(parse(data, name, ObjectType.CONFIG), repository.keys)
        else:
            body = objects.open(kind, name, data).body
            if kind == ObjectType.MANIFEST:
                manifest.decode(body, name)
    except ObjectMissing as error:
        if kind not in _COMES_AND_GOES:
            findings.add(name, error)
    except (Damaged, WrongVersion, StoreUnavailable) as error:
        findings.add(name, error)


def _check_pairs(repository: Repository, findings: _Findings) -> None:
    """Configuration and slots are stored twice; one that is missing is damage, though the other serves."""
    store = repository.store
    slots = [slot.id for slot in repository.slots()]
    names = [*CONFIG_NAMES, *(each(slot) for slot in slots for each in (slot_name, copy_name))]
    for name in names:
        try:
            store.get(name, 0, 0)
        except (ObjectMissing, StoreUnavailable) as error:
            findings.add(name, error)


def _check_ends(objects: SealedObjects, leases: Leases, findings: _Findings) -> None:
    """A lease below a later claim of its series was ended before that claim was made: if its end is not there, it was
    lost."""
    highest: dict[str, str] = {}
    for listed in objects.store.list("claims/"):
        series, _, generation = listed.name.removeprefix("claims/").partition("/")
        highest[series] = generation
    for lease in leases.list().unended():
        try:
            if leases.standing(lease) != Standing.OPEN:
                continue
            start = leases.start(lease)
        except ImagingError:
            continue  # damaged: it is among the problems already
        if f"{start.generation:010}" < highest.get(start.series, ""):
            name = lease_object(lease, "end")
            findings.add(name, ObjectMissing(name))


# Packs and the index


class _Index:
    """What the index objects that count say of packs, read again when asked: rarely, and for few."""

    def __init__(self, objects: SealedObjects, leases: Leases, findings: _Findings) -> None:
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
        except (Damaged, WrongVersion, ObjectMissing, StoreUnavailable) as error:
            self._findings.add(name, error)
            return []

    def rows_of(self, pack: bytes) -> PackRows | None:
        """After packs() has been gone through."""
        name = self._where.get(pack)
        return next((entry for entry in self._entries(name) if entry.pack == pack), None) if name else None


def _check_packs(
    repository: Repository, findings: _Findings, index: _Index, read_data: bool, progress: VerifyProgress
) -> dict[bytes, frozenset[bytes] | None]:
    """The packs that are not whole, each with the ids in it that cannot be read (None: any of them)."""
    bad: dict[bytes, frozenset[bytes] | None] = {}
    states: dict[bytes, PackState] = {}
    for entry in index.packs():
        name = pack_name(entry.pack)
        found = findings.packs.get(entry.pack)
        if found is None:
            findings.add(name, ObjectMissing(name))
            bad[entry.pack] = None
            states[entry.pack] = PackState.GONE
        elif found != entry.size_bytes:
            findings.add(name, Damaged(name, f"it has {found} bytes and should have {entry.size_bytes}"))
    progress.start("packs", sum(findings.packs.values()) if read_data else None)
    known = repository.index.packs()
    verdicts = check_packs(repository.store, repository.keys, findings.packs, read_data, index.rows_of)
    for verdict in verdicts:
        progress.advance(verdict.size_bytes if read_data else 0)
        if verdict.problem is not None:
            findings.add(pack_name(verdict.pack), verdict.problem)
            bad[verdict.pack] = verdict.bad_ids
            states[verdict.pack] = PackState.DAMAGED
            progress.note(str(verdict.problem))
        elif verdict.pack in known and known[verdict.pack].state in (PackState.DAMAGED, PackState.GONE) and read_data:
            states[verdict.pack] = PackState.LIVE
        _compare(repository, verdict, findings)
    repository.index.set_states(states)
    return bad


def _compare(repository: Repository, verdict: PackVerdict, findings: _Findings) -> None:
    """Whether the index places the pack's blobs where its own table does; packs that no object lists are passed
    over."""
    if verdict.problem is not None or verdict.rows is None:
        return
    rows = iter_rows(verdict.rows.rows)
    located = repository.index.locate_many([identity for identity, _ in rows])
    for (identity, place), places in zip(rows, located, strict=True):
        mine = [each for each in places if each.pack == verdict.pack]
        if mine and all(each.offset_bytes != place & 0x1FFFFFF for each in mine):
            name = pack_name(verdict.pack)
            findings.add(name, Damaged(name, f"the index places blob {identity.hex()} elsewhere than its own table"))
            return


def _affected(
    repository: Repository,
    points: Sequence[Point],
    findings: _Findings,
    bad: dict[bytes, frozenset[bytes] | None],
    progress: VerifyProgress,
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
        hit = tuple(part.name for part in parts if not walk.is_whole(part))
        problem = findings.problems.get(point.name)
        if hit or problem is not None:
            detail = str(problem) if problem is not None else f"data of {', '.join(hit)} is damaged or missing"
            yield AffectedPoint(point.id, point.name, point.manifest.machine.name, hit, detail)
            progress.note(f"restore point {point.id} of {point.manifest.machine.name}: {detail}")
