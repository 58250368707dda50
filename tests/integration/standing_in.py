"""What stands in for the processes that execute runs, where a test is about which runs there are: it claims them in the
real queue and settles them there, after as long as the test says. All else, up to what is due, is the product's.
"""

from __future__ import annotations

import heapq
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy.pool import SingletonThreadPool

from appliance.catalog import Catalog, database
from appliance.models import MachineRecord, PointRecord, ReadKind, RunRecord, RunState, new_id
from appliance.policy.selectors import Kind, Machine


@contextmanager
def quick_folder() -> Iterator[Path]:
    """For homes of which nothing has to outlive the test: in memory, and with one connection to a catalog for all its
    transactions, as opening one for each is half of all the work."""
    folder = Path(tempfile.mkdtemp(prefix="strongroom-scheduling-", dir="/dev/shm"))
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(database, "NullPool", SingletonThreadPool)
            yield folder
    finally:
        shutil.rmtree(folder)


@dataclass
class SetClock:
    """Wall time that a test sets; the monotonic clock goes with it."""

    now: datetime

    def now_utc(self) -> datetime:
        return self.now

    def monotonic_s(self) -> float:
        return self.now.timestamp()

    def sleep(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)


@dataclass
class Executors:
    """As many as there are runs. `length`: how long one takes, of a machine by its key and when it begins."""

    catalog: Catalog
    clock: SetClock
    length: Callable[[str, datetime], timedelta]
    under_way: list[tuple[datetime, str, RunRecord]] = field(default_factory=list)
    begun: list[RunRecord] = field(default_factory=list)

    def begin(self, at_most: int | None = None) -> None:
        """What waits, as many at once as that in all."""
        now = self.clock.now
        for run in self.catalog.queue.due(now):
            if at_most is not None and len(self.under_way) >= at_most:
                return
            claimed = self.catalog.queue.claim(run.id, now)
            assert claimed is not None
            self.begun.append(claimed)
            heapq.heappush(self.under_way, (now + self.length(claimed.machine, now), claimed.machine, claimed))

    @property
    def next_end(self) -> datetime | None:
        return self.under_way[0][0] if self.under_way else None

    def end(self) -> list[RunRecord]:
        """Those whose time has come, each with a point."""
        ended = []
        while self.under_way and self.under_way[0][0] <= self.clock.now:
            _, _, run = heapq.heappop(self.under_way)
            made = replace(run, state=RunState.SUCCEEDED, ended_utc=self.clock.now, point=new_id())
            self.catalog.queue.settle(run, made, self.clock.now)
            point = point_of(made, len(self.begun))
            self.catalog.points.add(machine_record(run, point), point)
            ended.append(made)
        return ended


def point_of(run: RunRecord, generation: int) -> PointRecord:
    assert run.point is not None
    return PointRecord(
        run.point, f"manifests/{run.point}", "", series_of(run.machine), generation, run.machine_kind, run.name,
        run.uuid, run.host, run.started_utc, ReadKind.FULL, "crash", 1, 1, 1, 1, None, (),
    )  # fmt: skip


def machine_record(run: RunRecord, point: PointRecord | None) -> MachineRecord:
    last = (None, None) if point is None else (point.id, point.created_utc)
    return MachineRecord(series_of(run.machine), run.machine_kind, run.name, run.uuid, run.host, *last)


def series_of(machine: str) -> str:
    return machine[-32:]


def image_run(machine: Machine, begun: datetime) -> RunRecord:
    """One that was begun at once: since then it is known where the image is."""
    assert machine.kind is Kind.IMAGE
    return RunRecord(
        new_id(), machine.name, "image", None, None, RunState.FAILED, begun, ended_utc=begun,
        image_path=f"/srv/{machine.name}.raw", image_format="raw",
    )  # fmt: skip
