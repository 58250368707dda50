"""Every interleaving of runs, pruning, fencing and collection, in small: docs/locking.md keeps what counts, and each
weaker form loses it.

One chunk stands for all data: every point needs it, a pack is a name that holds it, and a point is lost when it
counts and no pack is left. Two runs: A finds the chunk by deduplication or stores it, B takes it over from a parent
without reading it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TypeAlias

import pytest

ABSENT, INERT, COUNTS, BURIED = range(4)
OLD, A, B = range(3)  # a point from before, and those of the two runs
Packs: TypeAlias = frozenset[str]
NOTHING: Packs = frozenset()


@dataclass(frozen=True)
class Rules:
    """The protocol; each field switched off is a mistake that somebody could make."""

    lease_before_list: bool = True
    records_what_it_read: bool = True
    parent_is_checked: bool = True
    end_decides: bool = True
    waits_for_older_leases: bool = True
    second_mark_sees_all: bool = True
    since_first_mark: bool = True
    rescues: bool = True


@dataclass(frozen=True)
class RunState:
    step: str = "idle"
    lease: str = "none"  # none, open, ended
    epoch: int | None = None
    condemned: Packs = NOTHING
    index: Packs = NOTHING
    parent: int | None = None


@dataclass(frozen=True)
class Collector:
    step: str = "idle"
    page: tuple[int, ...] = ()
    marked: tuple[int, ...] = ()
    published_when: tuple[int, ...] = ()
    older: tuple[int, ...] = ()
    rounds: int = 0


@dataclass(frozen=True)
class State:
    points: tuple[int, int, int] = (COUNTS, ABSENT, ABSENT)
    packs: Packs = frozenset({"P"})
    condemned: Packs = NOTHING
    epoch: int = 0
    runs: tuple[RunState, RunState] = (RunState(), RunState())
    collector: Collector = Collector()

    def with_point(self, point: int, status: int) -> State:
        old, a, b = (status if each == point else there for each, there in enumerate(self.points))
        return replace(self, points=(old, a, b))

    def with_run(self, point: int, run: RunState) -> State:
        runs = (run, self.runs[1]) if point == A else (self.runs[0], run)
        return replace(self, runs=runs)

    @property
    def lost(self) -> bool:
        return COUNTS in self.points and not self.packs


def after_run(state: State, point: int, rules: Rules) -> Iterator[tuple[str, State]]:
    run = state.runs[point - 1]

    def to(**changes: object) -> State:
        return state.with_run(point, replace(run, **changes))  # type: ignore[arg-type]

    match run.step:
        case "idle" if point == A:
            yield "begins without a parent", to(step="chosen")
        case "idle":
            for parent in (OLD, A):
                if state.points[parent] == COUNTS:
                    yield f"chooses {parent} for its parent", to(step="chosen", parent=parent)
        case "chosen":
            yield "begins", to(step="begun", lease="open" if rules.lease_before_list else "none")
        case "begun":
            read = state.epoch if rules.records_what_it_read else None
            yield "reads the condemned list", to(step="read", condemned=state.condemned, epoch=read)
        case "read":
            lease = run.lease if rules.lease_before_list else "open"
            epoch = run.epoch if rules.records_what_it_read else state.epoch
            yield "lists the index", to(step="listed", lease=lease, epoch=epoch, index=state.packs)
        case _:
            yield from _after_beginning(state, point, rules)


def _after_beginning(state: State, point: int, rules: Rules) -> Iterator[tuple[str, State]]:
    run = state.runs[point - 1]

    def to(**changes: object) -> State:
        return state.with_run(point, replace(run, **changes))  # type: ignore[arg-type]

    match run.step:
        case "listed":
            there = run.parent is None or state.points[run.parent] == COUNTS
            if rules.parent_is_checked and not there:
                yield "gives up", to(step="over", lease="ended")
            elif point == B or run.index - run.condemned:
                yield "relies on what is there", to(step="stored")
            else:
                yield "stores anew", replace(to(step="stored"), packs=state.packs | {f"by {point}"})
        case "stored" if rules.end_decides:
            yield "puts its manifest", to(step="put").with_point(point, INERT)
        case "stored" if run.lease == "open":
            yield "sees that its lease is open", to(step="put")
        case "put" if run.lease == "open" or not rules.end_decides:
            yield "commits", to(step="over", lease="ended").with_point(point, COUNTS)
        case "put":
            yield "was fenced", to(step="over")


def after_collector(state: State, rules: Rules) -> Iterator[tuple[str, State]]:
    collector = state.collector

    def listed(points: tuple[int, ...], again: bool) -> tuple[int, ...]:
        wanted = (INERT, COUNTS, BURIED) if again and rules.second_mark_sees_all else (COUNTS,)
        return tuple(each for each in points if state.points[each] in wanted)

    def to(**changes: object) -> State:
        return replace(state, collector=replace(collector, **changes))  # type: ignore[arg-type]

    done = {"step": "idle", "page": (), "marked": (), "published_when": (), "older": (), "rounds": collector.rounds + 1}
    match collector.step:
        case "idle":
            pinned = {run.parent for run in state.runs if run.lease == "open"}
            for point, status in enumerate(state.points):
                if status == BURIED and point not in pinned:
                    yield f"collector removes {point}", state.with_point(point, ABSENT)
            if collector.rounds < 2:
                yield "collector lists half", to(step="half", page=listed((B, OLD), False))
        case "half":
            yield "collector lists the rest", to(step="marked", marked=collector.page + listed((A,), False))
        case "marked" if collector.marked:
            yield "collector finds everything live", to(**done)
        case "marked":
            present = tuple(point for point, status in enumerate(state.points) if status)
            published = to(step="published", published_when=present)
            condemned = state.condemned | state.packs
            yield "collector condemns", replace(published, condemned=condemned, epoch=state.epoch + 1)
        case "published":
            older = tuple(
                number
                for number, run in enumerate(state.runs)
                if run.lease == "open" and (run.epoch is None or run.epoch < state.epoch)
            )
            yield "collector lists leases", to(step="waiting", older=older if rules.waits_for_older_leases else ())
        case "waiting" if all(state.runs[number].lease != "open" for number in collector.older):
            yield "collector lists half again", to(step="again", page=listed((A,), True))
        case "again":
            known = collector.marked if rules.since_first_mark else collector.published_when
            found = [each for each in collector.page + listed((B, OLD), True) if each not in known]
            left = state.packs - state.condemned
            if found and rules.rescues:
                left |= {f"rescued {collector.rounds}"}
            yield "collector deletes", replace(to(**done), packs=left)


def following(state: State, rules: Rules) -> Iterator[tuple[str, State]]:
    for point in (A, B):
        for label, after in after_run(state, point, rules):
            yield f"run {point} {label}", after
        run = state.runs[point - 1]
        if run.lease == "open":
            yield f"run {point} is fenced", state.with_run(point, replace(run, lease="ended"))
    for point, status in enumerate(state.points):
        if status == COUNTS:
            yield f"{point} is deleted", state.with_point(point, BURIED)
    yield from after_collector(state, rules)


def find_loss(rules: Rules) -> tuple[list[str] | None, int]:
    """The shortest way to a lost point, if there is one, and how many states were seen."""
    start = State()
    came: dict[State, tuple[State, str] | None] = {start: None}
    waiting = deque([start])
    while waiting:
        state = waiting.popleft()
        if state.lost:
            way: list[str] = []
            step = came[state]
            while step is not None:
                way.append(step[1])
                step = came[step[0]]
            return way[::-1], len(came)
        for label, after in following(state, rules):
            if after not in came:
                came[after] = (state, label)
                waiting.append(after)
    return None, len(came)


def test_no_interleaving_loses_a_point_that_counts() -> None:
    way, seen = find_loss(Rules())
    assert way is None, way
    assert seen > 10_000


@pytest.mark.parametrize(
    "mistake",
    [
        "lease_before_list",
        "records_what_it_read",
        "parent_is_checked",
        "end_decides",
        "waits_for_older_leases",
        "second_mark_sees_all",
        "since_first_mark",
        "rescues",
    ],
)
def test_each_rule_is_needed(mistake: str) -> None:
    way, _ = find_loss(replace(Rules(), **{mistake: False}))
    assert way, f"without {mistake} nothing is lost: the rule, or this model, is not what it seems"
