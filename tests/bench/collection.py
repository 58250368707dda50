"""What a collection of a large repository costs: to plan it the first time, again, and after something changed.

The repository is synthetic (synthetic.py): one full disk in many points. All commands are the product's own, with a
warm page cache; memory is anonymous memory, as mapped files (the index, the ledger) can be dropped at any time.
"""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from appliance import home
from appliance.bootstrap import Appliance as Product
from appliance.progress import SILENT
from appliance.settings import load
from imaging.collecting import Options
from imaging.ids import CHUNK, NODE
from imaging.repository import Repository
from imaging.slots import MachineKey
from imaging.storage.contract import Listed, Store
from imaging.storage.local import LocalStore
from tests.bench.measure import Measured, disk_usage_bytes, say
from tests.bench.report import Cell, Goal, Part
from tests.bench.strongroom import Appliance, appliance
from tests.bench.synthetic import CHUNK_BYTES, Night, SyntheticDisk

_TIB = 1 << 40
_NAMES_A_PAGE = 1000


@dataclass(frozen=True, slots=True)
class Scale:
    size_bytes: int
    points: int
    night: Night
    busy_night: Night


FULL = Scale(_TIB, 100, Night(655, 10), Night(6550, 10))
QUICK = Scale(_TIB >> 7, 4, Night(5, 10), Night(50, 10))


def measure_collection(work: Path, *, quick: bool) -> Part:
    scale = QUICK if quick else FULL
    part = Part(
        "collection",
        f"plans for {scale.points} points of a full disk of {scale.size_bytes >> 30} GiB, a night changing "
        f"{scale.night.chunks} chunks in each of {scale.night.regions} regions",
    )
    with appliance(work / "collection", settle=not quick) as strongroom:
        with Product(load({**os.environ, **strongroom.environment})) as product:
            disk = SyntheticDisk(product.repository, strongroom.repository, "disk", scale.size_bytes, seed=1)
            say("collection: first point")
            disk.first()
            for number in range(1, scale.points):
                if number % 10 == 0:
                    say(f"collection: point {number} of {scale.points}")
                disk.next(scale.night)
            runs = {"first": _plan(strongroom, "first")}
            runs["again"] = _plan(strongroom, "again")
            disk.next(scale.night)
            runs["after a night"] = _plan(strongroom, "after a night")
            disk.next(scale.busy_night)
            runs["after ten times that"] = _plan(strongroom, "after ten times that")
            say("collection: forecast")
            forecasts = strongroom.call("repository", "forecast", "--json")
            chunks = product.repository.index.counts().blobs
            every = product.repository.index.packs().values()
            stored_bytes = sum(pack.size_bytes for pack in every)
            packs = {"chunks": sum(each.blob_type == CHUNK for each in every),
                     "map": sum(each.blob_type == NODE for each in every)}  # fmt: skip
        requests = _requests(strongroom)
        ledger = disk_usage_bytes(strongroom.home / "cache" / "ledger")
        index = disk_usage_bytes(strongroom.repository / "index")
    tib = stored_bytes / _TIB
    part.figures = {
        "blobs": chunks,
        "stored_tib": round(tib, 3),
        "plans": runs,
        "requests": requests,
        "packs": packs,
        "forecast_s": round(forecasts.usage.seconds, 2),
        "forecast_anonymous_mib": round(forecasts.usage.command_anonymous_mib, 1),
        "ledger_bytes_per_blob": round(ledger / chunks, 1),
        "ledger_mib_per_tib": round(ledger / tib / (1 << 20), 1),
        "index_objects_mib_per_tib": round(index / tib / (1 << 20), 1),
    }
    part.table(
        ["requests to the store", *requests["first"]], [[label, *each.values()] for label, each in requests.items()]
    )
    columns = ["plan", "s", "CPU s", "anonymous, MiB"]
    rows: list[list[Cell]] = [[label, *run.values()] for label, run in runs.items()]
    part.table(columns, [*rows, ["forecast", *_costs(forecasts).values()]])
    part.remarks.append(
        f"Data packs are holes: no chunk is read. {chunks} blobs, chunks of {CHUNK_BYTES >> 10} KiB that do not "
        f"compress. The ledger takes {part.figures['ledger_bytes_per_blob']} bytes a blob."
    )
    part.goals = [
        Goal("plan, the first time", runs["first"]["seconds"], 60, "s", at_least=False),
        Goal("anonymous memory, the first time", runs["first"]["anonymous_mib"], 500, "MiB", at_least=False),
        Goal("plan when nothing has changed", runs["again"]["seconds"], 6, "s", at_least=False),
        Goal("a night's change, beside that",
             max(0.0, runs["after a night"]["seconds"] - runs["again"]["seconds"]), 3, "s", at_least=False),
    ]  # fmt: skip
    return part


class _Counting:
    """A store that counts what an object store would be asked: a listing is a request for each thousand names."""

    def __init__(self, inner: Store) -> None:
        self._inner = inner
        self.requests: Counter[str] = Counter()

    def __getattr__(self, name: str) -> Any:
        self.requests[name] += 1
        return getattr(self._inner, name)

    def list(self, prefix: str) -> Iterator[Listed]:
        found = list(self._inner.list(prefix))
        self.requests["list"] += max(1, -(-len(found) // _NAMES_A_PAGE))
        return iter(found)


def _requests(strongroom: Appliance) -> dict[str, dict[str, int]]:
    """What a plan asks of the store: without the ledger, and with it. The index cache is there."""
    with Product(load({**os.environ, **strongroom.environment})) as product:
        secret = MachineKey(home.read_machine_key(product.settings))
        cache, identity = product.settings.cache_directory, product.identity
    shutil.rmtree(cache / "ledger")
    found: dict[str, dict[str, int]] = {}
    for label in ("first", "again"):
        store = _Counting(LocalStore(strongroom.repository))
        with Repository.open(cast("Store", store), secret, cache=cache, appliance=identity) as repository:
            repository.refresh_index()
            store.requests.clear()
            repository.plan_collection(Options(), SILENT)
        found[label] = {name: store.requests[name] for name in ("list", "get", "exists")}
    return found


def _plan(strongroom: Appliance, label: str) -> dict[str, Any]:
    say(f"collection: plan, {label}")
    return _costs(strongroom.call("repository", "collect", "--dry-run"))


def _costs(measured: Measured) -> dict[str, Any]:
    return {
        "seconds": round(measured.usage.seconds, 2),
        "cpu_s": round(measured.usage.cpu_s, 2),
        "anonymous_mib": round(measured.usage.command_anonymous_mib, 1),
    }
