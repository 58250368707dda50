"""What the scheduler does at one moment: which runs it asks for, which wait and for what, when it looks again. Pure.

Rules (docs/policies.md tells them to admins):

- A machine is due if a due time of a policy has come since its last run began. However many have: one run. That run
  answers every policy of the machine whose time has come, and obeys the strictest of them.
- It begins within the policy's window, and a little later than asked: each machine by a part of `spread_s` of its own,
  counted from the due time, from the window's opening, or from when the scheduler came back, whichever is the latest.
- A host has at most as many runs, queued ones included, as the strictest policy with a machine on it allows.
- Hosts take turns; of one host's machines, that which has waited longest since its last run comes first. For one whose
  turn in the spread comes within ten minutes, a place is kept: else, where not all get their turn before the window
  closes, it would always be the same ones that do not.
- Nothing that was recorded under a clock that was ahead holds a machine back, and none is due twice for it: if nothing
  about a machine can be believed, it is due once, and its run is what can be believed from then on.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Final

from appliance.policy.policies import Policy
from appliance.policy.rpo import Watched, watch
from appliance.policy.schedules import Around
from appliance.policy.selectors import Machine
from appliance.policy.states import Busy, MachineState, PolicyState, newest
from appliance.policy.windows import Opening

LONGEST_LOOK: Final = timedelta(minutes=15)  # so that a clock that was set is noticed
_KEPT: Final = timedelta(minutes=10)
_BEGINNING: Final = datetime.min.replace(tzinfo=UTC)


class Cause(StrEnum):
    SCHEDULE = "schedule"
    CATCH_UP = "catch-up"  # it stands for several due times


@dataclass(frozen=True, slots=True)
class Due:
    """One policy's part in a run. `due_utc`: the newest due time that the run answers."""

    policy: str
    due_utc: datetime
    cause: Cause


@dataclass(frozen=True, slots=True)
class Request:
    """A run to be queued now, with what the strictest of its policies wants."""

    machine: Machine
    due: tuple[Due, ...]
    limit_bytes_s: int | None
    quiesce: bool

    @property
    def reason(self) -> str:
        return "; ".join(f"{each.cause} of {each.policy}, due {each.due_utc:%Y-%m-%d %H:%M}Z" for each in self.due)


class Why(StrEnum):
    QUEUED = "a run of it is queued"
    RUNNING = "a run of it is running"
    PAUSED = "it is paused"
    WINDOW = "the backup window is closed"
    SPREAD = "machines that are due together begin one after another"
    HOST = "its host has as many runs as a policy allows"


@dataclass(frozen=True, slots=True)
class Waiting:
    """A machine that is due and gets no run now. `until_utc`: when that changes by itself, if time alone changes it."""

    machine: Machine
    policies: tuple[str, ...]
    why: Why
    until_utc: datetime | None = None


@dataclass(frozen=True, slots=True)
class Look:
    """`requests` in the order to queue them in. `next_utc`: look again then, or when a run ends or anything told here
    changes."""

    requests: tuple[Request, ...]
    waiting: tuple[Waiting, ...]
    missed: tuple[Watched, ...]
    next_utc: datetime


@dataclass(frozen=True, slots=True)
class _Now:
    """A policy as the clock has it."""

    state: PolicyState
    since_utc: datetime  # the beginning of time, if it cannot be believed
    around: Around
    opening: Opening

    @property
    def policy(self) -> Policy:
        return self.state.policy


@dataclass(frozen=True, slots=True)
class _Candidate:
    """A machine that waits for its turn, and for nothing but that and its host."""

    machine: Machine
    answered_utc: datetime
    begins_utc: datetime
    due: tuple[Due, ...]
    policies: tuple[Policy, ...]

    def waits(self, why: Why) -> Waiting:
        until = self.begins_utc if why is Why.SPREAD else None
        return Waiting(self.machine, tuple(each.policy for each in self.due), why, until)


def look(
    policies: Sequence[PolicyState],
    machines: Sequence[MachineState],
    assigned: Mapping[str, Sequence[str]],
    now_utc: datetime,
    *,
    looking_since_utc: datetime,
) -> Look:
    """`assigned`: which policies select a machine, as `policies.assign` has it. `looking_since_utc`: since when the
    scheduler has looked without a gap (its start; when it found the clock set forward; when a suspended appliance woke
    up). A restart within minutes is no gap: else, one that restarts again and again would never come to those whose
    turn in the spread is late. Names of policies are unique; of a machine that is told twice, as while it moves from
    host to host, the first counts. 16 ms for 1,000 machines of 500 policies."""
    nows = {state.policy.name: _at(state, now_utc) for state in policies}
    states = {state.machine.key: state for state in reversed(machines)}
    selecting = {key: [nows[name] for name in assigned.get(key, ()) if name in nows] for key in sorted(states)}
    waiting: list[Waiting] = []
    candidates: list[_Candidate] = []
    watched: list[Watched] = []
    for key, mine in selecting.items():
        found = _judge(states[key], mine, now_utc, looking_since_utc)
        if isinstance(found, Waiting):
            waiting.append(found)
        elif found is not None:
            candidates.append(found)
        if (rpo := watch(states[key], [now.state for now in mine], now_utc)) is not None:
            watched.append(rpo)
    begun: list[list[_Candidate]] = []
    for host in sorted({each.machine.host for each in candidates}, key=str):
        here = sorted((each for each in candidates if each.machine.host == host), key=_longest_first)
        free = _free_places(host, states, selecting)
        begun.append(_placed(here, free, waiting, now_utc))
    turns = itertools.chain.from_iterable(itertools.zip_longest(*sorted(begun, key=_first)))
    return Look(
        requests=tuple(_request(each) for each in turns if each is not None),
        waiting=tuple(sorted(waiting, key=lambda each: each.machine.key)),
        missed=tuple(each for each in watched if each.misses_utc <= now_utc),
        next_utc=_next(nows.values(), waiting, watched, now_utc),
    )


