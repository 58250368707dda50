"""What a collection looks at: what packs hold, who wrote them, which restore points there are, and what these need.

Rules: manifests are listed before index objects, so that whatever a listed one needs is listed too; whatever cannot be
read, is missing, or is less than what was there before refuses the collection, as nothing can be concluded from it. Of
index objects and map nodes that were read once, the ledger knows what they say.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Container, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from imaging import running
from imaging.blobs import BlobReader
from imaging.clock import Clock
from imaging.envelope import ObjectType
from imaging.errors import ChunkMissing, Damaged, ImagingError, ObjectMissing, WrongVersion
from imaging.holdings import Flags, Holdings, Trust
from imaging.index_objects import decode_index, is_index_object
from imaging.leases import Leases, Standing
from imaging.ledger import Ledger
from imaging.manifest import DiskEntry, FileEntry
from imaging.marking import FetchNodes, LedgerBroken, Marker, Unresolvable
from imaging.objects import SealedObjects
from imaging.packs import listed_packs, pack_name
from imaging.places import PackRows
from imaging.points import Point, Points
from imaging.rollcalls import RollCall, RolledBack
from imaging.sorted_ids import Array

_UNREADABLE: Final = (Damaged, WrongVersion)


class CollectionRefused(ImagingError):
    """Something is not understood, so nothing was removed."""

    def __init__(self, detail: str, *, hint: str = "") -> None:
        super().__init__(
            f"the repository cannot be collected: {detail}",
            hint=hint or "run 'strongroom repository verify' and mend what it names; nothing was removed",
        )
        self.detail = detail


@dataclass(frozen=True, slots=True)
class Census:
    """`objects` are the index objects that count, each with the packs it lists, and `rows` how many rows each has.

    `present` are all packs of the store with their sizes, `unlisted` those that no index object lists; `lease_of` says
    under which lease a pack was written.
    """

    holdings: Holdings
    objects: dict[str, tuple[bytes, ...]]
    rows: dict[str, int]
    present: dict[bytes, int]
    unlisted: frozenset[bytes]
    lease_of: dict[bytes, str]


class Inspector:
    """Changes nothing. Borrows everything."""

    def __init__(
        self,
        objects: SealedObjects,
        clock: Clock,
        damaged: Callable[[], frozenset[bytes]],
        blobs_met_by: Callable[[Ledger], BlobReader],
        folder: Path,
    ) -> None:
        """`damaged` tells which packs are known to be. Manifests and the ends of leases are read from the store itself:
        what is remembered of them may be lost there. `folder` is for the ledger."""
        self._objects = objects.uncached()
        self._leases = Leases(self._objects)
        self._points = Points(self._objects, self._leases, clock)
        self._damaged = damaged
        self._blobs_met_by = blobs_met_by
        self._folder = folder
        self._ledger: Ledger | None = None
        self._listed: Collection[str] = ()

    def condemned(self) -> tuple[int, frozenset[bytes]]:
        """The newest epoch and what it condemns. CollectionRefused."""
        try:
            return running.newest_epoch(self._objects)
        except _UNREADABLE as error:
            raise CollectionRefused(str(error)) from error

    def points(self, known: RollCall) -> list[Point]:
        """Every restore point that is there, whether it counts yet or not, but those of void leases.

        CollectionRefused; RolledBack where one that is known is not there, and was not deleted.
        """
        survey = self._points.survey()
        if survey.damaged:
            raise CollectionRefused(f"restore point {survey.damaged[0].id}: {survey.damaged[0].error}")
        try:
            found = [
                point
                for point in self._points.present()
                if self._leases.standing(point.manifest.lease) is not Standing.VOID
            ]
        except _UNREADABLE as error:
            raise CollectionRefused(str(error)) from error
        for name in sorted(known.points - {point.name for point in found}):
            if not self._points.is_buried(name):
                raise RolledBack(f"{name} was there at the last collection, and nobody deleted it")
        return found

    def census(self, condemned: frozenset[bytes]) -> Census:
        """CollectionRefused, StoreError."""
        damaged = self._damaged()
        there = {listed.name: listed.size_bytes for listed in self._objects.store.list("index/")}
        names = {name: size for name, size in there.items() if is_index_object(name)}
        present = listed_packs(self._objects.store)
        ledger = self._opened()
        standings = self._standings(names)
        listing = {name: self._packs_of(ledger, name, names[name]) for name in standings}
        ledger.settle()
        ledger.save(names.keys())
        hashes = [bytes(each) for each in ledger.packs["hash"]]
        trust = np.full(len(hashes), Trust.UNLISTED, np.uint8)
        objects: dict[str, tuple[bytes, ...]] = {}
        rows: dict[str, int] = {}
        lease_of: dict[bytes, str] = {}
        for name, standing in standings.items():  # those that count first: a pack is as good as the first says
            numbers = listing[name]
            if numbers is None:
                continue
            if standing.counts:
                objects[name] = tuple(hashes[number] for number in numbers)
                rows[name] = int(ledger.packs["rows"][numbers].sum())
            for number in numbers[trust[numbers] == Trust.UNLISTED].tolist():
                pack = hashes[number]
                lease_of.setdefault(pack, name[6:38])
                trust[number] = _trust(pack, standing, present, condemned, damaged)
        holdings = Holdings(ledger, trust)
        self._check_hidden(holdings, condemned)
        self._listed = names.keys()
        return Census(holdings, objects, rows, present, frozenset(present.keys() - lease_of.keys()), lease_of)

    def _opened(self) -> Ledger:
        if self._ledger is None:
            self._ledger = Ledger.open(self._folder, self._objects.keys)
        return self._ledger

    def _standings(self, names: Iterable[str]) -> dict[str, Standing]:
        """Of index objects; those that count first, then those of runs that have not ended."""
        found: dict[Standing, list[str]] = {}
        for name in names:
            try:
                found.setdefault(self._leases.standing(name[6:38]), []).append(name)
            except _UNREADABLE as error:
                raise CollectionRefused(str(error)) from error
        order = [standing for standing in Standing if standing.counts] + [Standing.OPEN]
        return {name: standing for standing in order for name in found.get(standing, [])}

    def _packs_of(self, ledger: Ledger, name: str, size_bytes: int) -> Array | None:
        """Numbers of the packs that an index object lists; None for one of an abandoned run that was removed since it
        was listed."""
        found = ledger.listed_by(name, size_bytes)
        if found is None:
            try:
                found = ledger.add_object(name, size_bytes, self.index_object(name))
            except ObjectMissing:
                return None
        return found

    def _check_hidden(self, holdings: Holdings, condemned: frozenset[bytes]) -> None:
        """A pack that is not listed, though nobody deleted it, is asked for by name: if it is there, the listing lies,
        and what it hides must not be taken for gone."""
        for pack in holdings.packs:
            if pack.trust is Trust.MISSING and pack.pack not in condemned:
                name = pack_name(pack.pack)
                if self._objects.store.exists(name):
                    raise CollectionRefused(f"a listing does not show {name}, which is there")

    def index_object(self, name: str) -> list[PackRows]:
        """ObjectMissing, CollectionRefused."""
        try:
            return decode_index(self._objects.read(ObjectType.INDEX, name).body, name)
        except _UNREADABLE as error:
            raise CollectionRefused(str(error)) from error

    def mark(self, holdings: Holdings, points: Iterable[Point]) -> Flags:
        """The rows that these points need. Unresolvable, CollectionRefused."""
        marker = Marker(self.fetch_from(holdings), holdings)
        self.walk([points], lambda _, trees, what: marker.mark(trees, what))
        needed = marker.needed()
        lost = sum(int(needed[pack.span].sum()) for pack in holdings.packs if pack.trust is Trust.MISSING)
        if lost:
            raise Unresolvable("the restore points", lost)
        return needed

    def fetch_from(self, holdings: Holdings) -> FetchNodes:
        """What reads nodes by their ids."""
        return self._blobs_met_by(holdings.ledger).nodes

    def walk(
        self, sets: Iterable[Iterable[Point]], visit: Callable[[int, list[DiskEntry | FileEntry], str], None]
    ) -> None:
        """Has all disks and files of these points visited, and keeps what is learnt of their maps. `visit` is given the
        number of the set, and what to call a point in messages. Unresolvable, CollectionRefused."""
        for number, points in enumerate(sets):
            for point in points:
                manifest = point.manifest
                what = f"restore point {manifest.id} of {manifest.machine.name}"
                try:
                    visit(number, [*manifest.disks, *manifest.files], what)
                except (*_UNREADABLE, ObjectMissing, ChunkMissing) as error:
                    raise CollectionRefused(f"the disk maps of {what} cannot be read: {error}") from error
                except LedgerBroken as error:
                    self._opened().discard()
                    raise CollectionRefused(f"{error}, and was thrown away", hint=error.hint) from error
        self._opened().save(self._listed)

    def series_of(self, lease_of: dict[bytes, str]) -> dict[bytes, str]:
        """Whose packs are, where the point of the run that wrote them is still there."""
        series = {point.manifest.lease: point.series for point in self._points.present()}
        return {pack: series[lease] for pack, lease in lease_of.items() if lease in series}


def _trust(
    pack: bytes,
    standing: Standing,
    present: Container[bytes],
    condemned: frozenset[bytes],
    damaged: frozenset[bytes],
) -> Trust:
    if pack not in present:
        return Trust.MISSING
    if standing is Standing.OPEN:
        return Trust.OPEN
    if pack in condemned:
        return Trust.DOOMED if pack in damaged else Trust.CONDEMNED
    return Trust.DAMAGED if pack in damaged else Trust.WELL


def needed_in(holdings: Holdings, needed: Flags, packs: Iterable[bytes]) -> list[bytes]:
    """Those of these packs in which anything is needed."""
    wanted = set(packs)
    return [pack.pack for pack in holdings.packs if pack.pack in wanted and needed[pack.span].any()]
