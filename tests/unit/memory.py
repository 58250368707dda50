"""A store, an index and a source in memory, for tests of the pure core."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from imaging.blobs import BlobReader
from imaging.errors import ObjectExists, ObjectMissing, SourceError
from imaging.extents import PAGE_BYTES, ByteRange, align_out, merge
from imaging.keys import KeyBundle, Keys
from imaging.packing import PackWriter
from imaging.packs import iter_rows
from imaging.places import Location, PackRows, PackState, unpack_place
from imaging.source import PIECE_BYTES, BlockStatus
from imaging.storage.contract import Buffer, Listed
from imaging.storage.pace import NEAR, Pace

REPOSITORY = bytes(range(16))
KEYS = Keys.derive(KeyBundle(bytes(range(32)), bytes(range(100, 132))), REPOSITORY)


class MemoryStore:
    """Names to bytes."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.gets = 0

    def put(self, name: str, data: Sequence[Buffer]) -> None:
        self.objects[name] = b"".join(data)

    def create(self, name: str, data: Sequence[Buffer]) -> None:
        if name in self.objects:
            raise ObjectExists(name)
        self.put(name, data)

    def get(self, name: str, offset_bytes: int = 0, length_bytes: int | None = None) -> bytes:
        self.gets += 1
        if name not in self.objects:
            raise ObjectMissing(name)
        end = None if length_bytes is None else offset_bytes + length_bytes
        return self.objects[name][offset_bytes:end]

    def list(self, prefix: str) -> Iterator[Listed]:
        return (Listed(name, len(data)) for name, data in sorted(self.objects.items()) if name.startswith(prefix))

    def exists(self, name: str) -> bool:
        return name in self.objects

    def delete(self, name: str) -> None:
        del self.objects[name]

    def delete_many(self, names: Iterable[str]) -> None:
        for name in names:
            self.objects.pop(name, None)

    def free_bytes(self) -> int | None:
        return None

    def describe(self) -> str:
        return "memory"


class DictIndex:
    """Ids to locations: what both the shared and the pending index do."""

    def __init__(self) -> None:
        self.places: dict[bytes, list[Location]] = {}
        self.lock = threading.Lock()

    def add(self, rows: PackRows) -> None:
        with self.lock:
            for identity, place in iter_rows(rows.rows):
                location = Location(rows.pack, rows.salt, *unpack_place(place), PackState.LIVE)
                self.places.setdefault(identity, []).append(location)

    def publish(self, packs: Sequence[PackRows]) -> None:
        """Pending rows are in the same dictionary already."""

    def known(self, ids: Sequence[bytes]) -> list[bool]:
        return [identity in self.places for identity in ids]

    def locate_many(self, ids: Sequence[bytes]) -> list[list[Location]]:
        return [self.places.get(identity, []) for identity in ids]


class MemorySource:
    """A disk in memory that counts what is read, and tells what it is told to tell."""

    def __init__(self, content: bytes | bytearray, dirty: Sequence[ByteRange] = (), granularity: int = 65536) -> None:
        self.content = content
        self.size_bytes = len(content)
        self.piece_bytes = PIECE_BYTES
        self.dirty = align_out(dirty, granularity, len(content))
        self.told_zero = True
        self.fail_at: int | None = None
        self.read_bytes = 0
        self.lock = threading.Lock()

    def status(self, start: int, stop: int) -> BlockStatus:
        zero: list[ByteRange] = []
        if self.told_zero:
            unit = 65536
            padded = np.frombuffer(
                bytes(self.content[start:stop]).ljust(-(-(stop - start) // unit) * unit, b"\0"), np.uint8
            )
            for number in np.flatnonzero(~padded.reshape(-1, unit).any(axis=1)):
                zero.append(ByteRange(start + int(number) * unit, min(start + (int(number) + 1) * unit, stop)))
        dirty = [
            ByteRange(max(r.start, start), min(r.stop, stop)) for r in self.dirty if r.start < stop and r.stop > start
        ]
        return BlockStatus(merge(zero), dirty)

    def read(self, requests: Sequence[tuple[int, memoryview]]) -> None:
        for offset, view in requests:
            if self.fail_at is not None and offset <= self.fail_at < offset + len(view):
                raise SourceError(offset, len(view), "injected")
            view[:] = self.content[offset : offset + len(view)]
            with self.lock:
                self.read_bytes += len(view)


def writer(store: MemoryStore, index: DictIndex, **options: int) -> PackWriter:
    return PackWriter(store, KEYS, index, index, index.publish, compression_level=1, **options)


def reader(store: MemoryStore, index: DictIndex, pace: Pace = NEAR) -> BlobReader:
    return BlobReader(store, KEYS, index.locate_many, lambda: None, pace=pace)


PAGE = PAGE_BYTES
