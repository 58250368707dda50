"""Which restore points damage reaches, and where: a walk over their disk maps that visits every node once.

Rule: a subtree is whole if its node opens and every child, or every chunk, can still be read somewhere; nothing is
taken for granted because something above it is there. A node that does not open takes all that lies below it along.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from imaging.damage import Collector, Damage
from imaging.diskmap import children, node_span, read_leaf, root_level
from imaging.errors import UNREADABLE
from imaging.extents import PAGE_BYTES, REGION_BYTES, ByteRange
from imaging.manifest import DiskEntry, FileEntry

FetchNode = Callable[[bytes], bytes]
ReadableMany = Callable[[Sequence[bytes]], list[bool]]


class MapWalk:
    """Remembers of every subtree whether it is whole. `readable` says of chunk ids whether any place left holds
    them."""

    def __init__(self, fetch: FetchNode, readable: ReadableMany) -> None:
        self._fetch = fetch
        self._readable = readable
        self._whole: dict[bytes, bool] = {}
        self._told: dict[tuple[bytes, int, str], Damage | None] = {}
        self.nodes = 0

    def is_whole(self, disk: DiskEntry | FileEntry) -> bool:
        if disk.root is None:
            return True
        return self._is_whole(disk.root, root_level(disk.size_bytes), 0, disk.size_bytes)

    def damage(self, disk: DiskEntry | FileEntry) -> Damage | None:
        """The byte ranges that cannot be read, or None if there are none. Only what is not whole is walked again."""
        if disk.root is None or self.is_whole(disk):
            return None
        key = disk.root, disk.size_bytes, disk.name
        if key not in self._told:
            collector = Collector(disk.name, disk.size_bytes)
            for hit in self._hits(disk.root, root_level(disk.size_bytes), 0, disk.size_bytes):
                collector.add(hit)
            self._told[key] = collector.damage()  # None: what could not be had for a moment came back meanwhile
        return self._told[key]

    def _is_whole(self, identity: bytes, level: int, first: int, size_bytes: int) -> bool:
        known = self._whole.get(identity)
        if known is None:
            self.nodes += 1
            try:
                known = self._look(identity, level, first, size_bytes)
            except UNREADABLE:
                known = False
            self._whole[identity] = known
        return known

    def _look(self, identity: bytes, level: int, first: int, size_bytes: int) -> bool:
        if level == 0:
            leaf = read_leaf(identity, size_bytes, first, self._fetch)
            return all(self._readable([chunk for chunk in leaf.ids if chunk is not None]))
        span = node_span(level - 1)
        below = children(identity, level, first, size_bytes, self._fetch)
        return all(self._is_whole(child, level - 1, first + slot * span, size_bytes) for slot, child in below)

    def _hits(self, identity: bytes, level: int, first: int, size_bytes: int) -> Iterator[ByteRange]:
        if self._is_whole(identity, level, first, size_bytes):
            return
        start = first * REGION_BYTES
        try:
            if level == 0:
                yield from self._hits_of_leaf(identity, first, size_bytes)
                return
            below = children(identity, level, first, size_bytes, self._fetch)
        except UNREADABLE:
            yield ByteRange(start, min(start + node_span(level) * REGION_BYTES, size_bytes))
            return
        for slot, child in below:
            yield from self._hits(child, level - 1, first + slot * node_span(level - 1), size_bytes)

    def _hits_of_leaf(self, identity: bytes, region: int, size_bytes: int) -> list[ByteRange]:
        leaf = read_leaf(identity, size_bytes, region, self._fetch)
        chunks = [(record, chunk) for record, chunk in zip(leaf.records, leaf.ids, strict=True) if chunk is not None]
        start = region * REGION_BYTES
        return [
            ByteRange(start + record.start * PAGE_BYTES, min(start + record.stop * PAGE_BYTES, size_bytes))
            for (record, _), readable in zip(chunks, self._readable([chunk for _, chunk in chunks]), strict=True)
            if not readable
        ]