def _at(state: PolicyState, now_utc: datetime) -> _Now:
    policy = state.policy
    opening = Opening(_BEGINNING) if policy.window is None else policy.window.at(now_utc, policy.schedule.tzinfo)
    since = newest([state.since_utc], now_utc) or _BEGINNING
    return _Now(state, since, policy.schedule.around(now_utc), opening)


def _judge(
    state: MachineState, nows: Sequence[_Now], now_utc: datetime, looking_since_utc: datetime
) -> _Candidate | Waiting | None:
    """None: nothing is due."""
    machine = state.machine
    # Each time on its own: one of a wrong clock takes nothing from the others.
    answered = newest([state.known_utc, *state.answers], now_utc) or _BEGINNING
    due = [(now, each) for now in nows if (each := _due(now, answered)) is not None]
    if not due:
        return None
    if state.busy is not None:
        why = Why.RUNNING if state.busy is Busy.RUNNING else Why.QUEUED
        return Waiting(machine, tuple(each.policy for _, each in due), why)
    active = [(now, each) for now, each in due if not now.state.paused]
    if state.paused or not active:
        return Waiting(machine, tuple(each.policy for _, each in due), Why.PAUSED)
    opened = [(now, each) for now, each in active if now.opening.open]
    if not opened:
        opens = min(now.opening.opens_utc for now, _ in active if now.opening.opens_utc is not None)
        return Waiting(machine, tuple(each.policy for _, each in active), Why.WINDOW, opens)
    return _Candidate(
        machine,
        newest(state.answers, now_utc) or _BEGINNING,
        min(_begins(now, each, machine, now_utc, looking_since_utc) for now, each in opened),
        tuple(each for _, each in active),
        tuple(now.policy for now, _ in active),
    )


def _due(now: _Now, answered_utc: datetime) -> Due | None:
    latest, previous = now.around.latest_utc, now.around.previous_utc
    answered_utc = max(answered_utc, now.since_utc)
    if latest is None or answered_utc >= latest:
        return None
    several = answered_utc > _BEGINNING and previous is not None and answered_utc < previous
    return Due(now.policy.name, latest, Cause.CATCH_UP if several else Cause.SCHEDULE)


def _begins(now: _Now, due: Due, machine: Machine, now_utc: datetime, looking_since_utc: datetime) -> datetime:
    """When the machine's turn comes, within the policy's spread, and in the window that is open now."""
    around, opening = now.around, now.opening
    base = due.due_utc
    if due.cause is Cause.CATCH_UP and around.previous_utc is not None:
        base = around.previous_utc  # its turn has come then, and does not move on with every due time
    base = max(base, opening.opened_utc or base)
    if looking_since_utc <= now_utc:
        base = max(base, looking_since_utc)
    spread = min(timedelta(seconds=now.policy.spread_s), (around.next_utc - due.due_utc) / 2)
    if opening.closes_utc is not None:
        spread = min(spread, (opening.closes_utc - base) / 2)
    return base + spread * _share(machine)


def _share(machine: Machine) -> float:
    """From 0 to 1, evenly over machines, and the same for one at all times and on all appliances."""
    digest = hashlib.sha256(machine.key.encode(errors="backslashreplace")).digest()
    return int.from_bytes(digest[:4], "big") / (1 << 32)


def _free_places(host: str | None, states: Mapping[str, MachineState], selecting: Mapping[str, Sequence[_Now]]) -> int:
    here = [key for key, state in states.items() if state.machine.host == host]
    limit = min(now.policy.per_host for key in here for now in selecting[key] if not now.state.paused)
    return max(0, limit - sum(states[key].busy is not None for key in here))


def _placed(here: Iterable[_Candidate], free: int, waiting: list[Waiting], now_utc: datetime) -> list[_Candidate]:
    """Those of a host, given in their order, that begin now; the others are added to `waiting`."""
    begun = []
    for each in here:
        has_place = free > 0 and each.begins_utc <= now_utc + _KEPT
        free -= has_place
        if each.begins_utc > now_utc:
            waiting.append(each.waits(Why.SPREAD))
        elif has_place:
            begun.append(each)
        else:
            waiting.append(each.waits(Why.HOST))
    return begun


def _longest_first(each: _Candidate) -> tuple[datetime, datetime, str]:
    return (each.answered_utc, min(due.due_utc for due in each.due), each.machine.key)


def _first(begun: Sequence[_Candidate]) -> tuple[datetime, datetime, str]:
    return min(map(_longest_first, begun), default=(_BEGINNING, _BEGINNING, ""))


def _request(each: _Candidate) -> Request:
    limits = [policy.limit_bytes_s for policy in each.policies if policy.limit_bytes_s is not None]
    quiesce = any(policy.quiesce for policy in each.policies)
    return Request(each.machine, each.due, min(limits, default=None), quiesce)


def _next(nows: Iterable[_Now], waiting: Iterable[Waiting], watched: Iterable[Watched], now_utc: datetime) -> datetime:
    moments = [now.around.next_utc for now in nows if not now.state.paused]
    moments += [each.until_utc for each in waiting if each.until_utc is not None]
    moments += [each.misses_utc for each in watched]
    return min([each for each in moments if each > now_utc] + [now_utc + LONGEST_LOOK])
