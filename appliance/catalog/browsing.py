"""What lists and the overview read, at the size of a large fleet: pages of runs, points and recoveries, and sums.

The rule: a page costs what is on it. It is read along an index that has its order, from where the page before ended; a
filter that no index has is never left to luck: rows of several states are read state by state and put together. No
statement is sent for each row, however many there are.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import product
from math import prod
from typing import Any, Final, Generic, TypeVar

from sqlalchemy import (
    Column,
    ColumnElement,
    Connection,
    Integer,
    Row,
    Select,
    Table,
    and_,
    false,
    func,
    literal,
    not_,
    or_,
    select,
    true,
    tuple_,
    union_all,
)

from appliance.catalog import rows, tables
from appliance.catalog.database import Database
from appliance.models import PointRecord, RecoveryRecord, RecoveryState, RunKind, RunRecord, RunState
from appliance.paging import Key, Page, checked_limit, read_key, write_key

Record = TypeVar("Record", RunRecord, PointRecord, RecoveryRecord)

COUNTED_MOST: Final = 10_000
_FEW: Final = 20
_PARTS_MOST: Final = 60
_runs, _points, _recoveries = tables.runs, tables.points, tables.recoveries


@dataclass(frozen=True, slots=True)
class RunFilter:
    """What is not stated fits all. `machine` and `machines`: keys, of backups and restores of a machine or image;
    `machines` is what may be told, so that no other run is. Moments are of the last attempt's beginning; `until_utc` is
    not in it."""

    states: frozenset[RunState] = frozenset()
    kinds: frozenset[RunKind] = frozenset()
    machine: str | None = None
    host: str | None = None
    machines: frozenset[str] | None = None
    since_utc: datetime | None = None
    until_utc: datetime | None = None


@dataclass(frozen=True, slots=True)
class PointFilter:
    """`series`: of one machine; `serieses`: of any of these."""

    series: str | None = None
    host: str | None = None
    serieses: frozenset[str] | None = None
    since_utc: datetime | None = None
    until_utc: datetime | None = None


@dataclass(frozen=True, slots=True)
class RecoverySources:
    """Of which machines recoveries may be told: by their series, or, where there is no point of them any more, by name
    and host."""

    serieses: frozenset[str]
    gone: frozenset[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class RecoveryFilter:
    """`ended`: those that have, or those that have not."""

    ended: bool | None = None
    sources: RecoverySources | None = None


class Browsing:
    def __init__(self, database: Database) -> None:
        self._database = database

    def runs(self, wanted: RunFilter, *, after: str | None, limit: int, oldest_first: bool = False) -> Page[RunRecord]:
        """By when their last attempt began. PageRefused."""
        fits = [_between(_runs.c.started_utc, wanted.since_utc, wanted.until_utc)]
        if wanted.host is not None:
            fits.append(_runs.c.host == wanted.host)
        states, kinds = sorted(state.value for state in wanted.states), sorted(kind.value for kind in wanted.kinds)
        if wanted.machine is not None:
            # By the machine's index alone: SQLite took that of the state for a failed run of a machine, 175 ms.
            fits += [func.coalesce(_runs.c.state, "").in_(states)] if states else []
            fits += [func.coalesce(_runs.c.kind, "").in_(kinds)] if kinds else []
            states, kinds = [], []
        several = [
            [_runs.c.state == state for state in states],
            [_runs.c.kind == kind for kind in kinds],
            _one_of(_runs.c.machine, None if wanted.machine is None else histories([wanted.machine])),
            _one_of(_runs.c.machine, None if wanted.machines is None else histories(wanted.machines)),
        ]
        parts = [and_(*fits, *each) for each in _parts(several)]
        stated = sum(map(bool, (wanted.states, wanted.kinds, wanted.host is not None, wanted.machine is not None)))
        countable = wanted.machines is None and (stated <= 1 or wanted.machine is not None)
        return self._page(_RUNS, parts, after, limit, oldest_first, countable=countable)

    def points(
        self, wanted: PointFilter, *, after: str | None, limit: int, oldest_first: bool = False
    ) -> Page[PointRecord]:
        """By when they were made. PageRefused."""
        fits = [_between(_points.c.created_utc, wanted.since_utc, wanted.until_utc)]
        if wanted.host is not None:
            fits.append(_points.c.host == wanted.host)
        if wanted.series is not None:
            fits.append(_points.c.series == wanted.series)
        parts = [and_(*fits, *each) for each in _parts([_one_of(_points.c.series, wanted.serieses)])]
        return self._page(_POINTS, parts, after, limit, oldest_first, countable=wanted.serieses is None)

    def recoveries(self, wanted: RecoveryFilter, *, after: str | None, limit: int) -> Page[RecoveryRecord]:
        """Everyone's, by when they began, newest first. PageRefused."""
        states = [] if wanted.ended is None else [each.value for each in RecoveryState if each.ended is wanted.ended]
        sources = [] if wanted.sources is None else [_of_sources(wanted.sources)]
        parts = [and_(true(), *each) for each in _parts([[_recoveries.c.state == each for each in states], sources])]
        return self._page(_RECOVERIES, parts, after, limit, oldest_first=False, countable=wanted.sources is None)

    def gone_sources(self) -> frozenset[tuple[str, str]]:
        """Name and host of what was recovered, and has no restore point any more."""
        query = select(_recoveries.c.source_name, _recoveries.c.host).where(_is_gone()).distinct()
        with self._database.read() as connection:
            return frozenset((name, host) for name, host in connection.execute(query))

    def watched(self, ids: frozenset[str]) -> tuple[RunRecord, ...]:
        """Runs that are under way, and these."""
        running = _runs.c.state == RunState.RUNNING.value
        both = union_all(select(_runs).where(running), select(_runs).where(_runs.c.id.in_(sorted(ids)), not_(running)))
        query = select(both.subquery())
        with self._database.read() as connection:
            return tuple(rows.decode(RunRecord, row) for row in connection.execute(query))

    def points_beginning(
        self, prefix: str, limit: int, serieses: frozenset[str] | None = None
    ) -> tuple[PointRecord, ...]:
        """Of these series alone, if they are stated."""
        query = select(_points).where(rows.begins(_points.c.id, prefix)).order_by(_points.c.id).limit(limit)
        if serieses is not None:  # coalesced: by the ids' index alone
            query = query.where(func.coalesce(_points.c.series, "").in_(sorted(serieses)))
        with self._database.read() as connection:
            return tuple(rows.decode(PointRecord, row) for row in connection.execute(query))

    def runs_beginning(self, prefix: str, limit: int, machines: frozenset[str] | None = None) -> tuple[RunRecord, ...]:
        """Of these machines (keys) alone, if they are stated."""
        query = select(_runs).where(rows.begins(_runs.c.id, prefix)).order_by(_runs.c.id).limit(limit)
        if machines is not None:
            query = query.where(func.coalesce(_runs.c.machine, "").in_(sorted(histories(machines))))
        with self._database.read() as connection:
            return tuple(rows.decode(RunRecord, row) for row in connection.execute(query))

    def run_states(self, since_utc: datetime, machines: frozenset[str] | None = None) -> dict[RunState, int]:
        """How many runs there are of each state, of those that began since then, of these machines."""
        state = func.coalesce(_runs.c.state, "")  # else SQLite goes through the whole index of states: 90 ms, not 2
        query = select(state, func.count()).where(_runs.c.started_utc >= since_utc).group_by(state)
        if machines is not None:
            query = query.where(func.coalesce(_runs.c.machine, "").in_(sorted(histories(machines))))
        with self._database.read() as connection:
            return {RunState(state): count for state, count in connection.execute(query)}

    def stored_by_day(self, last_utc: datetime, days: int) -> tuple[int, ...]:
        """What points stored in each of the `days` times 24 hours up to `last_utc`, oldest first."""
        ends = [last_utc - timedelta(days=days - number - 1) for number in range(days)]
        sums = [
            select(literal(number, Integer).label("number"), func.coalesce(func.sum(_points.c.stored_bytes), 0))
            .where(_between(_points.c.created_utc, end - timedelta(days=1), end))
            .select_from(_points)
            for number, end in enumerate(ends)
        ]
        with self._database.read() as connection:
            found = {number: int(total) for number, total in connection.execute(union_all(*sums))}
        return tuple(found[number] for number in range(days))

    def totals(self) -> tuple[int, int]:
        """How many points there are, and how much they stored when they were made."""
        query = select(func.count(), func.coalesce(func.sum(_points.c.stored_bytes), 0)).select_from(_points)
        with self._database.read() as connection:
            count, stored = connection.execute(query).one()
        return int(count), int(stored)

    def series_totals(self, series: str) -> tuple[int, int]:
        """As `totals`, of one series."""
        query = select(func.count(), func.coalesce(func.sum(_points.c.stored_bytes), 0)).where(
            _points.c.series == series
        )
        with self._database.read() as connection:
            count, stored = connection.execute(query).one()
        return int(count), int(stored)

    def _page(
        self,
        kind: _Kind[Record],
        parts: Sequence[ColumnElement[bool]],
        after: str | None,
        limit: int,
        oldest_first: bool,
        *,
        countable: bool,
    ) -> Page[Record]:
        """`parts`: no row fits two of them; each is read by itself."""
        limit = checked_limit(limit)
        order = f"{kind.table.name}{'+' if oldest_first else '-'}"
        begins = None if after is None else kind.beyond(read_key(order, after, (datetime, str)), oldest_first)
        wanted = [part if begins is None else and_(part, begins) for part in parts]
        with self._database.read() as connection:
            found = kind.read(connection, wanted, limit + 1, oldest_first)
            total = kind.count(connection, parts) if countable else None
        shown = [rows.decode(kind.record, row) for row in found[:limit]]
        last = found[limit - 1]._mapping if len(found) > limit else None
        next_ = None if last is None else write_key(order, (last[kind.moment.name], last["id"]))
        return Page(tuple(shown), next_, total)


