"""The sweep that keeps restore points locked for as long as was promised: it lengthens the locks that run out.

Rules: locked is everything that restore points are made of and that is not known to be going: configuration, key slots,
manifests without a tombstone, index objects of leases that are not void, packs that are not condemned. What cannot be
told, stays locked. Of an object that was replaced, every version stays locked that has other bytes. Nothing is ever
shortened. Times are the store's.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol

from imaging import running
from imaging.errors import Damaged, ImagingError, ObjectMissing, WrongVersion
from imaging.index_objects import lease_of
from imaging.leases import LeaseListing, Leases, Standing
from imaging.lock_log import LockLog, Promise
from imaging.manifest import tombstone_name
from imaging.objects import SealedObjects
from imaging.packs import digest_of_name
from imaging.storage.at_once import outcomes
from imaging.storage.object_lock import COMPLIANCE, Lock, is_locked
from imaging.storage.versions import Retention, Version, Versions


class Progress(Protocol):
    """Who watches."""

    def start(self, label: str, total_bytes: int | None) -> None: ...
    def advance(self, count_bytes: int) -> None: ...
    def finish(self) -> None: ...


@dataclass(slots=True)
class Swept:
    """What was found and done. `until_utc`: until when everything is locked now; None where something is not.

    `replaced` are objects of which there is an older version with other bytes: somebody wrote over them. `unseen` are
    those that the listing of versions does not show.
    """

    now_utc: datetime
    objects: int = 0
    size_bytes: int = 0
    asked: int = 0
    due: int = 0
    due_bytes: int = 0
    extended: int = 0
    until_utc: datetime | None = None
    unseen: int = 0
    replaced: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Known:
    """What the repository says of what is going."""

    condemned: frozenset[bytes]
    buried: frozenset[str]
    void: frozenset[str]

    def is_live(self, name: str) -> bool:
        """Whether an object that can be locked is one that has to be."""
        pack = digest_of_name(name)
        if pack is not None:
            return pack not in self.condemned
        return name not in self.buried and lease_of(name) not in self.void


def wanted(held: Retention | None, lock: Lock, now_utc: datetime) -> Retention | None:
    """What a version's lock has to become; None where it is long and strict enough. Pure."""
    fresh = Retention(lock.mode, lock.fresh_until(now_utc))
    if held is None:
        return fresh
    if held.until_utc >= lock.least_until(now_utc) and held.mode in (lock.mode, COMPLIANCE):
        return None
    mode = COMPLIANCE if held.mode == COMPLIANCE else lock.mode
    return Retention(mode, max(held.until_utc, fresh.until_utc))


