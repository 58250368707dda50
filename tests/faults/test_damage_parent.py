"""An incremental run whose parent's map is damaged: what it acknowledges is restorable, though nothing was verified.

The damage is met while the run goes on. What it then reads again has the ids of what is lost; were these still
believed to be stored, the new point would be as damaged as the old one.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from imaging.errors import ParentMapLost
from imaging.extents import REGION_BYTES, ByteRange
from imaging.ingest import Ingested, ParentDisk, ingest_disk
from imaging.manifest import DiskEntry
from imaging.packing import PackWriter
from imaging.packs import HEADER_BYTES, pack_name
from imaging.places import PackState
from imaging.repository import Point, Repository
from tests.faults.repositories import back_up, content, draft, make, read_disk, reopen
from tests.unit.memory import MemorySource

pytestmark = pytest.mark.faults


def incremental(repository: Repository, parent: Point, source: MemorySource, sample: int) -> tuple[Point, bool]:
    """A run as the backup service makes it; whether the disk was read in full in the end."""
    from datetime import UTC, datetime

    entry = parent.manifest.disk("disk")
    assert entry is not None
    known = repository.index.known if repository.index_has_losses() else None
    start = ParentDisk(entry.root, entry.size_bytes, repository.blobs.node, known)
    with (
        repository.begin_run(parent.manifest.series, host="host") as run,
        repository.pending() as pending,
        PackWriter(
            repository.store, repository.keys, repository.index, pending, run.put_index, compression_level=1
        ) as writer,
    ):

        def ingest(parent: ParentDisk | None) -> Ingested:
            return ingest_disk(source, writer, repository.keys, parent=parent, sample=sample, seed=1)

        full = False
        try:
            result = ingest(start)
        except ParentMapLost:
            result, full = ingest(None), True
        writer.flush()
        made = DiskEntry(name="disk", size_bytes=source.size_bytes, root=result.root, source="/images/disk",
                         format="raw", read="full")  # fmt: skip
        return run.commit(draft("web", (made,), datetime(2026, 3, 2, tzinfo=UTC))), full


def node_packs(repository: Repository, folder: Path) -> list[Path]:
    return [folder / "store" / pack_name(pack) for pack, found in repository.index.packs().items() if found.blob_type]


def flip(path: Path) -> None:
    """A byte of the first blob."""
    data = bytearray(path.read_bytes())
    data[HEADER_BYTES + 3] ^= 1
    path.write_bytes(data)


def flip_all(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[HEADER_BYTES:-24] = random.Random(1).randbytes(len(data) - HEADER_BYTES - 24)
    path.write_bytes(data)


@pytest.mark.parametrize("damage", [flip, flip_all, Path.unlink])
@pytest.mark.parametrize("regions", [1, 3])
@pytest.mark.parametrize(("dirty", "sample"), [(False, 0), (False, 8), (True, 0), (True, 8)])
def test_what_a_run_acknowledges_over_a_damaged_map_is_restorable(
    tmp_path: Path, damage: Callable[[Path], None], regions: int, dirty: bool, sample: int
) -> None:
    data = bytearray(content(7, (regions - 1) * REGION_BYTES + 300_000))
    with make(tmp_path) as repository:
        first = back_up(repository, "web", {"disk": bytes(data)})
        for path in node_packs(repository, tmp_path):
            damage(path)
        changed = []
        if dirty:
            data[100_000:100_010] = b"0123456789"
            changed = [ByteRange(100_000, 100_010)]
        second, _ = incremental(repository, first, MemorySource(data, changed), sample)
        points = [second]
        # A clean leaf that nothing looked at cannot be known to be lost: but what follows may not stay so.
        points.append(incremental(repository, second, MemorySource(data, changed), sample)[0])
    met = dirty or sample or (regions > 1 and damage is not flip)
    for point in points if met else []:
        with reopen(tmp_path, cache=f"fresh-{point.id}") as fresh:
            assert read_disk(fresh, point) == data


def test_a_read_that_fails_makes_the_next_run_store_anew(tmp_path: Path) -> None:
    """Also a chunk that an export or a restore met: what is known to be lost deduplicates nothing any more."""
    data = content(8, 300_000)
    with make(tmp_path) as repository:
        first = back_up(repository, "web", {"disk": data})
        for path in (tmp_path / "store" / "packs").glob("*/*"):
            if path not in node_packs(repository, tmp_path):
                path.unlink()
        with pytest.raises(Exception, match="no object packs"):
            read_disk(repository, first)
        assert repository.index_has_losses()
        assert repository.index.counts().packs[PackState.GONE] == 1
        second, _ = incremental(repository, first, MemorySource(data), 0)
        assert read_disk(repository, second) == data
        assert read_disk(repository, first) == data, "the older point is healed too"
