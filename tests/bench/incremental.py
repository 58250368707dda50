"""Incremental backups of a machine's disk: what they cost before anything changed, and for each byte that did.

A running machine is read through its hypervisor's backup job, a powered-off one from the bitmap in its qcow2 file. The
changes are whole 64 KiB blocks (the bitmap's grain) at random places, half of them within data: isolated, so that
cutting again around each costs as much as it can.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.bench.images import BLOCK_BYTES, MIB, PAGE_BYTES, changed_blocks, spread, spread_qcow2
from tests.bench.machines import Lab, Machine, lab
from tests.bench.measure import BenchError, Usage, say
from tests.bench.report import Cell, Goal, Part
from tests.bench.strongroom import Appliance, appliance

HOST = "bench"
_RECUT_PAGES = 25  # around one isolated dirty page, measured when the cuts were designed: 26 with the page itself


@dataclass(frozen=True, slots=True)
class Scale:
    size_bytes: int
    data_bytes: int
    piece_bytes: int
    shares: tuple[float, ...]
    empty_runs: int


FULL = Scale(20 << 30, 2 << 30, 16 * MIB, (0.001, 0.01, 0.1), 5)
QUICK = Scale(1 << 30, 32 * MIB, 4 * MIB, (0.01,), 1)


@dataclass(frozen=True, slots=True)
class _Run:
    label: str
    dirty_bytes: int
    usage: Usage
    point: dict[str, Any]


def measure_incremental(work: Path, content: Path, *, quick: bool) -> Part:
    scale = QUICK if quick else FULL
    root = work / "incremental"
    part = Part(
        "incremental", f"a machine's {scale.size_bytes >> 30} GiB disk with {scale.data_bytes // MIB} MiB of data"
    )
    with appliance(root, settle=not quick) as strongroom, lab() as machines:
        machine = sparse_machine(machines, "incremental", root, scale, content)
        strongroom.call("host", "add", HOST, "qemu:///system", "--accelerator", "tcg")
        machine.start()
        full = _backup(strongroom, machine, "full", 0)
        running = _series(strongroom, machine, scale, seed=100)
        machine.power_off()
        off = _series(strongroom, machine, scale, seed=200)
    for state, runs in (("running", running), ("off", off)):
        _tabulate(part, state, runs)
    part.figures["full"] = _figures(full)
    part.figures["disk"] = {"size_bytes": scale.size_bytes, "data_bytes": scale.data_bytes, "block_bytes": BLOCK_BYTES}
    part.remarks.append(
        f"The full backup before: {full.usage.seconds:.1f} s, {full.point['read_bytes'] // MIB} MiB read."
    )
    part.remarks.append(
        "Reading for the clean-chunk sample (as much as an empty run reads) is not counted as re-cutting."
    )
    part.remarks.append("QEMU's own CPU is not counted: it belongs to the hypervisor.")
    for state, runs in (("running", running), ("off", off)):
        part.goals.append(Goal(f"fixed cost, {state}", _fixed_s(runs), 1, "s", at_least=False))
    for run in running:
        if run.dirty_bytes:
            limit = BLOCK_BYTES // PAGE_BYTES + _RECUT_PAGES
            name = f"pages read for each isolated dirty block of 16, {run.label}, running"
            part.goals.append(Goal(name, _pages_per_block(run, running), limit, "pages", at_least=False))
    return part


def sparse_machine(machines: Lab, what: str, folder: Path, scale: Scale, content: Path) -> Machine:
    disk = folder / f"{what}.qcow2"
    spread_qcow2(disk, spread(scale.size_bytes, scale.data_bytes, scale.piece_bytes, seed=1), content)
    return machines.define(what, disk)


def _series(strongroom: Appliance, machine: Machine, scale: Scale, seed: int) -> list[_Run]:
    """Empty runs, then one for each share of the disk that changed."""
    runs = [_incremental(strongroom, machine, "nothing", 0) for _ in range(scale.empty_runs)]
    plan = spread(scale.size_bytes, scale.data_bytes, scale.piece_bytes, seed=1)
    for number, share in enumerate(scale.shares):
        blocks = changed_blocks(plan, share, seed + number)
        say(f"incremental: writing {len(blocks)} blocks")
        machine.write(blocks, seed + number)
        runs.append(_incremental(strongroom, machine, f"{share:.1%}", len(blocks) * BLOCK_BYTES))
    return runs


def _backup(strongroom: Appliance, machine: Machine, label: str, dirty_bytes: int) -> _Run:
    say(f"incremental: {label} changed" if label != "full" else "incremental: full")
    measured, point = strongroom.backup(machine.name, "--host", HOST)
    return _Run(label, dirty_bytes, measured.usage, point)


def _incremental(strongroom: Appliance, machine: Machine, label: str, dirty_bytes: int) -> _Run:
    run = _backup(strongroom, machine, label, dirty_bytes)
    if run.point["kind"] != "incremental":
        reasons = ", ".join(disk["reason"] or disk["read"] for disk in run.point["disks"])
        raise BenchError(f"the backup of {machine.name} ({label} changed) was not incremental: {reasons}")
    return run


def _fixed_s(runs: list[_Run]) -> float:
    return statistics.median(run.usage.seconds for run in runs if not run.dirty_bytes)


def _sample_bytes(runs: list[_Run]) -> float:
    return statistics.median(float(run.point["read_bytes"]) for run in runs if not run.dirty_bytes)


def _pages_per_block(run: _Run, runs: list[_Run]) -> float:
    read = run.point["read_bytes"] - _sample_bytes(runs)
    return float(read / (run.dirty_bytes / BLOCK_BYTES) / PAGE_BYTES)


def _figures(run: _Run) -> dict[str, Any]:
    return {
        "changed": run.label,
        "dirty_bytes": run.dirty_bytes,
        "seconds": round(run.usage.seconds, 3),
        "cpu_s": round(run.usage.cpu_s, 3),
        "run_ms": run.point["duration_ms"],
        "read_bytes": run.point["read_bytes"],
        "stored_bytes": run.point["stored_bytes"],
    }


def _tabulate(part: Part, state: str, runs: list[_Run]) -> None:
    fixed_s = _fixed_s(runs)
    rows: list[list[Cell]] = []
    for run in runs:
        dirty_mib = run.dirty_bytes / MIB
        rows.append(
            [
                run.label,
                dirty_mib,
                run.usage.seconds,
                run.point["duration_ms"] / 1000,
                run.usage.cpu_s,
                run.point["read_bytes"] / MIB,
                (run.point["read_bytes"] - _sample_bytes(runs)) / run.dirty_bytes if run.dirty_bytes else None,
                run.point["stored_bytes"] / MIB,
                (run.usage.seconds - fixed_s) / dirty_mib * 1024 if run.dirty_bytes else None,
            ]
        )
    columns = ["changed", "dirty, MiB", "s", "of it the run", "CPU s", "read, MiB", "read per dirty byte",
               "stored, MiB", "s per dirty GiB over the fixed cost"]  # fmt: skip
    part.table(columns, rows, title=f"The machine is {state}; fixed cost (median of empty runs): {fixed_s:.2f} s")
    part.figures[state] = {"fixed_s": round(fixed_s, 3), "runs": [_figures(run) for run in runs]}
