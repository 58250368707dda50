"""One restore point, from one repository into another, which has keys, cuts and an index of its own.

Rules: a copy is made as a backup is, with the point as its source, so that it is cut, named and sealed as if the
machine had been backed up there; where the point before has been copied, the two maps say exactly what changed since,
and only that is read. Every chunk that is read was authenticated, and nothing of the copy refers to the original; what
was stored of it can be read back before it counts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import Final

from imaging.diskmap import difference
from imaging.errors import CopyUnreadable, ImagingError, SourceError
from imaging.extents import REGION_BYTES, ByteRange, clip
from imaging.ingest import WORKERS, Ingested, ParentDisk, ingest_disk
from imaging.lineage import copied_from, lineage
from imaging.manifest import DiskEntry, FileEntry, ManifestDraft, Statistics
from imaging.packing import PackWriter
from imaging.points import Point
from imaging.reader import DiskReader
from imaging.repository import Repository
from imaging.scrub_packs import check_packs
from imaging.source import BlockStatus

_CACHE_BYTES: Final = 1 << 20  # of chunks: each is read once


class SamePoints:
    """The points of another repository that are copies of ours, or of which ours are copies. Borrows both."""

    def __init__(
        self, ours: Repository, other: Repository, held: Callable[[Point], AbstractContextManager[object]]
    ) -> None:
        """`held` keeps a point of the other repository while it is read."""
        self._ours = ours
        self._other = other
        self._held = held
        self._by_origin = {each: point for point in other.points() for each in lineage(point, other.id)}

    @contextmanager
    def of(self, point: Point) -> Iterator[PartsOfPoint | None]:
        """The point of the other repository that holds what `point` of ours does, if there is one."""
        found = (self._by_origin.get(each) for each in sorted(lineage(point, self._ours.id)))
        other = next((each for each in found if each is not None), None)
        if other is None:
            yield None
            return
        with self._held(other):
            yield PartsOfPoint(self._other, other)


class PartsOfPoint:
    """Disks and files of a point, by name. Borrows the repository."""

    def __init__(self, repository: Repository, point: Point) -> None:
        self._repository = repository
        parts: list[DiskEntry | FileEntry] = [*point.manifest.files, *point.manifest.disks]
        self._parts = {each.name: each for each in parts}

    def disk(self, name: str, size_bytes: int) -> DiskReader | None:
        """The one of this name, if it has this size."""
        part = self._parts.get(name)
        if part is None or part.size_bytes != size_bytes:
            return None
        return DiskReader(self._repository.blobs, part.root, size_bytes)


class PointDisk:
    """A disk of a restore point as a source. `changed`: what may differ from what the copy's parent holds."""

    def __init__(self, reader: DiskReader, changed: Sequence[ByteRange]) -> None:
        self._reader = reader
        self._changed = changed
        self.size_bytes = reader.size_bytes
        self.piece_bytes = REGION_BYTES

    def status(self, start: int, stop: int) -> BlockStatus:
        """See Source."""
        extents = self._reader.extents(start, stop - start)
        zero = [ByteRange(extent.start, extent.stop) for extent in extents if extent.zero]
        return BlockStatus(zero, clip(self._changed, start, stop))

    def read(self, requests: Sequence[tuple[int, memoryview]]) -> None:
        """See Source."""
        for offset, view in requests:
            try:
                self._reader.read_into(offset, view)
            except ImagingError as error:
                raise SourceError(offset, len(view), str(error), hint=error.hint) from error


def read_back(target: Repository, packs: Mapping[bytes, int], advance: Callable[[int], None]) -> None:
    """Reads packs (hash → size in bytes) that were just stored, and opens every blob in them: what a copy adds is then
    known to be there, as what it was made from. CopyUnreadable, also where the store cannot be reached."""
    for verdict in check_packs(target.store, target.keys, packs, packs, lambda _: None):
        if verdict.problem is not None:
            raise CopyUnreadable(str(verdict.problem)) from verdict.problem
        advance(verdict.size_bytes)


