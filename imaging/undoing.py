"""Undoing what was done to a repository in a bucket that keeps versions, from a moment on.

Rules: deciding reads only, and what is decided can be shown. What restore points are made of comes back as it was, as
new versions of the same names; nothing of it is taken away. Of what only says how things stand, that is taken back
which came since and stands against the points of then: tombstones, ends of leases, claims, condemned lists, and what
cannot be read. It may be repeated, and goes on where it was interrupted. Nothing else may be at work meanwhile.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Protocol

from blake3 import blake3

from imaging.clock import Clock
from imaging.configuration import unlock
from imaging.envelope import ObjectType, parse
from imaging.errors import Damaged, ImagingError, ObjectMissing, WrongVersion
from imaging.leases import Leases, lease_object
from imaging.manifest import tombstone_name
from imaging.objects import SealedObjects
from imaging.packs import digest_of_name
from imaging.points import Point, Points
from imaging.slots import Secret
from imaging.storage.as_of import AsOf, History, histories
from imaging.storage.at_once import outcomes
from imaging.storage.contract import Store
from imaging.storage.object_lock import is_locked
from imaging.storage.versions import Version, Versions

_REPLACEABLE: Final = "damaged/"
_REQUESTS: Final = "requests/"
_HOLD: Final = re.compile(r"holds/[0-9a-f]{32}")
_ROLL_CALL: Final = re.compile(r"rollcalls/\d{10}")
_EPOCH: Final = re.compile(r"epochs/\d{10}")


class Progress(Protocol):
    """Who watches."""

    def start(self, label: str, total_bytes: int | None) -> None: ...
    def advance(self, count_bytes: int) -> None: ...
    def finish(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Undo:
    """What is to be done: versions that become the newest again, and objects that are deleted. `points` are the
    restore points of then."""

    since_utc: datetime
    returning: tuple[Version, ...]
    removing: tuple[str, ...]
    points: tuple[Point, ...]
    problems: tuple[str, ...]

    @property
    def returning_bytes(self) -> int:
        return sum(version.size_bytes for version in self.returning)

    @property
    def is_empty(self) -> bool:
        return not self.returning and not self.removing


@dataclass(frozen=True, slots=True)
class Undone:
    returned: int
    returned_bytes: int
    removed: int
    problems: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Happened:
    """What was done within one hour to what restore points are made of."""

    hour_utc: datetime
    deleted: int
    overwritten: int
    buried: int  # restore points that got a tombstone


def what_happened(versions: Iterable[Version]) -> list[Happened]:
    """By hour, for whoever looks for the moment from which things are to be undone. Collections delete, too."""
    deleted: Counter[datetime] = Counter()
    overwritten: Counter[datetime] = Counter()
    buried: Counter[datetime] = Counter()
    for name, history in histories(versions).items():
        before: Version | None = None
        for version in history.versions:
            hour = version.modified_utc.replace(minute=0, second=0, microsecond=0)
            if name.startswith("tombstones/") and not version.is_marker:
                buried[hour] += 1
            elif is_locked(name) and before is not None:
                if version.is_marker and not before.is_marker:
                    deleted[hour] += 1
                elif not version.is_marker and not before.is_marker and version.content != before.content:
                    overwritten[hour] += 1
            before = version
    hours = sorted({*deleted, *overwritten, *buried})
    return [Happened(hour, deleted[hour], overwritten[hour], buried[hour]) for hour in hours]


class Undoing:
    """Borrows everything; `store` shows what is there now."""

    def __init__(self, store: Store, versions: Versions, clock: Clock, progress: Progress, connections: int) -> None:
        self._store = store
        self._versions = versions
        self._clock = clock
        self._progress = progress
        self._connections = connections

    def happened(self) -> list[Happened]:
        """StoreError."""
        return what_happened(self._versions.list())

    def plan(self, since_utc: datetime, secret: Secret) -> Undo:
        """Changes nothing. NotARepository: there was none then; WrongKey, StoreError and the like."""
        found = histories(self._versions.list())
        problems: list[str] = []
        there = {
            name: version
            for name, history in found.items()
            if (version := self._true(history, since_utc, problems)) is not None
        }
        past = AsOf(f"{self._store.describe()}, as it was", there, self._versions.get)
        keys = unlock(past, secret).keys
        then = SealedObjects(past, keys, None)
        survey = Points(then, Leases(then), self._clock).survey()
        problems += [f"restore point {each.id} could not be read then: {each.error}" for each in survey.damaged]
        part = _Comparison(found, there, then, SealedObjects(self._store, keys, None), self._versions.get)
        returning = [*part.lost_objects(), *part.lost_ends(survey.points), *part.lost_control()]
        removing = [*part.tombstones(), *part.strange_leases(survey.points), *part.new_control()]
        returning = list({version.name: version for version in returning}.values())
        return Undo(since_utc, tuple(returning), tuple(removing), survey.points, tuple(problems))

    def _true(self, history: History, since_utc: datetime, problems: list[str]) -> Version | None:
        """The version of then; where others were written over it, the oldest that is intact."""
        seen = history.at(since_utc)
        if seen is None or history.name.startswith(_REPLACEABLE):
            return seen
        candidates = history.contents(since_utc, whole=is_locked(history.name))
        if len(candidates) == 1:
            return seen
        for version in candidates:
            if _is_intact(version.name, self._versions.get(version)):
                return version
        problems.append(f"no version of {history.name} is intact")
        return seen

    def execute(self, undo: Undo) -> Undone:
        """StoreError: then some of it was done, and it may be repeated."""
        problems: list[str] = []
        returned = returned_bytes = 0
        self._progress.start("bringing back", undo.returning_bytes)
        for version, outcome in outcomes(undo.returning, self._versions.bring_back, self._connections):
            self._progress.advance(version.size_bytes)
            if isinstance(outcome, ImagingError):
                problems.append(str(outcome))
            else:
                returned += 1
                returned_bytes += version.size_bytes
        self._progress.finish()
        self._store.delete_many(undo.removing)
        return Undone(returned, returned_bytes, len(undo.removing), tuple(problems))


class _Comparison:
    """What was there then, beside what is there now. `then` and `now` are the same objects at both times."""

    def __init__(
        self,
        found: Mapping[str, History],
        there: Mapping[str, Version],
        then: SealedObjects,
        now: SealedObjects,
        read: Callable[[Version], bytes],
    ) -> None:
        self._found = found
        self._there = there
        self._then = then
        self._now = now
        self._read = read

    # What comes back

    def lost_objects(self) -> Iterator[Version]:
        """Of what restore points are made of, but for points that were deleted before: they would come back, too."""
        for name in sorted(self._there):
            buried = name.startswith("manifests/") and tombstone_name(name) in self._there
            if is_locked(name) and not buried and self._has_changed(name):
                yield self._there[name]

    def lost_ends(self, points: Iterable[Point]) -> Iterator[Version]:
        """What says that these points count."""
        for point in points:
            end = lease_object(point.manifest.lease, "end")
            if end in self._there and self._has_changed(end):
                yield self._there[end]

    def lost_control(self) -> Iterator[Version]:
        """What was written over; requests to delete, and what was decided on them; the condemned list of then,
        protections, and a roll call where none is left."""
        for name in sorted(self._there):
            if is_locked(name) or name.startswith(_REPLACEABLE):
                continue
            kept = name.startswith(_REQUESTS) or self._found[name].now() is not None
            if kept and self._has_changed(name):
                yield self._there[name]
        epochs = [name for name in self._there if _EPOCH.fullmatch(name)]
        if epochs and self._has_changed(max(epochs)):
            yield self._there[max(epochs)]
        for name in sorted(self._there):
            if _HOLD.fullmatch(name) and self._has_changed(name) and self._is_protection(name):
                yield self._there[name]
        roll_calls = [name for name in self._there if _ROLL_CALL.fullmatch(name)]
        if roll_calls and not any(self._opens(ObjectType.ROLL_CALL, name) for name in self._present(_ROLL_CALL)):
            yield self._there[max(roll_calls)]

    # What goes

    def tombstones(self) -> Iterator[str]:
        """Of points of then that were not deleted."""
        for name in sorted(self._there):
            if name.startswith("manifests/") and tombstone_name(name) not in self._there:
                yield from self._new([tombstone_name(name)])

    def strange_leases(self, points: Iterable[Point]) -> Iterator[str]:
        """What came to be under leases of points that counted because there was nothing of their leases any more."""
        parts: dict[str, list[str]] = {}
        for name in self._found:
            if name.startswith("leases/"):
                parts.setdefault(name[7:39], []).append(name)
        for point in points:
            names = parts.get(point.manifest.lease, [])
            if not any(name in self._there for name in names):
                yield from self._new(sorted(names))

    def new_control(self) -> Iterator[str]:
        """Claims and condemned lists that came since, and holds and roll calls that cannot be read."""
        yield from self._new(sorted(name for name in self._found if name.startswith("claims/") or _EPOCH.match(name)))
        for pattern, kind in ((_HOLD, ObjectType.HOLD), (_ROLL_CALL, ObjectType.ROLL_CALL)):
            yield from (name for name in self._new(self._present(pattern)) if not self._opens(kind, name))

    def _new(self, names: Iterable[str]) -> Iterator[str]:
        """Those that are there now, and were not then."""
        for name in names:
            if name in self._found and name not in self._there and self._found[name].now() is not None:
                yield name

    def _present(self, pattern: re.Pattern[str]) -> list[str]:
        return sorted(
            name for name, history in self._found.items() if pattern.fullmatch(name) and history.now() is not None
        )

    def _has_changed(self, name: str) -> bool:
        was, now = self._there[name], self._found[name].now()
        if now is None:
            return True
        if now.content == was.content:
            return False
        return now.size_bytes != was.size_bytes or self._read(now) != self._read(was)

    def _is_protection(self, name: str) -> bool:
        try:
            return self._then.read_json(ObjectType.HOLD, name).text("purpose") == "protected"
        except (Damaged, WrongVersion):
            return False

    def _opens(self, kind: ObjectType, name: str) -> bool:
        """What is of a later version is no garbage."""
        try:
            self._now.read(kind, name)
        except (Damaged, ObjectMissing):
            return False
        except WrongVersion:
            return True
        return True


def _is_intact(name: str, data: bytes) -> bool:
    """Whether bytes can be those of the object of this name, as far as that can be told without a key."""
    digest = digest_of_name(name)
    if digest is not None:
        return blake3(data).digest() == digest
    try:
        parse(data, name)
    except Damaged:
        return False
    except WrongVersion:
        return True
    return True
