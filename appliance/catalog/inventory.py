"""The machines that hosts were seen to have, and how the last look at each host went.

The rule: only what has changed is written, so that looking every minute costs a catalog nothing while nothing happens;
when a machine was seen is when its host answered last, as what a host does not tell any more is removed at once.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, Select, and_, delete, false, func, select, update

from appliance.catalog import rows, tables
from appliance.catalog.database import Database
from appliance.catalog.errors import RecordMissing
from appliance.catalog.recoveries import under_way
from appliance.inventory import HostLook, KnownMachine, SeenMachine, still_known, where

_machines = tables.seen_machines
_looks = tables.host_looks


class Inventory:
    def __init__(self, database: Database, me: str) -> None:
        self._database = database
        self._me = me

    def answered(self, host: str, machines: Iterable[SeenMachine], asked_utc: datetime, answered_utc: datetime) -> None:
        """All that are on the host. A host that was removed meanwhile: nothing is kept of it."""
        found = {machine.uuid: machine for machine in machines}
        with self._database.write() as connection:
            if self._keep_look(connection, HostLook(host, asked_utc, answered_utc)):
                _keep(connection, host, found)
                _place(connection)

    def failed(self, host: str, error: str, hint: str, asked_utc: datetime) -> None:
        """It does not answer; its machines stay as they are."""
        with self._database.write() as connection:
            row = connection.execute(select(_looks).where(self._mine(), _looks.c.host == host)).first()
            before = None if row is None else rows.decode(HostLook, row)
            since = (before.failing_since_utc if before else None) or asked_utc
            answered = before.answered_utc if before else None
            if self._keep_look(connection, HostLook(host, asked_utc, answered, since, error, hint)):
                _place(connection)

    def machines(self, *, own: bool = True) -> tuple[KnownMachine, ...]:
        """Each once, where it is, by name; `own`: on hosts of this appliance alone."""
        query = known().where(_machines.c.current)
        if own:
            mine = select(tables.hosts.c.name).where(tables.hosts.c.appliance == self._me)
            query = query.where(_machines.c.host.in_(mine))
        with self._database.read() as connection:
            found = [known_of(row) for row in connection.execute(query)]
        return tuple(sorted(found, key=lambda each: (each.seen.name, each.seen.uuid)))

    def machine(self, uuid: str) -> KnownMachine | None:
        """Where it is."""
        query = known().where(_machines.c.current, _machines.c.uuid == uuid)
        with self._database.read() as connection:
            row = connection.execute(query).first()
        return None if row is None else known_of(row)

    def hosts_of(self, uuid: str) -> tuple[str, ...]:
        """Every host that has a machine of this UUID, by name."""
        query = select(_machines.c.host).where(_machines.c.uuid == uuid)
        with self._database.read() as connection:
            return tuple(sorted(connection.execute(query).scalars()))

    def looks(self, *, everyones: bool = False) -> tuple[HostLook, ...]:
        """How the last look of this appliance at each of its hosts went, by host."""
        query = select(_looks) if everyones else select(_looks).where(self._mine())
        with self._database.read() as connection:
            found = [rows.decode(HostLook, row) for row in connection.execute(query)]
        return tuple(sorted(found, key=lambda look: look.host))

    def look(self, host: str) -> HostLook:
        """RecordMissing: nobody has looked yet, or there is no such host."""
        with self._database.read() as connection:
            row = connection.execute(select(_looks).where(self._mine(), _looks.c.host == host)).first()
        if row is None:
            raise RecordMissing("look at host", host, hint="'strongroom vm list' looks at all hosts.")
        return rows.decode(HostLook, row)

    def _keep_look(self, connection: Connection, look: HostLook) -> bool:
        here = (tables.hosts.c.name == look.host) & (tables.hosts.c.appliance == self._me)
        if connection.execute(select(tables.hosts.c.name).where(here)).first() is None:
            return False
        look = rows.owned(look, self._me)
        rows.save(connection, _looks, look, and_(self._mine(), _looks.c.host == look.host))
        return True

    def _mine(self) -> ColumnElement[bool]:
        return _looks.c.appliance == self._me


def forget_host(connection: Connection, host: str, appliance: str) -> None:
    """What was seen of a host that this appliance has no longer, and of its machines unless another one has it."""
    connection.execute(delete(_looks).where(_looks.c.host == host, _looks.c.appliance == appliance))
    if connection.execute(select(tables.hosts.c.name).where(tables.hosts.c.name == host)).first() is None:
        connection.execute(delete(_machines).where(_machines.c.host == host))
        _place(connection)


def known() -> Select[Any]:
    """Machines with when they were seen and how they are protected, in one statement: one row each, for `known_of`."""
    answered = (
        select(_looks.c.host, func.max(_looks.c.answered_utc).label("seen_utc")).group_by(_looks.c.host).subquery()
    )
    series = tables.machines
    recovered = runs_out_of_repository()
    return (
        select(
            _machines, answered.c.seen_utc, series.c.series, series.c.last_point, series.c.last_point_utc,
            recovered.label("recovered"),
        )
        .select_from(_machines)
        .join(answered, answered.c.host == _machines.c.host, isouter=True)
        .join(series, and_(series.c.kind == "vm", series.c.uuid == _machines.c.uuid), isouter=True)
    )  # fmt: skip


def runs_out_of_repository() -> ColumnElement[bool]:
    """Whether a machine that was seen is an instant recovery under way."""
    recoveries = tables.recoveries
    return (
        select(recoveries.c.id)
        .where(recoveries.c.machine_uuid == _machines.c.uuid, recoveries.c.host == _machines.c.host)
        .where(under_way())
        .exists()
    )


def known_of(row: Row[Any]) -> KnownMachine:
    found = row._mapping
    return KnownMachine(
        seen=rows.decode(SeenMachine, row),
        seen_utc=found["seen_utc"],
        series=found["series"],
        last_point=found["last_point"],
        last_point_utc=found["last_point_utc"],
        recovered=bool(found["recovered"]),
    )


def _keep(connection: Connection, host: str, found: dict[str, SeenMachine]) -> None:
    there = select(_machines).where(_machines.c.host == host)
    before = {each.uuid: each for each in (rows.decode(SeenMachine, row) for row in connection.execute(there))}
    gone = before.keys() - found.keys()
    new = [machine for uuid, machine in found.items() if uuid not in before]
    changed = [
        machine
        for uuid, known in before.items()
        if uuid in found and (machine := still_known(known, found[uuid])) != known
    ]
    for uuid in gone:
        connection.execute(delete(_machines).where(_machines.c.host == host, _machines.c.uuid == uuid))
    for machine in changed:
        here = and_(_machines.c.host == host, _machines.c.uuid == machine.uuid)
        connection.execute(update(_machines).where(here).values(rows.encode(machine)))
    if new:
        connection.execute(_machines.insert(), [rows.encode(each) for each in _known_before(connection, new)])


def _known_before(connection: Connection, machines: Sequence[SeenMachine]) -> list[SeenMachine]:
    """With the moment since when they are known on another host; where they are is decided afterwards."""
    elsewhere = select(_machines.c.uuid, func.min(_machines.c.known_utc).label("known_utc")).group_by(_machines.c.uuid)
    since = {row.uuid: row.known_utc for row in connection.execute(elsewhere)}
    return [
        replace(each, known_utc=min(each.known_utc, since.get(each.uuid, each.known_utc)), current=False)
        for each in machines
    ]


def _place(connection: Connection) -> None:
    """See that each machine has one host where it is."""
    several = select(_machines.c.uuid).group_by(_machines.c.uuid).having(func.count() > 1)
    query = select(_machines).where(_machines.c.uuid.in_(several))
    grouped: dict[str, list[SeenMachine]] = defaultdict(list)
    for row in connection.execute(query):
        grouped[row._mapping["uuid"]].append(rows.decode(SeenMachine, row))
    alone = _machines.c.uuid.not_in(list(grouped))
    connection.execute(update(_machines).where(_machines.c.current == false(), alone).values(current=True))
    answering = set(
        connection.execute(select(_looks.c.host).where(_looks.c.failing_since_utc.is_(None)).distinct()).scalars()
    )
    for uuid, found in grouped.items():
        host = where(found, answering)
        for each in found:
            if each.current != (each.host == host):
                here = and_(_machines.c.host == each.host, _machines.c.uuid == uuid)
                connection.execute(update(_machines).where(here).values(current=each.host == host))
