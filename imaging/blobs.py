"""Read blobs by id: wherever the index says, until one place gives the right bytes.

Rules: a blob is returned authenticated and with its id checked, or an error names it; nothing is ever made up. A
place that fails twice, the second time although the index is fresh, is reported, so that nothing more comes to rely on
it; one that was taken for gone and serves is reported too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import cast

from imaging.errors import ChunkMissing, Damaged, ImagingError, ObjectMissing, StoreUnavailable
from imaging.ids import CHUNK, NODE
from imaging.keys import Keys
from imaging.packs import pack_name
from imaging.places import Location, PackState
from imaging.reader import check_length
from imaging.sealing import Sealer, open_blob, open_blob_into
from imaging.storage.contract import Buffer, Store

LocateMany = Callable[[Sequence[bytes]], list[list[Location]]]
Lost = Callable[[bytes, Location, ImagingError], None]
Back = Callable[[Location], None]
Found = dict[bytes, bytes | memoryview]
Rooms = Mapping[bytes, memoryview]

_NO_ROOMS: Rooms = MappingProxyType({})
_ELSEWHERE = (ObjectMissing, Damaged, StoreUnavailable)  # what another place may still make good
_GAP_BYTES = 64 << 10  # reading over a gap this wide costs less than a request of its own
_RUN_BYTES = 4 << 20


class BlobReader:
    """Reads chunks and map nodes. Thread-safe if `locate` is. Borrows the store."""

    def __init__(
        self,
        store: Store,
        keys: Keys,
        locate: LocateMany,
        refresh: Callable[[], None],
        lost: Lost = lambda identity, place, error: None,
        back: Back = lambda place: None,
    ) -> None:
        """`refresh` brings the index up to date: a pack may have been moved by a collection since it was read. `lost`
        is told of each id and place that fails even then, `back` of a place that was taken for gone and is not."""
        self._store = store
        self._keys = keys
        self._locate = locate
        self._refresh = refresh
        self._lost = lost
        self._back = back

    def chunk(self, identity: bytes) -> bytes:
        """One chunk's plaintext. Raises Damaged, ChunkMissing, StoreError."""
        return self.chunks([identity])[0]

    def chunks(self, identities: Sequence[bytes]) -> list[bytes]:
        """Several chunks' plaintexts, in order; what lies together in a pack is read together."""
        return cast(list[bytes], self._many(CHUNK, identities))

    def chunks_into(self, wanted: Sequence[tuple[bytes, memoryview]]) -> None:
        """Fill memory with chunks' plaintexts, each of which must be as long as its memory. Raises as chunks() does;
        the memory then holds anything."""
        rooms: dict[bytes, memoryview] = {}
        for identity, room in wanted:
            rooms.setdefault(identity, room)
        plains = dict(zip(rooms, self._many(CHUNK, list(rooms), rooms), strict=True))
        for identity, room in wanted:
            plain = plains[identity]
            check_length(identity, plain, len(room))
            if plain is not room:
                room[:] = plain

    def node(self, identity: bytes) -> bytes:
        """One map node's plaintext. Raises Damaged, ChunkMissing, StoreError."""
        return self.nodes([identity])[0]

    def nodes(self, identities: Sequence[bytes]) -> list[bytes]:
        """Several nodes' plaintexts, as chunks() for chunks."""
        return cast(list[bytes], self._many(NODE, identities))

    def _many(self, blob_type: int, identities: Sequence[bytes], rooms: Rooms = _NO_ROOMS) -> list[bytes | memoryview]:
        """Plaintexts, in order; one that has a room of its length is there."""
        found: Found = {}
        wanted = list(dict.fromkeys(identities))
        located = dict(zip(wanted, self._locate(wanted), strict=True))
        for run in _runs([(identity, places[0]) for identity, places in located.items() if places]):
            self._read_run(blob_type, run, rooms, found)
        missing = [identity for identity in wanted if identity not in found]
        failures: dict[bytes, ImagingError] = {}
        for identity in missing:
            self._try(blob_type, identity, located[identity][1:], rooms, found, failures)
        missing = [identity for identity in missing if identity not in found]
        if missing:
            self._refresh()
            for identity, places in zip(missing, self._locate(missing), strict=True):
                self._try(blob_type, identity, places, rooms, found, failures, self._lost)
                if identity not in found:
                    raise failures.get(identity) or ChunkMissing(identity)
        return [found[identity] for identity in identities]

    def _read_run(self, blob_type: int, run: list[tuple[bytes, Location]], rooms: Rooms,
                  found: Found) -> None:  # fmt: skip
        """Read one stretch of a pack; what cannot be had is left to `_try`, which reports it."""
        start = run[0][1].offset_bytes
        stop = run[-1][1].offset_bytes + run[-1][1].stored_bytes
        sealer = Sealer(self._keys, blob_type, run[0][1].salt)
        try:
            data = memoryview(self._store.get(pack_name(run[0][1].pack), start, stop - start))
        except _ELSEWHERE:
            return
        if run[0][1].state is PackState.GONE:
            self._back(run[0][1])
        for identity, place in run:
            at = place.offset_bytes - start
            sealed = data[at : at + place.stored_bytes]
            try:
                found[identity] = self._open(sealer, blob_type, identity, sealed, place, rooms)
            except Damaged:
                continue

    def _try(
        self,
        blob_type: int,
        identity: bytes,
        places: Sequence[Location],
        rooms: Rooms,
        found: Found,
        failures: dict[bytes, ImagingError],
        lost: Lost = lambda identity, place, error: None,
    ) -> None:
        """Read from the first place that gives the right bytes; the last failure is kept."""
        for place in places:
            try:
                sealed = self._store.get(pack_name(place.pack), place.offset_bytes, place.stored_bytes)
                if place.state is PackState.GONE:
                    self._back(place)
                sealer = Sealer(self._keys, blob_type, place.salt)
                found[identity] = self._open(sealer, blob_type, identity, sealed, place, rooms)
            except _ELSEWHERE as err:
                failures[identity] = err
                lost(identity, place, err)
            else:
                return

    def _open(self, sealer: Sealer, blob_type: int, identity: bytes, sealed: Buffer, place: Location,
              rooms: Rooms) -> bytes | memoryview:  # fmt: skip
        room = rooms.get(identity)
        if room is None or len(room) != place.plain_bytes:
            return open_blob(self._keys, sealer, blob_type, identity, sealed, place.plain_bytes, place.compressed)
        open_blob_into(room, self._keys, sealer, blob_type, identity, sealed, place.compressed)
        return room


def _runs(places: list[tuple[bytes, Location]]) -> list[list[tuple[bytes, Location]]]:
    """Group blobs that lie near each other in one pack, in the order of offsets."""
    grouped: list[list[tuple[bytes, Location]]] = []
    end = 0
    for identity, place in sorted(places, key=lambda item: (item[1].pack, item[1].offset_bytes)):
        last = grouped[-1] if grouped else None
        if (
            last is not None
            and last[0][1].pack == place.pack
            and place.offset_bytes - end <= _GAP_BYTES
            and place.offset_bytes + place.stored_bytes - last[0][1].offset_bytes <= _RUN_BYTES
        ):
            last.append((identity, place))
        else:
            grouped.append([(identity, place)])
        end = place.offset_bytes + place.stored_bytes
    return grouped
