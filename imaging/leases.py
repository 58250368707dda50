"""Leases: who is writing which series, and whether what a run wrote counts (docs/locking.md has the reasons).

Rules: a lease ends by the creation of its `end`, which one party wins; a lease of which no object is left was
committed and tidied away. Whether another's lease is dead is decided by its counter and the observer's own monotonic
clock, never by a time of day.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Final

from imaging.canonical import Fields
from imaging.clock import Clock
from imaging.envelope import ObjectType
from imaging.errors import ObjectExists, ObjectMissing, StoreUnavailable
from imaging.index_files import boot_id
from imaging.objects import SealedObjects

_log = logging.getLogger(__name__)

DEAD_AFTER_S: Final = 15 * 60.0
_ATTEMPTS: Final = 3
_OUTCOMES: Final = ("committed", "collected", "fenced", "abandoned")
_NAME: Final = re.compile(r"leases/([0-9a-f]{32})/(start|epoch|end|beat/\d{10})")


class Standing(Enum):
    """What a lease's objects say of what was written under it."""

    OPEN = "open"
    COMMITTED = "committed"
    VOID = "void"
    TIDIED = "tidied"

    @property
    def counts(self) -> bool:
        return self in (Standing.COMMITTED, Standing.TIDIED)


@dataclass(frozen=True, slots=True)
class LeaseEnd:
    """`manifest` and `hash` if committed, `by` if fenced. "collected": what a collection wrote counts, and is no
    point."""

    outcome: str
    manifest: str | None = None
    hash: bytes | None = None
    by: str | None = None

    @property
    def standing(self) -> Standing:
        return Standing.COMMITTED if self.outcome in ("committed", "collected") else Standing.VOID


@dataclass(frozen=True, slots=True)
class LeaseStart:
    appliance: str
    host: str | None
    series: str
    generation: int
    parent: str | None
    purpose: str


@dataclass(frozen=True, slots=True)
class LeaseListing:
    """The parts seen of each lease in one listing, which is older than whatever is done with it."""

    parts: Mapping[str, frozenset[str]]

    def unended(self) -> list[str]:
        return [lease for lease, parts in self.parts.items() if "end" not in parts]


def lease_object(lease: str, part: str) -> str:
    return f"leases/{lease}/{part}"