@dataclass(frozen=True, slots=True)
class _Kind(Generic[Record]):
    """Rows in the order of a moment and, of the same one, of their ids."""

    table: Table
    moment: Column[datetime]
    record: type[Record]

    def beyond(self, key: Key, oldest_first: bool) -> ColumnElement[bool]:
        here = tuple_(self.moment, self.table.c.id)
        at = tuple_(literal(key[0], self.moment.type), literal(key[1]))
        return here > at if oldest_first else here < at

    def read(
        self, connection: Connection, parts: Sequence[ColumnElement[bool]], limit: int, oldest_first: bool
    ) -> Sequence[Row[Any]]:
        if len(parts) == 1:
            return connection.execute(self._ordered(select(self.table).where(parts[0]), oldest_first, limit)).all()
        some = [select(self._ordered(select(self.table).where(part), oldest_first, limit).subquery()) for part in parts]
        together = union_all(*some).subquery()
        at, id = together.c[self.moment.name], together.c.id
        query = select(together)
        query = query.order_by(at, id) if oldest_first else query.order_by(at.desc(), id.desc())
        return connection.execute(query.limit(limit)).all()

    def count(self, connection: Connection, parts: Sequence[ColumnElement[bool]]) -> int | None:
        """None: more than are worth counting."""
        total = 0
        for part in parts:
            some = select(self.table.c.id).where(part).limit(COUNTED_MOST + 1).subquery()
            total += connection.execute(select(func.count()).select_from(some)).scalar_one()
            if total > COUNTED_MOST:
                return None
        return total

    def _ordered(self, query: Select[Any], oldest_first: bool, limit: int) -> Select[Any]:
        at, id = self.moment, self.table.c.id
        query = query.order_by(at, id) if oldest_first else query.order_by(at.desc(), id.desc())
        return query.limit(limit)


