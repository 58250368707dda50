"""Which blobs can be read, as far as that can be told without reading them all.

Rules: a blob is sound if it lies in a pack that is there, is as long as it should be, and that nothing is known
against; where there is a doubt, the blob itself is read. Each pack is looked at once, so that a folder of packs that is
lost costs one look at each, and not one at each of their chunks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

from imaging.damage import Damage
from imaging.errors import UNREADABLE, ChunkMissing, Damaged, StoreUnavailable
from imaging.packs import pack_name
from imaging.places import Location, PackState
from imaging.scrub_maps import MapWalk

if TYPE_CHECKING:
    from imaging.manifest import DiskEntry, FileEntry
    from imaging.repository import Repository

_DOUBTED: Final = frozenset([PackState.DAMAGED, PackState.GONE])
NOT_TO_RELY_ON: Final = _DOUBTED | {PackState.UNLISTED, PackState.CONDEMNED}
"""What is in these may be read now, and be collected at any time."""


def known_damage(repository: Repository, parts: Sequence[DiskEntry | FileEntry]) -> tuple[Damage, ...]:
    """What is known to be damaged or missing of those disks and files of a point. StoreError.

    Costs reading the maps, one look at each pack, and every chunk of packs that are doubted: damage that nobody has met
    yet is not found.
    """
    repository.refresh_index()
    walk = MapWalk(repository.blobs.node, Soundness(repository).readable)
    found = (walk.damage(part) for part in parts)
    return tuple(damage for damage in found if damage is not None)


class Soundness:
    """Remembers each pack that it has looked at. Borrows the repository, whose index is up to date."""

    def __init__(self, repository: Repository, doubted: frozenset[PackState] = _DOUBTED) -> None:
        """`doubted`: the states of packs that make nothing sound by themselves."""
        self._repository = repository
        self._doubted = doubted
        self._sizes_bytes = {pack: known.size_bytes for pack, known in repository.index.packs().items()}
        self._whole: dict[bytes, bool] = {}
        """Packs, and whether each is there and as long as it should be."""
        self._given_up: set[bytes] = set()
        self._nowhere = False

    def sound(self, ids: Sequence[bytes]) -> list[bool]:
        """For each id of a chunk or node, whether it lies in a pack that nothing is known against."""
        return [any(map(self._is_sound, places)) for places in self._repository.index.locate_many(ids)]

    def readable(self, ids: Sequence[bytes]) -> list[bool]:
        """For each id of a chunk, whether it is sound, or opens where it lies."""
        return [sound or self._opens(identity) for identity, sound in zip(ids, self.sound(ids), strict=True)]

    def _is_sound(self, place: Location) -> bool:
        if place.state in self._doubted:
            return False
        whole = self._whole.get(place.pack)
        if whole is None:
            whole = self._whole[place.pack] = self._look_for(place)
        return whole

    def _look_for(self, place: Location) -> bool:
        end = self._sizes_bytes.get(place.pack, place.offset_bytes + place.stored_bytes)
        try:
            self._repository.store.get(pack_name(place.pack), end - 1, 1)
        except Damaged as error:
            self._repository.found_damaged(place.pack, error)
            return False
        except UNREADABLE:
            return False
        return True

    def _opens(self, identity: bytes) -> bool:
        try:
            self.read(identity, self._repository.blobs.chunk)
        except UNREADABLE:
            return False
        return True

    def read(self, identity: bytes, fetch: Callable[[bytes], bytes]) -> bytes:
        """A blob that is not sound, by the reader's own means: the index is brought up to date first, and any place
        left is tried; but not again and again where packs are gone. Raises as BlobReader does."""
        places = self._repository.index.locate_many([identity])[0]
        if self._given_up.issuperset(place.pack for place in places) and (places or self._nowhere):
            raise ChunkMissing(identity)
        try:
            return fetch(identity)
        except UNREADABLE:
            self._given_up.update(place.pack for place in places if not self._is_left(place.pack))
            self._nowhere = self._nowhere or not places
            raise

    def _is_left(self, pack: bytes) -> bool:
        try:
            return self._repository.store.exists(pack_name(pack))
        except StoreUnavailable:
            return True