class Leases:
    """Reads and ends leases. Borrows `objects`."""

    def __init__(self, objects: SealedObjects) -> None:
        self._objects = objects
        self._ends: dict[str, LeaseEnd] = {}

    def list(self) -> LeaseListing:
        parts: dict[str, set[str]] = {}
        for listed in self._objects.store.list("leases/"):
            found = _NAME.fullmatch(listed.name)
            if found:
                parts.setdefault(found[1], set()).add(found[2])
        return LeaseListing({lease: frozenset(each) for lease, each in parts.items()})

    def start(self, lease: str) -> LeaseStart:
        """ObjectMissing, Damaged."""
        fields = self._objects.read_json(ObjectType.LEASE, lease_object(lease, "start"))
        return LeaseStart(
            appliance=fields.hex("appliance", 16).hex(),
            host=fields.optional_text("host"),
            series=fields.hex("series", 16).hex(),
            generation=fields.integer("generation"),
            parent=fields.optional_text("parent"),
            purpose=fields.text("purpose"),
        )

    def end(self, lease: str) -> LeaseEnd | None:
        """The end, or None while there is none. Damaged."""
        known = self._ends.get(lease)
        if known is None:
            name = lease_object(lease, "end")
            try:
                body = self._objects.read_kept(ObjectType.LEASE, name).body
            except ObjectMissing:
                return None
            known = self._ends[lease] = _end_of(Fields.parse(body, name))
        return known

    def standing(self, lease: str, listing: LeaseListing | None = None) -> Standing:
        """Whether what was written under the lease counts. A lease that seems open is looked at once more. Damaged."""
        if listing is not None and not listing.parts.get(lease):
            return Standing.TIDIED
        for _ in range(2):  # between reading the end and listing what is left, the whole lease may be tidied away
            end = self.end(lease)
            if end is not None:
                return end.standing
            if not self._left_of(lease):
                return Standing.TIDIED
        return Standing.OPEN

    def is_open(self, lease: str) -> bool:
        """Whether its run may still commit. An end that is there has ended it, readable or not: nobody can create
        another."""
        for _ in range(2):
            if self._objects.store.exists(lease_object(lease, "end")) or not self._left_of(lease):
                return False
        return True

    def _left_of(self, lease: str) -> Sequence[str]:
        """The lease's objects; what else somebody put beside them says nothing, and is nobody's to remove."""
        return [listed.name for listed in self._objects.store.list(f"leases/{lease}/") if _NAME.fullmatch(listed.name)]

    def finish(self, lease: str, end: LeaseEnd) -> LeaseEnd:
        """Ends the lease, unless it was ended already; returns the end that counts, whoever wrote it.

        Repeated where the store fails in passing, as that may have been after the end was there: then it is found, is
        durable by now, and says what was wanted. When it raises nevertheless, the lease may have ended or not.
        """
        values: dict[str, object] = {"outcome": end.outcome}
        if end.outcome == "committed":
            values |= {"manifest": end.manifest, "hash": end.hash.hex() if end.hash else None}
        elif end.outcome == "fenced":
            values |= {"by": end.by}
        for _ in range(_ATTEMPTS - 1):
            try:
                return self._finish(lease, end, values)
            except StoreUnavailable as error:
                _log.warning("the end of lease %s is written once more: %s", lease, error)
        return self._finish(lease, end, values)

    def _finish(self, lease: str, end: LeaseEnd, values: dict[str, object]) -> LeaseEnd:
        name = lease_object(lease, "end")
        try:
            self._objects.create_json(ObjectType.LEASE, name, values)
        except ObjectExists:
            found = self.end(lease)
            if found is None:
                raise ObjectMissing(name) from None
            return found
        self._ends[lease] = end
        return end

    def counter(self, lease: str) -> int:
        """The highest number that the lease's run has beaten; 0 before the first."""
        beats = (name.rpartition("/beat/")[2] for name in self._left_of(lease) if "/beat/" in name)
        return max((int(number) for number in beats), default=0)

    def tidy(self, lease: str) -> None:
        """Removes what a lease that has ended needs no more; its end stays, and goes last, or it would seem tidied."""
        end = lease_object(lease, "end")
        self._objects.store.delete_many(name for name in self._left_of(lease) if name != end)


def _end_of(fields: Fields) -> LeaseEnd:
    outcome = fields.one_of("outcome", _OUTCOMES)
    if outcome == "committed":
        return LeaseEnd(outcome, manifest=fields.text("manifest"), hash=fields.hex("hash", 32))
    if outcome == "fenced":
        return LeaseEnd(outcome, by=fields.text("by"))
    return LeaseEnd(outcome)


class LeaseWatcher:
    """Decides that another's lease is dead: its counter has not moved for `dead_after_s` of this machine's monotonic
    clock.

    What was seen is kept in `folder`, so that a series of short processes can observe together; without it, in memory.
    """

    def __init__(self, leases: Leases, clock: Clock, folder: Path, dead_after_s: float = DEAD_AFTER_S) -> None:
        self._leases = leases
        self._clock = clock
        self._folder = folder
        self._dead_after_s = dead_after_s
        self._seen: dict[str, tuple[int, float]] = {}
        self._boot = boot_id()

    def remaining_s(self, lease: str) -> float:
        """Seconds that the counter has yet to stand still before the lease is dead; 0 when it is."""
        counter = self._leases.counter(lease)
        now = self._clock.monotonic_s()
        seen = self._seen.get(lease) or self._load(lease)
        if seen is None or seen[0] != counter or seen[1] > now:
            seen = (counter, now)
            self._store(lease, seen)
        self._seen[lease] = seen
        return max(0.0, seen[1] + self._dead_after_s - now)

    def _load(self, lease: str) -> tuple[int, float] | None:
        try:
            found = json.loads((self._folder / lease).read_text("utf-8"))
            if found["boot"] == self._boot:
                return int(found["counter"]), float(found["since_s"])
        except (OSError, ValueError, KeyError, TypeError):
            pass  # nothing that was seen before can be relied on: observing starts again, which only takes longer
        return None

    def _store(self, lease: str, seen: tuple[int, float]) -> None:
        temporary = self._folder / f".{lease}"
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            temporary.write_text(json.dumps({"boot": self._boot, "counter": seen[0], "since_s": seen[1]}), "utf-8")
            os.replace(temporary, self._folder / lease)
        except OSError:
            pass  # then only this process remembers
