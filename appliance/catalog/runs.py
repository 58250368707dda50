"""Backup runs, and what they would leave behind if they died: clean-ups pending and thaws owed.

The rule: a clean-up is recorded *before* the act that it undoes, and dropped only when it was undone or the thing is
wanted after all. A record without its thing costs one look; a thing without its record stays for ever. Whether a run
lives, and what is to be undone for one that does not, only the appliance knows whose it is.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import CTE, ColumnElement, Select, delete, func, select, update

from appliance.catalog import rows, tables
from appliance.catalog.database import Database
from appliance.catalog.errors import RecordMissing
from appliance.models import TELLING, CleanupRecord, OwedThaw, RunRecord, RunState

_runs = tables.runs


def row_of(run: RunRecord) -> dict[str, Any]:
    return rows.encode(run) | {"machine": run.machine}


def newest_of_each(*columns: Any, machine: str | None = None) -> Select[Any]:
    """Of each machine, or of the one of this key, the newest run that tells how it fares."""
    runs = _runs.alias()
    telling = runs.c.state.in_(sorted(state.value for state in TELLING))
    newest = select(runs.c.id).where(telling).order_by(runs.c.started_utc.desc(), runs.c.id.desc()).limit(1)
    if machine is not None:
        only = newest.where(runs.c.machine == machine)
        return select(*columns).where(_runs.c.id == only.scalar_subquery())
    machines = every_machine()
    newest = newest.where(runs.c.machine == machines.c.machine)
    return select(*columns).select_from(machines).join(_runs, _runs.c.id == newest.scalar_subquery())


def every_machine(first: str = "", before: str | None = None) -> CTE:
    """The keys of all machines that have runs, from one up to before another, and one None: from one to the next by
    the index, so as many looks into it as there are machines, however many runs there are."""

    def smallest(where: ColumnElement[bool]) -> Select[tuple[str]]:
        query = select(func.min(_runs.c.machine).label("machine")).where(where)
        return query if before is None else query.where(_runs.c.machine < before)

    machines = smallest(_runs.c.machine >= first).cte("with_runs", recursive=True)
    following = smallest(_runs.c.machine > machines.c.machine).scalar_subquery()
    return machines.union_all(select(following).where(machines.c.machine.is_not(None)))


class Runs:
    """Lists are everyone's: the history of a machine is one, whoever backed it up."""

    def __init__(self, database: Database, me: str) -> None:
        self._database = database
        self._me = me

    def save(self, run: RunRecord) -> None:
        run = rows.owned(run, self._me)
        with self._database.write() as connection:
            here = tables.runs.c.id == run.id
            if connection.execute(update(tables.runs).where(here), row_of(run)).rowcount == 0:
                connection.execute(tables.runs.insert(), row_of(run))

    def get(self, id: str) -> RunRecord:
        """RecordMissing."""
        with self._database.read() as connection:
            row = connection.execute(select(tables.runs).where(tables.runs.c.id == id)).first()
        if row is None:
            raise RecordMissing("run", id)
        return rows.decode(RunRecord, row)

    def find(self, id: str) -> RunRecord:
        """By its id or a unique beginning of it, of whatever appliance. RecordMissing."""
        with self._database.read() as connection:
            return rows.find(connection, tables.runs, RunRecord, id, "run")

    def list(self, *, state: RunState | None = None, limit: int | None = None) -> tuple[RunRecord, ...]:
        """Newest first."""
        query = select(tables.runs).order_by(tables.runs.c.started_utc.desc(), tables.runs.c.id.desc())
        if state is not None:
            query = query.where(tables.runs.c.state == state.value)
        if limit is not None:
            query = query.limit(limit)
        with self._database.read() as connection:
            return tuple(rows.decode(RunRecord, row) for row in connection.execute(query))

    def own_running(self) -> tuple[RunRecord, ...]:
        """Of this appliance, newest first: whether they live, its locks tell."""
        return tuple(run for run in self.list(state=RunState.RUNNING) if run.appliance == self._me)

    def last(self) -> tuple[RunRecord, ...]:
        """The newest of each machine or image, newest first; what waits or was cancelled tells nothing of it."""
        query = newest_of_each(_runs)
        with self._database.read() as connection:
            found = [rows.decode(RunRecord, row) for row in connection.execute(query)]
        return tuple(sorted(found, key=lambda run: (run.started_utc, run.id), reverse=True))

    def remove(self, id: str) -> None:
        """One that never began. Not there: fine."""
        with self._database.write() as connection:
            connection.execute(delete(tables.runs).where(tables.runs.c.id == id))


