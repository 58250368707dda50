"""What a run tells of the disk that it reads, when that goes well and when it does not."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest

from appliance.hypervisor.protocol import DiskDevice, DiskInfo, DiskSource, SourceKind
from appliance.models import ReadKind
from appliance.services.backup.captured import Capture, CapturedDisk
from appliance.services.backup.planning import DiskPlan
from appliance.services.backup.storing import Storer
from appliance.settings import load
from imaging.errors import SourceError
from imaging.packing import PackWriter
from imaging.source import BytesSource
from tests.faults.repositories import content, make

DISK = DiskInfo(
    target="vda", device=DiskDevice.DISK, source=DiskSource(SourceKind.FILE, "/a.raw", "/a.raw"), format="raw",
    serial=None, size_bytes=None, readonly=True, shareable=False, transient=False, can_hold_bitmap=False,
    skip_reason=None, backing=(),
)  # fmt: skip
SIZE = 20 << 20


class Telling:
    def __init__(self) -> None:
        self.told: list[str] = []

    def start(self, label: str, total_bytes: int | None) -> None:
        self.told.append(label)

    def advance(self, count_bytes: int) -> None: ...

    def note(self, text: str) -> None: ...

    def finish(self) -> None:
        self.told.append("finished")


class Failing(BytesSource):
    def read(self, requests: Sequence[tuple[int, memoryview]]) -> None:
        if requests[0][0] > 0:
            raise SourceError(requests[0][0], 1, "it is gone")
        super().read(requests)


@pytest.mark.parametrize("source", [BytesSource, Failing])
def test_only_a_disk_that_was_read_is_told_as_finished(tmp_path: Path, source: type[BytesSource]) -> None:
    progress = Telling()

    @contextmanager
    def opened() -> Iterator[BytesSource]:
        yield source(content(1, SIZE))

    disk = CapturedDisk(DiskPlan(DISK, ReadKind.FULL, None), False, opened)
    capture = Capture(datetime(2026, 3, 1, tzinfo=UTC), "offline", None, (disk,), (), ())
    with make(tmp_path) as repository, repository.begin_run(repository.series_of("image", "a")) as run:
        with (
            repository.pending() as pending,
            PackWriter(
                repository.store, repository.keys, repository.index, pending, run.put_index, compression_level=1
            ) as writer,
        ):
            storer = Storer(repository, writer, load({"STRONGROOM_HOME": str(tmp_path)}), progress)
            if source is Failing:
                with pytest.raises(SourceError, match="gone"):
                    storer.store_disk(disk, capture)
            else:
                assert storer.store_disk(disk, capture).size_bytes == SIZE
        run.abandon()
    assert progress.told == (["vda (full)"] if source is Failing else ["vda (full)", "finished"])
