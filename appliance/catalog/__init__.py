"""The catalog: what the appliance remembers beside the repository, in an SQL database.

The rule: everything needed to restore is in the repository. What is lost with the catalog is what is under way (which
machines run out of the repository, thaws and clean-ups that are owed, mounts), the list of hosts and the history of
runs. Callers get and give the frozen values of `appliance.models`.

Several appliances can share one: machines, points and runs are seen by all, but an appliance looks after, and changes,
only what it began itself, as nobody else can know whether the process that did so lives. A list is of the own records,
unless it says `everyones`.

    catalog = Catalog.open(Database.at(settings.catalog_file), lock_file, id)     # made and brought up to date
    catalog.runs.save(RunRecord(...)); catalog.cleanups.add(...); catalog.recoveries.update(record, state=...)
"""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import delete, select

from appliance.catalog import rows, tables
from appliance.catalog.appliances import Appliances
from appliance.catalog.audit import Audit
from appliance.catalog.browsing import Browsing
from appliance.catalog.database import Database
from appliance.catalog.errors import CatalogOfAnotherRepository
from appliance.catalog.exports import Exports
from appliance.catalog.history import History
from appliance.catalog.hosts import Hosts
from appliance.catalog.inventory import Inventory
from appliance.catalog.notices import Notices
from appliance.catalog.points import Points
from appliance.catalog.policies import Policies
from appliance.catalog.proofs import Proofs
from appliance.catalog.queue import Queue
from appliance.catalog.recoveries import Recoveries
from appliance.catalog.runs import Cleanups, OwedThaws, Runs
from appliance.catalog.scheduling import Scheduling
from appliance.catalog.schema import upgrade
from appliance.catalog.sessions import Attempts, Sessions, Tokens
from appliance.catalog.users import Users
from appliance.models import RepositoryRecord


class Catalog:
    """Owns the database. Safe to use from several threads, processes and appliances. `me`: the id of this appliance."""

    def __init__(self, database: Database, me: str) -> None:
        self.database = database
        self.me = me
        self.appliances = Appliances(database, me)
        self.hosts = Hosts(database, me)
        self.inventory = Inventory(database, me)
        self.points = Points(database)
        self.proofs = Proofs(database)
        self.runs = Runs(database, me)
        self.browsing = Browsing(database)
        self.queue = Queue(database, me)
        self.cleanups = Cleanups(database, me)
        self.thaws = OwedThaws(database, me)
        self.recoveries = Recoveries(database, me)
        self.exports = Exports(database, me)
        self.policies = Policies(database)
        self.audit = Audit(database, me)
        self.notices = Notices(database)
        self.history = History(database)
        self.users = Users(database)
        self.sessions = Sessions(database)
        self.tokens = Tokens(database)
        self.attempts = Attempts(database)
        self.scheduling = Scheduling(database, me)

    @classmethod
    def open(cls, database: Database, lock_file: Path, me: str) -> Catalog:
        """Made and migrated as needed. CatalogError, CatalogVersionUnknown."""
        upgrade(database, lock_file)
        return cls(database, me)

    def repository(self) -> RepositoryRecord | None:
        with self.database.read() as connection:
            row = connection.execute(select(tables.repositories)).first()
        return None if row is None else rows.decode(RepositoryRecord, row)

    def attach_repository(self, record: RepositoryRecord) -> None:
        """The one repository of the catalog. That of a home follows the home; a shared one keeps to the repository that
        it has, as others rely on it: CatalogOfAnotherRepository."""
        with self.database.write() as connection:
            known = connection.execute(select(tables.repositories.c.id)).scalar()
            if self.database.is_shared and known not in (None, record.id):
                raise CatalogOfAnotherRepository(self.database.where, str(known), record.id)
            connection.execute(delete(tables.repositories))
            connection.execute(tables.repositories.insert().values(rows.encode(record)))

    def close(self) -> None:
        self.database.close()