_RUNS = _Kind(_runs, _runs.c.started_utc, RunRecord)
_POINTS = _Kind(_points, _points.c.created_utc, PointRecord)
_RECOVERIES = _Kind(_recoveries, _recoveries.c.started_utc, RecoveryRecord)
_SERIES_OF_RECOVERY = func.substr(_recoveries.c.manifest_name, len("manifests/") + 1, tables.ID_CHARACTERS)


def _of_sources(sources: RecoverySources) -> ColumnElement[bool]:
    """No index has it: they are found among those that come by time, as a fleet has few recoveries beside its runs."""
    known = _SERIES_OF_RECOVERY.in_(sorted(sources.serieses))
    if not sources.gone:
        return known
    gone = tuple_(_recoveries.c.source_name, _recoveries.c.host).in_(sorted(sources.gone))
    return or_(known, and_(_is_gone(), gone))


def _is_gone() -> ColumnElement[bool]:
    return _SERIES_OF_RECOVERY.not_in(select(tables.machines.c.series))


def _parts(several: Sequence[Sequence[ColumnElement[bool]]]) -> list[tuple[ColumnElement[bool], ...]]:
    """One for each combination; what is empty leaves everything. Where they are too many, the longest is one."""
    stated = [each for each in several if each]
    while prod(map(len, stated)) > _PARTS_MOST:
        longest = max(range(len(stated)), key=lambda number: len(stated[number]))
        stated[longest] = [or_(*stated[longest])]
    return list(product(*stated))


def histories(machines: Iterable[str]) -> frozenset[str]:
    """What runs of these machines have for one: see `RunRecord.machine`."""
    return frozenset(f"{kind}{key}" for key in machines for kind in ("", f"{RunKind.RESTORE}:"))


def _one_of(column: Column[str], values: frozenset[str] | None) -> list[ColumnElement[bool]]:
    """For a few, each by the index of the column; many are found among those that come by time, and not by an index
    that would have them all sorted first."""
    if values is None:
        return []
    if not values:
        return [false()]
    if len(values) <= _FEW:
        return [column == value for value in sorted(values)]
    return [func.coalesce(column, "").in_(sorted(values))]


def _between(column: Column[datetime], since: datetime | None, until: datetime | None) -> ColumnElement[bool]:
    begin = true() if since is None else column >= since
    return begin if until is None else and_(begin, column < until)
