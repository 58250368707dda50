"""Instant recoveries with their states.

The rule: a recovery changes its state only along `RecoveryState.may_become`, and only from the state that the one who
changes it has seen: of two processes that want it, one gets a `StateConflict`. Only its own appliance changes it.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from typing import Any, Final

from sqlalchemy import ColumnElement, delete, literal, select, tuple_, update

from appliance.catalog import rows, tables
from appliance.catalog.database import Database
from appliance.catalog.errors import OfAnotherAppliance, StateConflict
from appliance.models import RecoveryRecord, RecoveryState
from appliance.paging import Page, checked_limit, read_key, write_key

_ENDED: Final = [state.value for state in RecoveryState if state.ended]
_ORDER: Final = "recoveries that ended"


class Recoveries:
    def __init__(self, database: Database, me: str) -> None:
        self._database = database
        self._me = me

    def add(self, record: RecoveryRecord) -> RecoveryRecord:
        """Returns it as it is kept."""
        record = rows.owned(record, self._me)
        with self._database.write() as connection:
            connection.execute(tables.recoveries.insert().values(rows.encode(record)))
        return record

    def update(self, record: RecoveryRecord, *, now_utc: datetime, **changes: Any) -> RecoveryRecord:
        """Change fields, `state` among them; returns the record as it is now.

        StateConflict: the stored state is not `record.state` any more, or the step does not exist.
        OfAnotherAppliance.
        """
        if record.appliance != self._me:
            raise OfAnotherAppliance("recovery", record.id, record.appliance)
        state = changes.get("state", record.state)
        if not record.state.may_become(state):
            raise StateConflict("recovery", record.id, record.state.value, state.value)
        changed = replace(record, **changes, updated_utc=now_utc)
        here = self._mine(record.id) & (tables.recoveries.c.state == record.state.value)
        with self._database.write() as connection:
            if connection.execute(update(tables.recoveries).where(here).values(rows.encode(changed))).rowcount == 0:
                query = select(tables.recoveries.c.state).where(tables.recoveries.c.id == record.id)
                found = connection.execute(query).scalar_one_or_none()
                raise StateConflict("recovery", record.id, found or "gone", state.value)
        return changed

    def get(self, id: str) -> RecoveryRecord:
        """By its id or a unique beginning of it, of whatever appliance. RecordMissing."""
        with self._database.read() as connection:
            return rows.find(connection, tables.recoveries, RecoveryRecord, id, "recovery")

    def list(self, *, ended: bool = True, everyones: bool = False) -> tuple[RecoveryRecord, ...]:
        """Oldest first; without those that have ended, if asked."""
        query = select(tables.recoveries).order_by(tables.recoveries.c.started_utc, tables.recoveries.c.id)
        if not everyones:
            query = query.where(tables.recoveries.c.appliance == self._me)
        if not ended:
            query = query.where(tables.recoveries.c.state.not_in(_ENDED))
        with self._database.read() as connection:
            return tuple(rows.decode(RecoveryRecord, row) for row in connection.execute(query))

    def ended(self, *, after: str | None, limit: int) -> Page[RecoveryRecord]:
        """Everyone's, newest first. PageRefused."""
        columns, limit = tables.recoveries.c, checked_limit(limit)
        query = select(tables.recoveries).where(columns.state.in_(_ENDED))
        if after is not None:
            begun, id = read_key(_ORDER, after, (datetime, str))
            at = tuple_(literal(begun, columns.started_utc.type), literal(id))
            query = query.where(tuple_(columns.started_utc, columns.id) < at)
        query = query.order_by(columns.started_utc.desc(), columns.id.desc()).limit(limit + 1)
        with self._database.read() as connection:
            found = [rows.decode(RecoveryRecord, row) for row in connection.execute(query)]
        last = found[limit - 1] if len(found) > limit else None
        return Page(tuple(found[:limit]), None if last is None else write_key(_ORDER, (last.started_utc, last.id)))

    def forget(self, id: str) -> None:
        """Remove the record of one that has ended. Not there: fine."""
        with self._database.write() as connection:
            here = self._mine(id) & tables.recoveries.c.state.in_(_ENDED)
            connection.execute(delete(tables.recoveries).where(here))

    def _mine(self, id: str) -> ColumnElement[bool]:
        return (tables.recoveries.c.id == id) & (tables.recoveries.c.appliance == self._me)
