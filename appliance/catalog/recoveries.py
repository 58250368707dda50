"""Instant recoveries with their states, and what is exported or mounted.

The rule: a recovery changes its state only along `RecoveryState.may_become`, and only from the state that the one who
changes it has seen: of two processes that want it, one gets a `StateConflict`.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from typing import Any

from sqlalchemy import delete, select, update

from appliance.catalog import rows, tables
from appliance.catalog.database import Database
from appliance.catalog.errors import RecordMissing, StateConflict
from appliance.models import ExportRecord, RecoveryRecord, RecoveryState


class Recoveries:
    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, record: RecoveryRecord) -> None:
        with self._database.write() as connection:
            connection.execute(tables.recoveries.insert().values(rows.encode(record)))

    def update(self, record: RecoveryRecord, *, now_utc: datetime, **changes: Any) -> RecoveryRecord:
        """Change fields, `state` among them; returns the record as it is now.

        StateConflict: the stored state is not `record.state` any more, or the step does not exist.
        """
        state = changes.get("state", record.state)
        if not record.state.may_become(state):
            raise StateConflict("recovery", record.id, record.state.value, state.value)
        changed = replace(record, **changes, updated_utc=now_utc)
        here = (tables.recoveries.c.id == record.id) & (tables.recoveries.c.state == record.state.value)
        with self._database.write() as connection:
            if connection.execute(update(tables.recoveries).where(here).values(rows.encode(changed))).rowcount == 0:
                query = select(tables.recoveries.c.state).where(tables.recoveries.c.id == record.id)
                found = connection.execute(query).scalar_one_or_none()
                raise StateConflict("recovery", record.id, found or "gone", state.value)
        return changed

    def get(self, id: str) -> RecoveryRecord:
        """By its id or a unique beginning of it. RecordMissing."""
        query = select(tables.recoveries).where(tables.recoveries.c.id.startswith(id, autoescape=True))
        with self._database.read() as connection:
            found = [rows.decode(RecoveryRecord, row) for row in connection.execute(query)] if id else []
        if len(found) > 1:
            raise RecordMissing("single recovery", f"{id}: {len(found)} begin so", hint="Give more digits of the id.")
        if not found:
            raise RecordMissing("recovery", id, hint="See 'strongroom recovery list'.")
        return found[0]

    def list(self, *, ended: bool = True) -> tuple[RecoveryRecord, ...]:
        """Oldest first; without those that have ended, if asked."""
        query = select(tables.recoveries).order_by(tables.recoveries.c.started_utc, tables.recoveries.c.id)
        with self._database.read() as connection:
            found = tuple(rows.decode(RecoveryRecord, row) for row in connection.execute(query))
        return tuple(record for record in found if ended or not record.state.ended)

    def forget(self, id: str) -> None:
        """Remove the record of one that has ended. Not there: fine."""
        ended = [state.value for state in RecoveryState if state.ended]
        with self._database.write() as connection:
            here = (tables.recoveries.c.id == id) & tables.recoveries.c.state.in_(ended)
            connection.execute(delete(tables.recoveries).where(here))


class Exports:
    def __init__(self, database: Database) -> None:
        self._database = database

    def save(self, record: ExportRecord) -> None:
        with self._database.write() as connection:
            rows.save(connection, tables.exports, record, tables.exports.c.id == record.id)

    def remove(self, id: str) -> None:
        """Not there: fine."""
        with self._database.write() as connection:
            connection.execute(delete(tables.exports).where(tables.exports.c.id == id))

    def list(self) -> tuple[ExportRecord, ...]:
        """Oldest first."""
        query = select(tables.exports).order_by(tables.exports.c.started_utc, tables.exports.c.id)
        with self._database.read() as connection:
            return tuple(rows.decode(ExportRecord, row) for row in connection.execute(query))
