"""A very large, almost empty disk: what it costs in memory, time and bookkeeping.

Memory is anonymous memory, of the command and of everything it starts together: mapped files (the chunk index) can be
dropped by the kernel at any time and are not counted.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.bench.images import BLOCK_BYTES, MIB, changed_blocks, spread
from tests.bench.incremental import HOST, Scale, sparse_machine
from tests.bench.machines import lab
from tests.bench.measure import BenchError, say
from tests.bench.report import Cell, Goal, Part
from tests.bench.strongroom import Appliance, appliance

FULL = Scale(2 << 40, 1 << 30, 4 * MIB, (1e-5,), 1)
QUICK = Scale(64 << 30, 32 * MIB, 4 * MIB, (1e-4,), 1)


def measure_sparse(work: Path, content: Path, *, quick: bool) -> Part:
    scale = QUICK if quick else FULL
    root = work / "sparse"
    part = Part(
        "sparse",
        f"a powered-off machine's disk of {scale.size_bytes >> 30} GiB with {scale.data_bytes // MIB} MiB of data",
    )
    with appliance(root, settle=not quick) as strongroom, lab() as machines:
        machine = sparse_machine(machines, "sparse", root, scale, content)
        strongroom.call("host", "add", HOST, "qemu:///system", "--accelerator", "tcg")
        blocks = changed_blocks(
            spread(scale.size_bytes, scale.data_bytes, scale.piece_bytes, seed=1), scale.shares[0], 1
        )
        runs = {"first": _measure(strongroom, machine.name, "first", 0)}
        runs["unchanged"] = _measure(strongroom, machine.name, "unchanged", 0)
        machine.write(blocks, seed=1)
        runs["changed"] = _measure(strongroom, machine.name, "changed", len(blocks) * BLOCK_BYTES)
    part.figures = dict(runs)
    rows: list[list[Cell]] = [
        [label, figures["dirty_bytes"] / MIB, figures["seconds"], figures["cpu_s"], figures["anonymous_mib"],
         figures["command_anonymous_mib"], figures["read_bytes"] / MIB, figures["stored_bytes"] / MIB,
         (figures["manifest_bytes"] + figures["map_bytes"]) / 1024, figures["index_bytes"] / 1024]
        for label, figures in runs.items()
    ]  # fmt: skip
    columns = ["run", "dirty, MiB", "s", "CPU s", "anonymous, MiB", "of the command alone", "read, MiB", "stored, MiB",
               "manifest and map, KiB", "index, KiB"]  # fmt: skip
    part.table(columns, rows)
    first, later = runs["first"], (runs["unchanged"], runs["changed"])
    most = max(figures["manifest_bytes"] + figures["map_bytes"] for figures in runs.values())
    part.goals = [
        Goal("anonymous memory, first backup", first["anonymous_mib"], 350, "MiB", at_least=False),
        Goal("anonymous memory, incremental", max(f["anonymous_mib"] for f in later), 350, "MiB", at_least=False),
        Goal("incremental", max(f["seconds"] for f in later), 10, "s", at_least=False),
        Goal("manifest and map that a run adds", most / 1024, 1024, "KiB", at_least=False),
    ]
    return part


def _measure(strongroom: Appliance, name: str, label: str, dirty_bytes: int) -> dict[str, Any]:
    say(f"sparse: {label}")
    before = strongroom.objects()
    measured, point = strongroom.backup(name, "--host", HOST)
    after = strongroom.objects()
    if label != "first" and point["kind"] != "incremental":
        raise BenchError(f"the backup of {name} ({label}) was not incremental")
    added: dict[str, int] = {}
    for name_of, (kind, size_bytes) in after.items():
        if name_of not in before:
            added[kind] = added.get(kind, 0) + size_bytes
    usage = measured.usage
    return {
        "kind": point["kind"],
        "dirty_bytes": dirty_bytes,
        "seconds": round(usage.seconds, 3),
        "cpu_s": round(usage.cpu_s, 3),
        "anonymous_mib": round(usage.peak_anonymous_mib, 1),
        "command_anonymous_mib": round(usage.command_anonymous_mib, 1),
        "rss_mib": round(usage.peak_rss_mib, 1),
        "read_bytes": point["read_bytes"],
        "stored_bytes": point["stored_bytes"],
        "manifest_bytes": added.get("manifests", 0),
        "map_bytes": added.get("map", 0),
        "index_bytes": added.get("index", 0),
    }
