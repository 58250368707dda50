"""A repository of any size without its data: what collections, indexes and listings look at is real, chunks are not.

The rule: index objects, disk maps, manifests and leases are made by the product itself, and every pack is listed with
the size that it would have; a pack of chunks is a file that is one hole, as nothing that is measured reads a chunk.
Chunks have 64 KiB and do not compress, and ids are drawn at random: no two are alike by chance.
"""

from __future__ import annotations

import os
import random
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from imaging.diskmap import MapWriter, region_count
from imaging.extents import REGION_BYTES
from imaging.ids import CHUNK, ID_BYTES
from imaging.manifest import DiskEntry, Machine, ManifestDraft, Statistics
from imaging.packing import PACK_BYTES, PackWriter
from imaging.packs import FRAME_BYTES, HEADER_BYTES, pack_name
from imaging.places import ROW_BYTES, PackRows, pack_place
from imaging.repository import Point, Repository

CHUNK_BYTES = 64 << 10
CHUNKS_IN_REGION = REGION_BYTES // CHUNK_BYTES
_STORED_BYTES = CHUNK_BYTES + 16
_PACK_ROWS = PACK_BYTES // _STORED_BYTES + 1
_INDEX_ROWS = 65_536
_LEAF_HEAD = struct.pack("<BxH", 0, CHUNKS_IN_REGION) + struct.pack(
    f"<{CHUNKS_IN_REGION}H", *([1 << 15 | CHUNK_BYTES // 4096] * CHUNKS_IN_REGION)
)
_ROW = np.dtype([("id", f"V{ID_BYTES}"), ("place", "<u8")])
_BEGAN = datetime(2026, 1, 1, tzinfo=UTC)

Ids = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Night:
    """What changes from one point to the next: so many regions of 16 MiB, and in each so many chunks of 64 KiB."""

    regions: int
    chunks: int


class SyntheticDisk:
    """One full disk and its points, in a repository on a local folder. Borrows both."""

    def __init__(self, repository: Repository, folder: Path, name: str, size_bytes: int, seed: int) -> None:
        self._repository = repository
        self._folder = folder
        self._name = name
        self._size = size_bytes
        self._bytes = np.random.default_rng(seed)
        self._choose = random.Random(seed)
        regions = region_count(size_bytes)
        self._ids: Ids = self._draw(regions * CHUNKS_IN_REGION).reshape(regions, CHUNKS_IN_REGION)
        self._leaves: list[bytes | None] = [None] * regions
        self.points: list[Point] = []

    def first(self) -> Point:
        """The full backup."""
        return self._run(list(range(len(self._leaves))), self._ids.reshape(-1))

    def next(self, night: Night) -> Point:
        """An incremental one."""
        regions = sorted(self._choose.sample(range(len(self._leaves)), night.regions))
        fresh = self._draw(night.regions * night.chunks)
        for number, region in enumerate(regions):
            places = sorted(self._choose.sample(range(CHUNKS_IN_REGION), night.chunks))
            self._ids[region, places] = fresh[number * night.chunks : (number + 1) * night.chunks]
        return self._run(regions, fresh)

    def _draw(self, count: int) -> Ids:
        return np.frombuffer(self._bytes.bytes(count * ID_BYTES), f"V{ID_BYTES}").copy()

    def _run(self, regions: list[int], fresh: Ids) -> Point:
        repository = self._repository
        with repository.begin_run(repository.series_of("image", self._name), host="bench") as run:
            with (
                repository.pending() as pending,
                PackWriter(
                    repository.store, repository.keys, repository.index, pending, run.put_index, compression_level=1
                ) as writer,
            ):
                for packs in packs_of_chunks(fresh, self._choose):
                    for pack in packs:
                        self._put_hole(pack)
                    run.put_index(packs)
                for region in regions:
                    self._leaves[region] = writer.store_node(_LEAF_HEAD + self._ids[region].tobytes())
                tree = MapWriter(self._size, writer.store_node)
                for region, leaf in enumerate(self._leaves):
                    assert leaf is not None
                    tree.add(region, leaf)
                root = tree.finish()
                writer.flush()
            point = run.commit(self._draft(root, len(fresh)))
        self.points.append(point)
        return point

    def _put_hole(self, pack: PackRows) -> None:
        path = self._folder / pack_name(pack.pack)
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with path.open("xb") as file:
            os.truncate(file.fileno(), pack.size_bytes)

    def _draft(self, root: bytes | None, chunks: int) -> ManifestDraft:
        disk = DiskEntry(
            name="vda",
            size_bytes=self._size,
            root=root,
            source=f"/images/{self._name}",
            format="raw",
            read="incremental" if self.points else "full",
        )
        return ManifestDraft(
            machine=Machine("image", self._name),
            created_utc=_BEGAN + timedelta(days=len(self.points)),
            kind=disk.read,
            consistency="offline",
            disks=(disk,),
            statistics=Statistics(read_bytes=chunks * CHUNK_BYTES, chunks=chunks, new_chunks=chunks),
        )


def packs_of_chunks(ids: Ids, choose: random.Random) -> Iterator[list[PackRows]]:
    """These chunks in packs of 16 MiB, as a run publishes them: about 65,536 rows at a time."""
    places = np.array(
        [pack_place(HEADER_BYTES + at * _STORED_BYTES, _STORED_BYTES, CHUNK_BYTES, False) for at in range(_PACK_ROWS)],
        np.uint64,
    )
    packs: list[PackRows] = []
    for start in range(0, len(ids), _PACK_ROWS):
        part = ids[start : start + _PACK_ROWS]
        rows = np.empty(len(part), _ROW)
        rows["id"], rows["place"] = part, places[: len(part)]
        size = FRAME_BYTES + len(part) * (_STORED_BYTES + ROW_BYTES)
        packs.append(PackRows(choose.randbytes(32), choose.randbytes(32), size, CHUNK, rows.tobytes()))
        if len(packs) * _PACK_ROWS >= _INDEX_ROWS:
            yield packs
            packs = []
    if packs:
        yield packs
