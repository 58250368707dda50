"""Put a captured machine into the repository: each disk, its small files, then the manifest.

The rule: nothing counts before the manifest's commit; a disk whose bitmap turns out to lie is read again in full from
the same moment, and both the restore point and the run say so.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from appliance.hypervisor.protocol import Hypervisor, MachineInfo
from appliance.models import ReadKind, RunDisk
from appliance.progress import Progress
from appliance.services.backup.captured import Capture, CapturedDisk
from appliance.settings import Settings
from imaging.errors import BitmapLied, ParentMapLost, SourceError
from imaging.ingest import Ingested, ParentDisk, ingest_disk
from imaging.manifest import DiskEntry, FileEntry, Manifest, Statistics
from imaging.packing import PackWriter
from imaging.repository import Repository
from imaging.source import BytesSource, Source

_FILE_BYTES_MAX = 64 << 20


@dataclass(slots=True)
class Totals:
    """What a run has read and met."""

    read_bytes: int = 0
    chunks: int = 0
    sampled: int = 0

    def add(self, result: Ingested) -> None:
        self.read_bytes += result.read_bytes
        self.chunks += result.chunks
        self.sampled += result.sampled_chunks


class Storer:
    """Stores one machine's disks through one pack writer. Borrows everything."""

    def __init__(self, repository: Repository, writer: PackWriter, settings: Settings, progress: Progress,
                 former: Manifest | None = None) -> None:  # fmt: skip
        """`former`: the newest restore point of the same series. A disk that is read in full is compared with it."""
        self._former = {} if former is None else {entry.name: entry for entry in former.disks}
        self._repository = repository
        self._writer = writer
        self._settings = settings
        self._progress = progress
        self.totals = Totals()
        self.disks: list[RunDisk] = []
        self.notes: list[str] = []

    def store_disk(self, captured: CapturedDisk, capture: Capture) -> DiskEntry:
        """Read one disk of the capture. Raises SourceError, what the capture raises, and what the store raises."""
        try:
            return self._store_disk(captured, capture.check)
        except SourceError:
            capture.explain()
            raise

    def _store_disk(self, captured: CapturedDisk, check: Callable[[], None]) -> DiskEntry:
        plan = captured.plan
        before = self._writer.stored.bytes
        read, reason = plan.read, plan.reason
        with captured.open() as source:
            if (
                read is ReadKind.INCREMENTAL
                and plan.previous is not None
                and plan.previous.size_bytes != source.size_bytes
            ):
                read, reason = (
                    ReadKind.FULL,
                    f"it was resized from {plan.previous.size_bytes} to {source.size_bytes} bytes",
                )
            try:
                result = self._ingest(
                    plan.target, source, plan.previous if read is ReadKind.INCREMENTAL else None, check
                )
            except (BitmapLied, ParentMapLost) as err:
                read, reason = ReadKind.FULL, str(err)
                self.notes.append(f"disk {plan.target} was read in full: {err}")
                self._progress.note(self.notes[-1])
                result = self._ingest(plan.target, source, None, check)
            size = source.size_bytes
        stored = self._writer.stored.bytes - before
        self.disks.append(RunDisk(plan.target, read, reason, result.read_bytes, stored))
        return DiskEntry(
            name=plan.target, size_bytes=size, root=result.root,
            source=plan.disk.source.description, serial=plan.disk.serial, format=plan.disk.format,
            read=read.value, reason=reason, checkpoint=captured.checkpointed,
        )  # fmt: skip

    def store_file(self, name: str, path: str, content: bytes) -> FileEntry:
        """A small file of the machine, as a disk map of its own."""
        result = ingest_disk(BytesSource(content), self._writer, self._repository.keys, workers=1)
        self.totals.add(result)
        return FileEntry(name, path, len(content), result.root)

    def statistics(self, duration_ms: int) -> Statistics:
        return Statistics(
            read_bytes=self.totals.read_bytes, stored_bytes=self._writer.stored.bytes, chunks=self.totals.chunks,
            new_chunks=self._writer.stored.chunks, duration_ms=duration_ms, sampled_chunks=self.totals.sampled,
        )  # fmt: skip

    def _ingest(self, target: str, source: Source, previous: DiskEntry | None, check: Callable[[], None]) -> Ingested:
        def advance(count_bytes: int) -> None:
            check()
            self._progress.advance(count_bytes)

        former = self._former.get(target)
        self._progress.start(f"{target} ({'changes' if previous else 'full'})", source.size_bytes)
        result = ingest_disk(
            source, self._writer, self._repository.keys,
            parent=None if previous is None else self._parent(previous),
            former=None if previous is not None or former is None else self._parent(former),
            sample=self._settings.backup.sample_chunks, workers=self._settings.limits.workers, advance=advance,
        )  # fmt: skip
        self._progress.finish()
        self.totals.add(result)
        return result

    def _parent(self, previous: DiskEntry) -> ParentDisk:
        blobs = self._repository.blobs
        known = self._repository.index.known if self._repository.index_has_losses() else None
        return ParentDisk(previous.root, previous.size_bytes, blobs.node, known)


def machine_files(hypervisor: Hypervisor, machine: MachineInfo) -> Sequence[tuple[str, str, bytes]]:
    """(name, path on the host, content) of the machine's NVRAM and TPM state."""
    found: list[tuple[str, str, bytes]] = []
    files = hypervisor.files
    if machine.nvram_path is not None and files.exists(machine.nvram_path):
        found.append(("nvram", machine.nvram_path, files.read(machine.nvram_path, _FILE_BYTES_MAX)))
    if machine.tpm_state_folder is not None and files.exists(machine.tpm_state_folder):
        for name, content in files.read_folder(machine.tpm_state_folder, _FILE_BYTES_MAX):
            found.append((f"tpm/{name}", f"{machine.tpm_state_folder}/{name}", content))
    return found


def entry_kind(disks: Sequence[DiskEntry]) -> str:
    """What the point says of itself: incremental if any disk was read so."""
    return (
        ReadKind.INCREMENTAL.value if any(d.read == ReadKind.INCREMENTAL.value for d in disks) else ReadKind.FULL.value
    )
