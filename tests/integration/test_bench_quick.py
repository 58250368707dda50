"""The benchmark works: every part of it, small, yields numbers. How fast anything is, is not asked here."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

PROJECT = Path(__file__).resolve().parents[2]
# What a part must have measured; peers may be absent, ours may not.
FIGURES = {
    "disk": ["tools.strongroom.day0.seconds", "tools.strongroom.day0.cpu_s", "tools.strongroom.other.repository_mib",
             "tools.strongroom.restore.seconds", "tools.strongroom.verify.seconds", "tools.qemu-img.day0.cpu_s"],
    "incremental": ["running.fixed_s", "off.fixed_s", "running.runs.1.read_bytes", "off.runs.1.read_bytes"],
    "sparse": ["first.anonymous_mib", "first.map_bytes", "unchanged.seconds", "changed.read_bytes"],
    "random": ["p50_ms", "p99_ms", "sequential_mb_s"],
    "object": ["local.backup_s", "bucket.backup_s", "bucket.restore_server_s", "cold.p50_ms", "near.p99_ms",
               "sequential.mb_s", "boot.boot.requests", "boot.files.of_packs"],
    "recovery": ["1 GiB.started_s", "1 GiB.returned_s"],
    "verify": ["hashes.mb_per_core_s", "every_chunk_opened.mb_per_core_s", "read_bytes"],
    "index": ["rebuilt.chunks_per_s", "large.bytes_per_chunk", "large.known_us", "large.one_p50_us",
              "grown.bytes_per_chunk"],
    "collection": ["requests.first.get", "requests.again.list", "plans.first.seconds", "plans.again.anonymous_mib",
                   "forecast_s", "ledger_bytes_per_blob"],
    "pages": ["sqlite.pages.overview.median_ms", "sqlite.pages.a VM.statements", "sqlite.first_load_bytes"],
    "due": ["queued_s", "drained_s", "runs.succeeded", "busy_most", "running_most", "longest_ms"],
    "browsing": ["sqlite.overview.median_ms", "postgresql.runs.longest_ms", "postgresql.machines.median_ms"],
}  # fmt: skip


pytestmark = pytest.mark.timeout(1200)  # all parts are measured by the first test

OF_SCALE = ("verify", "index", "collection", "browsing", "pages", "due")


@pytest.fixture(scope="module")
def results() -> Iterator[dict[str, Any]]:
    with tempfile.TemporaryDirectory(prefix="strongroom-bench-") as name:
        folder = Path(name)
        folder.chmod(0o711)  # QEMU's user has to reach the machines' disks
        yield _measured(folder, [part for part in FIGURES if part not in OF_SCALE])


@pytest.fixture(scope="module")
def results_of_scale() -> Iterator[dict[str, Any]]:
    with tempfile.TemporaryDirectory(prefix="strongroom-bench-") as name:
        yield _measured(Path(name), OF_SCALE)


def _measured(folder: Path, parts: Sequence[str]) -> dict[str, Any]:
    kept = folder / "results.json"
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "tests.bench",
            "--quick",
            "--tools",
            "qemu-img,strongroom",
            "--work",
            str(folder / "work"),
            "--json",
            str(kept),
            *parts,
        ],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        timeout=1140,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found: dict[str, Any] = json.loads(kept.read_text())
    return found


@pytest.mark.integration
@pytest.mark.parametrize("part", FIGURES)
def test_part_yields_numbers(request: pytest.FixtureRequest, part: str) -> None:
    results = request.getfixturevalue("results_of_scale" if part in OF_SCALE else "results")
    figures = results["parts"][part]["figures"]
    for path in FIGURES[part]:
        value = figures
        for key in path.split("."):
            value = value[int(key)] if isinstance(value, list) else value[key]
        assert isinstance(value, (int, float)), path
        assert math.isfinite(value), path
        assert value > 0, path


@pytest.mark.integration
@pytest.mark.parametrize("which", ["results", "results_of_scale"])
def test_every_goal_of_ours_is_judged(request: pytest.FixtureRequest, which: str) -> None:
    for name, part in request.getfixturevalue(which)["parts"].items():
        for goal in part["goals"]:
            if "restic" not in goal["goal"]:
                assert isinstance(goal["met"], bool), f"{name}: {goal['goal']}"


@pytest.mark.integration
def test_nothing_is_left(results: dict[str, Any]) -> None:
    assert results["quick"] is True
    listed = subprocess.run(
        ["virsh", "--connect", "qemu:///system", "list", "--all", "--name"], capture_output=True, text=True, check=True
    ).stdout.split()
    left = [name for name in listed if name.startswith("strongroom-bench-")]
    # Another benchmark may be running here; a dead one's machines must have been taken away.
    assert not [name for name in left if not Path(f"/proc/{name.split('-')[2]}").exists()]
