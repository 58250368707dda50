"""How long each list and page of a console takes at the server, with 1,000 machines, 200,000 points and 1,000,000 runs.

Both engines of the catalog, PostgreSQL as it is run for real. A list is read as the console reads it: the service is
kept, its cache is warm, the database has been read before; each figure is the median of nine calls, and the longest.
"""

from __future__ import annotations

import gc
import os
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

from appliance.bootstrap import Appliance
from appliance.catalog import Catalog
from appliance.catalog.database import Database
from appliance.models import RunState
from appliance.policy.selectors import Kind, Machine
from appliance.services.browsing import (
    BrowsingService,
    MachineFilter,
    PointFilter,
    RunFilter,
    Sort,
    Standing,
)
from appliance.settings import load
from tests.bench import fleet
from tests.bench.measure import say
from tests.bench.report import Goal, Part
from tests.lab.postgres_server import PostgresServer

_CALLS: Final = 9
_GOAL_MS: Final = 100.0
_PAGES: Final = 100
_FAILED: Final = frozenset({RunState.FAILED, RunState.INTERRUPTED})


def measure_browsing(work: Path, *, quick: bool) -> Part:
    size = fleet.SMALL if quick else fleet.FULL
    part = Part("browsing", f"lists with {size.machines} machines, {size.points} points, {size.runs} runs")
    folder = work / "browsing"
    folder.mkdir(parents=True, exist_ok=True)
    for engine in ("sqlite", "postgresql"):
        with _filled(engine, folder, size) as (catalog, seeded_s):
            part.figures[engine] = measure(catalog, folder / f"home-{engine}", 1 if quick else _CALLS)
            part.figures[engine]["seeded_s"] = seeded_s
    rows = []
    for name in part.figures["sqlite"]:
        if name != "seeded_s":
            figures = [part.figures[engine][name] for engine in ("sqlite", "postgresql")]
            rows.append([name, *(figure[what] for figure in figures for what in ("median_ms", "longest_ms"))])
    part.table(["ms", "SQLite", "longest", "PostgreSQL", "longest"], rows)
    slowest = max(max(row[1], row[3]) for row in rows)
    part.goals.append(Goal("the slowest list or page", slowest, _GOAL_MS, "ms", at_least=False))
    return part


def measure(catalog: Catalog, home: Path, calls: int = _CALLS) -> dict[str, Any]:
    """Median and longest in milliseconds, by what was asked for."""
    appliance = Appliance(load({"STRONGROOM_HOME": str(home)}))
    appliance.__dict__["catalog"] = catalog
    figures = {}
    asked = _calls(BrowsingService(appliance), catalog)
    gc.collect()
    gc.freeze()  # as the server does
    for name, call in asked.items():
        call()
        took = []
        for _ in range(calls):
            began = time.perf_counter()
            call()
            took.append((time.perf_counter() - began) * 1e3)
        figures[name] = {"median_ms": statistics.median(took), "longest_ms": max(took)}
    gc.unfreeze()
    return figures


def _calls(browsing: BrowsingService, catalog: Catalog) -> dict[str, Callable[[], object]]:
    protected = MachineFilter(kind=Kind.VM, standings=frozenset({Standing.PROTECTED}))
    row = browsing.machines(protected).items[0]
    now = datetime.now(UTC)
    run = browsing.runs(limit=1).items[0]
    deep_runs, deep_points = _deep(browsing.runs), _deep(browsing.points)
    of_machine, of_host = RunFilter(machine=row.key), row.machine.host
    return {
        "overview": browsing.overview,
        "overview of one host's machines": lambda: browsing.overview(may_see=_one_host),
        "machines": browsing.machines,
        "machines by last point, unprotected": lambda: browsing.machines(
            MachineFilter(standings=frozenset({Standing.UNPROTECTED, Standing.WAITING})), Sort.LAST_POINT, falling=True
        ),
        "a machine": lambda: browsing.machine(row.key),
        "its points of a quarter by day": lambda: browsing.time_line(row.key, now - timedelta(days=92), now),
        "its runs": lambda: browsing.runs(of_machine),
        "its failed runs": lambda: browsing.runs(RunFilter(_FAILED, machine=row.key)),
        "runs": browsing.runs,
        f"runs, page {_PAGES}": lambda: browsing.runs(after=deep_runs),
        "runs that failed": lambda: browsing.runs(RunFilter(_FAILED)),
        "runs of a host": lambda: browsing.runs(RunFilter(host=of_host)),
        "runs of a host that failed": lambda: browsing.runs(RunFilter(_FAILED, host=of_host)),
        "runs of one host's machines": lambda: browsing.runs(may_see=_one_host),
        "runs under way": lambda: browsing.runs(RunFilter(frozenset({RunState.RUNNING, RunState.QUEUED}))),
        "points": browsing.points,
        f"points, page {_PAGES}": lambda: browsing.points(after=deep_points),
        "points of a host": lambda: browsing.points(PointFilter(host=of_host)),
        "points of one host's machines": lambda: browsing.points(may_see=_one_host),
        "search for a name": lambda: browsing.search("web-01"),
        "search for an id": lambda: browsing.search(run.id[:6]),
        "search for nothing that is there": lambda: browsing.search("zzzzzz"),
        "growth": browsing.growth,
        "the last run of each machine (status)": catalog.runs.last,
    }


def _one_host(machine: Machine) -> bool:
    return machine.host == "rack03"


def _deep(listed: Callable[..., Any]) -> str | None:
    """Where a page far down begins."""
    after = None
    for _ in range(_PAGES - 1):
        following = listed(after=after, limit=50).next
        if following is None:
            break
        after = following
    return after


@contextmanager
def _filled(engine: str, folder: Path, size: fleet.Size) -> Iterator[tuple[Catalog, float]]:
    """Removed afterwards."""
    say(f"browsing: a catalog in {engine}")
    if engine == "sqlite":
        file = folder / "fleet.sqlite"
        _remove(file)
        try:
            with _seeded(Database.at(file), folder, size) as made:
                yield made
        finally:
            _remove(file)
    else:
        with (
            PostgresServer(Path("/var/tmp"), durable=True) as server,
            _seeded(Database.shared(server.fresh()), folder, size) as made,
        ):
            yield made


@contextmanager
def _seeded(database: Database, folder: Path, size: fleet.Size) -> Iterator[tuple[Catalog, float]]:
    began = time.monotonic()
    with closing(Catalog.open(database, folder / "lock", fleet.ME)) as catalog:
        fleet.seed(catalog, size, now_utc=datetime.now(UTC))
        os.sync()
        yield catalog, time.monotonic() - began


def _remove(file: Path) -> None:
    for each in (file, *(file.with_name(file.name + end) for end in ("-wal", "-shm"))):
        each.unlink(missing_ok=True)
