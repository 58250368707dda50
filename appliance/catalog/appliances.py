"""The appliances that share the catalog, and taking on what one of them left.

The rule: which appliance a record is of changes in one way only: an admin says that the appliance is gone for good.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta

from sqlalchemy import ColumnElement, Connection, Table, delete, func, select, update

from appliance.catalog import rows, tables
from appliance.catalog.database import Database
from appliance.catalog.errors import HomeCopied, RecordMissing
from appliance.catalog.recoveries import under_way
from appliance.models import ApplianceRecord, RunState

_SEEN_EVERY = timedelta(minutes=1)


class Appliances:
    def __init__(self, database: Database, me: str) -> None:
        self._database = database
        self._me = me

    def join(self, record: ApplianceRecord, file: str) -> ApplianceRecord:
        """Say that this appliance is here; returns it as the catalog has it from now on. `file`: where its id is kept.

        HomeCopied when another home of a shared catalog says that it is the same.
        """
        known = self._known(record.id)
        if known is not None:
            if self._database.is_shared and known.place not in ("", record.place):
                raise HomeCopied(file, known.id, known.name, known.home)
            record = replace(record, created_utc=known.created_utc)
            same = replace(known, seen_utc=record.seen_utc) == record
            if same and (not self._database.is_shared or _recent(known, record)):
                return known
        with self._database.write() as connection:
            rows.save(connection, tables.appliances, record, tables.appliances.c.id == record.id)
        return record

    def list(self) -> tuple[ApplianceRecord, ...]:
        """Oldest first."""
        query = select(tables.appliances).order_by(tables.appliances.c.created_utc, tables.appliances.c.id)
        with self._database.read() as connection:
            return tuple(rows.decode(ApplianceRecord, row) for row in connection.execute(query))

    def get(self, id: str) -> ApplianceRecord:
        """By its id or a unique beginning of it. RecordMissing."""
        found = [record for record in self.list() if id and record.id.startswith(id.lower())]
        if len(found) > 1:
            raise RecordMissing("single appliance", f"{id}: {len(found)} begin so", hint="Give more digits of the id.")
        if not found:
            raise RecordMissing("appliance", id, hint="See 'strongroom appliance list'.")
        return found[0]

    def under_way(self, id: str) -> Mapping[str, int]:
        """How much of each kind is of it, as words for people; what is over does not count."""
        with self._database.read() as connection:
            return {what: _count(connection, table, id) for what, table in _UNDER_WAY.items()}

    def take_over(self, id: str) -> None:
        """Everything of that appliance that is not over, its hosts too, becomes this one's; it is not known any more.

        What it did stays in the history.
        """
        with self._database.write() as connection:
            _drop_doubles(connection, tables.hosts, ("name",), id, self._me)
            _drop_doubles(connection, tables.owed_thaws, ("machine_uuid", "host"), id, self._me)
            for table in (tables.hosts, *_UNDER_WAY.values()):
                connection.execute(update(table).where(_open(table, id)).values(appliance=self._me))
            for table in (tables.host_looks, tables.schedulers):
                connection.execute(delete(table).where(table.c.appliance == id))
            connection.execute(delete(tables.appliances).where(tables.appliances.c.id == id))

    def _known(self, id: str) -> ApplianceRecord | None:
        with self._database.read() as connection:
            row = connection.execute(select(tables.appliances).where(tables.appliances.c.id == id)).first()
        return None if row is None else rows.decode(ApplianceRecord, row)


_UNDER_WAY: Mapping[str, Table] = {
    "runs": tables.runs,
    "recoveries": tables.recoveries,
    "exports": tables.exports,
    "clean-ups": tables.cleanups,
    "owed thaws": tables.owed_thaws,
}


def only_appliance(database: Database) -> str | None:
    """The id of the one appliance of a catalog that has one, made before ids were kept in the home."""
    with database.read() as connection:
        found = connection.execute(select(tables.appliances.c.id)).scalars().all()
    return found[0] if len(found) == 1 else None


def _recent(known: ApplianceRecord, now: ApplianceRecord) -> bool:
    if known.seen_utc is None or now.seen_utc is None:
        return False
    return abs(now.seen_utc - known.seen_utc) < _SEEN_EVERY


def _open(table: Table, id: str) -> ColumnElement[bool]:
    here = table.c.appliance == id
    if table is tables.runs:
        return here & table.c.state.in_([RunState.RUNNING.value, RunState.QUEUED.value])
    if table is tables.recoveries:
        return here & under_way()
    return here


def _count(connection: Connection, table: Table, id: str) -> int:
    return connection.execute(select(func.count()).select_from(table).where(_open(table, id))).scalar_one()


def _drop_doubles(connection: Connection, table: Table, key: tuple[str, ...], id: str, me: str) -> None:
    """What this appliance has under the same key stays as it is."""
    mine = table.alias()
    same = [getattr(mine.c, column) == getattr(table.c, column) for column in key]
    doubles = select(mine.c.appliance).where(mine.c.appliance == me, *same).exists()
    connection.execute(delete(table).where(table.c.appliance == id, doubles))
