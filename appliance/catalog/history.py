"""What happened in a span of time, counted in the database: for digests, reports and metrics."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from sqlalchemy import ColumnElement, and_, func, select

from appliance.catalog import rows, tables
from appliance.catalog.browsing import histories
from appliance.catalog.database import Database
from appliance.models import PointRecord, ReadKind, RunKind, RunRecord, RunState
from appliance.planning.habits import Points

_runs = tables.runs
_points = tables.points
_LONGEST_RUN: Final = timedelta(days=14)  # runs are found by when they began
_AT_ONCE: Final = 500
_IS_BACKUP: Final = _runs.c.kind == RunKind.BACKUP.value


@dataclass(frozen=True, slots=True)
class PointsMade:
    points: int
    read_bytes: int
    stored_bytes: int


class History:
    """Of all appliances. Spans are half open."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def runs_by_state(self, begin: datetime, end: datetime) -> Mapping[RunState, int]:
        """Those that ended in that time."""
        query = select(_runs.c.state, func.count()).where(_ended(begin, end)).group_by(_runs.c.state)
        with self._database.read() as connection:
            return {RunState(state): count for state, count in connection.execute(query)}

    def runs(
        self,
        states: Iterable[RunState],
        begin: datetime,
        end: datetime,
        limit: int,
        machines: frozenset[str] | None = None,
    ) -> Sequence[RunRecord]:
        """Those that ended in that time in one of these states, in that order; of these machines (keys) alone, if they
        are stated."""
        query = select(_runs).where(_ended(begin, end), _runs.c.state.in_([state.value for state in states]))
        if machines is not None:
            query = query.where(func.coalesce(_runs.c.machine, "").in_(sorted(histories(machines))))
        with self._database.read() as connection:
            found = connection.execute(query.order_by(_runs.c.ended_utc, _runs.c.id).limit(limit))
            return [rows.decode(RunRecord, row) for row in found]

    def points_made(self, begin: datetime, end: datetime, serieses: frozenset[str] | None = None) -> PointsMade:
        """Those that are still there; of these series alone, if they are stated."""
        query = select(
            func.count(),
            func.coalesce(func.sum(_points.c.read_bytes), 0),
            func.coalesce(func.sum(_points.c.stored_bytes), 0),
        ).where(_points.c.created_utc >= begin, _points.c.created_utc < end)
        if serieses is not None:
            query = query.where(func.coalesce(_points.c.series, "").in_(sorted(serieses)))
        with self._database.read() as connection:
            count, read, stored = connection.execute(query).one()
        return PointsMade(int(count), int(read), int(stored))

    def runs_by_machine(self, begin: datetime, end: datetime) -> Mapping[str, Mapping[RunState, int]]:
        """Those that ended in that time, by what they were of (`RunRecord.machine`) and state."""
        query = select(_runs.c.machine, _runs.c.state, func.count()).where(_ended(begin, end))
        found: dict[str, dict[RunState, int]] = {}
        with self._database.read() as connection:
            for machine, state, count in connection.execute(query.group_by(_runs.c.machine, _runs.c.state)):
                found.setdefault(machine, {})[RunState(state)] = count
        return found

    def successes(self, begin: datetime, end: datetime, since: datetime) -> Mapping[str, Sequence[datetime]]:
        """When backups began that made a point, by machine, in order: those that began from `begin` on and before
        `end`, and the last one before, if it began from `since` on."""
        began = _runs.c.started_utc
        made = and_(_runs.c.state.in_([RunState.SUCCEEDED.value, RunState.PARTIAL.value]), _IS_BACKUP)
        last = select(_runs.c.machine, func.max(began)).where(made, began >= since, began < begin)
        within = select(_runs.c.machine, began).where(made, began >= begin, began < end).order_by(began)
        with self._database.read() as connection:
            found = {machine: [moment] for machine, moment in connection.execute(last.group_by(_runs.c.machine))}
            for machine, moment in connection.execute(within):
                found.setdefault(machine, []).append(moment)
        return found

    def made_points(self, serieses: Collection[str] | None = None) -> Mapping[str, Points]:
        """All points, or those of these series, by their series."""
        if serieses is not None and len(serieses) > _AT_ONCE:
            return {key: each for key, each in self.made_points().items() if key in set(serieses)}
        columns = _points.c
        query = select(
            columns.series, columns.created_utc, columns.kind, columns.size_bytes, columns.read_bytes,
            columns.stored_bytes, columns.duration_ms,
        ).order_by(columns.series, columns.generation)  # fmt: skip
        if serieses is not None:
            query = query.where(columns.series.in_(sorted(serieses)))
        found: dict[str, Points] = {}
        with self._database.read() as connection:
            for series, created, kind, *amounts in connection.execute(query):
                if series not in found:
                    found[series] = Points()
                found[series].add(created, kind == ReadKind.FULL.value, *amounts)
        return found

    def points(self) -> int:
        with self._database.read() as connection:
            return int(connection.execute(select(func.count()).select_from(_points)).scalar_one())

    def points_of(self, ids: Sequence[str]) -> Sequence[PointRecord]:
        """Those of these that there are."""
        found: list[PointRecord] = []
        with self._database.read() as connection:
            for start in range(0, len(ids), _AT_ONCE):
                query = select(_points).where(_points.c.id.in_(ids[start : start + _AT_ONCE]))
                found += (rows.decode(PointRecord, row) for row in connection.execute(query))
        return found

    def stored_before(self, point: PointRecord, limit: int) -> Sequence[int]:
        """What the incremental backups before this one stored, newest first."""
        before = and_(
            _points.c.series == point.series,
            _points.c.generation < point.generation,
            _points.c.kind == ReadKind.INCREMENTAL.value,
        )
        query = select(_points.c.stored_bytes).where(before).order_by(_points.c.generation.desc()).limit(limit)
        with self._database.read() as connection:
            return connection.execute(query).scalars().all()


def _ended(begin: datetime, end: datetime) -> ColumnElement[bool]:
    return and_(_runs.c.started_utc >= begin - _LONGEST_RUN, _runs.c.ended_utc >= begin, _runs.c.ended_utc < end)
