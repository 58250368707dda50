"""Makes what is pinned here: `python -m tests.unit.golden.make repository FOLDER` and `… make vectors`.

Rule: repository-v1 was written once, by version 1, and is never made again: that later code opens it is what it is
for. Content is deterministic (content.py); salts, nonces and ids are random, so what was drawn stands in secrets.json.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from imaging.errors import Fenced
from imaging.ingest import Ingested, ParentDisk, ingest_disk
from imaging.manifest import DiskEntry, FileEntry, Machine, ManifestDraft, Statistics
from imaging.packing import PackWriter
from imaging.pending import PendingIndex
from imaging.repository import Appliance, Point, Repository, Run
from imaging.slots import Argon2Cost, MachineKey
from imaging.storage.folders import TEMPORARY_FOLDER
from imaging.storage.local import LocalStore
from tests.unit.golden import content, vectors
from tests.unit.golden.content import Disk, DiskSource, Piece

HERE: Final = Path(__file__).parent
SECRETS: Final = HERE / "secrets.json"
VECTORS: Final = HERE / "vectors.json"
PASSPHRASE: Final = "correct horse Ba\u0308tterie"
"""With a combining mark, which NFC joins."""

MACHINE_KEY: Final = bytes(range(200, 232))
CHEAPEST: Final = Argon2Cost(memory_kib=19_456, passes=1, lanes=1)
PACK_BYTES: Final = 64 << 10
APPLIANCE: Final = Appliance(bytes(range(16)), "golden")
OTHER_APPLIANCE: Final = Appliance(bytes(range(16, 32)), "golden-other")
VM: Final = Machine(kind="vm", name="web01", uuid="0b2f0c7e-1d5c-4a55-9c5e-2f6d3a1b7c90", host="qemu:///system")
IMAGE: Final = Machine(kind="image", name="golden image \u2603")
DOMAIN_XML: Final = "<domain type='kvm'><name>web01</name><uuid>0b2f0c7e-1d5c-4a55-9c5e-2f6d3a1b7c90</uuid></domain>"


class SteppingClock:
    """An hour later at each look at the time of day, from a fixed moment on; monotonic time stands still."""

    def __init__(self) -> None:
        self._now = datetime(2025, 1, 2, 3, 4, 5, tzinfo=UTC)

    def now_utc(self) -> datetime:
        self._now += timedelta(hours=1)
        return self._now

    def monotonic_s(self) -> float:
        return 1.0


@dataclass(frozen=True, slots=True)
class Made:
    """What was drawn at random, or is needed to find what is in the repository."""

    recovery_key: str
    points: dict[str, str]
    deleted: str
    void: str


class Recorder:
    """Stores points as the backup service does, from disks of content.py. Borrows the repository."""

    def __init__(self, repository: Repository, clock: SteppingClock, scratch: Path) -> None:
        self._repository = repository
        self._clock = clock
        self._scratch = scratch

    def store(self, machine: Machine, disks: Mapping[str, Disk], files: Mapping[str, Disk],
              changes: Mapping[str, Sequence[Piece]] | None = None) -> Point:  # fmt: skip
        """A point; with `changes`, an incremental one."""
        with self.begin(machine) as run:
            return run.commit(self.write(run, machine, disks, files, changes))

    def begin(self, machine: Machine) -> Run:
        name = machine.name if machine.uuid is None else machine.uuid
        return self._repository.begin_run(self._repository.series_of(machine.kind, name), host=machine.host)

    def write(self, run: Run, machine: Machine, disks: Mapping[str, Disk], files: Mapping[str, Disk],
              changes: Mapping[str, Sequence[Piece]] | None) -> ManifestDraft:  # fmt: skip
        """Everything but the manifest: packs and index objects are durable after it."""
        repository = self._repository
        pending = PendingIndex(self._scratch)
        with PackWriter(
            repository.store, repository.keys, repository.index, pending, run.put_index,
            compression_level=repository.config.compression_level, pack_bytes=PACK_BYTES,
        ) as writer:  # fmt: skip
            done: dict[str, Ingested] = {}
            for name, disk in {**files, **disks}.items():
                parent, changed = None, None
                if changes is not None and name in disks and run.parent is not None:
                    previous = run.parent.manifest.disk(name)
                    assert previous is not None
                    parent, changed = ParentDisk(previous.root, disk.size_bytes, repository.blobs.node), changes[name]
                source = DiskSource(disk, changed or ())
                done[name] = ingest_disk(source, writer, repository.keys, parent=parent, seed=0, workers=1)
            writer.flush()
            stored = writer.stored
        pending.close()
        kind = "full" if changes is None else "incremental"
        return ManifestDraft(
            machine=machine, created_utc=self._clock.now_utc(), kind=kind,
            consistency="offline" if machine.kind == "image" else "crash",
            disks=tuple(
                DiskEntry(name, disk.size_bytes, done[name].root, f"/images/{name}.qcow2", "qcow2", kind, serial=None,
                          reason=None if changes is not None else "no earlier restore point", checkpoint=True)
                for name, disk in disks.items()
            ),
            files=tuple(
                FileEntry(name, f"/state/{name}", file.size_bytes, done[name].root) for name, file in files.items()
            ),
            domain_xml=DOMAIN_XML if machine.kind == "vm" else None, checkpoint=f"golden-{run.generation}",
            run=run.lease_id, notes=("a note: caf\u00e9",),
            statistics=Statistics(
                read_bytes=sum(each.read_bytes for each in done.values()), stored_bytes=stored.bytes,
                chunks=sum(each.chunks for each in done.values()), new_chunks=stored.chunks, duration_ms=1,
                sampled_chunks=sum(each.sampled_chunks for each in done.values()),
            ),
        )  # fmt: skip


def fill(repository: Repository, rival: Repository, clock: SteppingClock, scratch: Path, recovery_key: str) -> Made:
    """Two machines: three points that count, one deleted, and one whose run was fenced by `rival` before it ended."""
    recorder = Recorder(repository, clock, scratch)
    full, later = content.POINTS["vm full"], content.POINTS["vm incremental"]
    files = {name: full[name] for name in ("nvram", "tpm/tpm2-00.permall")}
    disks = {name: full[name] for name in ("vda", "vdb")}
    first = recorder.store(VM, disks, files)
    disks = {name: later[name] for name in ("vda", "vdb")}
    second = recorder.store(VM, disks, files, {"vda": content.SYSTEM_CHANGES, "vdb": content.DATA_CHANGES})
    disks |= {"vda": content.SYSTEM_LATER.changed(*content.DELETED_CHANGES)}
    deleted = recorder.store(VM, disks, files, {"vda": content.DELETED_CHANGES, "vdb": ()})

    run = recorder.begin(VM)
    disks |= {"vda": disks["vda"].changed(*content.FENCED_CHANGES)}
    draft = recorder.write(run, VM, disks, files, {"vda": content.FENCED_CHANGES, "vdb": ()})
    with rival.begin_run(run.series):
        pass  # fences the other, and is abandoned itself
    try:
        with run:
            run.commit(draft)
        raise AssertionError("a fenced run was committed")
    except Fenced:
        pass
    generation = f"/{run.generation:010}-"
    [void] = [each.name for each in repository.store.list(f"manifests/{run.series}/") if generation in each.name]

    image = recorder.store(IMAGE, content.POINTS["image"], {})
    repository.delete_point(deleted, "golden")
    repository.hold(second, "protected", "golden")
    # what a collection leaves of the lease of a point that has long been committed: nothing
    repository.store.delete(f"leases/{first.manifest.lease}/end")
    points = {"vm full": first.name, "vm incremental": second.name, "image": image.name}
    return Made(recovery_key, points=points, deleted=deleted.name, void=void)


@contextmanager
def new_repository(folder: Path) -> Iterator[tuple[Repository, Made]]:
    """A repository filled as above, in `folder`, open; and what was drawn."""
    with tempfile.TemporaryDirectory(prefix="golden-") as scratch_name:
        scratch, clock = Path(scratch_name), SteppingClock()
        store = LocalStore.make(folder)
        repository, recovery = Repository.create(
            store, passphrase=PASSPHRASE, machine_key=MACHINE_KEY, cache=scratch / "cache", appliance=APPLIANCE,
            clock=clock, cost=CHEAPEST,
        )  # fmt: skip
        with repository, Repository.open(
            LocalStore(folder), MachineKey(MACHINE_KEY), cache=scratch / "rival", appliance=OTHER_APPLIANCE,
            clock=clock, dead_after_s=0.0,
        ) as rival:  # fmt: skip
            yield repository, fill(repository, rival, clock, scratch, recovery.text())


def make_repository(folder: Path) -> None:
    if folder.exists():
        raise SystemExit(f"{folder} is there; the golden repository is made once, and kept")
    with new_repository(folder) as (repository, made):
        secrets = {
            "passphrase": PASSPHRASE,
            "recovery_key": made.recovery_key,
            "machine_key": MACHINE_KEY.hex(),
            "repository_id": repository.id.hex(),
            "points": made.points,
            "deleted": made.deleted,
            "void": made.void,
        }
    shutil.rmtree(folder / TEMPORARY_FOLDER)
    SECRETS.write_text(json.dumps(secrets, indent=2, ensure_ascii=False) + "\n", "utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["repository", "vectors"])
    parser.add_argument("folder", nargs="?", type=Path, default=HERE / "repository-v1")
    options = parser.parse_args()
    if options.what == "repository":
        make_repository(options.folder)
    else:
        VECTORS.write_text(json.dumps(vectors.vectors(), indent=1, sort_keys=True) + "\n", "utf-8")


if __name__ == "__main__":
    main()
