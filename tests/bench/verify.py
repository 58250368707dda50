"""How fast a repository is verified: against the hashes that name its packs, and opening every chunk.

MB are those of packs, as they are stored, read from the local disk past the page cache. A core's rate is what one CPU
second of the command comes to, less what it costs when no data is read.
"""

from __future__ import annotations

import json
from pathlib import Path

from tests.bench.images import Images
from tests.bench.measure import BenchError, Measured, say
from tests.bench.report import Cell, Goal, Part
from tests.bench.strongroom import Appliance, appliance


def measure_verify(work: Path, images: Images, *, quick: bool) -> Part:
    part = Part("verify", "every byte of a repository, per core")
    with appliance(work / "verify", settle=not quick) as strongroom:
        for name in ("day0", "other"):
            say(f"verify: backup of {name}")
            strongroom.backup("--image", str(getattr(images, name)), "--format", "raw", "--name", name)
        bare, _ = _verify(strongroom)
        hashed, read_bytes = _verify(strongroom, "--read-data", "--hashes-only")
        opened, _ = _verify(strongroom, "--read-data")
    rows: list[list[Cell]] = []
    for label, measured in (("tables only", bare), ("hashes", hashed), ("every chunk opened", opened)):
        usage = measured.usage
        rate = None if measured is bare else _mb_per_core_s(read_bytes, measured, bare)
        rows.append([label, usage.seconds, usage.cpu_s, usage.command_anonymous_mib, rate])
        part.figures[label.replace(" ", "_")] = {
            "seconds": round(usage.seconds, 2),
            "cpu_s": round(usage.cpu_s, 2),
            "anonymous_mib": round(usage.command_anonymous_mib, 1),
            "mb_per_core_s": None if rate is None else round(rate, 1),
        }
    part.figures["read_bytes"] = read_bytes
    part.table(["verify", "s", "CPU s", "anonymous, MiB", "MB/s per core"], rows)
    part.remarks.append(f"{read_bytes / 1e6:.0f} MB of packs.")
    part.goals = [Goal("hashes, per core", _mb_per_core_s(read_bytes, hashed, bare), 500, "MB/s", at_least=True)]
    return part


def _verify(strongroom: Appliance, *options: str) -> tuple[Measured, int]:
    """What it cost, and the bytes of packs that were read."""
    say(f"verify: {' '.join(options) or 'tables only'}")
    measured = strongroom.call("repository", "verify", "--json", *options)
    report = json.loads(measured.output)
    if not report["ok"]:
        raise BenchError(f"the repository is damaged: {report['damaged'][:1]}")
    return measured, report["read_bytes"]


def _mb_per_core_s(read_bytes: int, measured: Measured, bare: Measured) -> float:
    return read_bytes / 1e6 / max(measured.usage.cpu_s - bare.usage.cpu_s, 1e-3)
