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

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import delete, select

from appliance.catalog import rows, tables
from appliance.catalog.database import Database
from appliance.catalog.errors import CatalogOfAnotherRepository
from appliance.catalog.schema import upgrade
from appliance.models import RepositoryRecord

if TYPE_CHECKING:
    from appliance.catalog.appliances import Appliances
    from appliance.catalog.audit import Audit
    from appliance.catalog.browsing import Browsing
    from appliance.catalog.exports import Exports
    from appliance.catalog.history import History
    from appliance.catalog.hosts import Hosts
    from appliance.catalog.inventory import Inventory
    from appliance.catalog.machines import Machines
    from appliance.catalog.notices import Notices
    from appliance.catalog.persons import Persons
    from appliance.catalog.points import Points
    from appliance.catalog.policies import Policies
    from appliance.catalog.proofs import Proofs
    from appliance.catalog.queue import Queue
    from appliance.catalog.recoveries import Recoveries
    from appliance.catalog.runs import Cleanups, OwedThaws, Runs
    from appliance.catalog.scheduling import Scheduling
    from appliance.catalog.sealing import Sealing
    from appliance.catalog.sessions import Attempts, Sessions, Tokens
    from appliance.catalog.users import Users


class Catalog:
    """Owns the database. Safe to use from several threads, processes and appliances. `me`: the id of this appliance.

    Its parts are imported when they are asked for: most commands use few of them.
    """

    def __init__(self, database: Database, me: str) -> None:
        self.database = database
        self.me = me

    @cached_property
    def appliances(self) -> Appliances:
        from appliance.catalog.appliances import Appliances

        return Appliances(self.database, self.me)

    @cached_property
    def hosts(self) -> Hosts:
        from appliance.catalog.hosts import Hosts

        return Hosts(self.database, self.me)

    @cached_property
    def inventory(self) -> Inventory:
        from appliance.catalog.inventory import Inventory

        return Inventory(self.database, self.me)

    @cached_property
    def points(self) -> Points:
        from appliance.catalog.points import Points

        return Points(self.database)

    @cached_property
    def proofs(self) -> Proofs:
        from appliance.catalog.proofs import Proofs

        return Proofs(self.database)

    @cached_property
    def runs(self) -> Runs:
        from appliance.catalog.runs import Runs

        return Runs(self.database, self.me)

    @cached_property
    def browsing(self) -> Browsing:
        from appliance.catalog.browsing import Browsing

        return Browsing(self.database)

    @cached_property
    def machines(self) -> Machines:
        from appliance.catalog.machines import Machines

        return Machines(self.database)

    @cached_property
    def queue(self) -> Queue:
        from appliance.catalog.queue import Queue

        return Queue(self.database, self.me)

    @cached_property
    def cleanups(self) -> Cleanups:
        from appliance.catalog.runs import Cleanups

        return Cleanups(self.database, self.me)

    @cached_property
    def thaws(self) -> OwedThaws:
        from appliance.catalog.runs import OwedThaws

        return OwedThaws(self.database, self.me)

    @cached_property
    def recoveries(self) -> Recoveries:
        from appliance.catalog.recoveries import Recoveries

        return Recoveries(self.database, self.me)

    @cached_property
    def exports(self) -> Exports:
        from appliance.catalog.exports import Exports

        return Exports(self.database, self.me)

    @cached_property
    def policies(self) -> Policies:
        from appliance.catalog.policies import Policies

        return Policies(self.database)

    @cached_property
    def audit(self) -> Audit:
        from appliance.catalog.audit import Audit

        return Audit(self.database, self.me)

    @cached_property
    def notices(self) -> Notices:
        from appliance.catalog.notices import Notices

        return Notices(self.database)

    @cached_property
    def history(self) -> History:
        from appliance.catalog.history import History

        return History(self.database)

    @cached_property
    def sealing(self) -> Sealing:
        from appliance.catalog.sealing import Sealing

        return Sealing(self.database)

    @cached_property
    def users(self) -> Users:
        from appliance.catalog.users import Users

        return Users(self.database)

    @cached_property
    def sessions(self) -> Sessions:
        from appliance.catalog.sessions import Sessions

        return Sessions(self.database)

    @cached_property
    def tokens(self) -> Tokens:
        from appliance.catalog.sessions import Tokens

        return Tokens(self.database)

    @cached_property
    def attempts(self) -> Attempts:
        from appliance.catalog.sessions import Attempts

        return Attempts(self.database)

    @cached_property
    def persons(self) -> Persons:
        from appliance.catalog.persons import Persons

        return Persons(self.database)

    @cached_property
    def scheduling(self) -> Scheduling:
        from appliance.catalog.scheduling import Scheduling

        return Scheduling(self.database, self.me)

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
