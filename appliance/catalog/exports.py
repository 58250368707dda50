"""What is exported or mounted, by whom."""

from __future__ import annotations

from sqlalchemy import delete, select

from appliance.catalog import rows, tables
from appliance.catalog.database import Database
from appliance.models import ExportRecord


class Exports:
    def __init__(self, database: Database, me: str) -> None:
        self._database = database
        self._me = me

    def save(self, record: ExportRecord) -> None:
        record = rows.owned(record, self._me)
        with self._database.write() as connection:
            rows.save(connection, tables.exports, record, tables.exports.c.id == record.id)

    def remove(self, id: str) -> None:
        """Not there: fine."""
        with self._database.write() as connection:
            connection.execute(delete(tables.exports).where(tables.exports.c.id == id))

    def list(self, *, everyones: bool = False) -> tuple[ExportRecord, ...]:
        """Oldest first."""
        query = select(tables.exports).order_by(tables.exports.c.started_utc, tables.exports.c.id)
        if not everyones:
            query = query.where(tables.exports.c.appliance == self._me)
        with self._database.read() as connection:
            return tuple(rows.decode(ExportRecord, row) for row in connection.execute(query))
