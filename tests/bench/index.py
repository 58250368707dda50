"""The chunk index: made anew from a repository's index objects, what it takes on disk, and how long a look-up takes.

Memory is anonymous memory. Look-ups are of random ids, half of them unknown, as many at once as a run asks for (a
region's chunks), and one at a time, as a reader does; the index lies in the page cache, as one segment where it was
made anew, and as several where it grew.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import statistics
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from appliance.bootstrap import Appliance as Product
from appliance.settings import load
from imaging.ids import ID_BYTES
from imaging.index import ChunkIndex
from imaging.index_segments import Listed, SegmentFolder
from imaging.places import PackRows
from tests.bench.measure import Measured, measure, say
from tests.bench.report import Cell, Goal, Part
from tests.bench.strongroom import Appliance, appliance
from tests.bench.synthetic import packs_of_chunks

_REPOSITORY_ID: Final = b"bench".ljust(16)
_IDS_AT_ONCE: Final = 256


@dataclass(frozen=True, slots=True)
class Scale:
    """Chunks: of the repository whose index is made anew; of the large index; of the one that grows run by run."""

    rebuilt: int
    large: int
    grown: int
    lookups: int


FULL = Scale(5_000_000, 50_000_000, 20_000_000, 200_000)
QUICK = Scale(70_000, 140_000, 70_000, 2_000)


def measure_index(work: Path, *, quick: bool) -> Part:
    scale = QUICK if quick else FULL
    part = Part("index", f"made anew for {scale.rebuilt} chunks; look-ups with {scale.large}")
    rebuilt = _rebuilt(work, scale.rebuilt, settle=not quick)
    root = work / "index"
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir(parents=True)
    try:
        large = _child("large", root / "large", scale.large, scale.lookups)
        grown = _child("grown", root / "grown", scale.grown, scale.lookups)
    finally:
        shutil.rmtree(root)
    part.figures = {"rebuilt": rebuilt, "large": large, "grown": grown}
    rows: list[list[Cell]] = [
        [f"{scale.rebuilt} chunks, from the repository", rebuilt["seconds"], rebuilt["chunks_per_s"] / 1000,
         rebuilt["anonymous_mib"], rebuilt["bytes_per_chunk"]],
        [f"{scale.large} chunks, rows in memory", large["seconds"], large["chunks_per_s"] / 1000,
         large["anonymous_mib"], large["bytes_per_chunk"]],
        [f"grown to {scale.grown} chunks", grown["seconds"], grown["chunks_per_s"] / 1000,
         grown["anonymous_mib"], grown["bytes_per_chunk"]],
    ]  # fmt: skip
    part.table(["index", "s", "1,000 chunks/s", "anonymous, MiB", "bytes per chunk (the most, as it grew)"], rows)
    part.table(
        ["look-up", "known, µs per id", "places, µs per id", "one id, p50 µs", "p99 µs"],
        [
            [
                f"{chunks} chunks, segments: {each['segments']}",
                each["known_us"],
                each["places_us"],
                each["one_p50_us"],
                each["one_p99_us"],
            ]
            for chunks, each in ((scale.large, large), (scale.grown, grown))
        ],
    )
    part.goals = [
        Goal("made anew", rebuilt["chunks_per_s"], 200_000, "chunks/s", at_least=True),
        Goal("on disk, made anew", large["bytes_per_chunk"], 64, "bytes per chunk", at_least=False),
        Goal("on disk, at its worst while it grows", grown["bytes_per_chunk"], 64, "bytes per chunk", at_least=False),
        Goal("look-up of what a run asks for", large["known_us"], 5, "µs", at_least=False),
        Goal("look-up of places", large["places_us"], 5, "µs", at_least=False),
        Goal("look-up of places, grown", grown["places_us"], 5, "µs", at_least=False),
    ]
    return part


def _rebuilt(work: Path, chunks: int, *, settle: bool) -> dict[str, Any]:
    """As after its cache was lost: index objects are listed, opened, checked, and what they list is sorted."""
    with appliance(work / "index-repository", settle=settle) as strongroom:
        say(f"index: a repository of {chunks} chunks")
        with Product(load({**os.environ, **strongroom.environment})) as product:
            repository = product.repository
            with repository.begin_run(repository.series_of("image", "index"), host="bench") as run:
                for packs in _packs(chunks):
                    run.put_index(packs)
                run.conclude()
            found = repository.index.counts().blobs
        assert found == chunks
        shutil.rmtree(strongroom.home / "cache")
        return _measured("rebuilt", strongroom, chunks)


def _measured(label: str, strongroom: Appliance, chunks: int) -> dict[str, Any]:
    say(f"index: {label}")
    done = measure([sys.executable, "-m", "tests.bench.index", "rebuilt"], environment=strongroom.environment)
    return _told(done, chunks)


def _child(what: str, folder: Path, chunks: int, lookups: int) -> dict[str, Any]:
    say(f"index: {what}, {chunks} chunks")
    done = measure([sys.executable, "-m", "tests.bench.index", what, str(folder), str(chunks), str(lookups)])
    return _told(done, chunks)


def _told(done: Measured, chunks: int) -> dict[str, Any]:
    """What the process printed, with what it cost: its start, and drawing what it was given, included."""
    figures: dict[str, Any] = json.loads(done.output)
    figures |= {"chunks": chunks, "cpu_s": round(done.usage.cpu_s, 1)}
    figures["anonymous_mib"] = round(done.usage.command_anonymous_mib, 1)
    say(f"index: {figures}")
    return figures


def _packs(chunks: int) -> Iterator[list[PackRows]]:
    """As runs publish them; drawn a million at a time."""
    numbers, choose = np.random.default_rng(1), random.Random(1)
    for start in range(0, chunks, 1_000_000):
        count = min(1_000_000, chunks - start)
        yield from packs_of_chunks(np.frombuffer(numbers.bytes(count * ID_BYTES), f"V{ID_BYTES}"), choose)


# In a process of its own


def _main(what: str, arguments: list[str]) -> dict[str, Any]:
    if what == "rebuilt":
        with Product(load(os.environ)) as product:
            repository = product.repository
            began = time.perf_counter()
            repository.refresh_index()
            took = time.perf_counter() - began
            return _figures(took, repository.index.counts().blobs, product.settings.cache_directory / "index")
    folder, chunks, lookups = Path(arguments[0]), int(arguments[1]), int(arguments[2])
    return (_large if what == "large" else _grown)(folder, chunks, lookups)


def _figures(took: float, chunks: int, folder: Path) -> dict[str, Any]:
    return {
        "seconds": round(took, 2),
        "chunks_per_s": round(chunks / took),
        "bytes_per_chunk": round(_size_bytes(folder) / chunks, 1),
    }


def _size_bytes(folder: Path) -> int:
    """On the disk."""
    return sum(path.stat().st_blocks * 512 for path in folder.rglob("*") if path.is_file())


def _large(folder: Path, chunks: int, lookups: int) -> dict[str, Any]:
    known: list[bytes] = []

    def objects() -> Iterator[tuple[str, list[PackRows]]]:
        for number, packs in enumerate(_packs(chunks)):
            _sample(packs, number, known, lookups)
            yield f"index/{number:032x}-000000", packs

    with ChunkIndex.open(folder, _REPOSITORY_ID) as index:
        began = time.perf_counter()
        index.build(objects())
        figures = _figures(time.perf_counter() - began, chunks, folder)
        return {**figures, **_looked_up(index, folder, known, lookups)}


def _sample(packs: list[PackRows], number: int, known: list[bytes], lookups: int) -> None:
    """Ids to look up later, from all over."""
    if number % 3 == 0:
        for pack in packs:
            at = 40 * (len(known) % 200)
            if len(known) < lookups and at < len(pack.rows):
                known.append(pack.rows[at : at + ID_BYTES])


def _looked_up(index: ChunkIndex, folder: Path, known: list[bytes], lookups: int) -> dict[str, Any]:
    choose = random.Random(2)
    ids = [choose.choice(known) if number % 2 else choose.randbytes(ID_BYTES) for number in range(lookups)]
    parts = [ids[at : at + _IDS_AT_ONCE] for at in range(0, len(ids), _IDS_AT_ONCE)]
    for part in parts:  # into the page cache
        index.known(part)
    figures: dict[str, Any] = {
        "known_us": round(_each_us(index.known, parts), 2),
        "places_us": round(_each_us(index.locate_many, parts), 2),
    }
    singles = [_each_us(index.locate_many, [[each]]) for each in ids[:20_000]]
    figures["one_p50_us"] = round(statistics.median(singles), 2)
    figures["one_p99_us"] = round(sorted(singles)[len(singles) * 99 // 100], 2)
    figures["segments"] = len(list(folder.rglob("*.segment")))
    return figures


def _each_us(look_up: Any, parts: list[list[bytes]]) -> float:
    began = time.perf_counter()
    for part in parts:
        look_up(part)
    return (time.perf_counter() - began) / sum(len(part) for part in parts) * 1e6


def _grown(folder: Path, chunks: int, lookups: int) -> dict[str, Any]:
    """Run by run, each of which lists about 65,536 chunks; the size is looked at all the time, once it is large, and
    when it is largest: a segment is there, and those that it was made of are not gone yet."""
    most, held, took = 0.0, 0, 0.0
    known: list[bytes] = []
    real = SegmentFolder.tidy

    def watched(segments: SegmentFolder, listed: Iterable[Listed]) -> None:
        nonlocal most
        if held >= chunks // 4:
            most = max(most, _size_bytes(folder) / held)
        real(segments, listed)

    SegmentFolder.tidy = watched  # type: ignore[method-assign, assignment]
    with ChunkIndex.open(folder, _REPOSITORY_ID) as index:
        for number, packs in enumerate(_packs(chunks)):
            _sample(packs, number, known, lookups)
            held += sum(len(pack.rows) // 40 for pack in packs)
            began = time.perf_counter()
            index.add_object(f"index/{number:032x}-000000", packs)
            took += time.perf_counter() - began
        figures = {"seconds": round(took, 2), "chunks_per_s": round(chunks / took), "bytes_per_chunk": round(most, 1)}
        return {**figures, **_looked_up(index, folder, known, lookups)}


if __name__ == "__main__":
    print(json.dumps(_main(sys.argv[1], sys.argv[2:])))