class Sweep:
    """One sweep. Borrows everything; makes at most `connections` requests at a time."""

    def __init__(
        self,
        objects: SealedObjects,
        versions: Versions,
        log: LockLog,
        progress: Progress,
        connections: int,
    ) -> None:
        self._objects = objects
        self._store = objects.store
        self._leases = Leases(objects)
        self._versions = versions
        self._log = log
        self._progress = progress
        self._connections = connections

    def run(self, *, dry_run: bool, ask_all: bool) -> Swept:
        """Lengthens the locks that have to be, or only tells; `ask_all`: nothing that earlier sweeps saw is believed.
        LockUnsuitable, StoreError."""
        self._versions.check()
        now, lock = self._versions.now_utc(), self._versions.lock
        swept = Swept(now)
        try:
            live = self._live(swept)
            held = self._ask(live, ask_all, swept)
            due = {each: change for each, found in held.items() if (change := wanted(found, lock, now)) is not None}
            swept.due, swept.due_bytes = len(due), sum(version.size_bytes for version in due)
            if not dry_run:
                self._extend(due, held, swept)
            swept.until_utc = None if swept.unseen else _first(held.values())
            self._log.keep_only(held)
            self._log.write_promise(Promise(now, swept.until_utc, swept.objects))
        finally:
            self._log.save()
        return swept

    # What has to be locked

    def _live(self, swept: Swept) -> list[Version]:
        """The versions that have to be locked."""
        known = self._known(swept)
        names = {each.name: each.size_bytes for each in self._store.list("") if is_locked(each.name)}
        live = {name: size_bytes for name, size_bytes in names.items() if known.is_live(name)}
        swept.objects, swept.size_bytes = len(live), sum(live.values())
        newest: dict[str, Version] = {}
        older: list[Version] = []
        for version in self._versions.list():  # after the objects: it shows them all
            if version.name not in live or version.is_marker:
                continue
            if version.is_latest:
                newest[version.name] = version
            else:
                older.append(version)
        replaced = [
            version for version in older if version.name in newest and version.content != newest[version.name].content
        ]
        swept.replaced = sorted({version.name for version in replaced})
        hidden = sorted(live.keys() - newest.keys())
        for name in hidden:
            if self._store.exists(name):  # else it was removed meanwhile
                swept.unseen += 1
                swept.problems.append(f"{name} is there, and the listing of versions does not show it")
        return sorted([*newest.values(), *replaced], key=lambda version: (version.name, version.id))

    def _known(self, swept: Swept) -> Known:
        try:
            condemned = running.newest_epoch(self._objects)[1]
        except (Damaged, WrongVersion) as error:
            swept.problems.append(f"what is condemned cannot be told, so all packs stay locked: {error}")
            condemned = frozenset()
        manifests = [each.name for each in self._store.list("manifests/")]
        tombstones = {each.name for each in self._store.list("tombstones/")}
        buried = frozenset(name for name in manifests if tombstone_name(name) in tombstones)
        indexes = {lease for each in self._store.list("index/") if (lease := lease_of(each.name)) is not None}
        listing = self._leases.list()
        return Known(condemned, buried, frozenset(lease for lease in indexes if self._is_void(lease, listing)))

    def _is_void(self, lease: str, listing: LeaseListing) -> bool:
        try:
            return self._leases.standing(lease, listing) is Standing.VOID
        except (Damaged, WrongVersion):
            return False  # it cannot be told

    # Asking and locking

    def _ask(self, live: Sequence[Version], ask_all: bool, swept: Swept) -> dict[Version, Retention | None]:
        """Until when each is locked; those that are gone by now are left out."""
        held: dict[Version, Retention | None] = {}
        unknown: list[Version] = []
        for version in live:
            found = None if ask_all else self._log.retention(version)
            if found is None:
                unknown.append(version)
            else:
                held[version] = found
        swept.asked = len(unknown)

        def ask(version: Version) -> Retention | None:
            return self._versions.retention(version.name, version.id)

        self._progress.start("looking at locks", sum(version.size_bytes for version in unknown))
        for version, answer in outcomes(unknown, ask, self._connections):
            self._progress.advance(version.size_bytes)
            if isinstance(answer, ImagingError):
                self._note_failure(version, answer, held, swept)
                continue
            held[version] = answer
            if answer is not None:
                self._log.note(version, answer)
        self._progress.finish()
        return held

    def _extend(self, due: dict[Version, Retention], held: dict[Version, Retention | None], swept: Swept) -> None:
        """Notes in `held` what has become of each."""

        def retain(version: Version) -> None:
            self._versions.retain(version.name, version.id, due[version])

        self._progress.start("locking", swept.due_bytes)
        for version, answer in outcomes(list(due), retain, self._connections):
            self._progress.advance(version.size_bytes)
            if isinstance(answer, ImagingError):
                self._note_failure(version, answer, held, swept)
                continue
            held[version] = due[version]
            self._log.note(version, due[version])
            swept.extended += 1
        self._progress.finish()

    def _note_failure(
        self, version: Version, error: ImagingError, held: dict[Version, Retention | None], swept: Swept
    ) -> None:
        if isinstance(error, ObjectMissing):
            held.pop(version, None)  # removed since it was listed
        else:
            held.setdefault(version, None)
            swept.problems.append(str(error))


def _first(retentions: Iterable[Retention | None]) -> datetime | None:
    """The first end of these; None where one has none, or there are none."""
    ends = [None if each is None else each.until_utc for each in retentions]
    known = [end for end in ends if end is not None]
    return min(known) if known and len(known) == len(ends) else None
