"""Instant recoveries with their states.

The rule: a recovery changes its state only along `RecoveryState.may_become`, and only from the state that the one who
changes it has seen: of two processes that want it, one gets a `StateConflict`. Only its own appliance changes it.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from typing import Any, Final

from sqlalchemy import ColumnElement, delete, select, update

from appliance.catalog import rows, tables
from appliance.catalog.database import Database
from appliance.catalog.errors import OfAnotherAppliance, StateConflict
from appliance.models import RecoveryRecord, RecoveryState

_ENDED: Final = [state.value for state in RecoveryState if state.ended]
_UNDER_WAY: Final = [state.value for state in RecoveryState if not state.ended]


def under_way() -> ColumnElement[bool]:
    """Of a recovery. Asked all the time, so by the states that an index has together: those that have ended are many
    more."""
    return tables.recoveries.c.state.in_(_UNDER_WAY)


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
            query = query.where(under_way())
        with self._database.read() as connection:
            return tuple(rows.decode(RecoveryRecord, row) for row in connection.execute(query))

    def forget(self, id: str) -> None:
        """Remove the record of one that has ended. Not there: fine."""
        with self._database.write() as connection:
            here = self._mine(id) & tables.recoveries.c.state.in_(_ENDED)
            connection.execute(delete(tables.recoveries).where(here))

    def _mine(self, id: str) -> ColumnElement[bool]:
        return (tables.recoveries.c.id == id) & (tables.recoveries.c.appliance == self._me)
