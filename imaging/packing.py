"""Where a run's new blobs go: deduplicate, compress, seal, pack, put.

Rules: what a run has stored is known to that run at once, and to others only after its commit; the first failure of a
put ends the run; at most a few packs are in memory, whatever the disk's size.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol

from imaging.ids import CHUNK, NODE, blob_id
from imaging.keys import Keys
from imaging.packs import FRAME_BYTES, PACK_ROWS_MAX, PackBuilder, pack_name
from imaging.places import ROW_BYTES, PackRows
from imaging.sealing import Compressor
from imaging.storage.contract import Buffer, Store

PACK_BYTES = 16 << 20
_INDEX_ROWS = 65_536
_UPLOADS = 2
_BLOBS_UNDER_LOCK = 16


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


class PackWriter:
    """Stores chunks and map nodes for one run; thread-safe. A context manager: leaving it waits for its threads.

    Borrows the store and both indexes. `publish` is given the rows of packs that are durable in the store.
    """

    def __init__(self, store: Store, keys: Keys, shared: Known, pending: Pending,
                 publish: Callable[[Sequence[PackRows]], None], *, compression_level: int,
                 pack_bytes: int = PACK_BYTES) -> None:  # fmt: skip
        self._store = store
        self._keys = keys
        self._shared = shared
        self._pending = pending
        self._publish = publish
        self._level = compression_level
        self._pack_bytes = pack_bytes
        self._lock = threading.Lock()
        self._publish_lock = threading.Lock()
        self._open: dict[int, PackBuilder] = {}
        self._open_ids: dict[int, set[bytes]] = {CHUNK: set(), NODE: set()}
        self._done: list[PackRows] = []
        self._uploads = ThreadPoolExecutor(_UPLOADS, thread_name_prefix="pack")
        self._room = threading.BoundedSemaphore(_UPLOADS + 1)
        self._futures: list[Future[None]] = []
        self._failure: BaseException | None = None
        self._local = threading.local()
        self.stored = Stored()

    def __enter__(self) -> PackWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, err: BaseException | None, trace: TracebackType | None
    ) -> None:
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
        """Put what is still open, wait until everything is durable, and publish it. Raises the first failure of a
        put."""
        with self._lock:
            for blob_type in list(self._open):
                self._finish(blob_type)
        for future in self._futures:
            future.result()
        self._check()
        self._publish_done(at_least=1)

    def _store_blobs(self, blob_type: int, blobs: Sequence[tuple[bytes, Buffer]]) -> None:
        self._check()
        fresh = self._unknown(blob_type, dict(blobs))
        compressor = self._compressor()
        batch: list[tuple[bytes, Buffer, int, bool]] = []
        for identity, plain in fresh.items():
            payload, compressed = compressor.compress(plain)
            batch.append((identity, payload, len(plain), compressed))
            if len(batch) == _BLOBS_UNDER_LOCK:
                self._append(blob_type, batch)
                batch = []
        self._append(blob_type, batch)

    def _unknown(self, blob_type: int, blobs: dict[bytes, Buffer]) -> dict[bytes, Buffer]:
        ids = list(blobs)
        shared = self._shared.known(ids)
        with self._lock:
            pending = self._pending.known(ids)
            held = self._open_ids[blob_type]
            return {
                identity: blobs[identity]
                for identity, there, mine in zip(ids, shared, pending, strict=True)
                if not there and not mine and identity not in held
            }

    def _append(self, blob_type: int, batch: list[tuple[bytes, Buffer, int, bool]]) -> None:
        with self._lock:
            held = self._open_ids[blob_type]
            pending = self._pending.known([item[0] for item in batch])
            for (identity, payload, plain_bytes, compressed), mine in zip(batch, pending, strict=True):
                if mine or identity in held:
                    continue  # another thread met the same content meanwhile
                builder = self._open.get(blob_type)
                if builder is not None and builder.is_full_for(payload):
                    self._finish(blob_type)
                    held, builder = self._open_ids[blob_type], None
                if builder is None:
                    builder = self._open[blob_type] = PackBuilder(self._keys, blob_type)
                self.stored.bytes += builder.add(identity, payload, plain_bytes, compressed)
                self.stored.chunks += blob_type == CHUNK
                held.add(identity)
                if builder.size_bytes >= self._pack_bytes or builder.rows >= PACK_ROWS_MAX:
                    self._finish(blob_type)
                    held = self._open_ids[blob_type]

    def _finish(self, blob_type: int) -> None:
        """Close the open pack of a type and hand it to the uploaders. The lock is held; waits while they are behind."""
        try:
            parts, rows = self._open.pop(blob_type).finish()
            self._pending.add(rows)
            self._open_ids[blob_type] = set()
            self.stored.packs += 1
            self.stored.bytes += len(rows.rows) + FRAME_BYTES
            self._room.acquire()
            self._futures = [future for future in self._futures if not future.done() or future.exception()]
            self._futures.append(self._uploads.submit(self._put, parts, rows))
        except BaseException as err:
            # What was in it counts as known by now, and is nowhere: whoever goes on with this writer must not succeed.
            self._failure = self._failure or err
            raise

    def _put(self, parts: list[Buffer], rows: PackRows) -> None:
        try:
            if self._failure is None:
                self._store.put(pack_name(rows.pack), parts)
                with self._publish_lock:
                    self._done.append(rows)
                self._publish_done(at_least=_INDEX_ROWS)
        except BaseException as err:
            self._failure = self._failure or err
            raise
        finally:
            self._room.release()

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