class Cleanups:
    def __init__(self, database: Database, me: str) -> None:
        self._database = database
        self._me = me

    def add(self, record: CleanupRecord) -> None:
        record = rows.owned(record, self._me)
        with self._database.write() as connection:
            connection.execute(tables.cleanups.insert().values(rows.encode(record)))

    def list(self, owner: str | None = None, *, everyones: bool = False) -> tuple[CleanupRecord, ...]:
        """Newest first: the order in which acts are undone."""
        query = select(tables.cleanups).order_by(tables.cleanups.c.created_utc.desc(), tables.cleanups.c.id)
        if not everyones:
            query = query.where(tables.cleanups.c.appliance == self._me)
        if owner is not None:
            query = query.where(tables.cleanups.c.owner == owner)
        with self._database.read() as connection:
            return tuple(rows.decode(CleanupRecord, row) for row in connection.execute(query))

    def drop(self, id: str) -> None:
        """Not there: fine."""
        with self._database.write() as connection:
            connection.execute(delete(tables.cleanups).where(tables.cleanups.c.id == id))

    def drop_owner(self, owner: str) -> None:
        """All of an owner that ended well, at once."""
        with self._database.write() as connection:
            connection.execute(delete(tables.cleanups).where(tables.cleanups.c.owner == owner))

    def failed(self, id: str, error: str) -> None:
        """One more attempt did not work: it stays, and `status` shows why."""
        with self._database.write() as connection:
            connection.execute(
                update(tables.cleanups)
                .where(tables.cleanups.c.id == id)
                .values(attempts=tables.cleanups.c.attempts + 1, last_error=error)
            )


class OwedThaws:
    def __init__(self, database: Database, me: str) -> None:
        self._database = database
        self._me = me

    def owe(self, machine_uuid: str, host: str, name: str, since_utc: datetime) -> None:
        """Written before the freeze is asked for; owed already: the older debt stays."""
        key = self._mine(machine_uuid, host)
        with self._database.write() as connection:
            if connection.execute(select(tables.owed_thaws.c.name).where(key)).first() is None:
                record = OwedThaw(machine_uuid, host, name, since_utc, appliance=self._me)
                connection.execute(tables.owed_thaws.insert().values(rows.encode(record)))

    def paid(self, machine_uuid: str, host: str) -> None:
        """The agent confirmed, or the machine is off. Not owed: fine."""
        key = self._mine(machine_uuid, host)
        with self._database.write() as connection:
            connection.execute(delete(tables.owed_thaws).where(key))

    def failed(self, machine_uuid: str, host: str, error: str) -> None:
        key = self._mine(machine_uuid, host)
        with self._database.write() as connection:
            connection.execute(
                update(tables.owed_thaws).where(key).values(attempts=tables.owed_thaws.c.attempts + 1, last_error=error)
            )

    def list(self, *, everyones: bool = False) -> tuple[OwedThaw, ...]:
        """Oldest first."""
        query = select(tables.owed_thaws).order_by(tables.owed_thaws.c.since_utc)
        if not everyones:
            query = query.where(tables.owed_thaws.c.appliance == self._me)
        with self._database.read() as connection:
            return tuple(rows.decode(OwedThaw, row) for row in connection.execute(query))

    def _mine(self, machine_uuid: str, host: str) -> ColumnElement[bool]:
        owed = tables.owed_thaws.c
        return (owed.machine_uuid == machine_uuid) & (owed.host == host) & (owed.appliance == self._me)
