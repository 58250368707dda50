"""Reading from an export, as a recovered machine does: small random reads one at a time, and a whole disk in order.

The repository lies in the page cache; the export itself starts cold. Random reads begin at any page that holds data.
Throughput is of data alone, with the server bound to one core and the client to another: the median of three passes,
each by an export of its own.
"""

from __future__ import annotations

import contextlib
import os
import random
import statistics
import subprocess
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import nbd

from tests.bench.images import MIB, PAGE_BYTES, Images
from tests.bench.measure import BenchError, say, warm
from tests.bench.meter import descendants
from tests.bench.report import Goal, Part
from tests.bench.strongroom import COMMAND, Appliance, appliance

_READ_BYTES = 65536
_SEQUENTIAL_BYTES = 1 << 20
_IN_FLIGHT = 8  # as qemu-img convert has by default
_WINDOW_BYTES = 1 << 30
_STOP_S = 15.0
_PASSES = 3  # a machine that was idle, as it is between random reads, takes some seconds to come to its speed


@dataclass(frozen=True, slots=True)
class Latency:
    cold_p50_ms: float
    p50_ms: float
    p99_ms: float
    reads: int


def measure_random(work: Path, images: Images, *, quick: bool) -> Part:
    root = work / "random"
    part = Part("random", "64 KiB random reads and sequential reading from an export")
    cores = sorted(os.sched_getaffinity(0))
    with appliance(root, settle=not quick) as strongroom:
        say("random: backup")
        strongroom.backup("--image", str(images.day0), "--format", "raw", "--name", "bench")
        warm(strongroom.repository)
        say("random: reading")
        with served(strongroom) as uri, connected(uri) as client:
            data = data_of(client)
            latency = _random(client, data, reads=200 if quick else 4000)
        bound = ("taskset", "-c", str(cores[0]))
        passes: list[tuple[float, float]] = []
        for _ in range(1 if quick else _PASSES):
            with served(strongroom, bound) as uri, bound_to(cores[-1]), connected(uri) as client:
                before_s = _server_cpu_s()
                mb, seconds = sequential(client, data, images.day0, most_bytes=16 * MIB if quick else 2 << 30)
                passes.append((mb / seconds, mb / max(_server_cpu_s() - before_s, 0.01)))
    mb_s, mb_cpu_s = sorted(passes)[len(passes) // 2]
    part.figures = {
        "cold_p50_ms": round(latency.cold_p50_ms, 3),
        "p50_ms": round(latency.p50_ms, 3),
        "p99_ms": round(latency.p99_ms, 3),
        "reads": latency.reads,
        "sequential_mb_s": round(mb_s, 1),
        "sequential_passes_mb_s": [round(each, 1) for each, _ in passes],
        "sequential_mb_per_server_cpu_s": round(mb_cpu_s, 1),
    }
    part.table(
        [
            "64 KiB reads",
            "first 100, p50 ms",
            "then p50, ms",
            "p99, ms",
            "sequential, MB/s",
            "MB per CPU s of the server",
        ],
        [[latency.reads, latency.cold_p50_ms, latency.p50_ms, latency.p99_ms, mb_s, mb_cpu_s]],
    )
    if len(cores) == 1:
        part.remarks.append("There is one core only: server and client shared it.")
    part.goals = [
        Goal("64 KiB random read, p50", latency.p50_ms, 1.5, "ms", at_least=False),
        Goal("64 KiB random read, p99", latency.p99_ms, 6, "ms", at_least=False),
        Goal("sequential, server on one core", mb_s, 300, "MB/s", at_least=True),
    ]
    return part


@contextlib.contextmanager
def served(strongroom: Appliance, prefix: Sequence[str] = ()) -> Iterator[str]:
    """The URI of a new export of the only disk of the newest point."""
    log = strongroom.root / "export.log"
    with log.open("wb") as stderr:
        server = subprocess.Popen(
            [*prefix, COMMAND, "export", "serve", "bench", "--point", "latest"],
            env={**os.environ, **strongroom.environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
        )
    assert server.stdout is not None
    try:
        uri = server.stdout.readline().strip()
        if not uri:
            raise BenchError(f"the export did not start: {log.read_text().strip()}")
        yield uri
    finally:
        server.terminate()
        try:
            server.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()
        server.stdout.close()


def _server_cpu_s() -> float:
    """CPU of the servers that this process started so far."""
    return sum(cpu_s for name, cpu_s in descendants(os.getpid()).values() if name == "nbdkit")


@contextlib.contextmanager
def connected(uri: str) -> Iterator[nbd.NBD]:
    client = nbd.NBD()
    client.add_meta_context(nbd.CONTEXT_BASE_ALLOCATION)
    client.connect_uri(uri)
    try:
        yield client
    finally:
        client.shutdown()


@contextlib.contextmanager
def bound_to(core: int) -> Iterator[None]:
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def data_of(client: nbd.NBD) -> list[range]:
    """Where the disk holds data, by the export's own word."""
    found: list[range] = []
    position = 0

    def note(_context: str, offset: int, entries: list[int], _error: int) -> int:
        nonlocal position
        for length, flags in zip(entries[::2], entries[1::2], strict=True):
            if not flags & nbd.STATE_ZERO:
                if found and found[-1].stop == offset:
                    found[-1] = range(found[-1].start, offset + length)
                else:
                    found.append(range(offset, offset + length))
            offset += length
        position = offset
        return 0

    size = client.get_size()
    while position < size:
        client.block_status(min(_WINDOW_BYTES, size - position), position, note)
    return [range(r.start, min(r.stop, size)) for r in found]


def _random(client: nbd.NBD, data: Sequence[range], reads: int) -> Latency:
    starts = [place for each in data for place in range(each.start, each.stop - _READ_BYTES + 1, PAGE_BYTES)]
    rng = random.Random(11)
    times_ms = []
    for offset in rng.choices(starts, k=reads):
        began = time.perf_counter()
        client.pread(_READ_BYTES, offset)
        times_ms.append(1000 * (time.perf_counter() - began))
    first = min(100, reads // 2)
    cuts = statistics.quantiles(times_ms[first:], n=100)
    return Latency(statistics.median(times_ms[:first]), cuts[49], cuts[98], reads)


def sequential(client: nbd.NBD, data: Sequence[range], original: Path, most_bytes: int) -> tuple[float, float]:
    """MB and seconds of reading the first `most_bytes` of data in order; some of it is compared with the original."""
    wanted = [
        (offset, min(_SEQUENTIAL_BYTES, each.stop - offset))
        for each in data
        for offset in range(each.start, each.stop, _SEQUENTIAL_BYTES)
    ]
    flying: deque[tuple[int, int, nbd.Buffer]] = deque()
    total = 0
    with original.open("rb", buffering=0) as file:

        def collect() -> None:
            nonlocal total
            cookie, offset, buffer = flying.popleft()
            while not client.aio_command_completed(cookie):
                client.poll(-1)
            total += buffer.size()
            if offset % (64 * _SEQUENTIAL_BYTES) == 0 and os.pread(file.fileno(), buffer.size(), offset) != bytes(
                buffer.to_bytearray()
            ):
                raise BenchError(f"the export serves other data at {offset} than was backed up")

        began = time.perf_counter()
        asked = 0
        for offset, length in wanted:
            if asked >= most_bytes:
                break
            buffer = nbd.Buffer(length)
            flying.append((client.aio_pread(buffer, offset), offset, buffer))
            asked += length
            if len(flying) >= _IN_FLIGHT:
                collect()
        while flying:
            collect()
        return total / 1e6, time.perf_counter() - began
