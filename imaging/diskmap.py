"""The disk map: a Merkle tree whose leaves say what a region holds (docs/format.md, section 9).

Rule: the tree is a pure function of the disk's size and content, so equal subtrees have equal ids, and the difference
of two disks is a walk that skips them. Only one node per level is in memory while a tree is written.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from imaging.chunking import CHUNK_PAGES_MAX, Record
from imaging.errors import Damaged
from imaging.extents import PAGE_BYTES, REGION_BYTES, REGION_PAGES, ByteRange, clip, merge
from imaging.ids import ID_BYTES

FANOUT: Final = 256
_HEAD: Final = struct.Struct("<BxH")
_BITMAP_BYTES: Final = FANOUT // 8
_DATA_BIT: Final = 1 << 15
_RESERVED_BITS: Final = 0x6000
_LENGTH_BITS: Final = 0x1FFF
_NO_DATA_BIT: Final = bytes(range(128))
"""What the second byte of a record is that has not the data bit."""
LEVEL_MAX: Final = 6  # 256^6 regions of 16 MiB: 2^72 bytes, more than NBD can address

FetchNode = Callable[[bytes], bytes]
StoreNode = Callable[[bytes], bytes]


@dataclass(frozen=True, slots=True)
class Leaf:
    """One region: its records in order, and the id of each record that is data (None for holes)."""

    records: tuple[Record, ...]
    ids: tuple[bytes | None, ...]


def node_span(level: int) -> int:
    """Regions below a node of this level."""
    span = 1
    for _ in range(level):
        span *= FANOUT
    return span


def region_count(size_bytes: int) -> int:
    """Regions of a disk."""
    return -(-size_bytes // REGION_BYTES)


def region_pages(size_bytes: int, region: int) -> int:
    """Pages of a region; the disk's last one may be shorter."""
    return min(REGION_PAGES, -(-(size_bytes - region * REGION_BYTES) // PAGE_BYTES))


def root_level(size_bytes: int) -> int:
    """The level of the root of a disk of this size."""
    level, span = 0, 1
    while span < region_count(size_bytes):
        level, span = level + 1, span * FANOUT
    return level


def encode_leaf(leaf: Leaf) -> bytes | None:
    """A leaf's plaintext, or None if the region is one hole."""
    if not any(record.data for record in leaf.records):
        return None
    words = [stop - start | (_DATA_BIT if data else 0) for start, stop, data in leaf.records]
    ids = b"".join([identity for identity in leaf.ids if identity is not None])
    return _HEAD.pack(0, len(words)) + struct.pack(f"<{len(words)}H", *words) + ids


def decode_leaf(plain: bytes, pages: int, name: str) -> Leaf:
    """Parse a leaf of a region of `pages` pages. Raises Damaged."""
    if len(plain) < _HEAD.size:
        raise Damaged(name, "it is too short for a leaf")
    level, count = _HEAD.unpack_from(plain)
    start_of_ids = _HEAD.size + 2 * count
    if level != 0 or len(plain) < start_of_ids:
        raise Damaged(name, "it is not a leaf")
    words = np.frombuffer(plain, "<u2", count, _HEAD.size)
    data = (words & _DATA_BIT) != 0
    lengths = words & _LENGTH_BITS
    impossible = (words & _RESERVED_BITS != 0) | (lengths == 0) | (data & (lengths > CHUNK_PAGES_MAX))
    impossible[1:] |= ~data[1:] & ~data[:-1]
    stops = np.cumsum(lengths, dtype=np.int64)
    if impossible.any():
        at = int(np.argmax(impossible))
        raise Damaged(name, f"its record {int(words[at]):#06x} at page {int(stops[at] - lengths[at])} is impossible")
    covered = int(stops[-1]) if count else 0
    if covered != pages or start_of_ids + int(data.sum()) * ID_BYTES != len(plain):
        raise Damaged(name, f"its records cover {covered} of {pages} pages")
    records = tuple(map(Record._make, zip((stops - lengths).tolist(), stops.tolist(), data.tolist(), strict=True)))
    stored = (plain[at : at + ID_BYTES] for at in range(start_of_ids, len(plain), ID_BYTES))
    return Leaf(records, tuple(next(stored) if record.data else None for record in records))


def chunk_ids(plain: bytes, name: str) -> bytes:
    """The ids of a leaf's chunks, one after the other, without parsing its records. Raises Damaged."""
    level, count = _HEAD.unpack_from(plain) if len(plain) >= _HEAD.size else (1, 0)
    start = _HEAD.size + 2 * count
    chunks = len(plain[_HEAD.size + 1 : start : 2].translate(None, _NO_DATA_BIT))
    if level != 0 or len(plain) != start + chunks * ID_BYTES:
        raise Damaged(name, "it is not a leaf")
    return plain[start:]


def child_ids(plain: bytes, level: int, name: str) -> list[bytes]:
    """The ids of an inner node's children, wherever on a disk it lies. Raises Damaged."""
    at = _HEAD.size + _BITMAP_BYTES
    if len(plain) < at or (len(plain) - at) % ID_BYTES or _HEAD.unpack_from(plain)[0] != level:
        raise Damaged(name, f"it is no node of level {level}")
    if int.from_bytes(plain[_HEAD.size : at], "little").bit_count() * ID_BYTES != len(plain) - at:
        raise Damaged(name, "its bitmap does not fit its length")
    return [plain[start : start + ID_BYTES] for start in range(at, len(plain), ID_BYTES)]


def encode_inner(level: int, slots: int, children: dict[int, bytes]) -> bytes:
    """An inner node's plaintext, from the ids of its children by slot; at least one."""
    bitmap = bytearray(_BITMAP_BYTES)
    for slot in children:
        bitmap[slot // 8] |= 1 << slot % 8
    return _HEAD.pack(level, slots) + bytes(bitmap) + b"".join(children[slot] for slot in sorted(children))


def _decode_inner(plain: bytes, level: int, slots: int, name: str) -> list[tuple[int, bytes]]:
    at = _HEAD.size + _BITMAP_BYTES
    if len(plain) < at or _HEAD.unpack_from(plain) != (level, slots):
        raise Damaged(name, f"it is not the node of level {level} with {slots} slots that its place asks for")
    bitmap = int.from_bytes(plain[_HEAD.size : at], "little")
    found: list[tuple[int, bytes]] = []
    for slot in range(slots):
        if bitmap >> slot & 1:
            found.append((slot, plain[at : at + ID_BYTES]))
            at += ID_BYTES
    if bitmap >> slots or at != len(plain):
        raise Damaged(name, "its bitmap does not fit its length")
    return found


def slot_count(size_bytes: int, level: int, first_region: int) -> int:
    """Slots of the node of `level` that begins at `first_region`."""
    span = node_span(level - 1)
    return min(FANOUT, -(-(region_count(size_bytes) - first_region) // span))


class MapWriter:
    """Builds a tree from leaves given in the order of regions; regions left out are holes."""

    def __init__(self, size_bytes: int, store_node: StoreNode) -> None:
        self._size = size_bytes
        self._store = store_node
        self._top = root_level(size_bytes)
        self._nodes: list[tuple[int, dict[int, bytes]] | None] = [None] * (self._top + 1)
        self._root: bytes | None = None

    def add(self, region: int, leaf_id: bytes) -> None:
        """The leaf of a region; regions must come in rising order."""
        self._add(0, region, leaf_id)

    def finish(self) -> bytes | None:
        """Store what is left; the root's id, or None if the disk is one hole."""
        for level in range(1, self._top + 1):
            self._close(level)
        return self._root

    def _add(self, level: int, number: int, identity: bytes) -> None:
        """`number` counts the nodes of `level` from the disk's start."""
        if level == self._top:
            self._root = identity
            return
        parent, slot = divmod(number, FANOUT)
        node = self._nodes[level + 1]
        if node is not None and node[0] != parent:
            self._close(level + 1)
            node = None
        if node is None:
            node = self._nodes[level + 1] = (parent, {})
        node[1][slot] = identity

    def _close(self, level: int) -> None:
        node = self._nodes[level]
        if node is None:
            return
        self._nodes[level] = None
        number, children = node
        plain = encode_inner(level, slot_count(self._size, level, number * node_span(level)), children)
        self._add(level, number, self._store(plain))


def leaf_ids(root: bytes | None, size_bytes: int, fetch: FetchNode) -> Iterator[tuple[int, bytes]]:
    """(region, leaf id) of every region that is not one hole, in order. Raises what `fetch` raises, Damaged."""
    if root is not None:
        yield from _descend(root, root_level(size_bytes), 0, size_bytes, fetch)


def _descend(identity: bytes, level: int, first: int, size_bytes: int, fetch: FetchNode) -> Iterator[tuple[int, bytes]]:
    if level == 0:
        yield first, identity
        return
    for slot, child in children(identity, level, first, size_bytes, fetch):
        yield from _descend(child, level - 1, first + slot * node_span(level - 1), size_bytes, fetch)


def children(identity: bytes, level: int, first: int, size_bytes: int, fetch: FetchNode) -> list[tuple[int, bytes]]:
    """(slot, id) of the children of an inner node that begins at region `first`."""
    return _decode_inner(fetch(identity), level, slot_count(size_bytes, level, first), f"map node {identity.hex()}")


def find_leaf(root: bytes | None, size_bytes: int, region: int, fetch: FetchNode) -> bytes | None:
    """The leaf id of one region, or None where it is one hole."""
    identity, first = root, 0
    for level in range(root_level(size_bytes), 0, -1):
        if identity is None:
            return None
        slot = (region - first) // node_span(level - 1)
        identity = dict(children(identity, level, first, size_bytes, fetch)).get(slot)
        first += slot * node_span(level - 1)
    return identity


def read_leaf(identity: bytes, size_bytes: int, region: int, fetch: FetchNode) -> Leaf:
    """Fetch and parse the leaf of a region."""
    return decode_leaf(fetch(identity), region_pages(size_bytes, region), f"map node {identity.hex()}")


def difference(old: tuple[bytes | None, int], new: tuple[bytes | None, int], fetch: FetchNode) -> Iterator[ByteRange]:
    """Byte ranges in which two disks, each (root, size in bytes), may differ, in order; equal subtrees are not read.

    Where one disk is longer, its tail is part of the answer.
    """
    shared = min(old[1], new[1])
    level = max(root_level(old[1]), root_level(new[1]))
    for region, before, after in _changed_leaves(old, new, level, 0, fetch):
        start = region * REGION_BYTES
        if start < shared:
            pieces = _leaf_difference(_pieces(before, old[1], region, fetch), _pieces(after, new[1], region, fetch))
            for piece in clip(merge(pieces), 0, shared - start):
                yield ByteRange(start + piece.start, start + piece.stop)
    if old[1] != new[1]:
        yield ByteRange(shared, max(old[1], new[1]))


_Side = tuple[bytes | None, int]


def _changed_leaves(
    old: _Side, new: _Side, level: int, first: int, fetch: FetchNode
) -> Iterator[tuple[int, bytes | None, bytes | None]]:
    """(region, old leaf id, new leaf id) wherever they differ below two nodes that begin at region `first`."""
    if old[0] == new[0]:
        return
    if level == 0:
        yield first, old[0], new[0]
        return
    before = _children_or_lifted(old, level, first, fetch)
    after = _children_or_lifted(new, level, first, fetch)
    for slot in sorted(before.keys() | after.keys()):
        at = first + slot * node_span(level - 1)
        yield from _changed_leaves((before.get(slot), old[1]), (after.get(slot), new[1]), level - 1, at, fetch)


def _children_or_lifted(side: _Side, level: int, first: int, fetch: FetchNode) -> dict[int, bytes]:
    """Children of a node; a tree of fewer levels stands as the first child of a node that it does not have."""
    identity, size_bytes = side
    if identity is None:
        return {}
    if level > root_level(size_bytes):
        return {0: identity}
    return dict(children(identity, level, first, size_bytes, fetch))


def _pieces(
    identity: bytes | None, size_bytes: int, region: int, fetch: FetchNode
) -> dict[tuple[int, int], bytes | None]:
    pages = region_pages(size_bytes, region)
    if identity is None:
        return {(0, pages): None}
    leaf = read_leaf(identity, size_bytes, region, fetch)
    return {(r.start, r.stop): i for r, i in zip(leaf.records, leaf.ids, strict=True)}


def _leaf_difference(
    old: dict[tuple[int, int], bytes | None], new: dict[tuple[int, int], bytes | None]
) -> Sequence[ByteRange]:
    """Records of the new region that the old one does not have in the same place, but holes inside old holes."""
    holes = [key for key, identity in old.items() if identity is None]
    found = []
    for (start, stop), identity in new.items():
        same = (start, stop) in old and old[(start, stop)] == identity
        inside = identity is None and any(a <= start and stop <= b for a, b in holes)
        if not same and not inside:
            found.append(ByteRange(start * PAGE_BYTES, stop * PAGE_BYTES))
    return found
