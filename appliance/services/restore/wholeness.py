"""Whether a restore point can be read whole, as far as that can be told without reading its data.

The rule: what is about to overwrite a machine is first known to be there: every node of the maps opens, and every chunk
lies in a pack that exists and is as long as it should be. Where the index has a doubt, the chunk itself is read.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from imaging.errors import ChunkMissing, Damaged, ObjectMissing, StoreUnavailable
from imaging.packs import pack_name
from imaging.places import Location, PackState
from imaging.scrub_maps import MapWalk

if TYPE_CHECKING:
    from imaging.manifest import DiskEntry, FileEntry
    from imaging.repository import Repository

_UNREADABLE = (Damaged, ChunkMissing, ObjectMissing, StoreUnavailable)


def damaged_parts(repository: Repository, parts: Sequence[DiskEntry | FileEntry]) -> tuple[str, ...]:
    """Names of those disks and files of a point whose data is damaged or missing. StoreError.

    Costs reading the maps, and one look at each pack; the first chunk that is not there ends the search in its disk.
    """
    readable = _Readable(repository)
    walk = MapWalk(repository.blobs.node, readable.all_of)
    return tuple(part.name for part in parts if not walk.is_whole(part))


class _Readable:
    """Remembers each pack that it has looked at. Borrows the repository."""

    def __init__(self, repository: Repository) -> None:
        self._repository = repository
        self._sizes_bytes = {pack: known.size_bytes for pack, known in repository.index.packs().items()}
        self._there: dict[bytes, bool] = {}

    def all_of(self, ids: Sequence[bytes]) -> list[bool]:
        """For each chunk, whether it can be read; nothing is looked for any more once one cannot."""
        found: list[bool] = []
        for identity, places in zip(ids, self._repository.index.locate_many(ids), strict=True):
            missing = bool(found) and not found[-1]
            found.append(not missing and (any(self._is_sound(place) for place in places) or self._reads(identity)))
        return found

    def _is_sound(self, place: Location) -> bool:
        if place.state == PackState.DAMAGED:
            return False
        there = self._there.get(place.pack)
        if there is None:
            there = self._there[place.pack] = self._is_there(place)
        return there

    def _is_there(self, place: Location) -> bool:
        end = self._sizes_bytes.get(place.pack, place.offset_bytes + place.stored_bytes)
        try:
            self._repository.store.get(pack_name(place.pack), end - 1, 1)
        except _UNREADABLE:
            return False
        return True

    def _reads(self, identity: bytes) -> bool:
        """By the reader's own means: the index is brought up to date first, and any place left is tried."""
        try:
            self._repository.blobs.chunk(identity)
        except _UNREADABLE:
            return False
        return True
