"""What happened in a span of time, counted in the database: for digests, reports and metrics."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from sqlalchemy import ColumnElement, and_, func, select

from appliance.catalog import rows, tables
from appliance.catalog.database import Database
from appliance.models import PointRecord, ReadKind, RunRecord, RunState

_runs = tables.runs
_points = tables.points
_LONGEST_RUN: Final = timedelta(days=14)  # runs are found by when they began
_AT_ONCE: Final = 500


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

    def runs(self, states: Iterable[RunState], begin: datetime, end: datetime, limit: int) -> Sequence[RunRecord]:
        """Those that ended in that time in one of these states, in that order."""
        query = select(_runs).where(_ended(begin, end), _runs.c.state.in_([state.value for state in states]))
        with self._database.read() as connection:
            found = connection.execute(query.order_by(_runs.c.ended_utc, _runs.c.id).limit(limit))
            return [rows.decode(RunRecord, row) for row in found]

    def points_made(self, begin: datetime, end: datetime) -> PointsMade:
        """Those that are still there."""
        query = select(
            func.count(),
            func.coalesce(func.sum(_points.c.read_bytes), 0),
            func.coalesce(func.sum(_points.c.stored_bytes), 0),
        ).where(_points.c.created_utc >= begin, _points.c.created_utc < end)
        with self._database.read() as connection:
            count, read, stored = connection.execute(query).one()
        return PointsMade(int(count), int(read), int(stored))

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
