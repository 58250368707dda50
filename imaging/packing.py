"""Where a run's new blobs go: deduplicate, compress, seal, pack, put.

Rules: what a run has stored is known to that run at once, and to others only after its commit; the first failure ends
the run, as what was claimed then is nowhere; at most a few packs are in memory, whatever the disk's size. Once there is
a packful, each thread has a pack of its own, so that nobody waits while another seals, and what lies together on the
disk lies together in the pack; before that all share one, so that a small run stores one small pack and not several.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Protocol

from imaging.ids import CHUNK, NODE, blob_id
from imaging.keys import Keys
from imaging.packs import FRAME_BYTES, PACK_ROWS_MAX, PackBuilder, iter_rows, new_room, pack_name
from imaging.places import ROW_BYTES, PackRows
from imaging.sealing import Compressor
from imaging.storage.contract import Buffer, Store
from imaging.storage.pace import NEAR

PACK_BYTES = 16 << 20
_INDEX_ROWS = 65_536
_BLOBS_A_BATCH = 16


class Known(Protocol):
    """What deduplication may rely on."""

    def known(self, ids: Sequence[bytes]) -> list[bool]:
        """For each id, whether a live pack holds it."""


class Pending(Known, Protocol):
    """What this run has stored itself."""

    def add(self, rows: PackRows) -> None:
        """Remember the blobs of a pack."""


@dataclass(slots=True)
class Stored:
    """What a writer has stored so far."""

    chunks: int = 0
    bytes: int = 0
    packs: int = 0


@dataclass(slots=True)
class _Open:
    """A place for one pack that is being filled; whoever holds the lock fills it."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    builder: PackBuilder | None = None


