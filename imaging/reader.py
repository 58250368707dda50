"""Random access to one disk of a restore point.

Rules: what is returned was authenticated; what cannot be read is an error, never zeros; memory is bounded; two
threads that want the same chunk fetch it once. Where the repository is far away, what comes next of a disk that is read
in order is fetched before it is asked for.
"""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from types import MappingProxyType
from typing import Final, Protocol, TypeAlias

from imaging.diskmap import Leaf, children, node_span, read_leaf, root_level
from imaging.errors import Damaged
from imaging.extents import PAGE_BYTES, REGION_BYTES, Extent
from imaging.read_ahead import ReadAhead
from imaging.recent import Recent

_LEAVES = 512  # about 50 KB each when parsed; random reads within 8 GiB then parse none twice
_INNER = 64
_DIRECT_BYTES = 512 << 10
"""Who reads so much at once goes through a disk in order, and wants none of it twice."""
Plain: TypeAlias = "bytes | memoryview"
Rooms: TypeAlias = "Mapping[bytes, memoryview]"
"""Where plaintexts of chunks shall be put, by id."""
NO_ROOMS: Final[Rooms] = MappingProxyType({})
_Batch: TypeAlias = "Future[dict[bytes, bytes]]"
"""What one thread is loading in one go; by id."""


class Blobs(Protocol):
    """Where chunks and map nodes come from."""

    def chunks(self, identities: Sequence[bytes], rooms: Rooms = NO_ROOMS) -> Sequence[bytes | memoryview]:
        """Plaintexts, in order; those that have a room of their length are there."""

    def node(self, identity: bytes) -> bytes:
        """One node's plaintext."""


def check_length(identity: bytes, plain: bytes | memoryview, length: int) -> None:
    """A chunk must be as long as the record that names it: whoever has the keys could state another. Raises Damaged."""
    if len(plain) != length:
        raise Damaged(f"chunk {identity.hex()}", f"it has {len(plain)} bytes where the disk map says {length}")


