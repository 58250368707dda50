"""Hypervisor hosts: how to reach each, in checked fields."""

from __future__ import annotations

from sqlalchemy import Row, delete, insert, select

from appliance.catalog import rows, tables
from appliance.catalog.database import Database
from appliance.catalog.errors import RecordExists, RecordMissing
from appliance.models import HostConfig, HostRecord


class Hosts:
    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, record: HostRecord) -> None:
        """RecordExists when the name is taken."""
        with self._database.write() as connection:
            taken = select(tables.hosts.c.name).where(tables.hosts.c.name == record.name)
            if connection.execute(taken).first() is not None:
                raise RecordExists("host", record.name, hint="See 'strongroom host list', or choose another name.")
            connection.execute(
                insert(tables.hosts).values(rows.encode(record.config) | {"added_utc": record.added_utc})
            )

    def list(self) -> tuple[HostRecord, ...]:
        with self._database.read() as connection:
            return tuple(_host(row) for row in connection.execute(select(tables.hosts).order_by(tables.hosts.c.name)))

    def get(self, name: str) -> HostRecord:
        """RecordMissing."""
        with self._database.read() as connection:
            row = connection.execute(select(tables.hosts).where(tables.hosts.c.name == name)).first()
        if row is None:
            raise RecordMissing("host", name, hint="See 'strongroom host list'; 'strongroom host add' adds one.")
        return _host(row)

    def remove(self, name: str) -> None:
        """RecordMissing."""
        with self._database.write() as connection:
            if connection.execute(delete(tables.hosts).where(tables.hosts.c.name == name)).rowcount == 0:
                raise RecordMissing("host", name, hint="See 'strongroom host list'.")


def _host(row: Row[tuple[object, ...]]) -> HostRecord:
    return HostRecord(config=rows.decode(HostConfig, row), added_utc=row._mapping["added_utc"])
