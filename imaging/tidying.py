"""Removing what deleted restore points and failed runs left, but for their data: manifests, tombstones, leases.

Rules: a manifest goes only while its tombstone is there, and never one that a hold or an open lease needs; the end of
its lease goes before it, its tombstone last. What a void lease wrote goes, and the end that makes it void stays if its
run may still be alive somewhere: a run that was fenced must find itself fenced whenever it wakes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from imaging.errors import ObjectMissing
from imaging.index_objects import is_index_object
from imaging.leases import LeaseListing, Leases, lease_object
from imaging.manifest import ManifestName, tombstone_name
from imaging.objects import SealedObjects
from imaging.points import Points
from imaging.storage.contract import Store

_TOMBSTONES = "tombstones/"


@dataclass(frozen=True, slots=True)
class Tidied:
    """How many deleted points, and how many objects of void leases, were removed."""

    points: int
    void_objects: int


class Tidying:
    """Borrows everything. One collection's; between its first mark and its last deletion nothing of this may run."""

    def __init__(self, objects: SealedObjects, leases: Leases, points: Points) -> None:
        self._store: Store = objects.store
        self._leases = leases
        self._points = points

    def deletable(self) -> list[str]:
        """Names of manifests with a tombstone that nothing pins. Damaged when a hold or an open lease cannot be read:
        what it needs is not known."""
        buried = [name for name in self._buried() if ManifestName.parse(name) is not None]
        # After the tombstones: a run that passed the check of its parent before is visible by now.
        pinned = {hold.manifest for hold in self._points.holds()} | set(self._parents())
        return [name for name in buried if name not in pinned]

    def _buried(self) -> list[str]:
        return ["manifests/" + listed.name.removeprefix(_TOMBSTONES) for listed in self._store.list(_TOMBSTONES)]

    def _parents(self) -> Iterator[str]:
        for lease in self._leases.list().unended():
            if not self._leases.is_open(lease):
                continue
            try:
                parent = self._leases.start(lease).parent
            except ObjectMissing:
                continue  # it ended and was tidied since
            if parent is not None:
                yield parent

    def remove(self, manifests: list[str]) -> Tidied:
        """Deleted points, and what void leases wrote."""
        listing = self._leases.list()
        by_manifest = self._ends(listing)
        for name in manifests:
            self._remove_point(name, by_manifest.get(name))
        return Tidied(len(manifests), self._remove_void(listing))

    def _ends(self, listing: LeaseListing) -> dict[str, str]:
        """Manifest → the lease that committed it."""
        found: dict[str, str] = {}
        for lease, parts in listing.parts.items():
            end = self._leases.end(lease) if "end" in parts else None
            if end is not None and end.manifest is not None:
                found[end.manifest] = lease
        return found

    def _remove_point(self, name: str, lease: str | None) -> None:
        tombstone = tombstone_name(name)
        if not self._points.is_buried(name):
            return  # the deletion was taken back
        if lease is not None:
            self._leases.tidy(lease)
            self.delete(lease_object(lease, "end"))
        self.delete(name)
        self.delete(tombstone)

    def _remove_void(self, listing: LeaseListing) -> int:
        """Index objects and manifests of leases that ended without a point; of abandoned ones, the leases too."""
        void: dict[str, str] = {}
        for lease, parts in listing.parts.items():
            end = self._leases.end(lease) if "end" in parts else None
            if end is not None and not end.standing.counts:
                void[lease] = end.outcome
        removed = 0
        for listed in list(self._store.list("index/")):
            removed += is_index_object(listed.name) and listed.name[6:38] in void and self.delete(listed.name)
        for name, lease in self._points.inert(set(void)):
            if lease in void:
                removed += self.delete(name)
        for lease, outcome in void.items():
            self._leases.tidy(lease)
            if outcome == "abandoned":
                self.delete(lease_object(lease, "end"))
        return removed

    def delete(self, name: str) -> bool:
        """Whether it was there."""
        try:
            self._store.delete(name)
        except ObjectMissing:
            return False
        return True
