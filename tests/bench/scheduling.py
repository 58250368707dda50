"""What a look of the scheduler costs: `python -m tests.bench.scheduling [RUNS]`.

1,000 machines, 500 policies of which each machine is selected by some, and 200,000 runs (or as many as are named) in
either engine of the catalog. Figures for docs/operations.md, "At scale".
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final, cast

from appliance.bootstrap import Appliance
from appliance.catalog import Catalog
from appliance.catalog.database import Database
from appliance.policy.due import Look, look
from appliance.policy.stored import StoredPolicy
from appliance.services.scheduling.gathering import Memory, gather
from tests.bench import fleet
from tests.lab.postgres_server import PostgresServer

_POLICIES: Final = 500
_LOOKS: Final = 15


def main() -> int:
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 200_000
    size = replace(fleet.FULL, runs=runs, points=min(fleet.FULL.points, runs))
    print(f"{datetime.now(UTC):%Y-%m-%d}: {size.machines} machines, {_POLICIES} policies, {runs} runs", flush=True)
    with tempfile.TemporaryDirectory(prefix="strongroom-bench-") as name, PostgresServer() as server:
        for where in ("sqlite", server.fresh()):
            with _seeded(Path(name), where, size) as appliance:
                _measure(appliance, "SQLite" if where == "sqlite" else "PostgreSQL")
    return 0


@contextmanager
def _seeded(folder: Path, where: str, size: fleet.Size) -> Iterator[Appliance]:
    now = datetime.now(UTC)
    database = Database.shared(where) if "://" in where else Database.at(folder / "catalog.sqlite")
    with closing(Catalog.open(database, folder / "lock", fleet.ME)) as catalog:
        fleet.seed(catalog, size, now_utc=now)
        for number in range(_POLICIES):
            catalog.policies.add(StoredPolicy(f"policy-{number:03}", _document(number), 1, now, now))
        yield cast(Appliance, SimpleNamespace(catalog=catalog))  # no home: a look reads nothing else


def _document(number: int) -> dict[str, Any]:
    role = ("web", "db", "mail", "files", "build", "proxy", "ldap", "erp", "desk", "log")[number % 10]
    return {
        "version": 1, "name": f"policy-{number:03}", "schedule": {"cron": f"{number % 60} {number % 24} * * *"},
        "select": {"include": [{"name": f"{role}-*{number % 100:02}"}, {"tag": f"role={role}", "host": "rack1*"}],
                   "exclude": [{"tag": "test"}]},
        "rpo_minutes": 1560, "retention": {"daily": 14},
    }  # fmt: skip


def _measure(appliance: Appliance, engine: str) -> None:
    memory = Memory()

    def at_once() -> Look:
        gathered = gather(appliance, datetime.now(UTC), memory)
        now = datetime.now(UTC)
        return look(gathered.policies, gathered.machines, gathered.assigned, now, looking_since_utc=now)

    first_ms, found = _timed(at_once)
    print(f"{engine}: the first look {first_ms:.0f} ms ({len(found.waiting)} wait, {len(found.missed)} missed)")
    for what, work in (("a look", at_once), ("whether to look", appliance.catalog.scheduling.stamp)):
        times = [_timed(work)[0] for _ in range(_LOOKS)]
        print(f"{engine}: {what} {statistics.median(times):.1f} ms (up to {max(times):.1f})", flush=True)


def _timed(work: Callable[[], Any]) -> tuple[float, Any]:
    began = time.perf_counter()
    found = work()
    return (time.perf_counter() - began) * 1000, found


if __name__ == "__main__":
    sys.exit(main())
