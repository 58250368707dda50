"""What the scheduler goes by, as the catalog has it at one moment; and since when it has looked.

The rule: all is read in one transaction, so that it fits together, and by statements that look into an index once for
each machine, however many runs there were. A moment after `until_utc` was written under a clock that was ahead, and
hides none before it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Connection, Select, and_, bindparam, func, not_, select

from appliance.catalog import rows, tables
from appliance.catalog.database import Database
from appliance.catalog.inventory import runs_out_of_repository
from appliance.catalog.runs import every_machine
from appliance.models import RunKind, RunState
from appliance.policy.selectors import Kind
from appliance.policy.stored import StoredPolicy

_runs = tables.runs
_schedulers = tables.schedulers
_until = bindparam("until_utc", type_=tables.Moment())
_IMAGES = ("image:", "image;")  # the keys of images: from the one to before the other


@dataclass(frozen=True, slots=True)
class KnownVm:
    """A virtual machine where it is. `known_utc`: since when; `point_utc`: of its newest restore point."""

    uuid: str
    name: str
    host: str
    tags: tuple[str, ...]
    known_utc: datetime
    point_utc: datetime | None


@dataclass(frozen=True, slots=True)
class KnownImage:
    """An image where the newest run says that it is, of the appliance that made that run, then."""

    machine: str
    name: str
    image_path: str
    image_format: str
    appliance: str
    started_utc: datetime
    point_utc: datetime | None


@dataclass(frozen=True, slots=True)
class BusyRun:
    """A run that waits or is under way, of whatever appliance; without a UUID, it was queued by name."""

    id: str
    state: RunState
    kind: RunKind
    machine: str
    machine_kind: str
    name: str
    uuid: str | None
    host: str | None


@dataclass(frozen=True, slots=True)
class Known:
    """`vms` are on hosts of which this appliance looks after the machines; none runs out of the repository. `begun`:
    when the newest run of each machine began, or the last attempt at it, whatever came of it; `called_off`: when one
    was last cancelled; both by its key."""

    policies: tuple[StoredPolicy, ...]
    pauses: frozenset[str]
    vms: tuple[KnownVm, ...]
    images: tuple[KnownImage, ...]
    busy: tuple[BusyRun, ...]
    begun: Mapping[str, datetime]
    called_off: Mapping[str, datetime]
    marks: tuple[SchedulerMark, ...]  # of all appliances

    @property
    def stamp(self) -> Stamp:
        return Stamp(
            frozenset((run.id, run.state) for run in self.busy),
            frozenset((policy.name, policy.version, policy.changed_utc) for policy in self.policies),
            self.pauses,
        )


@dataclass(frozen=True, slots=True)
class Stamp:
    """Another one than before: something that the scheduler goes by has changed."""

    busy: frozenset[tuple[str, str]]
    policies: frozenset[tuple[str, int, datetime]]
    pauses: frozenset[str]


@dataclass(frozen=True, slots=True)
class SchedulerMark:
    """`since_utc`: since when the scheduler of an appliance has looked without a gap; `looked_utc`: when it last did,
    to a minute."""

    appliance: str
    since_utc: datetime
    looked_utc: datetime


class Scheduling:
    def __init__(self, database: Database, me: str) -> None:
        self._database = database
        self._me = me

    def known(self, until_utc: datetime) -> Known:
        until = {"until_utc": until_utc}
        with self._database.read() as connection:
            policies = [rows.decode(StoredPolicy, row) for row in connection.execute(_POLICIES)]
            return Known(
                tuple(sorted(policies, key=lambda each: each.name)),
                frozenset(connection.execute(select(tables.machine_pauses.c.machine)).scalars()),
                self._vms(connection),
                tuple(KnownImage(*row) for row in connection.execute(_PLACED)),
                tuple(
                    BusyRun(id, RunState(state), RunKind(kind), *rest)
                    for id, state, kind, *rest in connection.execute(_BUSY)
                ),
                {machine: moment for machine, moment in connection.execute(_BEGUN, until) if moment is not None},
                {machine: moment for machine, moment in connection.execute(_CALLED_OFF, until)},  # noqa: C416
                tuple(rows.decode(SchedulerMark, row) for row in connection.execute(select(_schedulers))),
            )

    def stamp(self) -> Stamp:
        """Of what `known` would tell, for less."""
        policies, pauses = tables.policies.c, tables.machine_pauses.c
        with self._database.read() as connection:
            busy = connection.execute(select(_runs.c.id, _runs.c.state).where(_is_busy()))
            versions = connection.execute(select(policies.name, policies.version, policies.changed_utc))
            return Stamp(
                frozenset((id, state) for id, state in busy),
                frozenset((name, version, changed) for name, version, changed in versions),
                frozenset(connection.execute(select(pauses.machine)).scalars()),
            )

    def mark(self) -> SchedulerMark | None:
        """Of this appliance."""
        with self._database.read() as connection:
            row = connection.execute(select(_schedulers).where(_schedulers.c.appliance == self._me)).first()
        return None if row is None else rows.decode(SchedulerMark, row)

    def keep_mark(self, since_utc: datetime, looked_utc: datetime) -> None:
        mark = SchedulerMark(self._me, since_utc, looked_utc)
        with self._database.write() as connection:
            rows.save(connection, _schedulers, mark, _schedulers.c.appliance == self._me)

    def _vms(self, connection: Connection) -> tuple[KnownVm, ...]:
        firsts = {host: appliance for host, appliance in connection.execute(_OWNERS)}  # noqa: C416
        return tuple(
            KnownVm(uuid, name, host, tuple(tags), known_utc, point_utc)
            for uuid, name, host, tags, known_utc, point_utc in connection.execute(_VMS)
            if firsts.get(host) == self._me
        )


def _is_busy() -> ColumnElement[bool]:
    return _runs.c.state.in_([RunState.QUEUED.value, RunState.RUNNING.value])


_POLICIES = select(tables.policies)
_BUSY = select(
    _runs.c.id,
    _runs.c.state,
    _runs.c.kind,
    _runs.c.machine,
    _runs.c.machine_kind,
    _runs.c.name,
    _runs.c.uuid,
    _runs.c.host,
).where(_is_busy())
# Of several appliances with a host, the one that has had it longest: it comes last, and counts.
_OWNERS = select(tables.hosts.c.name, tables.hosts.c.appliance).order_by(
    tables.hosts.c.added_utc.desc(), tables.hosts.c.appliance.desc()
)
_CALLED_OFF = (
    select(_runs.c.machine, func.max(_runs.c.ended_utc))
    .where(_runs.c.state == RunState.CANCELLED.value, _runs.c.ended_utc <= _until)
    .group_by(_runs.c.machine)
)


def _begun() -> Select[Any]:
    machines, runs = every_machine(), tables.runs.alias()
    newest = (
        select(runs.c.started_utc)
        .where(runs.c.machine == machines.c.machine, runs.c.state != RunState.QUEUED.value)
        .where(runs.c.started_utc <= _until)
        .order_by(runs.c.started_utc.desc())
        .limit(1)
        .scalar_subquery()
    )
    return select(machines.c.machine, newest)


def _placed() -> Select[Any]:
    machines, runs, series = every_machine(*_IMAGES), tables.runs.alias(), tables.machines
    newest = (
        select(runs.c.id)
        .where(runs.c.machine == machines.c.machine, runs.c.image_path.is_not(None))
        .order_by(runs.c.started_utc.desc(), runs.c.id.desc())
        .limit(1)
        .scalar_subquery()
    )
    return (
        select(
            _runs.c.machine, _runs.c.name, _runs.c.image_path, _runs.c.image_format, _runs.c.appliance,
            _runs.c.started_utc, series.c.last_point_utc,
        )
        .select_from(machines)
        .join(_runs, _runs.c.id == newest)
        .join(series, and_(series.c.kind == Kind.IMAGE.value, series.c.name == _runs.c.name), isouter=True)
    )  # fmt: skip


def _vms() -> Select[Any]:
    seen, series = tables.seen_machines, tables.machines
    return (
        select(seen.c.uuid, seen.c.name, seen.c.host, seen.c.tags, seen.c.known_utc, series.c.last_point_utc)
        .select_from(seen)
        .join(series, and_(series.c.kind == Kind.VM.value, series.c.uuid == seen.c.uuid), isouter=True)
        .where(seen.c.current, not_(runs_out_of_repository()))
    )


_BEGUN, _PLACED, _VMS = _begun(), _placed(), _vms()