class Copier:
    """Copies points through one pack writer of the target. Borrows everything."""

    def __init__(
        self,
        origin: Repository,
        target: Repository,
        writer: PackWriter,
        *,
        workers: int = WORKERS,
        start: Callable[[str, int], None],
        advance: Callable[[int], None],
    ) -> None:
        """`start` is told of each disk and its size, `advance` of bytes of it that are done."""
        self._origin = origin
        self._target = target
        self._writer = writer
        self._workers = workers
        self._start = start
        self._advance = advance
        self._read_bytes = self._chunks = self._sampled = 0

    def copy(self, point: Point, before: Point | None, parent: Point | None) -> ManifestDraft:
        """Everything of the point but its manifest. `parent`, in the target, is a copy of `before`, in the origin.

        SourceError where the original cannot be read; BitmapLied where the parent is not what it should be a copy of;
        what the target's store raises. The writer must be flushed afterwards.
        """
        manifest = point.manifest
        disks = tuple(self._disk(entry, before, parent) for entry in manifest.disks)
        files = tuple(self._file(entry) for entry in manifest.files)
        return ManifestDraft(
            machine=manifest.machine, created_utc=manifest.created_utc,
            kind="incremental" if any(disk.read == "incremental" for disk in disks) else "full",
            consistency=manifest.consistency, disks=disks, files=files, skipped=manifest.skipped,
            domain_xml=manifest.domain_xml, policy=manifest.policy,
            notes=(*manifest.notes, copied_from(point, self._origin.id)),
            statistics=Statistics(
                read_bytes=self._read_bytes, stored_bytes=self._writer.stored.bytes, chunks=self._chunks,
                new_chunks=self._writer.stored.chunks, sampled_chunks=self._sampled,
            ),
        )  # fmt: skip

    def _disk(self, entry: DiskEntry, before: Point | None, parent: Point | None) -> DiskEntry:
        reader = self._reader(entry.root, entry.size_bytes)
        old = None if before is None else before.manifest.disk(entry.name)
        copied = None if parent is None else parent.manifest.disk(entry.name)
        fetch = self._target.blobs.node
        known = self._target.index.known if self._target.index_has_losses() else None
        self._start(entry.name, entry.size_bytes)
        if old is None or copied is None or not old.size_bytes == copied.size_bytes == entry.size_bytes:
            former = None if copied is None else ParentDisk(copied.root, copied.size_bytes, fetch, known)
            result = self._ingest(PointDisk(reader, ()), former=former)
            return replace(entry, root=result.root, read="full", reason=None, checkpoint=False)
        pair = (old.root, old.size_bytes), (entry.root, entry.size_bytes)
        changed = list(difference(*pair, self._origin.blobs.node))
        base = ParentDisk(copied.root, copied.size_bytes, fetch, known)
        result = self._ingest(PointDisk(reader, changed), parent=base)
        return replace(entry, root=result.root, read="incremental", reason=None, checkpoint=False)

    def _file(self, entry: FileEntry) -> FileEntry:
        return replace(entry, root=self._ingest(PointDisk(self._reader(entry.root, entry.size_bytes), ())).root)

    def _reader(self, root: bytes | None, size_bytes: int) -> DiskReader:
        """Nothing is read ahead: what did not change is not to be read, and the rest is asked for by the region."""
        return DiskReader(self._origin.blobs, root, size_bytes, cache_bytes=_CACHE_BYTES)

    def _ingest(
        self, source: PointDisk, *, parent: ParentDisk | None = None, former: ParentDisk | None = None
    ) -> Ingested:
        result = ingest_disk(
            source, self._writer, self._target.keys, parent=parent, former=former, workers=self._workers,
            advance=self._advance,
        )  # fmt: skip
        self._read_bytes += result.read_bytes
        self._chunks += result.chunks
        self._sampled += result.sampled_chunks
        return result
