"""Protected machines and their restore points, as far as lists need them.

The rule: this is a copy of what the repository says, replaced from there; nothing is decided by it alone. Of appliances
that share it, one never replaces what another has made of a newer look at the repository. Whatever changes the points
of a machine gives it another mark in the same transaction, so who remembers points knows by the mark whether they are
so still.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from sqlalchemy import ColumnElement, Connection, delete, select, update

from appliance.catalog import rows, tables
from appliance.catalog.database import Database
from appliance.models import MachineRecord, PointRecord, PointTime, new_id


class Points:
    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, machine: MachineRecord, point: PointRecord) -> None:
        """A new point, with its machine as it is now."""
        with self._database.write() as connection:
            rows.save(connection, tables.machines, machine, tables.machines.c.series == machine.series)
            rows.save(connection, tables.points, point, tables.points.c.id == point.id)
            _mark(connection, tables.machines.c.series == machine.series)

    def replace(
        self, machines: Iterable[MachineRecord], points: Iterable[PointRecord], *, before: frozenset[str] | None = None
    ) -> bool:
        """Everything at once, in one transaction: what is not given is not there any more.

        `before`: the manifest names that were here before the repository was looked at. If others are by now, somebody
        has looked since: nothing is changed, and False returned.
        """
        machine_rows = [rows.encode(machine) for machine in machines]
        point_rows = [rows.encode(point) for point in points]
        with self._database.write() as connection:
            if before is not None and _names(connection) != before:
                return False
            connection.execute(delete(tables.points))
            connection.execute(delete(tables.machines))
            for row in machine_rows:
                row["points_mark"] = new_id()
            if machine_rows:
                connection.execute(tables.machines.insert(), machine_rows)
            if point_rows:
                connection.execute(tables.points.insert(), point_rows)
        return True

    def remove(self, point: str) -> None:
        with self._database.write() as connection:
            here = select(tables.points.c.series).where(tables.points.c.id == point)
            _mark(connection, tables.machines.c.series.in_(here))
            connection.execute(delete(tables.points).where(tables.points.c.id == point))

    def list(self, series: str | None = None) -> tuple[PointRecord, ...]:
        """Oldest first."""
        query = select(tables.points).order_by(
            tables.points.c.created_utc, tables.points.c.generation, tables.points.c.id
        )
        if series is not None:
            query = query.where(tables.points.c.series == series)
        with self._database.read() as connection:
            return tuple(rows.decode(PointRecord, row) for row in connection.execute(query))

    def times(self, series: str) -> tuple[PointTime, ...]:
        """What retention needs of a machine's points, in no order."""
        points = tables.points.c
        query = select(points.id, points.generation, points.created_utc).where(points.series == series)
        with self._database.read() as connection:
            return tuple(PointTime(*row) for row in connection.execute(query))

    def names(self) -> frozenset[str]:
        """Manifest names."""
        with self._database.read() as connection:
            return _names(connection)

    def machines(self) -> tuple[MachineRecord, ...]:
        """By name."""
        with self._database.read() as connection:
            found = [rows.decode(MachineRecord, row) for row in connection.execute(select(tables.machines))]
        # Here and not there, where the order depends on the database's language.
        return tuple(sorted(found, key=lambda machine: (machine.name, machine.series)))

    def marks(self) -> Mapping[str, str]:
        """By series: what is another one as soon as a point of it was added, changed or removed."""
        machines = tables.machines.c
        with self._database.read() as connection:
            return {row[0]: row[1] for row in connection.execute(select(machines.series, machines.points_mark))}

    def machine(self, series: str) -> MachineRecord | None:
        with self._database.read() as connection:
            row = connection.execute(select(tables.machines).where(tables.machines.c.series == series)).first()
        return None if row is None else rows.decode(MachineRecord, row)


def _mark(connection: Connection, which: ColumnElement[bool]) -> None:
    connection.execute(update(tables.machines).where(which).values(points_mark=new_id()))


def _names(connection: Connection) -> frozenset[str]:
    return frozenset(connection.execute(select(tables.points.c.manifest_name)).scalars())
