"""What appliances that share a catalog and a repository cost: `python -m tests.bench.shared_catalog`.

A real PostgreSQL on this machine, with fsync; the repository is a folder. Figures for docs/operations.md, "Several
appliances".
"""

from __future__ import annotations

import multiprocessing
import random
import shutil
import sys
import tempfile
import time
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from sqlalchemy import Connection, event

from appliance.bootstrap import Appliance
from appliance.catalog import Catalog
from appliance.catalog.database import Database
from appliance.models import MachineRecord, PointDisk, PointRecord, ReadKind, RunRecord, RunState, new_id
from appliance.services import repositories
from appliance.services.backup import BackupService
from appliance.settings import load
from tests.lab.postgres_server import PostgresServer

_IMAGE_BYTES: Final = 1 << 30
_TIB: Final = 1 << 40
_POINTS: Final = 20_000
_WRITERS: Final = (1, 4, 16)
_WRITE_S: Final = 3.0
_NOW: Final = datetime(2026, 1, 1, tzinfo=UTC)


def main() -> int:
    folder = Path(tempfile.mkdtemp(prefix="strongroom-bench-", dir="/var/tmp"))
    try:
        with PostgresServer(durable=True) as server:
            print(f"{datetime.now(UTC):%Y-%m-%d}", flush=True)
            _run(folder, server.fresh())
            _points(server, folder)
            for count in _WRITERS:
                _writers(server.fresh(), folder, count)
    finally:
        shutil.rmtree(folder)
    return 0


def _run(folder: Path, url: str) -> None:
    """One backup of data that nobody has seen: transactions, objects, what is known of chunks."""
    image = folder / "image.raw"
    with image.open("wb") as file:
        for number in range(_IMAGE_BYTES >> 24):
            file.write(random.Random(number).randbytes(1 << 24))
    settings = load({"STRONGROOM_HOME": str(folder / "home"), "STRONGROOM_CATALOG_URL": url})
    repositories.init(settings, folder / "repository", "a passphrase of the benchmark", lambda _: None)
    settings = load({"STRONGROOM_HOME": str(folder / "home"), "STRONGROOM_CATALOG_URL": url})
    with Appliance(settings) as appliance:
        begun = {False: 0, True: 0}

        def count(connection: Connection) -> None:
            begun[bool(connection.get_execution_options().get("strongroom_write"))] += 1

        event.listen(appliance.catalog.database.engine, "begin", count)
        BackupService(appliance).run_image(image, "raw", "image")
        print(f"a run of an image: {begun[False]} reading and {begun[True]} writing transactions")
        objects = [listed for listed in appliance.repository.store.list("") if not listed.name.startswith("keys")]
        indexed = sum(listed.size_bytes for listed in objects if listed.name.startswith("index/"))
        cached = sum(path.stat().st_blocks * 512 for path in (settings.cache_directory / "index").rglob("*.mdb"))
        times = _TIB / _IMAGE_BYTES
        print(
            f"{_IMAGE_BYTES >> 30} GiB of new data: {len(objects)} objects, {indexed} bytes of index objects, {cached}"
            f" bytes of index cache; for a TiB {len(objects) * times:,.0f} objects, {indexed * times / 2**20:,.0f} MiB"
            f" and {cached * times / 2**20:,.0f} MiB",
            flush=True,
        )


def _points(server: PostgresServer, folder: Path) -> None:
    """A catalog of many points: its size, and how long it takes to be made anew."""
    url = server.fresh()
    with closing(Catalog.open(Database.shared(url), folder / "lock", "a" * 32)) as catalog:
        disk = PointDisk("vda", 1 << 36, "qcow2", ReadKind.INCREMENTAL, None)
        machines = [
            MachineRecord(f"{number:032x}", "vm", f"machine-{number}", f"{number:036x}", "host", None, None)
            for number in range(_POINTS // 100)
        ]
        points = [
            PointRecord(
                new_id(), f"manifests/{number // 100:032x}/{number % 100:010}-{new_id()}", "ab" * 32,
                f"{number // 100:032x}", number % 100, "vm", f"machine-{number // 100}", f"{number // 100:036x}", "h",
                _NOW + timedelta(hours=number % 100), ReadKind.INCREMENTAL, "application", 1 << 36, 1 << 30, 1 << 28,
                60_000, new_id(), (disk,),
            )
            for number in range(_POINTS)
        ]  # fmt: skip
        began = time.perf_counter()
        catalog.points.replace(machines, points)
        took_s = time.perf_counter() - began
    ((size,),) = server.execute("SELECT pg_database_size(current_database())", url)
    print(f"{_POINTS} points: {size} bytes of database, written in {took_s:.1f} s", flush=True)


def _writers(url: str, folder: Path, count: int) -> None:
    """Each says how its run goes, again and again."""
    Catalog.open(Database.shared(url), folder / "lock", "a" * 32).close()
    with multiprocessing.get_context("spawn").Pool(count) as pool:
        done = pool.starmap(_write, [(url, f"{number:032x}") for number in range(count)])
    took = sorted(one for each in done for one in each)
    print(
        f"{count} writers: {len(took) / _WRITE_S:.0f} writing transactions a second, p50 {took[len(took) // 2]:.1f} ms,"
        f" p99 {took[len(took) * 99 // 100]:.1f} ms",
        flush=True,
    )


def _write(url: str, me: str) -> list[float]:
    """Milliseconds of each."""
    took: list[float] = []
    with closing(Catalog(Database.shared(url), me)) as catalog:
        run = RunRecord(new_id(), "web", "vm", "u", "here", RunState.RUNNING, _NOW)
        catalog.runs.save(run)
        deadline = time.perf_counter() + _WRITE_S
        while (began := time.perf_counter()) < deadline:
            catalog.runs.save(replace(run, notes=(str(len(took)),)))
            took.append((time.perf_counter() - began) * 1e3)
    return took


if __name__ == "__main__":
    sys.exit(main())
