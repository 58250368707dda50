"""A repository in an object store on this machine, beside the same in a folder: backup, restore, reading from exports.

The rule: server and client share the cores, and what each of them used is told. "Nothing cached" means an export that
has just begun, without what earlier ones kept on disk, and each read at a place that none was near before. Requests are
counted by a proxy in front of the server, and are all that the commands and servers of a recovery send.
"""

from __future__ import annotations

import contextlib
import json
import random
import shutil
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import nbd

from imaging.extents import PAGE_BYTES
from tests.bench.images import MIB, Images
from tests.bench.measure import say, warm
from tests.bench.meter import cpu_of
from tests.bench.random_reads import connected, data_of, sequential, served
from tests.bench.report import Goal, Part
from tests.bench.strongroom import Appliance, appliance
from tests.faults.bad_object_store import BadObjectStore
from tests.lab import Lab, LabGuest
from tests.lab.s3_server import BUCKET, S3Server

_READ_BYTES = 65536
_APART_BYTES = 4 * MIB
_HOST = "local"


def measure_object(work: Path, images: Images, *, quick: bool) -> Part:
    part = Part("object", "a repository in an object store on loopback, beside one in a folder")
    root = work / "object"
    root.mkdir(parents=True, exist_ok=True)
    local = _local(root, images, quick=quick)
    with S3Server(root) as server:
        with appliance(root / "bucket", settle=not quick, settings=_settings(server, "bench/")) as strongroom:
            bucket = _bucket(strongroom, server, images, quick=quick)
            cold, near, in_order = _reads(strongroom, images, quick=quick)
        boot = _boot(root, server, quick=quick)
    share = 100 * local["backup_s"] / bucket["backup_s"]
    part.figures = {"local": local, "bucket": bucket, "cold": cold, "near": near, "sequential": in_order, "boot": boot}
    part.table(
        ["", "backup, s", "our CPU, s", "server's CPU, s", "restore, s", "our CPU, s", "server's CPU, s"],
        [[name, found["backup_s"], found["backup_cpu_s"], found.get("backup_server_s"), found["restore_s"],
          found["restore_cpu_s"], found.get("restore_server_s")] for name, found in
         (("folder", local), ("bucket", bucket))],
    )  # fmt: skip
    part.table(
        ["64 KiB reads from an export", "p50, ms", "p99, ms"],
        [
            ["nothing cached", cold["p50_ms"], cold["p99_ms"]],
            ["again, by a new export", near["p50_ms"], near["p99_ms"]],
        ],
    )
    steps = (("start and boot", "boot"), ("then all its files read", "files"), ("all that again", "again"))
    part.table(
        ["instant recovery of the test guest", "requests", "of packs", "MiB of packs", "s"],
        [[name, boot[key]["requests"], boot[key]["of_packs"], boot[key]["pack_mib"], boot[key]["seconds"]]
         for name, key in steps if key in boot],
    )  # fmt: skip
    part.remarks.append(f"Reading an export in order: {in_order['mb_s']:.0f} MB/s.")
    part.goals = [
        Goal("backup into the bucket, share of the folder's speed", share, 50, "%", at_least=True),
        Goal("64 KiB random read with nothing cached, p50", cold["p50_ms"], 8, "ms", at_least=False),
        Goal("requests until the recovered guest has booted", boot["boot"]["requests"], 400, "", at_least=False),
    ]
    return part


def _settings(server: S3Server, prefix: str, url: str = "") -> dict[str, str]:
    return {
        "STRONGROOM_S3_ENDPOINT": url or server.url,
        "STRONGROOM_S3_BUCKET": BUCKET,
        "STRONGROOM_S3_PREFIX": prefix,
        "STRONGROOM_S3_ACCESS_KEY": server.credentials.access_key,
        "STRONGROOM_S3_SECRET_KEY": server.credentials.secret_key,
    }


def _local(root: Path, images: Images, *, quick: bool) -> dict[str, Any]:
    with appliance(root / "folder", settle=not quick) as strongroom:
        say("object: backup and restore, folder")
        return _both_ways(strongroom, images)


def _bucket(strongroom: Appliance, server: S3Server, images: Images, *, quick: bool) -> dict[str, Any]:
    say("object: backup and restore, bucket")
    return _both_ways(strongroom, images, server)


def _both_ways(strongroom: Appliance, images: Images, server: S3Server | None = None) -> dict[str, Any]:
    warm(images.day0)
    figures: dict[str, Any] = {}
    target = strongroom.root / "restored.raw"
    for name, command in (
        ("backup", ("backup", "--image", str(images.day0), "--format", "raw", "--name", "bench")),
        ("restore", ("restore", "bench", "--point", "latest", "--to", str(target), "--format", "raw")),
    ):
        before_s = cpu_of(server.pid) if server else 0.0
        usage = strongroom.call(*command).usage
        figures |= {f"{name}_s": round(usage.seconds, 2), f"{name}_cpu_s": round(usage.cpu_s, 2)}
        if server:
            figures[f"{name}_server_s"] = round(cpu_of(server.pid) - before_s, 2)
    target.unlink()
    return figures


