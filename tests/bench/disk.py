"""Disk images, as every tool of the kind has to take them: read in full, three times, and restored once.

Each tool backs up day0, day1 (1 % of its blocks touched) and other (a second machine) into one repository, restores
day1, which is compared byte by byte, and verifies what it has.

The tools take turns, step by step, and all of it is done three times: a shared machine is a fifth faster or slower from
one minute to the next. Another tool begins each round, as who comes after much writing finds the disk busy. What is
shown of a step is its median, and a ratio is the median of the rounds' ratios. A restore is timed until what it wrote
is on disk (sync), which restic and qemu-img leave to the kernel.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from dataclasses import asdict
from operator import itemgetter
from pathlib import Path
from statistics import median
from typing import Any

from tests.bench.images import Images, data_bytes
from tests.bench.measure import BenchError, Usage, disk_usage_bytes, measure, run, say, warm
from tests.bench.report import Cell, Goal, Part
from tests.bench.tools import Command, Tool, all_tools, until_durable

_MIB = 1 << 20
_TAGS = ("day0", "day1", "other")
Figures = dict[str, dict[str, Any]]


def measure_disk(work: Path, images: Images, wanted: tuple[str, ...], *, settle: bool, rounds: int) -> Part:
    tools = [tool for tool in all_tools() if not wanted or tool.name in wanted]
    part = Part(
        "disk",
        f"{images.day0.stat().st_size / (1 << 30):.2g} GiB disks, {data_bytes(images.day0) // _MIB} MiB of files",
    )
    part.remarks += [
        f"{tool.name} is not installed and was not measured: '.ci/setup --bench' installs it."
        for tool in tools
        if not tool.installed
    ]
    installed = [tool for tool in tools if tool.installed]
    every: list[dict[str, Figures]] = []
    for number in range(1, rounds + 1):
        say(f"disk: round {number} of {rounds}")
        with contextlib.ExitStack() as stack:
            first = (number - 1) % len(installed) if installed else 0
            order = installed[first:] + installed[:first]
            turns = [_Turns(tool, images, work / f"disk-{tool.name}", settle=settle) for tool in order]
            for turn in turns:
                stack.callback(shutil.rmtree, turn.root, ignore_errors=True)
            for steps in zip(*(turn.steps() for turn in turns), strict=True):
                assert len(set(steps)) == 1
            every.append({turn.tool.name: turn.figures for turn in turns})
    found = {tool.name: _medians([each[tool.name] for each in every]) for tool in installed}
    part.figures = {"tools": found, "rounds": every}
    _tabulate(part, found, every)
    part.goals = _goals(found, every)
    return part


class _Turns:
    """One tool's steps, taken one at a time."""

    def __init__(self, tool: Tool, images: Images, root: Path, *, settle: bool) -> None:
        self.tool = tool
        self.root = root
        self.figures: Figures = {}
        self._images = images
        self._settle = settle
        self._before = 0

    def steps(self) -> Iterator[str]:
        """Does a step, and yields its name."""
        tool, root, images = self.tool, self.root, self._images
        shutil.rmtree(root, ignore_errors=True)
        source, out = root / "source", root / "out"
        source.mkdir(parents=True)
        out.mkdir()
        self._step(tool.init, source)
        yield "init"
        for tag in _TAGS:
            image = source / "disk.raw"  # one file name every day, as each tool expects of one source
            image.unlink(missing_ok=True)
            os.link(getattr(images, tag), image)
            name = "bench-other" if tag == "other" else "bench"
            warm(image)  # the same warm page cache for every tool
            say(f"disk: {tool.name} {tag}")
            usage = self._step(tool.backup, source, tag=tag, name=name)
            after = disk_usage_bytes(root / "repository")
            sizes = {"repository_mib": after / _MIB, "stored_mib": (after - self._before) / _MIB}
            self.figures[tag] = _rounded(usage) | {key: round(value, 1) for key, value in sizes.items()}
            self._before = after
            yield tag
            if tag == "day1":
                self.figures["restore"] = _rounded(self._step(until_durable(tool.restore), out, tag=tag, name=name))
                restored = next(out.rglob("disk.raw"), None)
                if restored is None:
                    raise BenchError(f"{tool.name} restored nothing")
                run(["cmp", str(restored), str(images.day1)])
                shutil.rmtree(out)
                out.mkdir()
                yield "restore"
        if tool.verify is not None:
            self.figures["verify"] = _rounded(self._step(tool.verify, out))
        yield "verify"

    def _step(self, command: Command, folder: Path, **more: str) -> Usage:
        root = self.root
        names = {
            "root": str(root),
            "source": str(root / "source"),
            "out": str(root / "out"),
            "repository": str(root / "repository"),
        }
        environment = {key: value.format(**names) for key, value in self.tool.environment.items()}
        filled = [argument.format(**names, **more) for argument in command]
        return measure(filled, environment=environment, folder=folder, settle=self._settle).usage


