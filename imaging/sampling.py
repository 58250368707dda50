"""A sample of what the dirty bitmap calls clean: read all the same, and compared with what is stored.

Rules: regions with old data are chosen in one pass, each with the same chance (reservoir sampling), and so are the
chunks where the regions are few. A single one that has changed says that the bitmap lied.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from imaging.chunking import covered_pages
from imaging.diskmap import FetchNode, read_leaf, region_pages
from imaging.errors import UNREADABLE, BitmapLied, ImagingError
from imaging.extents import PAGE_BYTES, REGION_BYTES, ByteRange, align_out
from imaging.ids import CHUNK, blob_id
from imaging.keys import Keys
from imaging.source import Source


class Sampler:
    """At most `size` chunks of a disk of `disk_bytes`. `lost`: why an old map could not be read, if that was so."""

    def __init__(self, size: int, disk_bytes: int, rng: random.Random) -> None:
        self.lost: ImagingError | None = None
        self._size = size
        self._disk_bytes = disk_bytes
        self._rng = rng
        self._seen = 0
        self._chosen: list[tuple[int, bytes, Sequence[ByteRange]]] = []

    def offer(self, region: int, leaf_id: bytes | None, dirty: Sequence[ByteRange]) -> None:
        """A region of the walk; those without old data have nothing to sample."""
        if leaf_id is None or self._size == 0:
            return
        self._seen += 1
        if len(self._chosen) < self._size:
            self._chosen.append((region, leaf_id, dirty))
        elif (slot := self._rng.randrange(self._seen)) < self._size:
            self._chosen[slot] = (region, leaf_id, dirty)

    def check(self, source: Source, keys: Keys, fetch: FetchNode) -> tuple[int, int]:
        """Read the sample; returns how many chunks and bytes that was. BitmapLied, if one has changed; SourceError."""
        total = 0
        picked = self._picked(fetch)
        for first, length, identity in picked:
            buffer = memoryview(bytearray(length))
            source.read([(first, buffer)])
            if blob_id(keys, CHUNK, buffer) != identity:
                raise BitmapLied(first, length, "a sample that it calls clean has changed")
            total += length
        return len(picked), total

    def _picked(self, fetch: FetchNode) -> list[tuple[int, int, bytes]]:
        """(first byte, length, id) of clean chunks: one of each chosen region or, where all regions together are fewer
        than the samples, as many as asked for, each chunk with the same chance."""
        few = len(self._chosen) < self._size
        found: list[tuple[int, int, bytes]] = []
        seen = 0
        for region, leaf_id, dirty in self._chosen:
            clean = self._clean(region, leaf_id, dirty, fetch)
            if clean and not few:
                clean = [self._rng.choice(clean)]
            for item in clean:
                seen += 1
                if len(found) < self._size:
                    found.append(item)
                elif (slot := self._rng.randrange(seen)) < self._size:
                    found[slot] = item
        return found

    def _clean(
        self, region: int, leaf_id: bytes, dirty: Sequence[ByteRange], fetch: FetchNode
    ) -> list[tuple[int, int, bytes]]:
        """All clean chunks of a region; none where its old map is lost."""
        try:
            leaf = read_leaf(leaf_id, self._disk_bytes, region, fetch)
        except UNREADABLE as err:
            self.lost = err
            return []
        start = region * REGION_BYTES
        pages = region_pages(self._disk_bytes, region)
        flags = covered_pages(align_out(dirty, PAGE_BYTES, self._disk_bytes), start, pages)
        clean: list[tuple[int, int, bytes]] = []
        for record, identity in zip(leaf.records, leaf.ids, strict=True):
            if identity is not None and not flags[record.start : record.stop].any():
                first = start + record.start * PAGE_BYTES
                clean.append((first, min(start + record.stop * PAGE_BYTES, self._disk_bytes) - first, identity))
        return clean
