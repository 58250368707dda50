"""Disk images, as every tool of the kind has to take them: read in full, three times, and restored once.

Each tool backs up day0, day1 (1 % of its blocks touched) and other (a second machine) into one repository, restores
day1, which is compared byte by byte, and verifies what it has.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tests.bench.images import Images, data_bytes
from tests.bench.measure import BenchError, Usage, disk_usage_bytes, measure, run, say, warm
from tests.bench.report import Cell, Goal, Part
from tests.bench.tools import Command, Tool, all_tools

_MIB = 1 << 20
_TAGS = ("day0", "day1", "other")
Figures = dict[str, dict[str, Any]]


def measure_disk(work: Path, images: Images, wanted: tuple[str, ...], *, settle: bool) -> Part:
    tools = [tool for tool in all_tools() if not wanted or tool.name in wanted]
    part = Part(
        "disk",
        f"{images.day0.stat().st_size / (1 << 30):.2g} GiB disks, {data_bytes(images.day0) // _MIB} MiB of files",
    )
    found: dict[str, Figures] = {}
    for tool in tools:
        if tool.installed:
            found[tool.name] = _measure_tool(tool, images, work / f"disk-{tool.name}", settle=settle)
        else:
            part.remarks.append(f"{tool.name} is not installed and was not measured: '.ci/setup --bench' installs it.")
    part.figures = {"tools": found}
    _tabulate(part, found)
    part.goals = _goals(found)
    return part


def _measure_tool(tool: Tool, images: Images, root: Path, *, settle: bool) -> Figures:
    shutil.rmtree(root, ignore_errors=True)
    source, out, repository = root / "source", root / "out", root / "repository"
    source.mkdir(parents=True)
    out.mkdir()
    names = {"root": str(root), "source": str(source), "out": str(out), "repository": str(repository)}
    environment = {key: value.format(**names) for key, value in tool.environment.items()}

    def step(command: Command, folder: Path, **more: str) -> Usage:
        filled = [argument.format(**names, **more) for argument in command]
        return measure(filled, environment=environment, folder=folder, settle=settle).usage

    figures: Figures = {}
    before = 0
    try:
        step(tool.init, source)
        for tag in _TAGS:
            image = source / "disk.raw"  # one file name every day, as each tool expects of one source
            image.unlink(missing_ok=True)
            os.link(getattr(images, tag), image)
            warm(image)  # the same warm page cache for every tool
            name = "bench-other" if tag == "other" else "bench"
            say(f"disk: {tool.name} {tag}")
            usage = step(tool.backup, source, tag=tag, name=name)
            after = disk_usage_bytes(repository)
            sizes = {"repository_mib": round(after / _MIB, 1), "stored_mib": round((after - before) / _MIB, 1)}
            figures[tag] = _rounded(usage) | sizes
            before = after
            if tag == "day1":
                figures["restore"] = _rounded(step(tool.restore, out, tag=tag, name=name))
                restored = next(out.rglob("disk.raw"), None)
                if restored is None:
                    raise BenchError(f"{tool.name} restored nothing")
                run(["cmp", str(restored), str(images.day1)])
                shutil.rmtree(out)
                out.mkdir()
        if tool.verify is not None:
            figures["verify"] = _rounded(step(tool.verify, out))
    finally:
        shutil.rmtree(root)
    return figures


def _rounded(usage: Usage) -> dict[str, Any]:
    return {key: round(value, 2) if isinstance(value, float) else value for key, value in asdict(usage).items()}


def _tabulate(part: Part, found: dict[str, Figures]) -> None:
    def time(figures: Figures, step: str) -> str:
        return f"{figures[step]['seconds']:.1f} ({figures[step]['cpu_s']:.1f})" if step in figures else "–"

    rows: list[list[Cell]] = []
    for name, figures in found.items():
        sizes = " · ".join(f"{figures[tag]['repository_mib']:.0f}" for tag in _TAGS)
        peak = max(step["peak_rss_mib"] for step in figures.values())
        rows.append([name, *(time(figures, step) for step in (*_TAGS, "restore", "verify")), sizes, round(peak)])
    columns = ["s (CPU s)", *_TAGS, "restore", "verify", "repository after each, MiB", "peak RSS, MiB"]
    part.table(columns, rows)
    ours = found.get("strongroom")
    if ours is not None:
        steps = (*_TAGS, "restore", "verify")
        ratios: list[list[Cell]] = []
        for name, figures in found.items():
            if name != "strongroom":
                each = [figures[s]["seconds"] / ours[s]["seconds"] if s in figures else None for s in steps]
                cpu = [figures[s]["cpu_s"] / ours[s]["cpu_s"] if s in figures else None for s in steps]
                size = figures["other"]["repository_mib"] / ours["other"]["repository_mib"]
                ratios.append([name, *each, *cpu[:2], size])
        columns = ["times strongroom's", *steps, "CPU day0", "CPU day1", "repository"]
        part.table(columns, ratios, title="Each tool as a multiple of strongroom (more: strongroom is faster, smaller)")
    for name, figures in found.items():
        left = sorted({process for step in figures.values() for process in step["left_running"]})
        if left:
            part.remarks.append(f"{name} left running (their CPU so far is counted): {', '.join(left)}")


def _goals(found: dict[str, Figures]) -> list[Goal]:
    ours, restic, qemu = (found.get(name) for name in ("strongroom", "restic", "qemu-img"))

    def faster(step: str) -> float | None:
        return restic[step]["seconds"] / ours[step]["seconds"] if ours and restic else None

    cpu = 100 * ours["day0"]["cpu_s"] / qemu["day0"]["cpu_s"] if ours and qemu else None
    smaller = (
        100 * (1 - ours["other"]["repository_mib"] / restic["other"]["repository_mib"]) if ours and restic else None
    )
    return [
        Goal("first backup, times restic's speed", faster("day0"), 3, "×", at_least=True),
        Goal("CPU of the first backup, of qemu-img convert -c (zstd)", cpu, 100, "%", at_least=False),
        Goal("second backup, times restic's speed", faster("day1"), 5, "×", at_least=True),
        Goal("second backup stores", ours["day1"]["stored_mib"] if ours else None, 45, "MiB", at_least=False),
        Goal("restore, times restic's speed", faster("restore"), 2, "×", at_least=True),
        Goal("repository after three disks, smaller than restic's by", smaller, 10, "%", at_least=True),
    ]
