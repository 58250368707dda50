"""What the scheduler asks for beside backups, once a day: pruning and collecting, a verification, copies.

The rule: each is a run of the queue like any other, and answered by the newest of its kind that began, on whatever
appliance of the catalog. Each appliance asks for copies of its own machines' points; what is done for the whole
repository one asks for, of those whose schedulers look: all come to look at the same second, and would all ask.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Final

from appliance.models import RunArguments, RunDue, RunKind, RunRecord, RunState, new_id
from appliance.policy.due import LONGEST_LOOK
from appliance.policy.following import FollowUp, Wanted, Work, due, unknown_targets, wanted
from appliance.policy.schedules import Schedule
from appliance.policy.states import AHEAD
from appliance.services.policies.known import machine_of
from appliance.services.scheduling.gathering import Gathered

if TYPE_CHECKING:
    from appliance.bootstrap import Appliance

GAP: Final = LONGEST_LOOK + timedelta(minutes=5)  # without a look for longer, a scheduler was away
_WHOLE: Final = "repository"
_KINDS: Final = {
    Work.PRUNE: RunKind.PRUNE, Work.COLLECT: RunKind.COLLECT, Work.VERIFY: RunKind.VERIFY, Work.COPY: RunKind.COPY,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Following:
    """`runs`: to be queued now, in that order. `next_utc`: when there may be more; None: nothing is wanted."""

    runs: tuple[RunRecord, ...]
    next_utc: datetime | None
    problems: tuple[str, ...]


def follow(appliance: Appliance, gathered: Gathered, now_utc: datetime) -> Following:
    """CatalogError."""
    settings = appliance.settings.policies
    homes = dict(settings.copies)
    selecting = {name for names in gathered.assigned.values() for name in names}
    mine = [each for each in gathered.policies if each.policy.name in selecting]
    copies = [each for each in wanted(mine) if each.work is Work.COPY]
    whole = [each for each in wanted(gathered.policies) if each.work is not Work.COPY]
    everything = (*(whole if _leads(appliance, gathered, now_utc) else ()), *copies)
    problems = unknown_targets(everything, homes)
    everything = tuple(each for each in everything if each.target is None or each.target in homes)
    if not everything or not settings.follow_at:
        return Following((), None, problems)
    schedule = daily(settings.follow_at, settings.zone)

    def answers(each: Wanted) -> tuple[datetime, ...]:
        key = _run(appliance, each, homes, now_utc).machine
        return tuple(some[key] for some in (gathered.begun, gathered.called_off) if key in some)

    runs = []
    for number, follow_up in enumerate(due(everything, schedule, answers, now_utc)):
        # The queue goes by when they were asked for, and they come in an order.
        run = _run(appliance, follow_up.wanted, homes, now_utc + timedelta(microseconds=number))
        run = replace(run, due=tuple(RunDue(d.policy, d.due_utc, d.cause.value) for d in follow_up.due))
        if run.machine in gathered.at_work:
            continue
        if follow_up.wanted.work is Work.COPY:
            names = _series(appliance, gathered, follow_up)
            if not names:
                continue
            run = replace(run, arguments=RunArguments(home=run.name, names=names))
        runs.append(run)
    return Following(tuple(runs), schedule.around(now_utc).next_utc, problems)


def _leads(appliance: Appliance, gathered: Gathered, now_utc: datetime) -> bool:
    """Whether this is the one that asks, of all that have looked lately."""
    me = appliance.catalog.me
    alive = {mark.appliance for mark in gathered.marks if now_utc - GAP <= mark.looked_utc <= now_utc + AHEAD}
    return me == min(alive | {me})


def daily(clock_time: str, zone: str) -> Schedule:
    hour, minute = clock_time.split(":")
    return Schedule(f"{int(minute)} {int(hour)} * * *", zone)


def _run(appliance: Appliance, each: Wanted, homes: Mapping[str, Path], asked_utc: datetime) -> RunRecord:
    name, arguments = _WHOLE, RunArguments()
    if each.work is Work.VERIFY:
        arguments = RunArguments(read_data=True, every_days=each.every_days)
    elif each.target is not None:
        name = str(homes[each.target])
        arguments = RunArguments(home=name)
    return RunRecord(
        new_id(), name, _WHOLE, None, None, RunState.QUEUED, asked_utc, asked_utc=asked_utc,
        appliance=appliance.catalog.me, kind=_KINDS[each.work], arguments=arguments,
    )  # fmt: skip


def _series(appliance: Appliance, gathered: Gathered, follow_up: FollowUp) -> tuple[str, ...]:
    """Of the machines that this appliance looks after, those of these policies that have points."""
    names = {each.policy for each in follow_up.due}
    keys = {key for key, selecting in gathered.assigned.items() if names.intersection(selecting)}
    machines = appliance.catalog.points.machines()
    return tuple(sorted(each.series for each in machines if machine_of(each).key in keys))