class DiskReader:
    """Reads a disk map as a disk of `size_bytes`. Thread-safe. Borrows `blobs`."""

    def __init__(self, blobs: Blobs, root: bytes | None, size_bytes: int, *, cache_bytes: int = 64 << 20,
                 ahead_bytes: int = 0) -> None:  # fmt: skip
        self._blobs = blobs
        self._root = root
        self.size_bytes = size_bytes
        self._lock = threading.Lock()
        self._leaves: Recent[int, tuple[list[int], Leaf]] = Recent(_LEAVES, lambda _: 1)
        self._inner: Recent[bytes, dict[int, bytes]] = Recent(_INNER, lambda _: 1)
        self._chunks: Recent[bytes, bytes] = Recent(cache_bytes, len)
        self._loading: dict[bytes, _Batch] = {}
        self._ahead = ReadAhead(self._prefetch, size_bytes, min(ahead_bytes, cache_bytes // 4))

    def pread(self, offset: int, length: int) -> bytes:
        """Exactly `length` bytes. Raises ValueError out of range, Damaged, ChunkMissing, StoreError."""
        buffer = bytearray(length)
        self.read_into(offset, memoryview(buffer))
        return bytes(buffer)

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill the buffer, which need not be zero before. Raises as pread does."""
        if offset < 0 or offset + len(buffer) > self.size_bytes:
            raise ValueError(f"{len(buffer)} bytes at {offset} lie outside a disk of {self.size_bytes} bytes")
        self._ahead.note(offset, len(buffer))
        wanted: list[tuple[int, int, int, int, bytes]] = []
        rooms: dict[bytes, memoryview] = {}
        room_at: dict[bytes, int] = {}
        direct = len(buffer) >= _DIRECT_BYTES and not self._ahead.is_on
        for start, stop, identity in self._records(offset, offset + len(buffer)):
            a, b = max(start, offset), min(stop, offset + len(buffer))
            if identity is None:
                buffer[a - offset : b - offset] = bytes(b - a)
                continue
            wanted.append((a, b, start, stop, identity))
            if direct and (a, b) == (start, stop) and identity not in rooms:
                rooms[identity], room_at[identity] = buffer[a - offset : b - offset], a
        plains = self._fetch([identity for *_, identity in wanted], rooms)
        for (a, b, start, stop, identity), plain in zip(wanted, plains, strict=True):
            check_length(identity, plain, stop - start)
            if plain is rooms.get(identity) and a == room_at[identity]:
                continue
            buffer[a - offset : b - offset] = memoryview(plain)[a - start : b - start]

    def close(self) -> None:
        """Waits for what is being fetched ahead."""
        self._ahead.close()

    def _prefetch(self, start: int, stop: int) -> None:
        self._fetch([identity for _, _, identity in self._records(start, stop) if identity is not None])

    def extents(self, offset: int, length: int) -> list[Extent]:
        """What of a range is a hole and what is data, merged; reads map nodes, no chunk."""
        found: list[Extent] = []
        for start, stop, identity in self._records(offset, min(offset + length, self.size_bytes)):
            a, b = max(start, offset), min(stop, offset + length, self.size_bytes)
            zero = identity is None
            if found and found[-1].zero == zero:
                found[-1] = Extent(found[-1].start, found[-1].length + b - a, zero)
            else:
                found.append(Extent(a, b - a, zero))
        return found

    def _records(self, start: int, stop: int) -> list[tuple[int, int, bytes | None]]:
        """(first byte, end, chunk id or None for a hole) of all that overlaps [start, stop)."""
        found: list[tuple[int, int, bytes | None]] = []
        region = start // REGION_BYTES
        while region * REGION_BYTES < stop:
            base = region * REGION_BYTES
            parsed = self._leaf(region)
            if parsed is None:
                step = self._hole_regions(region, -(-stop // REGION_BYTES))
                found.append((base, min((region + step) * REGION_BYTES, self.size_bytes), None))
                region += step
                continue
            starts, leaf = parsed
            number = bisect_right(starts, max(0, start - base) // PAGE_BYTES) - 1
            while number < len(starts) and base + starts[number] * PAGE_BYTES < stop:
                record = leaf.records[number]
                end = min(base + record.stop * PAGE_BYTES, self.size_bytes)
                found.append((base + record.start * PAGE_BYTES, end, leaf.ids[number]))
                number += 1
            region += 1
        return found

    def _leaf(self, region: int) -> tuple[list[int], Leaf] | None:
        """A region's leaf with its records' first pages, or None where the region is one hole."""
        with self._lock:
            parsed = self._leaves.get(region)
        if parsed is not None:
            return parsed
        identity = self._leaf_id(region)
        if identity is None:
            return None
        leaf = read_leaf(identity, self.size_bytes, region, self._blobs.node)
        parsed = ([record.start for record in leaf.records], leaf)
        with self._lock:
            self._leaves.put(region, parsed)
        return parsed

    def _leaf_id(self, region: int) -> bytes | None:
        identity, first = self._root, 0
        for level in range(root_level(self.size_bytes), 0, -1):
            if identity is None:
                return None
            slot = (region - first) // node_span(level - 1)
            identity = self._slots(identity, level, first).get(slot)
            first += slot * node_span(level - 1)
        return identity

    def _hole_regions(self, region: int, stop: int) -> int:
        """How many regions from `region` on, all holes, up to `stop`: whole empty subtrees are passed at once."""
        count = 1
        while region + count < stop:
            span = self._empty_span(region + count)
            if span == 0:
                break
            count += span
        return min(count, stop - region)

    def _empty_span(self, region: int) -> int:
        """Regions of the largest empty subtree that begins at `region`; 0 if the region has data."""
        identity, first = self._root, 0
        for level in range(root_level(self.size_bytes), -1, -1):
            span = node_span(level)
            if identity is None:
                return span - (region - first)
            if level:
                slot = (region - first) // node_span(level - 1)
                identity = self._slots(identity, level, first).get(slot)
                first += slot * node_span(level - 1)
        return 0

    def _slots(self, identity: bytes, level: int, first: int) -> dict[int, bytes]:
        with self._lock:
            slots = self._inner.get(identity)
        if slots is None:
            slots = dict(children(identity, level, first, self.size_bytes, self._blobs.node))
            with self._lock:
                self._inner.put(identity, slots)
        return slots

    def _fetch(self, identities: Sequence[bytes], rooms: Rooms = NO_ROOMS) -> list[Plain]:
        """Chunks from the cache, from threads that are fetching them, or from the repository: to their rooms, past the
        cache, where they have one."""
        plains: dict[bytes, Plain] = {}
        mine: dict[bytes, None] = {}
        direct: dict[bytes, None] = {}
        others: dict[bytes, _Batch] = {}
        batch: _Batch = Future()
        with self._lock:
            for identity in identities:
                cached = self._chunks.get(identity)
                if cached is not None:
                    plains[identity] = cached
                elif identity in mine:
                    continue
                elif identity in self._loading:
                    others[identity] = self._loading[identity]
                elif identity in rooms:
                    direct[identity] = None
                else:
                    mine[identity] = None
                    self._loading[identity] = batch
        if mine or direct:
            plains.update(self._load(list(mine), list(direct), rooms, batch))
        for identity, other in others.items():
            # The other thread may have failed over another chunk that it wanted at the same time: this one is asked
            # for again, and fails on its own account or not at all.
            failed = other.exception() is not None
            plains[identity] = self._fetch([identity])[0] if failed else other.result()[identity]
        return [plains[identity] for identity in identities]

    def _load(self, mine: list[bytes], direct: list[bytes], rooms: Rooms,
              batch: _Batch) -> dict[bytes, Plain]:  # fmt: skip
        """From the repository: `mine` for this thread and all that wait for the batch, `direct` to their rooms."""
        wanted = mine + direct
        try:
            loaded = dict(zip(wanted, self._blobs.chunks(wanted, rooms), strict=True))
        except BaseException as err:
            with self._lock:
                for identity in mine:
                    del self._loading[identity]
            batch.set_exception(err)
            raise
        shared = {identity: bytes(loaded[identity]) for identity in mine}
        with self._lock:
            for identity, plain in shared.items():
                self._chunks.put(identity, plain)
                del self._loading[identity]
        batch.set_result(shared)
        return loaded