def _medians(rounds: list[Figures]) -> Figures:
    """Of each step the run that took the median time."""
    return {step: sorted((each[step] for each in rounds), key=itemgetter("seconds"))[len(rounds) // 2]
            for step in rounds[0]}  # fmt: skip


def _ratio(rounds: list[dict[str, Figures]], tool: str, step: str, key: str = "seconds") -> float | None:
    """The median of the rounds: what the tool needs, as a multiple of what strongroom does."""
    found = [
        each[tool][step][key] / each["strongroom"][step][key]
        for each in rounds
        if "strongroom" in each and step in each.get(tool, {})
    ]
    return median(found) if found else None


def _rounded(usage: Usage) -> dict[str, Any]:
    return {key: round(value, 2) if isinstance(value, float) else value for key, value in asdict(usage).items()}


def _tabulate(part: Part, found: dict[str, Figures], rounds: list[dict[str, Figures]]) -> None:
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
                each = [_ratio(rounds, name, step) for step in steps]
                cpu = [_ratio(rounds, name, step, "cpu_s") for step in steps]
                size = figures["other"]["repository_mib"] / ours["other"]["repository_mib"]
                ratios.append([name, *each, *cpu[:2], size])
        columns = ["times strongroom's", *steps, "CPU day0", "CPU day1", "repository"]
        part.table(columns, ratios, title="Each tool as a multiple of strongroom (more: strongroom is faster, smaller)")
    for name, figures in found.items():
        left = sorted({process for step in figures.values() for process in step["left_running"]})
        if left:
            part.remarks.append(f"{name} left running (their CPU so far is counted): {', '.join(left)}")


def _goals(found: dict[str, Figures], rounds: list[dict[str, Figures]]) -> list[Goal]:
    ours = found.get("strongroom")

    def faster(step: str) -> float | None:
        return _ratio(rounds, "restic", step)

    theirs = _ratio(rounds, "qemu-img", "day0", "cpu_s")
    cpu = 100 / theirs if theirs else None
    # restic's size is another one in each round, as its repositories cut by polynomials of their own.
    larger = _ratio(rounds, "restic", "other", "repository_mib")
    smaller = 100 * (1 - 1 / larger) if larger else None
    return [
        Goal("first backup, times restic's speed", faster("day0"), 3, "×", at_least=True),
        Goal("CPU of the first backup, of qemu-img convert -c (zstd)", cpu, 100, "%", at_least=False),
        Goal("second backup, times restic's speed", faster("day1"), 5, "×", at_least=True),
        Goal("second backup stores", ours["day1"]["stored_mib"] if ours else None, 45, "MiB", at_least=False),
        Goal("restore, times restic's speed", faster("restore"), 2, "×", at_least=True),
        Goal("repository after three disks, smaller than restic's by", smaller, 10, "%", at_least=True),
    ]
