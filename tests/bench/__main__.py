"""`python -m tests.bench`, which `make bench` runs."""

from __future__ import annotations

import argparse
import compileall
import signal
import sys
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import FrameType

from rich.console import Console

from tests.bench import company, images, report, tree
from tests.bench.browsing import measure_browsing
from tests.bench.collection import measure_collection
from tests.bench.disk import measure_disk
from tests.bench.due import measure_due
from tests.bench.incremental import measure_incremental
from tests.bench.index import measure_index
from tests.bench.measure import BenchError
from tests.bench.object_store import measure_object
from tests.bench.pages import measure_pages
from tests.bench.random_reads import measure_random
from tests.bench.recoveries import measure_recovery
from tests.bench.sparse import measure_sparse
from tests.bench.verify import measure_verify
from tests.quick import quick_homes

PROJECT = Path(__file__).resolve().parents[2]
PARTS = (
    "disk", "incremental", "sparse", "random", "recovery", "object", "verify", "index", "collection", "browsing",
    "pages", "due",
)  # fmt: skip


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; all by default")
    parser.add_argument("--quick", action="store_true", help="everything small: to see that it works, not how fast")
    parser.add_argument("--work", type=Path, help="folder for disks and repositories (default: .cache/bench/work)")
    parser.add_argument(
        "--json", type=Path, help="where the last results are kept (default: .cache/bench/results.json)"
    )
    parser.add_argument("--tree", help=f"the files on the disks (default: {images.FULL.tree}, or packages)")
    parser.add_argument("--tools", default="", help="disk: only these tools, separated by commas")
    parser.add_argument("--rounds", type=int, default=3, help="disk: how often (default: 3; the medians are shown)")
    parser.add_argument(
        "--engine", default="", choices=("sqlite", "postgresql"), help="pages: with this one alone (default: with both)"
    )
    options = parser.parse_args(arguments)
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"there is no part {', '.join(sorted(unknown))}: choose from {', '.join(PARTS)}")
    signal.signal(signal.SIGTERM, _terminated)
    kind = "quick" if options.quick else "full"
    work = (options.work or PROJECT / ".cache" / "bench" / f"work-{kind}").resolve()
    results = options.json or PROJECT / ".cache" / "bench" / ("quick.json" if options.quick else "results.json")
    workload = images.QUICK if options.quick else images.FULL
    if options.tree:
        workload = replace(workload, tree=options.tree)
    console = Console(width=None if sys.stdout.isatty() else 140)
    tools = tuple(name for name in options.tools.split(",") if name)
    missed = 0
    for package in ("appliance", "imaging", "web"):  # as after a first command, whatever the environment forbids
        compileall.compile_dir(PROJECT / package, quiet=1)
    try:
        if not options.quick and not options.tree:
            workload = replace(workload, tree=str(tree.large_enough(Path(workload.tree), work.parent / "files")))
        with quick_homes() if options.quick else nullcontext():
            disks = images.make(work, workload)
            for name in PARTS:
                if not options.parts or name in options.parts:
                    since = company.now()
                    part = _measure(
                        name, work, disks, tools, rounds=options.rounds, quick=options.quick, engine=options.engine
                    )
                    part.others_cores = company.others_cores(since)
                    report.show(console, part)
                    report.keep(results, [part], quick=options.quick)  # at once: a later part may fail
                    missed += sum(goal.met is False for goal in part.goals)
    except BenchError as err:
        print(f"error: {err}", file=sys.stderr)
        return 1
    console.print(f"\nResults are in {results}.", highlight=False, soft_wrap=True)
    if options.quick:
        console.print("Everything was small: this shows that the benchmark works, and not how fast anything is.")
    elif missed:
        console.print(f"{missed} goal{'s' if missed > 1 else ''} NOT met.", style="bold red")
    return 0


def _measure(
    name: str,
    work: Path,
    disks: images.Images,
    tools: tuple[str, ...],
    *,
    rounds: int,
    quick: bool,
    engine: str,
) -> report.Part:
    if name == "disk":
        return measure_disk(work, disks, tools, settle=not quick, rounds=1 if quick else rounds)
    if name == "incremental":
        return measure_incremental(work, disks.day0, quick=quick)
    if name == "sparse":
        return measure_sparse(work, disks.day0, quick=quick)
    if name == "verify":
        return measure_verify(work, disks, quick=quick)
    if name == "index":
        return measure_index(work, quick=quick)
    if name == "collection":
        return measure_collection(work, quick=quick)
    if name == "browsing":
        return measure_browsing(work, quick=quick)
    if name == "pages":
        return measure_pages(work, quick=quick, engine=engine)
    if name == "due":
        return measure_due(work, quick=quick)
    if name == "random":
        return measure_random(work, disks, quick=quick)
    if name == "object":
        return measure_object(work, disks, quick=quick)
    return measure_recovery(work, disks.day0, quick=quick)


def _terminated(number: int, _frame: FrameType | None) -> None:
    sys.exit(128 + number)  # so that everything is put away


if __name__ == "__main__":
    sys.exit(main())
