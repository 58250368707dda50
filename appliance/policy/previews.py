"""What a policy would do, told before it does: whom it selects and why, what others say of the same, when it is due.
Pure.

The rule: what is told here comes from the same decisions that the scheduler makes; nothing is decided for a preview.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, tzinfo

from appliance.policy.keeping import keep
from appliance.policy.policies import Policy, assign, assign_keeping
from appliance.policy.retention import Candidate
from appliance.policy.selectors import Clause, Machine

DUE_TIMES = 5
_LOOKED_AT = 400  # due times, for the longest pause between two


@dataclass(frozen=True, slots=True)
class Chosen:
    """A machine that the policy selects or excludes. `others`: other policies that select it."""

    machine: Machine
    clause: Clause
    others: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Preview:
    """`excluded`: those that a clause of `exclude` fits and one of `include` too. `due_utc`: the next due times, to be
    shown in `zone`. `remarks`: what may not be meant, as sentences."""

    policy: Policy
    selected: tuple[Chosen, ...]
    excluded: tuple[Chosen, ...]
    words: str
    due_utc: tuple[datetime, ...]
    zone: tzinfo
    remarks: tuple[str, ...]


def preview(policy: Policy, others: Iterable[Policy], machines: Iterable[Machine], now_utc: datetime) -> Preview:
    """`others`: of other names; one of this name is left out."""
    others = [each for each in others if each.name != policy.name]
    known = sorted(machines, key=lambda each: (each.name, each.host or "", each.key))
    selecting = assign(others, known)
    selected, excluded = [], []
    for machine in known:
        found = policy.select.decide(machine)
        if found.clause is None:
            continue
        if found.selected:
            selected.append(Chosen(machine, found.clause, selecting[machine.key]))
        elif any(clause.fits(machine) for clause in policy.select.include):
            excluded.append(Chosen(machine, found.clause, selecting[machine.key]))
    due = tuple(itertools.islice(policy.schedule.after(now_utc), DUE_TIMES))
    return Preview(
        policy, tuple(selected), tuple(excluded), policy.schedule.words, due, policy.schedule.tzinfo,
        (*_about_machines(policy, others, selected, known, selecting), *_about_time(policy, now_utc)),
    )  # fmt: skip


def _about_machines(
    policy: Policy, others: Iterable[Policy], selected: Sequence[Chosen], machines: Iterable[Machine],
    selecting: Mapping[str, Sequence[str]],
) -> list[str]:  # fmt: skip
    known = {each.name: each for each in others}
    found = []
    if not selected:
        found.append("it selects none of the machines that are known now")
    both = [each for each in selected if each.others]
    if both:
        names = sorted({name for each in both for name in each.others})
        found.append(
            f"other policies select {len(both)} of its machines as well ({', '.join(names)}): those get the runs of"
            " all, and a point stays if any of them keeps it"
        )
        keeping_all = [name for name in names if known[name].retention.empty]
        if keeping_all and not policy.retention.empty:
            found.append(f"none of their points goes, as {', '.join(keeping_all)} prunes nothing")
    hosts = {each.machine.host for each in selected}
    there = {known[name] for machine in machines if machine.host in hosts for name in selecting[machine.key]}
    lowest = min(there, key=lambda each: (each.per_host, each.name), default=policy)
    if lowest.per_host < policy.per_host:
        found.append(
            f"{lowest.name} allows {lowest.per_host} runs at once on a host of theirs, and the lowest number holds"
        )
    return found


def _about_time(policy: Policy, now_utc: datetime) -> list[str]:
    found = []
    due = list(itertools.islice(policy.schedule.after(now_utc), _LOOKED_AT))
    longest = max((after - before for before, after in itertools.pairwise(due)), default=timedelta())
    if policy.rpo is not None and policy.rpo < longest:
        found.append(
            f"its RPO of {_hours(policy.rpo)} is shorter than the {_hours(longest)} that may lie between two due times"
        )
    if policy.window is not None:
        zone = policy.schedule.tzinfo
        outside = sum(not policy.window.at(each, zone).open for each in due)
        if outside:
            which = f"{outside} of its next {len(due)}" if outside < len(due) else "all its"
            found.append(f"{which} due times are outside of its window: runs wait until it opens")
    return found


def _hours(span: timedelta) -> str:
    hours = span / timedelta(hours=1)
    return f"{hours:g} h" if hours < 96 else f"{hours / 24:g} days"


def losing(
    before: Iterable[Policy], after: Iterable[Policy], points: Mapping[Machine, Sequence[Candidate]]
) -> dict[Machine, tuple[Candidate, ...]]:
    """Which points go by the policies as they would be, and stay by those that are, by machine."""
    known, wanted = {each.name: each for each in before}, {each.name: each for each in after}
    now, then = assign_keeping(known.values(), points), assign_keeping(wanted.values(), points)
    found = {}
    for machine, candidates in points.items():
        kept = {each.candidate for each in keep([known[name] for name in now[machine.key]], candidates) if each.kept}
        verdicts = keep([wanted[name] for name in then[machine.key]], candidates)
        going = tuple(each.candidate for each in verdicts if not each.kept and each.candidate in kept)
        if going:
            found[machine] = going
    return found
