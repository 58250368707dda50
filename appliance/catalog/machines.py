"""All machines at once, as the catalog has them: where they are, their restore points, how each fares, and the hosts.

The rule: as many statements for a large fleet as for one machine.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row, Select, and_, false, func, or_, select

from appliance.catalog import tables
from appliance.catalog.database import Database
from appliance.catalog.recoveries import under_way
from appliance.catalog.runs import newest_of_each
from appliance.models import RunState
from appliance.policy.selectors import Kind

_runs, _seen = tables.runs, tables.seen_machines


@dataclass(frozen=True, slots=True)
class SeenRow:
    """A machine where it is, without its disks. `away`: no appliance has reached its host at the last look."""

    host: str
    uuid: str
    name: str
    state: str
    size_bytes: int
    agent: bool
    tags: tuple[str, ...]
    known_utc: datetime
    seen_utc: datetime | None
    away: bool
    recovered: bool


@dataclass(frozen=True, slots=True)
class SeriesRow:
    series: str
    kind: str
    name: str
    uuid: str | None
    host: str | None
    last_point: str | None
    last_point_utc: datetime | None


@dataclass(frozen=True, slots=True)
class LastRun:
    """The newest run of a machine that tells how it fares."""

    id: str
    state: RunState
    started_utc: datetime
    ended_utc: datetime | None
    error: str | None
    dismissed_utc: datetime | None

    @property
    def failed(self) -> bool:
        """It made no point, and nobody has said that this needs no eye."""
        return self.state in (RunState.FAILED, RunState.INTERRUPTED) and self.dismissed_utc is None


@dataclass(frozen=True, slots=True)
class HostRow:
    """A host of any appliance. `answered_utc`: the last time, to any of them; `failing_since_utc` and `error`: one of
    those of whom none was answered at the last look; None: some was, or nobody has looked yet."""

    name: str
    answered_utc: datetime | None
    failing_since_utc: datetime | None
    error: str | None


@dataclass(frozen=True, slots=True)
class Whole:
    """All machines as the catalog has them, and the hosts, by name. `runs`: by the machine's key; `busy`: runs that
    wait or are under way, by the machine's key."""

    hosts: tuple[HostRow, ...]
    seen: tuple[SeenRow, ...]
    series: tuple[SeriesRow, ...]
    runs: dict[str, LastRun]
    busy: dict[str, RunState]


class Machines:
    def __init__(self, database: Database) -> None:
        self._database = database

    def whole(self, machine: str | None = None) -> Whole:
        """In five statements: 35 ms for 1,000 machines and 1,000,000 runs. `machine`: of all machines this one alone (a
        key)."""
        with self._database.read() as connection:
            hosts = _hosts(connection)
            seen, series = _machines(connection, machine)
            last = connection.execute(_last_query(machine))
            runs = {row[0]: LastRun(row[1], RunState(row[2]), *row[3:]) for row in last}
            busy = {row[0]: RunState(row[1]) for row in connection.execute(_busy_query(machine))}
        return Whole(hosts, seen, series, runs, busy)

    def selectable(self, machine: str | None = None) -> tuple[tuple[SeenRow, ...], tuple[SeriesRow, ...]]:
        """Machines where they are, and what has restore points, of all appliances; of this one alone (a key)."""
        with self._database.read() as connection:
            return _machines(connection, machine)


def _hosts(connection: Connection) -> tuple[HostRow, ...]:
    hosts, looks = tables.hosts, tables.host_looks
    query = (
        select(hosts.c.name, looks.c.answered_utc, looks.c.failing_since_utc, looks.c.error)
        .select_from(hosts)
        .join(looks, and_(looks.c.host == hosts.c.name, looks.c.appliance == hosts.c.appliance), isouter=True)
    )
    found: dict[str, HostRow] = {}
    for each in [HostRow(*row) for row in connection.execute(query)]:
        known = found.setdefault(each.name, each)
        answered = max(filter(None, (known.answered_utc, each.answered_utc)), default=None)
        worse = known if each.failing_since_utc is None else each
        better = each if known.failing_since_utc is not None else known
        tells = better if better.failing_since_utc is None and better.answered_utc is not None else worse
        found[each.name] = HostRow(each.name, answered, tells.failing_since_utc, tells.error)
    return tuple(found[name] for name in sorted(found))


def _machines(connection: Connection, machine: str | None) -> tuple[tuple[SeenRow, ...], tuple[SeriesRow, ...]]:
    seen, series = _seen_query(), _series_query()
    if machine is not None:
        kind, _, id = machine.partition(":")
        columns = tables.machines.c
        named = or_(columns.uuid == id, and_(columns.uuid.is_(None), columns.name == id))
        seen = seen.where(_seen.c.uuid == id if kind == Kind.VM else false())
        series = series.where(columns.kind == kind, named)
    return (
        tuple(_seen_row(row) for row in connection.execute(seen)),
        tuple(SeriesRow(*row) for row in connection.execute(series)),
    )


def _seen_query() -> Select[Any]:
    looks, recoveries = tables.host_looks, tables.recoveries
    hosts = (
        select(
            looks.c.host,
            func.max(looks.c.answered_utc).label("seen_utc"),
            func.count(looks.c.failing_since_utc).label("failing"),
            func.count().label("looks"),
        )
        .group_by(looks.c.host)
        .subquery()
    )
    recovered = (
        select(recoveries.c.id)
        .where(recoveries.c.machine_uuid == _seen.c.uuid, recoveries.c.host == _seen.c.host)
        .where(under_way())
        .exists()
    )
    return (
        select(
            _seen.c.host, _seen.c.uuid, _seen.c.name, _seen.c.state, _seen.c.size_bytes, _seen.c.agent, _seen.c.tags,
            _seen.c.known_utc, hosts.c.seen_utc, (hosts.c.failing == hosts.c.looks).label("away"), recovered,
        )
        .select_from(_seen)
        .join(hosts, hosts.c.host == _seen.c.host, isouter=True)
        .where(_seen.c.current)
    )  # fmt: skip


def _seen_row(row: Row[Any]) -> SeenRow:
    host, uuid, name, state, size_bytes, agent, tags, known, seen, away, recovered = tuple(row)
    return SeenRow(host, uuid, name, state, size_bytes, agent, tuple(tags), known, seen, bool(away), bool(recovered))


def _series_query() -> Select[Any]:
    machines = tables.machines.c
    return select(
        machines.series, machines.kind, machines.name, machines.uuid, machines.host, machines.last_point,
        machines.last_point_utc,
    )  # fmt: skip


def _last_query(machine: str | None) -> Select[Any]:
    return newest_of_each(
        _runs.c.machine, _runs.c.id, _runs.c.state, _runs.c.started_utc, _runs.c.ended_utc, _runs.c.error,
        _runs.c.dismissed_utc, machine=machine,
    )  # fmt: skip


def _busy_query(machine: str | None) -> Select[Any]:
    """One that runs counts for more than one that waits: it comes last."""
    busy = _runs.c.state.in_([RunState.QUEUED.value, RunState.RUNNING.value])
    query = select(_runs.c.machine, _runs.c.state).where(busy).order_by(_runs.c.state)
    return query if machine is None else query.where(_runs.c.machine == machine)