class PackWriter:
    """Stores chunks and map nodes for one run; thread-safe. A context manager: leaving it waits for its threads.

    Borrows the store and both indexes. `publish` is given the rows of packs that are durable in the store.
    """

    def __init__(self, store: Store, keys: Keys, shared: Known, pending: Pending,
                 publish: Callable[[Sequence[PackRows]], None], *, compression_level: int,
                 pack_bytes: int = PACK_BYTES, uploads: int = NEAR.puts) -> None:  # fmt: skip
        """`uploads`: so many packs are put at a time."""
        self._store = store
        self._keys = keys
        self._shared = shared
        self._pending = pending
        self._publish = publish
        self._level = compression_level
        self._pack_bytes = pack_bytes
        self._lock = threading.Lock()
        self._publish_lock = threading.Lock()
        self._open: dict[tuple[int, int], _Open] = {}
        self._claimed: set[bytes] = set()
        """Ids of blobs that some thread is about to store, or has put into a pack that is still open."""
        self._packs = {CHUNK: 0, NODE: 0}
        self._rooms: list[memoryview] = []
        """Memory of packs that are stored, to be used again: fresh memory costs a page fault for every page."""
        self._done: list[PackRows] = []
        self._uploads = ThreadPoolExecutor(uploads, thread_name_prefix="pack")
        self._upload_slots = threading.BoundedSemaphore(uploads + 1)
        self._futures: list[Future[None]] = []
        self._failure: BaseException | None = None
        self._local = threading.local()
        self.stored = Stored()

    def __enter__(self) -> PackWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, err: BaseException | None, trace: TracebackType | None
    ) -> None:
        if err is not None:
            self._failure = self._failure or err  # what is under way is wanted by nobody
        self._uploads.shutdown(wait=True, cancel_futures=True)

    def store_chunks(self, chunks: Sequence[tuple[bytes, Buffer]]) -> None:
        """Store what is not there yet. An item is a chunk's id and its plaintext, free again after the call."""
        self._store_blobs(CHUNK, chunks)

    def store_node(self, plain: bytes) -> bytes:
        """Store a map node unless it is there; returns its id."""
        identity = blob_id(self._keys, NODE, plain)
        self._store_blobs(NODE, [(identity, plain)])
        return identity

    def flush(self) -> None:
        """Put what is still open, wait until everything is durable, and publish it. Raises the first failure of a put.
        No other thread may be storing."""
        try:
            for (blob_type, _), place in self._open.items():
                with place.lock:
                    self._finish(blob_type, place)
        except BaseException as err:
            self._failure = self._failure or err  # what was in that pack is nowhere
            raise
        for future in self._futures:
            future.result()
        self._check()
        self._publish_done(at_least=1)

    def _store_blobs(self, blob_type: int, blobs: Sequence[tuple[bytes, Buffer]]) -> None:
        self._check()
        fresh = self._claim(dict(blobs))
        try:
            compressor = self._compressor()
            batch: list[tuple[bytes, Buffer, int, bool]] = []
            for identity, plain in fresh.items():
                payload, compressed = compressor.compress(plain)
                batch.append((identity, payload, len(plain), compressed))
                if len(batch) == _BLOBS_A_BATCH:
                    self._append(blob_type, batch)
                    batch = []
            self._append(blob_type, batch)
        except BaseException as err:
            # What was claimed counts as known by now, and is nowhere: nobody who goes on with this writer may succeed.
            self._failure = self._failure or err
            raise

    def _claim(self, blobs: dict[bytes, Buffer]) -> dict[bytes, Buffer]:
        """Those that nobody has stored or is storing; they are this caller's to store."""
        ids = list(blobs)
        shared = self._shared.known(ids)
        with self._lock:
            pending = self._pending.known(ids)
            fresh = {
                identity: blobs[identity]
                for identity, there, mine in zip(ids, shared, pending, strict=True)
                if not there and not mine and identity not in self._claimed
            }
            self._claimed.update(fresh)
        return fresh

    def _append(self, blob_type: int, batch: list[tuple[bytes, Buffer, int, bool]]) -> None:
        if not batch:
            return
        stored_bytes = 0
        with self._filling(blob_type) as place:
            for identity, payload, plain_bytes, compressed in batch:
                if place.builder is not None and place.builder.is_full_for(payload):
                    self._finish(blob_type, place)
                if place.builder is None:
                    place.builder = PackBuilder(self._keys, blob_type, self._lend())
                stored_bytes += place.builder.add(identity, payload, plain_bytes, compressed)
                if place.builder.size_bytes >= self._pack_bytes or place.builder.rows >= PACK_ROWS_MAX:
                    self._finish(blob_type, place)
        with self._lock:
            self.stored.bytes += stored_bytes
            self.stored.chunks += len(batch) if blob_type == CHUNK else 0

    @contextmanager
    def _filling(self, blob_type: int) -> Iterator[_Open]:
        """The open pack that this thread adds to: all threads' until there is a first packful, then its own."""
        while True:
            place = self._place(blob_type)
            with place.lock:
                if place is self._place(blob_type):  # else the first pack was finished while we waited for it
                    yield place
                    return

    def _place(self, blob_type: int) -> _Open:
        with self._lock:
            owner = threading.get_ident() if self._packs[blob_type] else 0
            return self._open.setdefault((blob_type, owner), _Open())

    def _finish(self, blob_type: int, place: _Open) -> None:
        """Close an open pack and hand it to the uploaders. Its lock is held; waits while they are behind."""
        if place.builder is None:
            return
        room = place.builder.room
        pack, rows = place.builder.finish()
        place.builder = None
        with self._lock:
            self._pending.add(rows)
            self._claimed.difference_update(identity for identity, _ in iter_rows(rows.rows))
            self._packs[blob_type] += 1
            self.stored.packs += 1
            self.stored.bytes += len(rows.rows) + FRAME_BYTES
        self._upload_slots.acquire()
        future = self._uploads.submit(self._put, room, pack, rows)
        with self._lock:
            self._futures = [each for each in self._futures if not each.done() or each.exception()]
            self._futures.append(future)

    def _lend(self) -> memoryview:
        with self._lock:
            return self._rooms.pop() if self._rooms else new_room()

    def _put(self, room: memoryview, pack: memoryview, rows: PackRows) -> None:
        try:
            if self._failure is None:
                self._store.put(pack_name(rows.pack), [pack])
                with self._lock:
                    self._rooms.append(room)
                with self._publish_lock:
                    self._done.append(rows)
                self._publish_done(at_least=_INDEX_ROWS)
        except BaseException as err:
            self._failure = self._failure or err
            raise
        finally:
            self._upload_slots.release()

    def _publish_done(self, at_least: int) -> None:
        with self._publish_lock:
            if sum(len(rows.rows) for rows in self._done) >= at_least * ROW_BYTES:
                self._publish(self._done)
                self._done = []

    def _check(self) -> None:
        if self._failure is not None:
            raise self._failure.with_traceback(None)  # every thread raises it: tracebacks would pile up

    def _compressor(self) -> Compressor:
        found: Compressor | None = getattr(self._local, "compressor", None)
        if found is None:
            found = self._local.compressor = Compressor(self._level)
        return found
