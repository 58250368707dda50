"""All machines and images, each once, with everything that a list of them shows; and how such a list is chosen.

The rule: whatever is known of a machine by any means is in its one row: seen on a host, protected, both. A list of
machines is put together here and not by the database, as what a user may see, and which policies select a machine, are
patterns that only `policy.selectors` understands; 1,000 machines are read in 40 ms.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import Final

from appliance.catalog.machines import HostRow, LastRun, SeenRow, SeriesRow, Whole
from appliance.hypervisor.protocol import MachineState
from appliance.models import RunKind, RunState, machine_key
from appliance.paging import LIMIT, Key, Page, page_of
from appliance.policy import states
from appliance.policy.policies import Policy, assign
from appliance.policy.rpo import Watched, watch
from appliance.policy.selectors import Kind, Machine
from appliance.proofs import Proof

_NAME_CHARACTERS: Final = 200  # of a name, as much as its place in a list hangs on


class Standing(StrEnum):
    """Whether a machine can be recovered, in one word."""

    PROTECTED = "protected"  # it has a restore point
    WAITING = "waiting"  # a policy selects it, and it has none yet
    UNPROTECTED = "unprotected"  # it has none, and nothing will make one
    GONE = "gone"  # it has restore points, and is on no host any more
    RECOVERED = "recovered"  # an instant recovery, under way: none to be protected


class Sort(StrEnum):
    NAME = "name"
    HOST = "host"
    SIZE = "size"
    LAST_POINT = "last point"
    LAST_RUN = "last run"


@dataclass(frozen=True, slots=True)
class MachineRow:
    """`state` None: no host tells of it (an image, or a machine that is gone, or was never looked for). `away`: it is
    on a host that does not answer, and told as last seen. `busy`: a run of it waits or is under way. `watched`: None:
    no policy wants an RPO of it."""

    machine: Machine
    standing: Standing
    state: MachineState | None = None
    size_bytes: int | None = None
    agent: bool = False
    seen_utc: datetime | None = None
    away: bool = False
    series: str | None = None
    last_point: str | None = None
    last_point_utc: datetime | None = None
    last_run: LastRun | None = None
    busy: RunState | None = None
    policies: tuple[str, ...] = ()
    watched: Watched | None = None
    missed: bool = False
    proof: Proof | None = None

    @property
    def key(self) -> str:
        """As runs have it."""
        return machine_key(self.machine.kind, self.machine.id, self.machine.name)

    @property
    def failed(self) -> bool:
        return self.last_run is not None and self.last_run.failed


@dataclass(frozen=True, slots=True)
class MachineFilter:
    """What is not stated fits all. `text`: in the name, whatever its case, or the beginning of the UUID."""

    text: str = ""
    host: str | None = None
    kind: Kind | None = None
    tag: str | None = None
    policy: str | None = None
    standings: frozenset[Standing] = frozenset()
    state: MachineState | None = None
    missed: bool = False
    failed: bool = False

    def fits(self, row: MachineRow) -> bool:
        machine = row.machine
        return (
            _has(machine, self.text.casefold())
            and self.host in (None, machine.host)
            and self.kind in (None, machine.kind)
            and (self.tag is None or self.tag in machine.tags)
            and (self.policy is None or self.policy in row.policies)
            and (not self.standings or row.standing in self.standings)
            and self.state in (None, row.state)
            and (row.missed or not self.missed)
            and (row.failed or not self.failed)
        )


@dataclass(frozen=True, slots=True)
class Fleet:
    """`hosts` and `rows` by name. `jobs`: the newest run of each kind of work that is of no machine."""

    hosts: tuple[HostRow, ...]
    rows: tuple[MachineRow, ...]
    jobs: Mapping[RunKind, LastRun] = field(default_factory=dict)

    @property
    def keys(self) -> frozenset[str]:
        return frozenset(row.key for row in self.rows)

    @property
    def serieses(self) -> frozenset[str]:
        return frozenset(row.series for row in self.rows if row.series is not None)

    def row(self, key: str) -> MachineRow | None:
        return next((row for row in self.rows if row.key == key), None)

    def seen_by(self, may_see: Callable[[Machine], bool]) -> Fleet:
        """The part of it that somebody may see: hosts are told as far as they have such a machine."""
        rows = tuple(row for row in self.rows if may_see(row.machine))
        hosts = {row.machine.host for row in rows}
        return Fleet(tuple(host for host in self.hosts if host.name in hosts), rows)

    def page(
        self, wanted: MachineFilter, sort: Sort, *, falling: bool = False, after: str | None = None, limit: int = LIMIT
    ) -> Page[MachineRow]:
        """PageRefused."""
        chosen = [row for row in self.rows if wanted.fits(row)]
        key, kinds = _ORDERS[sort]
        return page_of(chosen, key, f"machines {sort}", kinds, after, limit, falling=falling)


def assemble(
    whole: Whole,
    policies: Sequence[states.PolicyState],
    selecting: Callable[[Iterable[Machine]], Mapping[Machine, Sequence[str]]],
    paused: frozenset[str],
    proofs: Mapping[str, Proof],
    now_utc: datetime,
) -> Fleet:
    """`selecting`: the names of the policies that select each machine; `paused`: keys of machines; `proofs`: the newest
    of each series. Pure."""
    hosts = {host.name: host for host in whole.hosts}
    series = {machine_key(each.kind, each.uuid, each.name): each for each in whole.series}
    seen = {machine_key(Kind.VM, each.uuid, each.name): each for each in whole.seen}
    named = {state.policy.name: state for state in policies}
    rows = []
    machines = {key: _machine(seen.get(key), series.get(key)) for key in series.keys() | seen.keys()}
    selected = selecting(machines.values())
    for key, machine in machines.items():
        mine = [named[name] for name in selected[machine] if name in named]
        rows.append(_row(key, machine, seen.get(key), series.get(key), whole, hosts, mine, paused, proofs, now_utc))
    return Fleet(whole.hosts, tuple(sorted(rows, key=_by_name)), _jobs(whole))


def _jobs(whole: Whole) -> Mapping[RunKind, LastRun]:
    jobs: dict[RunKind, LastRun] = {}
    for key, run in whole.runs.items():
        kind = next((kind for kind in _OF_ALL if key.startswith(f"{kind}:")), None)
        if kind is not None and (kind not in jobs or jobs[kind].started_utc < run.started_utc):
            jobs[kind] = run
    return jobs


def _row(
    key: str,
    machine: Machine,
    seen: SeenRow | None,
    series: SeriesRow | None,
    whole: Whole,
    hosts: Mapping[str, HostRow],
    policies: Sequence[states.PolicyState],
    paused: frozenset[str],
    proofs: Mapping[str, Proof],
    now_utc: datetime,
) -> MachineRow:
    point_utc = series.last_point_utc if series is not None else None
    standing = _standing(seen, series, hosts, policies)
    watched = None
    if standing is not Standing.RECOVERED:
        known = seen.known_utc if seen is not None else (point_utc or now_utc)
        state = states.MachineState(machine, known, (), point_utc, None, machine.key in paused)
        watched = watch(state, policies, now_utc)
    return MachineRow(
        machine=machine,
        standing=standing,
        state=None if seen is None else MachineState(seen.state),
        size_bytes=None if seen is None else seen.size_bytes,
        agent=seen is not None and seen.agent,
        seen_utc=None if seen is None else seen.seen_utc,
        away=seen is not None and seen.away,
        series=None if series is None else series.series,
        last_point=None if series is None else series.last_point,
        last_point_utc=point_utc,
        last_run=whole.runs.get(key),
        busy=whole.busy.get(key),
        policies=tuple(state.policy.name for state in policies),
        watched=watched,
        missed=watched is not None and watched.misses_utc <= now_utc,
        proof=None if series is None else proofs.get(series.series),
    )


def _standing(
    seen: SeenRow | None, series: SeriesRow | None, hosts: Mapping[str, HostRow], policies: Sequence[states.PolicyState]
) -> Standing:
    if seen is not None and seen.recovered:
        return Standing.RECOVERED
    if series is not None and series.last_point is not None:
        if seen is None and series.kind == Kind.VM:
            host = hosts.get(series.host or "")
            if host is None or host.answered_utc is not None:  # else nobody has looked whether it is there
                return Standing.GONE
        return Standing.PROTECTED
    return Standing.WAITING if policies else Standing.UNPROTECTED


def _machine(seen: SeenRow | None, series: SeriesRow | None) -> Machine:
    if seen is not None:
        return Machine(Kind.VM, seen.uuid, seen.name, seen.host, frozenset(seen.tags))
    assert series is not None
    if series.kind == Kind.IMAGE:
        return Machine(Kind.IMAGE, series.name, series.name)
    return Machine(Kind.VM, series.uuid or series.name, series.name, series.host, tags_known=False)


class Assigned:
    """Which policies select a machine, remembered for as long as neither has changed: else 500 policies and 1,000
    machines take a tenth of a second each time. Safe to use from several threads: what one forgets, another finds
    again."""

    def __init__(self) -> None:
        self._known: tuple[tuple[Policy, ...], dict[Machine, tuple[str, ...]]] = ((), {})

    def among(self, policies: Iterable[Policy]) -> Callable[[Iterable[Machine]], Mapping[Machine, Sequence[str]]]:
        policies = tuple(sorted(policies, key=lambda each: each.name))
        before, found = self._known
        if before != policies or len(found) > _REMEMBERED:
            found = {}
            self._known = (policies, found)

        def selecting(machines: Iterable[Machine]) -> Mapping[Machine, Sequence[str]]:
            new = [machine for machine in machines if machine not in found]
            if new:
                names = assign(policies, new)
                found.update({machine: names[machine.key] for machine in new})
            return found

        return selecting


_OF_ALL: Final = (RunKind.VERIFY, RunKind.COLLECT, RunKind.COPY, RunKind.PRUNE)
_REMEMBERED: Final = 100_000
_NEVER: Final = datetime.min.replace(tzinfo=UTC)


def _has(machine: Machine, text: str) -> bool:
    return not text or text in machine.name.casefold() or (machine.kind is Kind.VM and machine.id.startswith(text))


def _by_name(row: MachineRow) -> tuple[str, str]:
    return row.machine.name.casefold()[:_NAME_CHARACTERS], row.key


_ORDERS: Final[Mapping[Sort, tuple[Callable[[MachineRow], Key], Sequence[type]]]] = {
    Sort.NAME: (_by_name, (str, str)),
    Sort.HOST: (lambda row: (row.machine.host or "", *_by_name(row)), (str, str, str)),
    Sort.SIZE: (lambda row: (row.size_bytes or 0, row.key), (int, str)),
    Sort.LAST_POINT: (lambda row: (row.last_point_utc or _NEVER, row.key), (datetime, str)),
    Sort.LAST_RUN: (lambda row: (row.last_run.started_utc if row.last_run else _NEVER, row.key), (datetime, str)),
}
