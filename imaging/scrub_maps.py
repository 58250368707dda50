"""Which restore points damage reaches: a walk over their disk maps that visits every node once.

Rule: a subtree is whole if its node opens and every child, or every chunk, can still be read somewhere; nothing is
taken for granted because something above it is there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from imaging.diskmap import FANOUT, children, read_leaf, root_level
from imaging.errors import ChunkMissing, Damaged, ObjectMissing, StoreUnavailable
from imaging.manifest import DiskEntry, FileEntry

FetchNode = Callable[[bytes], bytes]
ReadableMany = Callable[[Sequence[bytes]], list[bool]]


class MapWalk:
    """Remembers every subtree that it has seen. `readable` says of chunk ids whether any place left holds them."""

    def __init__(self, fetch: FetchNode, readable: ReadableMany) -> None:
        self._fetch = fetch
        self._readable = readable
        self._whole: dict[bytes, bool] = {}
        self.nodes = 0

    def is_whole(self, disk: DiskEntry | FileEntry) -> bool:
        if disk.root is None:
            return True
        return self._is_whole(disk.root, root_level(disk.size_bytes), 0, disk.size_bytes)

    def _is_whole(self, identity: bytes, level: int, first: int, size_bytes: int) -> bool:
        known = self._whole.get(identity)
        if known is None:
            self.nodes += 1
            try:
                known = self._look(identity, level, first, size_bytes)
            except (Damaged, ChunkMissing, ObjectMissing, StoreUnavailable):
                known = False
            self._whole[identity] = known
        return known

    def _look(self, identity: bytes, level: int, first: int, size_bytes: int) -> bool:
        if level == 0:
            leaf = read_leaf(identity, size_bytes, first, self._fetch)
            return all(self._readable([chunk for chunk in leaf.ids if chunk is not None]))
        span = FANOUT ** (level - 1)
        below = children(identity, level, first, size_bytes, self._fetch)
        return all(self._is_whole(child, level - 1, first + slot * span, size_bytes) for slot, child in below)
