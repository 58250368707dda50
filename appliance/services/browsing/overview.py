"""One glance: whether tonight is fine, and if not, what needs whose eyes.

The rule: it is read from the catalog alone, so that it comes at once whatever hosts and repositories do; what was
looked at by somebody else (sizes, hosts) is told with when. What needs eyes is listed as far as a person would read,
and counted beyond.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from appliance.catalog.machines import HostRow, LastRun
from appliance.models import CleanupRecord, OwedThaw, RecoveryRecord, RunKind, RunRecord, RunState
from appliance.services.backup.watching import HowFar
from appliance.services.browsing.fleet import Fleet, MachineRow, Standing
from appliance.services.browsing.growth import Growth

SHOWN: Final = 20
_PROVEN: Final = timedelta(days=90)
_SOON_DAYS: Final = 30


@dataclass(frozen=True, slots=True)
class Some:
    """The first of many, and how many there are."""

    rows: tuple[MachineRow, ...]
    count: int


@dataclass(frozen=True, slots=True)
class Under:
    """A run under way. `alive`: False: its process is dead, and what it left is undone; None: it is another
    appliance's, as is `far` then."""

    run: RunRecord
    alive: bool | None
    far: HowFar | None


@dataclass(frozen=True, slots=True)
class LastDay:
    """Runs that began within 24 hours. `failed`: the newest that made no point."""

    since_utc: datetime
    states: Mapping[RunState, int]
    failed: tuple[RunRecord, ...]

    @property
    def failures(self) -> int:
        return sum(self.states.get(state, 0) for state in (RunState.FAILED, RunState.INTERRUPTED))


@dataclass(frozen=True, slots=True)
class Debts:
    """What has to be undone and is not yet: guests that may be frozen, and what dead runs left (of other appliances,
    what was tried in vain)."""

    thaws: tuple[OwedThaw, ...]
    cleanups: tuple[CleanupRecord, ...]

    def __bool__(self) -> bool:
        return bool(self.thaws or self.cleanups)


@dataclass(frozen=True, slots=True)
class Proven:
    """Machines with restore points of which one was started within 90 days; `longest`: those for whom that is the
    longest ago, those for whom it never was first."""

    machines: int
    of: int
    longest: tuple[MachineRow, ...]


@dataclass(frozen=True, slots=True)
class Overview:
    """`standings`: how many machines there are of each. `growth` None: it is told to those alone who may see all.
    `failing`: whose last backup failed, and nobody has dismissed;
    `jobs`: the newest run of each kind of work that is of no machine."""

    now_utc: datetime
    standings: Mapping[Standing, int]
    unprotected: Some
    missed: Some
    failing: Some
    jobs: Mapping[RunKind, LastRun]
    hosts: tuple[HostRow, ...]
    last_day: LastDay
    running: tuple[Under, ...]
    queued: int
    workers: bool
    recoveries: tuple[RecoveryRecord, ...]
    growth: Growth | None
    proven: Proven
    debts: Debts

    @property
    def away(self) -> tuple[HostRow, ...]:
        return tuple(host for host in self.hosts if host.failing_since_utc is not None)

    @property
    def bare(self) -> bool:
        """Whether there is no machine at all, as on the first day."""
        return not any(self.standings.values())

    @property
    def fine(self) -> bool:
        """Whether nothing needs eyes tonight."""
        return not self.concerns

    @property
    def concerns(self) -> tuple[str, ...]:
        """What needs eyes, as sentences, the gravest first."""
        days = None if self.growth is None else self.growth.full_in_days
        told = [
            (len(self.debts.thaws), "{0} guest may be frozen", "{0} guests may be frozen"),
            (sum(rec.error is not None for rec in self.recoveries), "{0} recovery needs an eye",
             "{0} recoveries need an eye"),
            (self.missed.count, "{0} machine has missed its RPO", "{0} machines have missed their RPO"),
            (self.failing.count, "the last backup of {0} machine failed", "the last backups of {0} machines failed"),
            *((int(run.failed), f"the last run of kind {kind} failed", "") for kind, run in self.jobs.items()),
            (len(self.away), "{0} host does not answer", "{0} hosts do not answer"),
            (self.standings.get(Standing.UNPROTECTED, 0), "{0} machine is not protected",
             "{0} machines are not protected"),
            (len(self.debts.cleanups), "{0} clean-up is pending", "{0} clean-ups are pending"),
            (0 if self.workers else self.queued, "{0} run waits and no worker lives",
             "{0} runs wait and no worker lives"),
            (int(self.bare), "no machine is known yet, so nothing is protected", ""),
        ]  # fmt: skip
        concerns = [(one if count == 1 else several).format(count) for count, one, several in told if count]
        if days is not None and days <= _SOON_DAYS:
            concerns.append(f"the repository is full in {days} days" if days > 1 else "the repository is about full")
        return tuple(concerns)


def standings(fleet: Fleet) -> Mapping[Standing, int]:
    return {standing: sum(row.standing is standing for row in fleet.rows) for standing in Standing}


def unprotected(fleet: Fleet) -> Some:
    """Those that run first: they hold what changes."""
    found = [row for row in fleet.rows if row.standing is Standing.UNPROTECTED]
    return _some(sorted(found, key=lambda row: row.state != "running"))


def missed(fleet: Fleet) -> Some:
    """Those for whom it is the longest ago first."""
    found = [(row.watched.misses_utc, row.key, row) for row in fleet.rows if row.missed and row.watched is not None]
    return _some([row for *_, row in sorted(found, key=lambda each: each[:2])])


def failing(fleet: Fleet) -> Some:
    """The newest first."""
    found = [(row.last_run.started_utc, row.key, row) for row in fleet.rows if row.last_run and row.failed]
    return _some([row for *_, row in sorted(found, key=lambda each: each[:2], reverse=True)])


def proven(fleet: Fleet, now_utc: datetime) -> Proven:
    machines = [row for row in fleet.rows if row.last_point is not None and row.machine.kind == "vm"]
    recent = [row for row in machines if row.proof is not None and now_utc - row.proof.proven_utc <= _PROVEN]
    never = [row for row in machines if row.proof is None]
    ever = [(row.proof.proven_utc, row.key, row) for row in machines if row.proof is not None]
    longest = never + [row for *_, row in sorted(ever, key=lambda each: each[:2])]
    return Proven(len(recent), len(machines), tuple(longest[:SHOWN]))


def _some(rows: list[MachineRow]) -> Some:
    return Some(tuple(rows[:SHOWN]), len(rows))
