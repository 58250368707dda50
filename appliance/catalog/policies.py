"""Policies, and machines that are paused: one set for all appliances that share the catalog.

The rule: nobody overwrites what he has not seen. A change says on which version it was made, and is refused if there is
a newer one. What a policy's document says is not understood here.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime

from sqlalchemy import Connection, delete, select, update

from appliance.catalog import rows, tables
from appliance.catalog.database import Database
from appliance.catalog.errors import PolicyChanged, RecordExists, RecordMissing
from appliance.policy.stored import MachinePause, StoredPolicy

_policies = tables.policies
_pauses = tables.machine_pauses


class Policies:
    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, record: StoredPolicy) -> None:
        """RecordExists."""
        with self._database.write() as connection:
            if _row(connection, record.name) is not None:
                raise RecordExists(
                    "policy", record.name,
                    hint=f"Change that one with 'strongroom policy edit {record.name}', or choose another name.",
                )  # fmt: skip
            connection.execute(_policies.insert().values(rows.encode(record)))

    def change(self, record: StoredPolicy, *, seen: int | None) -> StoredPolicy:
        """Replace the one of its name by this, of the next version; None: whichever it is. PolicyChanged,
        RecordMissing."""
        with self._database.write() as connection:
            known = _checked(connection, record.name, seen)
            record = replace(record, version=known.version + 1)
            connection.execute(update(_policies).where(_policies.c.name == record.name).values(rows.encode(record)))
            return record

    def remove(self, name: str, *, seen: int | None) -> None:
        """PolicyChanged, RecordMissing."""
        with self._database.write() as connection:
            _checked(connection, name, seen)
            connection.execute(delete(_policies).where(_policies.c.name == name))

    def get(self, name: str) -> StoredPolicy:
        """RecordMissing."""
        with self._database.read() as connection:
            return _found(connection, name)

    def list(self) -> tuple[StoredPolicy, ...]:
        """By name."""
        with self._database.read() as connection:
            found = [rows.decode(StoredPolicy, row) for row in connection.execute(select(_policies))]
        # Here and not there, where the order depends on the database's language.
        return tuple(sorted(found, key=lambda each: each.name))

    def set_paused(self, name: str, paused_utc: datetime | None, since_utc: datetime) -> StoredPolicy:
        """Pause it (again: the first pause stays), or end its pause: then it counts due times from `since_utc` on.
        RecordMissing."""
        with self._database.write() as connection:
            known = _found(connection, name)
            if (known.paused_utc is None) == (paused_utc is None):
                return known
            since = known.since_utc if paused_utc is not None else since_utc
            record = replace(known, paused_utc=paused_utc, since_utc=since, version=known.version + 1)
            connection.execute(update(_policies).where(_policies.c.name == name).values(rows.encode(record)))
            return record

    # Machines

    def pause_machine(self, pause: MachinePause) -> None:
        """Paused already: the first pause stays."""
        with self._database.write() as connection:
            known = connection.execute(select(_pauses.c.machine).where(_pauses.c.machine == pause.machine)).first()
            if known is None:
                connection.execute(_pauses.insert().values(rows.encode(pause)))

    def resume_machine(self, machine: str) -> bool:
        """False: it was not paused."""
        with self._database.write() as connection:
            return connection.execute(delete(_pauses).where(_pauses.c.machine == machine)).rowcount > 0

    def pauses(self) -> tuple[MachinePause, ...]:
        """Oldest first."""
        query = select(_pauses).order_by(_pauses.c.paused_utc, _pauses.c.machine)
        with self._database.read() as connection:
            return tuple(rows.decode(MachinePause, row) for row in connection.execute(query))


def _row(connection: Connection, name: str) -> StoredPolicy | None:
    row = connection.execute(select(_policies).where(_policies.c.name == name)).first()
    return None if row is None else rows.decode(StoredPolicy, row)


def _found(connection: Connection, name: str) -> StoredPolicy:
    found = _row(connection, name)
    if found is None:
        raise RecordMissing("policy", name, hint="See 'strongroom policy list'.")
    return found


def _checked(connection: Connection, name: str, seen: int | None) -> StoredPolicy:
    found = _found(connection, name)
    if seen is not None and found.version != seen:
        raise PolicyChanged(name, seen, found.version)
    return found