def _reads(
    strongroom: Appliance, images: Images, *, quick: bool
) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    say("object: reading from an export")
    with served(strongroom) as uri, connected(uri) as client:
        data = data_of(client)
    wanted = _far_apart(data, 20 if quick else 400)
    _empty_chunk_cache(strongroom)
    with served(strongroom) as uri, connected(uri) as client:
        cold = _timed(client, wanted)
    with served(strongroom) as uri, connected(uri) as client:
        near = _timed(client, wanted)
    _empty_chunk_cache(strongroom)
    with served(strongroom) as uri, connected(uri) as client:
        mb, seconds = sequential(client, data, images.day0, most_bytes=(16 if quick else 512) * MIB)
    return cold, near, {"mb_s": round(mb / seconds, 1)}


def _empty_chunk_cache(strongroom: Appliance) -> None:
    shutil.rmtree(strongroom.home / "cache" / "chunks", ignore_errors=True)


def _far_apart(data: Sequence[range], most: int) -> list[int]:
    """Places of data in random order, with at least 4 MiB between any two."""
    found: list[int] = []
    for each in data:
        for place in range(each.start, each.stop - _READ_BYTES + 1, PAGE_BYTES):
            if not found or place >= found[-1] + _APART_BYTES:
                found.append(place)
    random.Random(11).shuffle(found)
    return found[:most]


def _timed(client: nbd.NBD, wanted: Sequence[int]) -> dict[str, Any]:
    took_ms = []
    for offset in wanted:
        began = time.perf_counter()
        client.pread(_READ_BYTES, offset)
        took_ms.append(1000 * (time.perf_counter() - began))
    cuts = statistics.quantiles(took_ms, n=100)
    return {"p50_ms": round(cuts[49], 2), "p99_ms": round(cuts[98], 2), "reads": len(wanted)}


class _Counting(BadObjectStore):
    """Asks the store as it is asked, and counts."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.requests = self.of_packs = self.pack_bytes = 0

    def meet(self, handler: BaseHTTPRequestHandler, body: bytes) -> None:
        first, _, last = handler.headers.get("Range", "").removeprefix("bytes=").partition("-")
        of_pack = handler.command == "GET" and "/packs/" in handler.path
        with self._lock:
            self.requests += 1
            self.of_packs += of_pack
            self.pack_bytes += int(last) + 1 - int(first) if of_pack and last else 0
        super().meet(handler, body)

    @contextlib.contextmanager
    def counted(self, figures: dict[str, Any], name: str) -> Iterator[None]:
        self.requests = self.of_packs = self.pack_bytes = 0
        began = time.perf_counter()
        yield
        figures[name] = {
            "requests": self.requests,
            "of_packs": self.of_packs,
            "pack_mib": round(self.pack_bytes / MIB, 1),
            "seconds": round(time.perf_counter() - began, 2),
        }


def _boot(root: Path, server: S3Server, *, quick: bool) -> dict[str, Any]:
    """A real guest, lost with its disk, recovered out of the bucket; then discarded and, unless it is to be quick,
    recovered again."""
    say("object: instant recovery of the test guest")
    figures: dict[str, Any] = {}
    with (
        _Counting(server.url) as proxy,
        appliance(root / "guest", settle=not quick, settings=_settings(server, "guest/", proxy.url)) as strongroom,
        Lab(parent=root) as lab,
    ):
        strongroom.call("host", "add", _HOST, "qemu:///system", "--accelerator", "tcg")
        guest = lab.machine("boot")
        strongroom.backup(guest.name, "--host", _HOST)
        disks = list(guest.disk_paths.values())
        guest.remove()
        for disk in disks:
            disk.unlink()
        with proxy.counted(figures, "boot"):
            id, recovered = _recover(strongroom, lab, guest.name)
        with proxy.counted(figures, "files"):
            recovered.content()
        strongroom.call("recovery", "discard", id, "--yes")
        if not quick:
            with proxy.counted(figures, "again"):
                id, recovered = _recover(strongroom, lab, guest.name)
                recovered.content()
            strongroom.call("recovery", "discard", id, "--yes")
    return figures


def _recover(strongroom: Appliance, lab: Lab, name: str) -> tuple[str, LabGuest]:
    new = f"{name}-recovered"
    done = strongroom.call(
        "recovery", "start", name, "--point", "latest", "--host", _HOST, "--as", new, "--json"
    )  # fmt: skip
    record: Mapping[str, Any] = json.loads(done.output)
    guest = lab.adopt(new)
    guest.wait_ready()
    return str(record["id"]), guest
