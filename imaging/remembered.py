"""Manifests and ends of leases that the store has lost, put back out of what this appliance remembers of them.

Rules: both are created once and never change, so bytes that open under a name are what was there; a manifest comes back
only where its run committed just those bytes, or nothing of its lease is left, as for any that counts; one that was
deleted stays away. What is in the place is set aside first. No collection works meanwhile.
"""

from __future__ import annotations

import contextlib
import re
from typing import Final

from imaging import manifest
from imaging.clock import Clock
from imaging.envelope import ObjectType, hash_of
from imaging.errors import Damaged, ObjectMissing, WrongVersion
from imaging.leases import Leases
from imaging.manifest import ManifestName
from imaging.objects import SealedObjects
from imaging.points import Points

ASIDE: Final = "aside/"
_END: Final = re.compile(r"leases/[0-9a-f]{32}/end")


class Remembered:
    """Borrows everything. What is asked is the store itself."""

    def __init__(self, objects: SealedObjects, clock: Clock) -> None:
        self._objects = objects
        self._plain = objects.uncached()
        self._points = Points(self._plain, Leases(self._plain), clock)

    def lost(self) -> dict[str, bytes]:
        """Names of what is lost and remembered, each with its bytes. StoreError."""
        found: dict[str, bytes] = {}
        for listed in self._plain.store.list("leases/"):
            if _END.fullmatch(listed.name) and self._is_damaged(ObjectType.LEASE, listed.name):
                self._recall(ObjectType.LEASE, listed.name, found)
        for damaged in self._points.survey().damaged:
            missing = isinstance(damaged.error, ObjectMissing)
            if ManifestName.parse(damaged.name) and (missing or self._is_damaged(ObjectType.MANIFEST, damaged.name)):
                self._recall(ObjectType.MANIFEST, damaged.name, found)
        return found

    def put_back(self) -> tuple[str, ...]:
        """Returns the names. StoreError."""
        store = self._plain.store
        found = self.lost()
        for name, data in found.items():
            with contextlib.suppress(ObjectMissing, Damaged):  # there may be nothing that could be set aside
                store.put(ASIDE + name, [store.get(name)])
            store.put(name, [data])
        return tuple(found)

    def _is_damaged(self, kind: ObjectType, name: str) -> bool:
        try:
            self._plain.read(kind, name)
        except Damaged:
            return True
        except (ObjectMissing, WrongVersion):
            return False
        return False

    def _recall(self, kind: ObjectType, name: str, found: dict[str, bytes]) -> None:
        data = self._objects.remembered(kind, name)
        if data is not None and (kind is not ObjectType.MANIFEST or self._was_committed(name, data, found)):
            found[name] = data

    def _was_committed(self, name: str, data: bytes, found: dict[str, bytes]) -> bool:
        made = manifest.decode(self._plain.open(ObjectType.MANIFEST, name, data).body, name)
        end = f"leases/{made.lease}/end"
        leases = Leases(self._objects if end in found else self._plain)  # one that is damaged is remembered, too
        try:
            said = leases.end(made.lease)
        except (Damaged, WrongVersion):
            return False  # verify names it
        if said is None:
            return not any(self._plain.store.list(f"leases/{made.lease}/"))
        return (said.manifest, said.hash) == (name, hash_of(data))
