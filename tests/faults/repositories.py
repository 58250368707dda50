"""Small real repositories for tests: made, written to and read back through the product's own data path."""

from __future__ import annotations

import random
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path

from imaging.ingest import ingest_disk
from imaging.manifest import DiskEntry, Machine, ManifestDraft, Statistics
from imaging.packing import PackWriter
from imaging.reader import DiskReader
from imaging.repository import Appliance, Point, Repository, Run
from imaging.slots import Argon2Cost, MachineKey
from imaging.source import BytesSource
from imaging.storage.contract import Store
from imaging.storage.local import LocalStore
from imaging.storage.pace import NEAR, Pace

CHEAP = Argon2Cost(memory_kib=19_456, passes=1, lanes=1)
MACHINE = MachineKey(b"m" * 32)
PASSPHRASE = "correct horse"
ME = Appliance(b"A" * 16, "first")
OTHER = Appliance(b"B" * 16, "second")


class ManualClock:
    """Time that passes when the test says so."""

    def __init__(self) -> None:
        self.now = datetime(2026, 3, 1, 12, tzinfo=UTC)
        self.seconds = 1000.0

    def now_utc(self) -> datetime:
        return self.now

    def monotonic_s(self) -> float:
        return self.seconds

    def pass_s(self, seconds: float) -> None:
        self.seconds += seconds
        self.now += timedelta(seconds=seconds)


def content(seed: int, size_bytes: int) -> bytes:
    """Bytes that do not compress and have no zero page."""
    return random.Random(seed).randbytes(size_bytes)


def make(folder: Path, clock: ManualClock | None = None, store: Store | None = None) -> Repository:
    """A new repository in folder/store, unless it is to be in another, with its cache in folder/cache."""
    made, _ = Repository.create(
        store or LocalStore.make(folder / "store"),
        passphrase=PASSPHRASE,
        machine_key=MACHINE.secret,
        cache=folder / "cache",
        appliance=ME,
        clock=clock or ManualClock(),
        cost=CHEAP,
    )
    return made


def reopen(
    folder: Path,
    cache: str = "cache",
    appliance: Appliance = ME,
    clock: ManualClock | None = None,
    store: Store | None = None,
    beat_s: float = 60.0,
    pace: Pace = NEAR,
) -> Repository:
    return Repository.open(
        store or LocalStore(folder / "store"),
        MACHINE,
        cache=folder / cache,
        appliance=appliance,
        clock=clock or ManualClock(),
        beat_s=beat_s,
        pace=pace,
    )


def write_disks(repository: Repository, run: Run, disks: Mapping[str, bytes]) -> tuple[DiskEntry, ...]:
    with (
        repository.pending() as pending,
        PackWriter(
            repository.store, repository.keys, repository.index, pending, run.put_index, compression_level=1
        ) as writer,
    ):
        entries = tuple(
            DiskEntry(
                name=name,
                size_bytes=len(data),
                root=ingest_disk(BytesSource(data), writer, repository.keys, workers=1).root,
                source=f"/images/{name}",
                format="raw",
                read="full",
            )
            for name, data in disks.items()
        )
        writer.flush()
    return entries


def draft(name: str, entries: tuple[DiskEntry, ...], moment: datetime) -> ManifestDraft:
    return ManifestDraft(
        machine=Machine("image", name),
        created_utc=moment,
        kind="full",
        consistency="offline",
        disks=entries,
        statistics=Statistics(read_bytes=sum(entry.size_bytes for entry in entries)),
    )


def back_up(repository: Repository, name: str, disks: Mapping[str, bytes], moment: datetime | None = None) -> Point:
    """One run, full."""
    with repository.begin_run(repository.series_of("image", name), host="host") as run:
        entries = write_disks(repository, run, disks)
        return run.commit(draft(name, entries, moment or datetime(2026, 3, 1, tzinfo=UTC)))


def read_disk(repository: Repository, point: Point, disk: str = "disk") -> bytes:
    entry = point.manifest.disk(disk)
    assert entry is not None
    return DiskReader(repository.blobs, entry.root, entry.size_bytes).pread(0, entry.size_bytes)
