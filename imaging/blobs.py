"""Read blobs by id: wherever the index says, until one place gives the right bytes.

Rules: a blob is returned authenticated and with its id checked, or an error names it; nothing is ever made up. A
place that fails twice, the second time although the index is fresh, is reported, so that nothing more comes to rely on
it; one that was taken for gone and serves is reported too. What a cache gives is tried once: nothing is said of a pack
but by what the store itself gave.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol, TypeAlias, cast

from imaging.errors import ChunkMissing, Damaged, ImagingError, ObjectMissing, StoreUnavailable
from imaging.ids import CHUNK, NODE
from imaging.keys import Keys
from imaging.packs import pack_name
from imaging.places import Location, PackState
from imaging.reader import NO_ROOMS, Rooms, check_length
from imaging.sealing import Sealer, open_blob, open_blob_into
from imaging.storage.contract import Buffer, Store
from imaging.storage.pace import NEAR, Pace

LocateMany = Callable[[Sequence[bytes]], list[list[Location]]]
Lost = Callable[[bytes, Location, ImagingError], None]
Back = Callable[[Location], None]
Found = dict[bytes, bytes | memoryview]

_ELSEWHERE = (ObjectMissing, Damaged, StoreUnavailable)  # what another place may still make good
_RUN_BYTES = 4 << 20
_Run: TypeAlias = "list[tuple[bytes, Location]]"
"""Blobs that lie near each other in one pack, in the order of offsets."""


class Cache(Protocol):
    """The same store, as far as it is read, with what was read kept near: `imaging.storage.caching.CachedReads`."""

    def get(self, name: str, offset_bytes: int, length_bytes: int) -> bytes:
        """See Store."""

    def forget(self, name: str, offset_bytes: int, length_bytes: int) -> None:
        """What it gave of this range cannot be opened."""


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
        *,
        pace: Pace = NEAR,
        cache: Cache | None = None,
    ) -> None:
        """`refresh` brings the index up to date: a pack may have been moved by a collection since it was read. `lost`
        is told of each id and place that fails even then, `back` of a place that was taken for gone and is not. Borrows
        `cache` as well."""
        self._store = store
        self._keys = keys
        self._locate = locate
        self._refresh = refresh
        self._lost = lost
        self._back = back
        self._pace = pace
        self._cache = cache
        self._lock = threading.Lock()
        self._pool: ThreadPoolExecutor | None = None

    def close(self) -> None:
        """Ends its threads. Nobody may be reading."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)

    def chunk(self, identity: bytes) -> bytes:
        """One chunk's plaintext. Raises Damaged, ChunkMissing, StoreError."""
        return bytes(self.chunks([identity])[0])

    def chunks(self, identities: Sequence[bytes], rooms: Rooms = NO_ROOMS) -> list[bytes | memoryview]:
        """Several chunks' plaintexts, in order; what lies together in a pack is read together. Those that have a room
        of their length are there; where there are rooms, nothing goes through the cache."""
        return self._many(CHUNK, identities, rooms)

    def chunks_into(self, wanted: Sequence[tuple[bytes, memoryview]]) -> None:
        """Fill memory with chunks' plaintexts, each of which must be as long as its memory. Raises as chunks() does;
        the memory then holds anything. For whoever reads all of a disk once: nothing of it goes through the cache."""
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

    def _many(self, blob_type: int, identities: Sequence[bytes], rooms: Rooms = NO_ROOMS) -> list[bytes | memoryview]:
        """Plaintexts, in order; one that has a room of its length is there."""
        found: Found = {}
        wanted = list(dict.fromkeys(identities))
        located = dict(zip(wanted, self._locate(wanted), strict=True))
        first = [(identity, places[0]) for identity, places in located.items() if places]
        cache = self._cache if not rooms else None
        for run, data in self._fetched(_runs(first, self._pace.gap_bytes), cache):
            self._open_run(blob_type, run, data, rooms, found, cache)
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

    def _fetched(self, runs: list[_Run], cache: Cache | None) -> Iterator[tuple[_Run, bytes]]:
        """Each stretch with its bytes, in order; several are fetched at a time where that is worth it. What cannot be
        had is left to `_try`, which reports it."""
        if self._pace.gets == 1 or len(runs) < 2:
            for run in runs:
                data = self._fetch(run, cache)
                if data is not None:
                    yield run, data
            return
        futures = [(run, self._threads().submit(self._fetch, run, cache)) for run in runs]
        try:
            for run, future in futures:
                data = future.result()
                if data is not None:
                    yield run, data
        finally:
            for _, future in futures:
                future.cancel()

    def _threads(self) -> ThreadPoolExecutor:
        with self._lock:
            if self._pool is None:
                self._pool = ThreadPoolExecutor(self._pace.gets, thread_name_prefix="fetch")
            return self._pool

    def _fetch(self, run: _Run, cache: Cache | None) -> bytes | None:
        """One stretch of a pack. What a cache has of a pack that may be gone or damaged tells nothing."""
        start, stop = _bounds(run)
        reliable = run[0][1].state is PackState.LIVE
        try:
            return (cache if cache and reliable else self._store).get(pack_name(run[0][1].pack), start, stop - start)
        except _ELSEWHERE:
            return None

    def _open_run(self, blob_type: int, run: _Run, data: bytes, rooms: Rooms, found: Found,
                  cache: Cache | None) -> None:  # fmt: skip
        """What does not open is left to `_try`."""
        start, _ = _bounds(run)
        sealer = Sealer(self._keys, blob_type, run[0][1].salt)
        view = memoryview(data)
        if run[0][1].state is PackState.GONE:
            self._back(run[0][1])
        for identity, place in run:
            at = place.offset_bytes - start
            sealed = view[at : at + place.stored_bytes]
            try:
                found[identity] = self._open(sealer, blob_type, identity, sealed, place, rooms)
            except Damaged:
                if cache is not None:
                    cache.forget(pack_name(place.pack), place.offset_bytes, place.stored_bytes)

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


def _bounds(run: _Run) -> tuple[int, int]:
    return run[0][1].offset_bytes, run[-1][1].offset_bytes + run[-1][1].stored_bytes


def _runs(places: list[tuple[bytes, Location]], gap_bytes: int) -> list[_Run]:
    """Group blobs that lie near each other in one pack, in the order of offsets."""
    grouped: list[_Run] = []
    end = 0
    for identity, place in sorted(places, key=lambda item: (item[1].pack, item[1].offset_bytes)):
        last = grouped[-1] if grouped else None
        if (
            last is not None
            and last[0][1].pack == place.pack
            and place.offset_bytes - end <= gap_bytes
            and place.offset_bytes + place.stored_bytes - last[0][1].offset_bytes <= _RUN_BYTES
        ):
            last.append((identity, place))
        else:
            grouped.append([(identity, place)])
        end = place.offset_bytes + place.stored_bytes
    return grouped
