"""Healing: what points need and no sound pack holds is stored anew, out of damaged packs where it still opens, and out
of another repository that has the same points under keys and cuts of its own.

Rules: what was lost is told by the maps that point to it, and only what has the very id that is missing takes its
place: chunks are cut along our own records out of the copy's bytes, and a lost map node is made again by cutting all
that lies below it, as a map is a pure function of the content. Everything stored is new, in packs of a lease that
counts once they are durable; nothing is replaced or removed. What is healed counts slice by slice, so that a heal that
is interrupted is gone on with by the next.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol, TypeAlias

import numpy as np

from imaging.chunking import PageHash, Record, cut_region, page_flags
from imaging.damage import Collector, Damage
from imaging.diskmap import (
    Leaf,
    children,
    decode_leaf,
    encode_inner,
    encode_leaf,
    node_span,
    region_pages,
    root_level,
    slot_count,
)
from imaging.errors import ChunkMissing, Damaged, ImagingError, ObjectMissing, SourceError
from imaging.extents import PAGE_BYTES, REGION_BYTES, ByteRange
from imaging.ids import CHUNK, NODE, blob_id
from imaging.reader import DiskReader
from imaging.soundness import NOT_TO_RELY_ON, Soundness

if TYPE_CHECKING:
    from imaging.healing_store import HealingStore
    from imaging.manifest import DiskEntry, FileEntry
    from imaging.points import Point
    from imaging.repository import Repository
    from imaging.scrub import VerifyProgress

_LOST: Final = (Damaged, ChunkMissing, ObjectMissing)  # what the store fails to give for a moment is not lost


class OtherPoint(Protocol):
    """The same point in another repository."""

    def disk(self, name: str, size_bytes: int) -> DiskReader | None:
        """Its disk or file of this name, if it has one of this size."""


OpenCopy: TypeAlias = "Callable[[Point], AbstractContextManager[OtherPoint | None]]"
"""The copy of a point, kept while it is read; None where there is no copy of it."""


@dataclass(frozen=True, slots=True)
class StillDamaged:
    """What could not be healed of a point. `reason`: why, of the first of it."""

    id: str
    machine: str
    damage: Damage
    reason: str


@dataclass(frozen=True, slots=True)
class Healed:
    """`moved`: blobs that still opened in damaged packs, or in such as no index object lists. `copied`: those that came
    out of the copy."""

    moved_blobs: int
    moved_bytes: int
    copied_blobs: int
    copied_bytes: int
    stored_bytes: int
    left: tuple[StillDamaged, ...]


@dataclass(slots=True)
class _Amount:
    blobs: int = 0
    bytes: int = 0


class Healer:
    """One heal. Borrows everything; `store` has the lease, if there is one."""

    def __init__(
        self, repository: Repository, store: HealingStore, open_copy: OpenCopy, progress: VerifyProgress
    ) -> None:
        self._repository = repository
        self._store = store
        self._open_copy = open_copy
        self._progress = progress
        self._soundness = Soundness(repository, NOT_TO_RELY_ON)
        self._well: set[bytes] = set()
        """Nodes below which nothing is missing any more."""
        self._moved = _Amount()
        self._copied = _Amount()

    def heal(self, points: Sequence[Point]) -> Healed:
        """SeriesBusy, Fenced, NoSpace, StoreError; then what was told to count does."""
        self._progress.start("disk maps", None)
        left = list(self._round((point, self._parts(point)) for point in points))
        if left:
            # A point that has no copy may share what was lost with one that has.
            self._store.publish()
            self._soundness = Soundness(self._repository, NOT_TO_RELY_ON)
            failed: dict[str, tuple[Point, list[DiskEntry | FileEntry]]] = {}
            for point, part, _ in left:
                failed.setdefault(point.name, (point, []))[1].append(part)
            left = list(self._round(iter(failed.values())))
        self._store.publish()
        self._progress.finish()
        there = {point.name for point in self._repository.points()} if left else set()
        return Healed(
            moved_blobs=self._moved.blobs,
            moved_bytes=self._moved.bytes,
            copied_blobs=self._copied.blobs,
            copied_bytes=self._copied.bytes,
            stored_bytes=self._store.stored_bytes,
            left=tuple(still for point, _, still in left if point.name in there),  # others were deleted meanwhile
        )

    def _parts(self, point: Point) -> list[DiskEntry | FileEntry]:
        return [*point.manifest.disks, *point.manifest.files]

    def _round(
        self, work: Iterator[tuple[Point, list[DiskEntry | FileEntry]]]
    ) -> Iterator[tuple[Point, DiskEntry | FileEntry, StillDamaged]]:
        for point, parts in work:
            with ExitStack() as stack:
                copy = _LazyCopy(point, self._open_copy, stack)
                for part in parts:
                    healing = _Part(self, part, copy)
                    damage = healing.heal()
                    if damage is not None:
                        machine = point.manifest.machine.name
                        yield point, part, StillDamaged(point.id, machine, damage, healing.reason)

    # For parts

    @property
    def repository(self) -> Repository:
        return self._repository

    def is_well(self, node: bytes) -> bool:
        return node in self._well

    def well(self, node: bytes) -> None:
        self._well.add(node)

    def doubtful(self, ids: Sequence[bytes]) -> list[bytes]:
        """Those that lie in no sound pack, and were not stored anew either."""
        unsound = [identity for identity, sound in zip(ids, self._soundness.sound(ids), strict=True) if not sound]
        return [identity for identity, fresh in zip(unsound, self._store.known(unsound), strict=True) if not fresh]

    def begins(self, point: Point, part: DiskEntry | FileEntry) -> None:
        self._progress.finish()
        self._progress.start(f"healing {part.name} of {point.manifest.machine.name}", None)

    def own(self, blob_type: int, identity: bytes) -> bytes | None:
        """A blob that is not sound, if it opens all the same: stored anew, so that it depends on a damaged pack no
        more."""
        blobs = self._repository.blobs
        try:
            plain = self._soundness.read(identity, blobs.chunk if blob_type == CHUNK else blobs.node)
        except _LOST:
            return None
        if self.doubtful([identity]):
            self._put(blob_type, identity, plain, self._moved)
        return plain

    def put(self, blob_type: int, identity: bytes, plain: bytes | memoryview) -> None:
        """A blob out of the copy, whose id it is."""
        self._put(blob_type, identity, plain, self._copied)

    def _put(self, blob_type: int, identity: bytes, plain: bytes | memoryview, amount: _Amount) -> None:
        self._store.put(blob_type, identity, plain)
        amount.blobs += 1
        amount.bytes += len(plain)
        self._progress.advance(len(plain))

    def pause(self) -> None:
        """Between two regions: what was stored may be made to count."""
        if self._store.publish_if_much():
            self._soundness = Soundness(self._repository, NOT_TO_RELY_ON)


class _LazyCopy:
    """The copy of a point, looked for when something is missing."""

    def __init__(self, point: Point, open_copy: OpenCopy, stack: ExitStack) -> None:
        self.point = point
        self._open = open_copy
        self._stack = stack
        self._opened = False
        self._copy: OtherPoint | None = None

    def disk(self, name: str, size_bytes: int) -> DiskReader | None:
        if not self._opened:
            self._copy = self._stack.enter_context(self._open(self.point))
            self._opened = True
        return None if self._copy is None else self._copy.disk(name, size_bytes)


@dataclass(frozen=True, slots=True)
class _Cut:
    """A region: its leaf, and its chunks by id."""

    identity: bytes
    plain: bytes
    chunks: dict[bytes, memoryview]


@dataclass(frozen=True, slots=True)
class _Plan:
    """What lies below a node that is made again: regions of which something is missing, with the ids of their leaves,
    and the inner nodes."""

    regions: list[tuple[int, bytes]]
    inner: list[tuple[bytes, bytes]]


class _Part:
    """One disk or file of a point."""

    def __init__(self, healer: Healer, part: DiskEntry | FileEntry, copy: _LazyCopy) -> None:
        self._healer = healer
        self._part = part
        self._size = part.size_bytes
        self._copy = copy
        self._reader: DiskReader | None = None
        self._asked = False
        self._left = Collector(part.name, part.size_bytes)
        self.reason = ""
        keys = healer.repository.keys
        self._keys = keys
        self._page_hash = PageHash(keys.cut_multipliers, keys.cut_permutation)

    def heal(self) -> Damage | None:
        """What is still damaged."""
        if self._part.root is not None:
            self._subtree(self._part.root, root_level(self._size), 0)
        return self._left.damage()

    # Where our own map can be read

    def _subtree(self, identity: bytes, level: int, first: int) -> bool:
        """Whether nothing is missing below this node any more."""
        if self._healer.is_well(identity):
            return True
        plain = self._node(identity)
        if plain is None:
            whole = self._make_again(identity, level, first)
        elif level == 0:
            whole = self._leaf(plain, identity, first)
            self._healer.pause()
        else:
            span = node_span(level - 1)
            below = children(identity, level, first, self._size, lambda _: plain)
            healed = [self._subtree(child, level - 1, first + slot * span) for slot, child in below]
            whole = all(healed)
        if whole:
            self._healer.well(identity)
        return whole

    def _node(self, identity: bytes) -> bytes | None:
        if not self._healer.doubtful([identity]):
            try:
                return self._healer.repository.blobs.node(identity)
            except _LOST:
                pass  # nothing was known against its pack until now
        return self._healer.own(NODE, identity)

    def _leaf(self, plain: bytes, identity: bytes, region: int) -> bool:
        leaf = decode_leaf(plain, region_pages(self._size, region), f"map node {identity.hex()}")
        doubtful = set(self._healer.doubtful([chunk for chunk in leaf.ids if chunk is not None]))
        whole = True
        for record, chunk in zip(leaf.records, leaf.ids, strict=True):
            if chunk is None or chunk not in doubtful:
                continue
            if self._healer.own(CHUNK, chunk) is not None or self._chunk(self._range(record, region), chunk):
                doubtful.discard(chunk)  # it may be there twice
            else:
                whole = False
        return whole

    def _range(self, record: Record, region: int) -> ByteRange:
        start = region * REGION_BYTES
        return ByteRange(start + record.start * PAGE_BYTES, min(start + record.stop * PAGE_BYTES, self._size))

    def _chunk(self, where: ByteRange, identity: bytes) -> bool:
        reader = self._copied()
        if reader is None:
            return self._fails(where)
        try:
            plain = reader.pread(where.start, where.length)
        except ImagingError as error:
            return self._fails(where, f"the copy cannot be read there: {error}")
        if blob_id(self._keys, CHUNK, plain) != identity:
            return self._fails(where, "the copy holds other bytes there")
        self._healer.put(CHUNK, identity, plain)
        return True

    # Where it cannot

    def _make_again(self, identity: bytes, level: int, first: int) -> bool:
        """First all that lies below is cut, and nothing stored; if that gives the node that is missing, what of it is
        missing too is read once more, and stored."""
        where = ByteRange(first * REGION_BYTES, min((first + node_span(level)) * REGION_BYTES, self._size))
        reader = self._copied()
        if reader is None:
            return self._fails(where)
        plan = _Plan([], [])
        try:
            if self._below(reader, level, first, plan) != identity:
                return self._fails(where, "the copy holds other bytes there")
            for region, leaf in plan.regions:
                self._store_region(reader, region, leaf)
                self._healer.pause()
        except SourceError as error:
            return self._fails(where, f"the copy cannot be read there: {error.detail}")
        for node, plain in plan.inner:
            if self._healer.doubtful([node]):
                self._healer.put(NODE, node, plain)
        return True

    def _below(self, reader: DiskReader, level: int, first: int, plan: _Plan) -> bytes | None:
        """The id of the node that the copy's bytes give; None if that is one hole."""
        if level == 0:
            cut = self._cut(reader, first)
            if cut is None:
                return None
            if self._healer.doubtful([cut.identity, *cut.chunks]):
                plan.regions.append((first, cut.identity))
            return cut.identity
        span = node_span(level - 1)
        found: dict[int, bytes] = {}
        for slot in range(slot_count(self._size, level, first)):
            child = self._below(reader, level - 1, first + slot * span, plan)
            if child is not None:
                found[slot] = child
        if not found:
            return None
        plain = encode_inner(level, slot_count(self._size, level, first), found)
        identity = blob_id(self._keys, NODE, plain)
        plan.inner.append((identity, plain))
        return identity

    def _cut(self, reader: DiskReader, region: int) -> _Cut | None:
        """A region of the copy, cut under our keys; None if it is one hole."""
        start, stop = region * REGION_BYTES, min((region + 1) * REGION_BYTES, self._size)
        buffer = memoryview(bytearray(region_pages(self._size, region) * PAGE_BYTES))
        content = buffer[: stop - start]
        try:
            if all(extent.zero for extent in reader.extents(start, stop - start)):
                return None
            reader.read_into(start, content)
        except ImagingError as error:
            raise SourceError(start, stop - start, str(error)) from error
        zero, cut = page_flags(self._page_hash, np.frombuffer(buffer, np.uint64).reshape(-1, PAGE_BYTES // 8))
        records = cut_region(zero, cut)
        plains = [content[each.start * PAGE_BYTES : each.stop * PAGE_BYTES] if each.data else None for each in records]
        ids = [None if plain is None else blob_id(self._keys, CHUNK, plain) for plain in plains]
        leaf = encode_leaf(Leaf(tuple(records), tuple(ids)))
        if leaf is None:
            return None
        chunks = {
            chunk: plain for chunk, plain in zip(ids, plains, strict=True) if chunk is not None and plain is not None
        }
        return _Cut(blob_id(self._keys, NODE, leaf), leaf, chunks)

    def _store_region(self, reader: DiskReader, region: int, leaf: bytes) -> None:
        cut = self._cut(reader, region)
        if cut is None or cut.identity != leaf:
            start = region * REGION_BYTES
            raise SourceError(start, min(REGION_BYTES, self._size - start), "it does not read twice alike")
        for chunk in self._healer.doubtful(list(cut.chunks)):
            self._healer.put(CHUNK, chunk, cut.chunks[chunk])
        if self._healer.doubtful([leaf]):
            self._healer.put(NODE, leaf, cut.plain)

    # The copy

    def _copied(self) -> DiskReader | None:
        if not self._asked:
            self._asked = True
            self._healer.begins(self._copy.point, self._part)
            self._reader = self._copy.disk(self._part.name, self._size)
        return self._reader

    def _fails(self, where: ByteRange, reason: str = "the copy does not have this disk of this point") -> bool:
        self._left.add(where)
        self.reason = self.reason or reason
        return False
