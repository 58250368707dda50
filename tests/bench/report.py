"""What was measured: tables for people, JSON for later, and goals that are met or not.

The rule: a goal is judged by the figure printed beside it; what was not measured is neither met nor missed.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

Cell = str | int | float | None


@dataclass(frozen=True, slots=True)
class Goal:
    """`wanted` is a limit; `at_least` tells on which side of it the goal lies."""

    name: str
    measured: float | None
    wanted: float
    unit: str
    at_least: bool

    @property
    def met(self) -> bool | None:
        if self.measured is None:
            return None
        return self.measured >= self.wanted if self.at_least else self.measured < self.wanted


@dataclass(slots=True)
class Part:
    """What one part of the benchmark found. `figures` is what JSON keeps; tables and remarks are for people."""

    name: str
    title: str
    figures: dict[str, Any] = field(default_factory=dict)
    goals: list[Goal] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    others_cores: float = 0.0

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[Cell]], *, title: str = "") -> None:
        table = Table(title=title or None, title_justify="left", title_style="", box=None, pad_edge=False)
        for number, column in enumerate(columns):
            table.add_column(column, justify="left" if number == 0 else "right", overflow="fold")
        for row in rows:
            table.add_row(*(_shown(cell) for cell in row))
        self.tables.append(table)


def _shown(cell: Cell) -> str:
    if cell is None:
        return "–"
    if isinstance(cell, float):
        return f"{cell:.2f}" if abs(cell) < 10 else f"{cell:.1f}" if abs(cell) < 100 else f"{cell:.0f}"
    return str(cell)


def show(console: Console, part: Part) -> None:
    console.print()
    console.rule(Text(f"{part.name}: {part.title}"), align="left")
    for table in part.tables:
        console.print()
        console.print(table)
    for remark in part.remarks:
        console.print(f"  {remark}", highlight=False, markup=False)
    console.print(
        f"  Others kept {part.others_cores:.1f} of {os.cpu_count()} cores busy meanwhile (virtual machines included).",
        highlight=False,
    )
    if part.goals:
        console.print()
        goals = Table(box=None, pad_edge=False)
        for column in ("goal", "measured", "wanted", ""):
            goals.add_column(column, justify="left" if column in ("goal", "") else "right")
        for goal in part.goals:
            verdict = {True: "met", False: "[bold red]NOT met[/]", None: "not measured"}[goal.met]
            side = "at least" if goal.at_least else "under"
            goals.add_row(goal.name, _shown(goal.measured), f"{side} {goal.wanted:g} {goal.unit}", verdict)
        console.print(goals)


def keep(path: Path, parts: Sequence[Part], *, quick: bool) -> None:
    """Write the last results of each part; those of parts that did not run now stay, if they are of the same kind."""
    kept: dict[str, Any] = {}
    if path.exists():
        before = json.loads(path.read_text())
        if before.get("quick") == quick:
            kept = before["parts"]
    for part in parts:
        kept[part.name] = {
            "measured_utc": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "others_cores_busy": round(part.others_cores, 2),
            "figures": part.figures,
            "goals": [
                {
                    "goal": goal.name,
                    "measured": None if goal.measured is None else round(goal.measured, 3),
                    "wanted": goal.wanted,
                    "unit": goal.unit,
                    "side": "at least" if goal.at_least else "under",
                    "met": goal.met,
                }
                for goal in part.goals
            ],
            "remarks": part.remarks,
        }
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(path.name + ".new")
    new.write_text(json.dumps({"quick": quick, "machine": machine(), "parts": kept}, indent=1) + "\n")
    new.replace(path)


def machine() -> dict[str, Any]:
    """Where it was measured."""
    model = next(
        (line.partition(":")[2].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")),
        platform.machine(),
    )
    memory_kib = next((int(line.split()[1]) for line in _lines("/proc/meminfo") if line.startswith("MemTotal:")), 0)
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "memory_gib": round(memory_kib / (1 << 20), 1),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "tools": {name: version for name in ("restic", "borg", "qemu-img", "nbdkit") if (version := _version(name))},
    }


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines()


def _version(program: str) -> str | None:
    argument = "version" if program == "restic" else "--version"
    try:
        said = subprocess.run([program, argument], capture_output=True, text=True, check=False).stdout
    except FileNotFoundError:
        return None
    return said.splitlines()[0].strip() if said else None
