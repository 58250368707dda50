"""500 policies that are due in the same minute: how long until all is in the queue and drained, whether the limits were
kept, and whether the console answers meanwhile.

`strongroom serve` runs for real, with its scheduler and workers; each policy selects an image file of 64 KiB. As images
are of no host, one limit holds for all of them: as many as wait or run at once, of which the workers run some. Somebody
who is signed in asks for a page every 200 ms: the overview, the runs and the policies in turn.
"""

from __future__ import annotations

import os
import shutil
import statistics
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import accumulate, cycle
from pathlib import Path
from typing import Final

from appliance.bootstrap import Appliance
from appliance.models import RunRecord, RunState, new_id
from appliance.policy.stored import StoredPolicy
from appliance.services import repositories
from appliance.settings import load
from tests.bench.measure import BenchError, say
from tests.bench.report import Goal, Part
from tests.bench.served import Visitor, account, serving, signed_in

_WORKERS: Final = 2
_AT_ONCE: Final = 8
_EVERY_S: Final = 0.2
_PAGES: Final = ("/", "/runs", "/policies")
_IMAGE_BYTES: Final = 65_536
_MOST_S: Final = 3600.0
_GOAL_MS: Final = 1000.0


@dataclass
class _Seen:
    """`busy`, `running`: the most that were so at once; `queued_s`, `drained_s`: from the due minute on, when the last
    run was asked for and when the last one ended."""

    pages_ms: dict[str, list[float]] = field(default_factory=lambda: {path: [] for path in _PAGES})
    busy: int = 0
    running: int = 0
    queued_s: float = 0.0
    drained_s: float = 0.0
    states: Counter[str] = field(default_factory=Counter)


def measure_due(work: Path, *, quick: bool) -> Part:
    number = 3 if quick else 500
    part = Part("due", f"{number} policies due in the same minute, {_WORKERS} workers, {_AT_ONCE} at once")
    folder = work / "due"
    shutil.rmtree(folder, ignore_errors=True)
    try:
        seen = _measure(folder, number, _this_minute() if quick else _next_minute())
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    every = [took for some in seen.pages_ms.values() for took in some]
    part.figures = {
        "policies": number, "queued_s": seen.queued_s, "drained_s": seen.drained_s, "runs": dict(seen.states),
        "busy_most": seen.busy, "running_most": seen.running, "asked": len(every), "longest_ms": max(every),
        "pages": {
            path: {"median_ms": statistics.median(some), "longest_ms": max(some)}
            for path, some in seen.pages_ms.items() if some
        },
    }  # fmt: skip
    part.table(
        ["while they were drained", "median ms", "longest ms"],
        [[path, figures["median_ms"], figures["longest_ms"]] for path, figures in part.figures["pages"].items()],
    )
    part.remarks.append(
        f"All asked for {seen.queued_s:.0f} s after they were due, drained after {seen.drained_s:.0f} s; at most"
        f" {seen.busy} waited or ran at once, and {seen.running} ran: {dict(seen.states)}."
    )
    part.goals.append(Goal("waiting or running at once", float(seen.busy), _AT_ONCE + 0.5, "", at_least=False))
    part.goals.append(Goal("running at once", float(seen.running), _WORKERS + 0.5, "", at_least=False))
    part.goals.append(Goal("the longest answer of the console", max(every), _GOAL_MS, "ms", at_least=False))
    return part


def _measure(folder: Path, number: int, due: datetime) -> _Seen:
    environment = {
        "STRONGROOM_HOME": str(folder / "home"), "STRONGROOM_QUEUE_WORKERS": str(_WORKERS),
        "STRONGROOM_POLICY_FOLLOW_AT": "",
    }  # fmt: skip
    settings = load(environment)
    repositories.init(settings, folder / "repository", "a passphrase of the benchmark", lambda _: None)
    with Appliance(settings) as appliance:
        who = account(appliance)
        say(f"due: {number} policies and images")
        known = _prepare(appliance, folder, number, due)
        with serving(environment, folder / "serve.log") as port, signed_in(port, who) as visitor:
            return _watch(appliance, visitor, due, known)


def _this_minute() -> datetime:
    """They are due when `serve` begins to look."""
    return datetime.now(UTC).replace(second=0, microsecond=0)


def _next_minute() -> datetime:
    """The first one by which all is prepared."""
    return _this_minute() + timedelta(minutes=2)


def _prepare(appliance: Appliance, folder: Path, number: int, due: datetime) -> frozenset[str]:
    """Images that were backed up an hour before; the ids of those runs."""
    before, known = due - timedelta(hours=1), []
    (folder / "images").mkdir()
    for which in range(number):
        name = f"image-{which:03}"
        path = folder / "images" / f"{name}.raw"
        path.write_bytes(os.urandom(_IMAGE_BYTES))
        run = RunRecord(
            new_id(), name, "image", None, None, RunState.CANCELLED, before, ended_utc=before, asked_utc=before,
            image_path=str(path), image_format="raw", appliance=appliance.catalog.me,
        )  # fmt: skip
        appliance.catalog.runs.save(run)
        known.append(run.id)
        document = {
            "version": 1, "name": f"policy-{which:03}", "select": {"include": [{"image": name}]}, "spread_s": 0,
            "schedule": {"cron": f"{due.minute} * * * *"}, "per_host": _AT_ONCE, "rpo_minutes": 180,
        }  # fmt: skip
        appliance.catalog.policies.add(StoredPolicy(f"policy-{which:03}", document, 1, before, before))
    return frozenset(known)


def _at_once(spans: Iterable[tuple[datetime | None, datetime | None]]) -> int:
    """The most of these that overlap; what begins when another ends does not overlap it."""
    moments = [(moment, change) for span in spans for moment, change in zip(span, (1, -1), strict=True) if moment]
    return max(accumulate(change for _, change in sorted(moments)), default=0)


def _watch(appliance: Appliance, visitor: Visitor, due: datetime, known: frozenset[str]) -> _Seen:
    """Until as many runs as policies have ended."""
    seen, deadline = _Seen(), time.monotonic() + _MOST_S
    pages = cycle(_PAGES)
    while datetime.now(UTC) < due:
        time.sleep(0.05)
    looked = 0.0
    asked: set[str] = set()
    while time.monotonic() < deadline:
        turn, path = time.monotonic(), next(pages)
        answer = visitor.get(path)
        seen.pages_ms[path].append(answer.ms)
        if answer.status != 200:
            raise BenchError(f"{path} answers {answer.status}: {answer.text[:300]}")
        if turn - looked >= 1:
            looked = turn
            runs = [run for run in appliance.catalog.runs.list() if run.id not in known]
            if new := {run.id for run in runs} - asked:
                asked |= new
                seen.queued_s = (datetime.now(UTC) - due).total_seconds()
            seen.states = Counter(run.state.value for run in runs)
            if len(runs) == len(known) and all(run.state.ended for run in runs):
                seen.drained_s = (datetime.now(UTC) - due).total_seconds()
                seen.running = _at_once((run.started_utc, run.ended_utc) for run in runs)
                seen.busy = _at_once((run.asked_utc, run.ended_utc) for run in runs)
                return seen
        time.sleep(max(0.0, _EVERY_S - (time.monotonic() - turn)))
    raise BenchError(f"not drained after {_MOST_S:.0f} s: {dict(seen.states)}")
