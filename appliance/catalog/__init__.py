"""The catalog: what the appliance remembers beside the repository, in an SQL database.

The rule: everything needed to restore is in the repository. What is lost with the catalog is what is under way (which
machines run out of the repository, thaws and clean-ups that are owed, mounts), the list of hosts and the history of
runs. Callers get and give the frozen values of `appliance.models`.

    catalog = Catalog.open(settings.catalog_file, lock_file)     # made and brought up to date
    catalog.runs.save(RunRecord(...)); catalog.cleanups.add(...); catalog.recoveries.update(record, state=...)
"""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import delete, select

from appliance.catalog import rows, tables
from appliance.catalog.database import Database
from appliance.catalog.hosts import Hosts
from appliance.catalog.points import Points
from appliance.catalog.recoveries import Exports, Recoveries
from appliance.catalog.runs import Cleanups, OwedThaws, Runs
from appliance.catalog.schema import upgrade
from appliance.clock import Clock
from appliance.models import ApplianceRecord, RepositoryRecord, new_id


class Catalog:
    """Owns the database. Safe to use from several threads and processes."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.hosts = Hosts(database)
        self.points = Points(database)
        self.runs = Runs(database)
        self.cleanups = Cleanups(database)
        self.thaws = OwedThaws(database)
        self.recoveries = Recoveries(database)
        self.exports = Exports(database)

    @classmethod
    def open(cls, path: Path, lock_file: Path) -> Catalog:
        """The SQLite catalog at `path`, made and migrated as needed. CatalogError, CatalogVersionUnknown."""
        database = Database.at(path)
        upgrade(database, lock_file)
        return cls(database)

    def appliance(self, clock: Clock) -> ApplianceRecord:
        """Who this appliance is; decided once, when it is first asked."""
        with self.database.read() as connection:
            row = connection.execute(select(tables.appliance)).first()
        if row is None:
            with self.database.write() as connection:
                row = connection.execute(select(tables.appliance)).first()
                if row is None:
                    record = ApplianceRecord(new_id(), clock.now_utc())
                    connection.execute(tables.appliance.insert().values(rows.encode(record)))
                    return record
        return rows.decode(ApplianceRecord, row)

    def repository(self) -> RepositoryRecord | None:
        with self.database.read() as connection:
            row = connection.execute(select(tables.repositories)).first()
        return None if row is None else rows.decode(RepositoryRecord, row)

    def attach_repository(self, record: RepositoryRecord) -> None:
        """The one repository of this home."""
        with self.database.write() as connection:
            connection.execute(delete(tables.repositories))
            connection.execute(tables.repositories.insert().values(rows.encode(record)))

    def close(self) -> None:
        self.database.close()
