"""What is to be told and what was told: in the catalog, so that a restart neither loses nor repeats anything.

The rule: what was seen becomes a concern in the transaction that marks where it was seen, and concerns become a notice
with its deliveries in one; so each is in one place at any time. One appliance of a catalog does this at a time (the
lock of the name `LOCK`); a delivery is marked when it has arrived.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, Final

from sqlalchemy import Connection, Row, and_, delete, func, insert, select, update

from appliance.catalog import rows, tables
from appliance.catalog.database import Database
from appliance.models import RunRecord
from appliance.notices.records import Concern, Delivery, DeliveryState, Kind, Notice
from appliance.proofs import Verification

LOCK: Final = "notices"
_AT_ONCE: Final = 500  # ids in one statement
_concerns = tables.notice_concerns
_notices = tables.notices
_deliveries = tables.notice_deliveries
_state = tables.notice_state
_runs = tables.runs
_verifications = tables.verifications


class Notices:
    def __init__(self, database: Database) -> None:
        self._database = database

    # What was seen

    def unnoticed_runs(self, limit: int) -> tuple[RunRecord, ...]:
        """Runs that are over and of which nothing was made yet, of all appliances, in the order in which they ended."""
        query = select(_runs).where(_runs.c.noticed_utc.is_(None), _runs.c.ended_utc.is_not(None))
        query = query.order_by(_runs.c.ended_utc, _runs.c.id).limit(limit)
        with self._database.read() as connection:
            return tuple(rows.decode(RunRecord, row) for row in connection.execute(query))

    def unnoticed_verifications(self) -> tuple[Verification, ...]:
        query = select(_verifications).where(_verifications.c.noticed_utc.is_(None))
        query = query.order_by(_verifications.c.began_utc, _verifications.c.id)
        with self._database.read() as connection:
            return tuple(rows.decode(Verification, row) for row in connection.execute(query))

    def forget_older_runs(self, before_utc: datetime, now_utc: datetime) -> None:
        """Runs that ended before are no news any more: some at a time, as there may be a million of them."""
        old = select(_runs.c.id).where(_runs.c.noticed_utc.is_(None), _runs.c.ended_utc < before_utc).limit(10_000)
        while True:
            with self._database.write() as connection:
                ids = connection.execute(old).scalars().all()
                _mark(connection, _runs, ids, now_utc)
            if not ids:
                return

    def keep(
        self,
        new: Iterable[Concern],
        gone: Iterable[str],
        *,
        runs: Sequence[str] = (),
        verifications: Sequence[str] = (),
        state: Mapping[str, object] | None = None,
        now_utc: datetime,
    ) -> None:
        """What a look has found, at once: new concerns, lasting ones that are over, runs and verifications that were
        looked at, and what the next look has to know."""
        with self._database.write() as connection:
            _delete(connection, list(gone))
            if added := [rows.encode(each) for each in new]:
                connection.execute(insert(_concerns), added)
            _mark(connection, _runs, runs, now_utc)
            _mark(connection, _verifications, verifications, now_utc)
            for name, value in (state or {}).items():
                _save_state(connection, name, value)

    def concerns(self) -> tuple[Concern, ...]:
        """All that last, told or not, and what has happened and is not told; oldest first."""
        query = select(_concerns).order_by(_concerns.c.seen_utc, _concerns.c.id)
        with self._database.read() as connection:
            return tuple(rows.decode(Concern, row) for row in connection.execute(query))

    def state(self, name: str) -> Any:
        """As `keep` was given it; None: nothing."""
        with self._database.read() as connection:
            return connection.execute(select(_state.c.value).where(_state.c.name == name)).scalar()

    # What was told

    def last_told(self) -> Mapping[Kind, datetime]:
        query = select(_notices.c.kind, func.max(_notices.c.created_utc)).group_by(_notices.c.kind)
        with self._database.read() as connection:
            return {Kind(kind): moment for kind, moment in connection.execute(query)}

    def tell(
        self,
        notice: Notice,
        targets: Iterable[str],
        concerns: Iterable[Concern] = (),
        *,
        state: Mapping[str, object] | None = None,
    ) -> None:
        """The notice is on its way to these targets; of the concerns in it, those that last are marked as told, and the
        others are gone. A notice to nobody is kept as well."""
        told = list(concerns)
        lasting = [each.id for each in told if each.lasting]
        with self._database.write() as connection:
            connection.execute(_notices.insert().values(rows.encode(notice)))
            waiting = [
                rows.encode(Delivery(notice.id, target, DeliveryState.WAITING, 0, notice.created_utc))
                for target in targets
            ]
            if waiting:
                connection.execute(insert(_deliveries), waiting)
            _delete(connection, [each.id for each in told if not each.lasting])
            for ids in _some(lasting):
                here = _concerns.c.id.in_(ids)
                connection.execute(update(_concerns).where(here).values(told_utc=notice.created_utc))
            for name, value in (state or {}).items():
                _save_state(connection, name, value)

    def list(self, limit: int) -> tuple[tuple[Notice, tuple[Delivery, ...]], ...]:
        """Newest first, each with its deliveries by target."""
        query = select(_notices).order_by(_notices.c.created_utc.desc(), _notices.c.id).limit(limit)
        with self._database.read() as connection:
            found = [rows.decode(Notice, row) for row in connection.execute(query)]
            sent: dict[str, list[Delivery]] = {notice.id: [] for notice in found}
            for ids in _some([notice.id for notice in found]):
                several = select(_deliveries).where(_deliveries.c.notice.in_(ids)).order_by(_deliveries.c.target)
                for row in connection.execute(several):
                    delivery = rows.decode(Delivery, row)
                    sent[delivery.notice].append(delivery)
        return tuple((notice, tuple(sent[notice.id])) for notice in found)

    def waiting(self) -> tuple[tuple[Notice, Delivery], ...]:
        """What has not arrived yet, oldest first."""
        query = (
            select(_notices, *[column.label(f"delivery_{column.name}") for column in _deliveries.c])
            .join(_deliveries, _deliveries.c.notice == _notices.c.id)
            .where(_deliveries.c.state == DeliveryState.WAITING.value)
            .order_by(_notices.c.created_utc, _notices.c.id, _deliveries.c.target)
        )
        with self._database.read() as connection:
            return tuple((rows.decode(Notice, row), _delivery(row)) for row in connection.execute(query))

    def settle(self, delivery: Delivery) -> None:
        here = and_(_deliveries.c.notice == delivery.notice, _deliveries.c.target == delivery.target)
        with self._database.write() as connection:
            connection.execute(update(_deliveries).where(here).values(rows.encode(delivery)))

    def last_deliveries(self) -> Mapping[str, Delivery]:
        """The last that is over, of each target that ever had one."""
        over = _deliveries.c.state != DeliveryState.WAITING.value
        newest = func.row_number().over(partition_by=_deliveries.c.target, order_by=_deliveries.c.next_utc.desc())
        numbered = select(_deliveries, newest.label("number")).where(over).subquery()
        with self._database.read() as connection:
            found = connection.execute(select(numbered).where(numbered.c.number == 1))
            return {each.target: each for each in (rows.decode(Delivery, row) for row in found)}

    def given_up(self, since_utc: datetime) -> tuple[Delivery, ...]:
        """By target and moment."""
        here = and_(_deliveries.c.state == DeliveryState.GIVEN_UP.value, _deliveries.c.next_utc >= since_utc)
        query = select(_deliveries).where(here).order_by(_deliveries.c.target, _deliveries.c.next_utc)
        with self._database.read() as connection:
            return tuple(rows.decode(Delivery, row) for row in connection.execute(query))

    def forget(self, before_utc: datetime) -> None:
        """Notices that are older and that nobody waits for any more."""
        waiting = select(_deliveries.c.notice).where(_deliveries.c.state == DeliveryState.WAITING.value)
        old = and_(_notices.c.created_utc < before_utc, _notices.c.id.not_in(waiting))
        with self._database.write() as connection:
            connection.execute(delete(_deliveries).where(_deliveries.c.notice.in_(select(_notices.c.id).where(old))))
            connection.execute(delete(_notices).where(old))


def _delivery(row: Row[Any]) -> Delivery:
    return rows.decode(Delivery, {column.name: row._mapping[f"delivery_{column.name}"] for column in _deliveries.c})


def _mark(connection: Connection, table: Any, ids: Sequence[str], now_utc: datetime) -> None:
    for some in _some(ids):
        connection.execute(update(table).where(table.c.id.in_(some)).values(noticed_utc=now_utc))


def _delete(connection: Connection, ids: Sequence[str]) -> None:
    for some in _some(ids):
        connection.execute(delete(_concerns).where(_concerns.c.id.in_(some)))


def _some(ids: Sequence[str]) -> Iterator[Sequence[str]]:
    for start in range(0, len(ids), _AT_ONCE):
        yield ids[start : start + _AT_ONCE]


def _save_state(connection: Connection, name: str, value: object) -> None:
    if connection.execute(update(_state).where(_state.c.name == name).values(value=value)).rowcount == 0:
        connection.execute(insert(_state).values(name=name, value=value))
