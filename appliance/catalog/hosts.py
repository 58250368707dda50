"""Hypervisor hosts: how to reach each, in checked fields.

The rule: an appliance has hosts of its own, as key files and sockets are of its machine; but a name means the same host
to all that share a catalog, as restore points and debts are told by it.
"""

from __future__ import annotations

from sqlalchemy import ColumnElement, Row, delete, insert, select

from appliance.catalog import rows, tables
from appliance.catalog.database import Database
from appliance.catalog.errors import RecordExists, RecordMissing
from appliance.catalog.inventory import forget_host
from appliance.hypervisor.protocol import Transport
from appliance.models import HostConfig, HostRecord


class Hosts:
    def __init__(self, database: Database, me: str) -> None:
        self._database = database
        self._me = me

    def add(self, record: HostRecord) -> None:
        """RecordExists when the name is taken, here or for another host by another appliance."""
        record = rows.owned(record, self._me)
        with self._database.write() as connection:
            taken = connection.execute(select(tables.hosts).where(tables.hosts.c.name == record.name))
            for known in [_host(row) for row in taken]:
                if known.appliance == record.appliance:
                    raise RecordExists("host", record.name, hint="See 'strongroom host list', or choose another name.")
                if not _same_host(known.config, record.config):
                    raise RecordExists(
                        "host of another appliance", record.name,
                        hint="A name means one host to all appliances that share a catalog: choose another.",
                    )  # fmt: skip
            values = rows.encode(record.config) | {"added_utc": record.added_utc, "appliance": record.appliance}
            connection.execute(insert(tables.hosts).values(values))

    def list(self) -> tuple[HostRecord, ...]:
        """By name."""
        with self._database.read() as connection:
            found = connection.execute(select(tables.hosts).where(tables.hosts.c.appliance == self._me))
            return tuple(sorted((_host(row) for row in found), key=lambda record: record.name))

    def get(self, name: str) -> HostRecord:
        """RecordMissing."""
        with self._database.read() as connection:
            row = connection.execute(select(tables.hosts).where(self._here(name))).first()
        if row is None:
            raise RecordMissing("host", name, hint="See 'strongroom host list'; 'strongroom host add' adds one.")
        return _host(row)

    def owners(self, name: str) -> tuple[str, ...]:
        """Ids of the appliances that have a host of this name."""
        query = select(tables.hosts.c.appliance).where(tables.hosts.c.name == name).order_by(tables.hosts.c.added_utc)
        with self._database.read() as connection:
            return tuple(connection.execute(query).scalars())

    def remove(self, name: str) -> None:
        """With what was seen of it. RecordMissing."""
        with self._database.write() as connection:
            if connection.execute(delete(tables.hosts).where(self._here(name))).rowcount == 0:
                raise RecordMissing("host", name, hint="See 'strongroom host list'.")
            forget_host(connection, name, self._me)

    def _here(self, name: str) -> ColumnElement[bool]:
        return (tables.hosts.c.name == name) & (tables.hosts.c.appliance == self._me)


def _same_host(one: HostConfig, other: HostConfig) -> bool:
    """Whether two appliances reach the same machine by them; what is local is local to each."""
    remote = one.transport is Transport.SSH and other.transport is Transport.SSH
    return remote and (one.hostname, one.port) == (other.hostname, other.port)


def _host(row: Row[tuple[object, ...]]) -> HostRecord:
    config = rows.decode(HostConfig, row)
    return HostRecord(config, row._mapping["added_utc"], row._mapping["appliance"])
