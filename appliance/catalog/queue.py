"""Runs that wait: put in once for each machine, claimed by one process, put back when they have to be tried again.

The rule: the catalog is the truth about the queue, and every step is one transaction from one state to the next: a
message that comes twice, or late, finds the row in another state and does nothing. A run is of the appliance that can
reach its host or image, and no other claims it. A request to cancel is never lost: it is looked at in the transaction
that would put the run back.

What may run at the same time: one backup of a machine; one run that reads the whole repository (verify, collect,
copy), as two of them would only be in each other's way; restores always. A person waits for a restore, so restores come
first, and what nobody waits for comes last.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta

from sqlalchemy import ColumnElement, Connection, and_, case, false, or_, select, update

from appliance.catalog import once, rows, tables
from appliance.catalog.database import Database
from appliance.catalog.errors import RecordMissing, RunEnded
from appliance.catalog.once import Once
from appliance.catalog.runs import row_of
from appliance.models import RunArguments, RunKind, RunRecord, RunState

_runs = tables.runs
_FAR = timedelta(days=2)  # no run is put off for so long: the clock was wrong when it was
_SOME = 200  # more than one appliance has workers and busy machines


class Queue:
    def __init__(self, database: Database, me: str) -> None:
        self._database = database
        self._me = me

    def asked_before(self, key: Once) -> RunRecord | None:
        """The run that was queued under this key within a day, as it is now. KeyUsedOtherwise."""
        with self._database.read() as connection:
            return _of_key(connection, key)

    def put(self, run: RunRecord, key: Once | None = None) -> RunRecord:
        """Add it, unless one of the same kind and machine or image waits already (restores apart): returns the one that
        waits now. That one then does for all who asked, policies and people: it waits no longer to be tried again, goes
        by this limit and quiesces as this one, and leaves out nothing that was asked for. With a `key`, it is the run
        that was queued under it, if there is one already. RecordMissing: the run is for an appliance that is not there,
        or not any more. KeyUsedOtherwise."""
        run = rows.owned(run, self._me)
        with self._database.write() as connection:
            if key is not None and (before := _of_key(connection, key)) is not None:
                return before
            appliances = tables.appliances
            there = select(appliances.c.id).where(appliances.c.id == run.appliance)
            if run.appliance != self._me and connection.execute(there).first() is None:
                raise RecordMissing("appliance", run.appliance, hint="See 'strongroom appliance list'.")
            same = and_(_runs.c.state == RunState.QUEUED.value, _runs.c.appliance == run.appliance, _same(run))
            row = connection.execute(select(_runs).where(same).order_by(_runs.c.asked_utc)).first()
            if key is not None:
                once.note(connection, key, run.id if row is None else row.id)
            if row is None:
                connection.execute(_runs.insert(), row_of(run))
                return run
            waiting = rows.decode(RunRecord, row)
            asked = replace(
                waiting, full_read=waiting.full_read or run.full_read, limit_bytes_s=run.limit_bytes_s,
                quiesce=run.quiesce, arguments=_for_all(waiting.arguments, run.arguments), not_before_utc=None,
                due=tuple({each.policy: each for each in (*waiting.due, *run.due)}.values()),
            )  # fmt: skip
            if asked != waiting:
                _save(connection, asked)
            return asked

    def waiting(self, *, everyones: bool = False) -> tuple[RunRecord, ...]:
        """Oldest first."""
        query = select(_runs).where(_runs.c.state == RunState.QUEUED.value).order_by(_runs.c.asked_utc, _runs.c.id)
        if not everyones:
            query = query.where(_runs.c.appliance == self._me)
        with self._database.read() as connection:
            return tuple(rows.decode(RunRecord, row) for row in connection.execute(query))

    def due(self, now_utc: datetime, *, id: str | None = None) -> tuple[RunRecord, ...]:
        """Own ones that could be claimed now, in the order to begin them in: some, if there are many. With `id`, that
        one alone."""
        running = select(_runs).where(_runs.c.state == RunState.RUNNING.value, _runs.c.appliance == self._me)
        moment = _runs.c.not_before_utc
        due = or_(moment.is_(None), moment <= now_utc, moment > now_utc + _FAR)
        query = select(_runs).where(self._waits(), due).order_by(_turn(), _runs.c.asked_utc, _runs.c.id).limit(_SOME)
        if id is not None:
            query = query.where(_runs.c.id == id)
        with self._database.read() as connection:
            busy = {_place(rows.decode(RunRecord, row)) for row in connection.execute(running)} - {None}
            found = [rows.decode(RunRecord, row) for row in connection.execute(query)]
        return tuple(run for run in found if _place(run) not in busy)

    def next_due(self, now_utc: datetime) -> datetime | None:
        """When the first of those will be due that are not yet."""
        moment = _runs.c.not_before_utc
        query = select(moment).where(self._waits(), moment > now_utc, moment <= now_utc + _FAR)
        with self._database.read() as connection:
            return connection.execute(query.order_by(moment).limit(1)).scalar()

    def _waits(self) -> ColumnElement[bool]:
        return and_(_runs.c.state == RunState.QUEUED.value, _runs.c.appliance == self._me)

    def claim(self, id: str, now_utc: datetime) -> RunRecord | None:
        """The run, which is running from now on: the caller holds its lock. None: it does not wait, is not due, is of
        another appliance, or what it may not run beside is running."""
        with self._database.write() as connection:
            row = connection.execute(select(_runs).where(_runs.c.id == id, _runs.c.appliance == self._me)).first()
            run = None if row is None else rows.decode(RunRecord, row)
            if run is None or run.state is not RunState.QUEUED or not _is_due(run, now_utc):
                return None
            busy = and_(_runs.c.state == RunState.RUNNING.value, _runs.c.appliance == self._me, _not_beside(run))
            if connection.execute(select(_runs.c.id).where(busy)).first() is not None:
                return None
            claimed = replace(run, state=RunState.RUNNING, started_utc=now_utc, ended_utc=None, not_before_utc=None,
                              attempts=run.attempts + 1)  # fmt: skip
            _save(connection, claimed)
            return claimed

    def settle(self, attempt: RunRecord, run: RunRecord, now_utc: datetime) -> RunRecord:
        """Write how this attempt ended, or that the run is queued again, unless it was to be cancelled and made no
        point: then that is how it ended. Returns the run as it is now; one whose attempt is another by now, that is not
        in the state in which the caller saw it, or was taken over, stays as it is."""
        # A number alone is no attempt: what was no failure gives it back.
        here = and_(
            _runs.c.id == attempt.id, _runs.c.state == attempt.state.value, _runs.c.attempts == attempt.attempts,
            _runs.c.appliance == attempt.appliance, _runs.c.started_utc == attempt.started_utc,
        )  # fmt: skip
        with self._database.write() as connection:
            row = connection.execute(select(_runs).where(here)).first()
            if row is None:
                return run
            asked = rows.decode(RunRecord, row).cancel_requested_utc
            run = replace(run, cancel_requested_utc=asked)
            if asked is not None and run.state not in (RunState.SUCCEEDED, RunState.PARTIAL):
                run = _cancelled(run, now_utc)
            _save(connection, run)
            return run

    def cancel(self, id: str, now_utc: datetime) -> RunRecord:
        """One that waits is cancelled; of one that runs it is written down, and its process ends it. Returns the run as
        it is now. RunEnded."""
        with self._database.write() as connection:
            run = rows.decode(RunRecord, connection.execute(select(_runs).where(_runs.c.id == id)).one())
            if run.state.ended:
                raise RunEnded(run.id, run.name, run.state.value)
            if run.cancel_requested_utc is None:
                run = replace(run, cancel_requested_utc=now_utc)
                if run.state is RunState.QUEUED:
                    run = _cancelled(run, now_utc)
                _save(connection, run)
            return run

    def give_up(self, appliance: str, words: str, now_utc: datetime) -> None:
        """Fail what waits of an appliance that is gone, and was to go to a file or home of its machine: what is at the
        same path elsewhere is not what was meant, and would be overwritten."""
        there = and_(
            _runs.c.state == RunState.QUEUED.value, _runs.c.appliance == appliance, _runs.c.host.is_(None),
            _runs.c.kind.in_([RunKind.RESTORE.value, RunKind.COPY.value]),
        )  # fmt: skip
        ended = {"state": RunState.FAILED.value, "ended_utc": now_utc, "error": words, "not_before_utc": None}
        with self._database.write() as connection:
            connection.execute(update(_runs).where(there).values(ended))

    def hurry(self, id: str) -> RunRecord:
        """One that waits to be tried again waits no longer. Returns the run as it is now."""
        with self._database.write() as connection:
            waits = and_(_runs.c.id == id, _runs.c.state == RunState.QUEUED.value)
            connection.execute(update(_runs).where(waits).values(not_before_utc=None))
            return rows.decode(RunRecord, connection.execute(select(_runs).where(_runs.c.id == id)).one())

    def identify(self, id: str, name: str, uuid: str) -> None:
        """The machine of a run that was queued by its name."""
        with self._database.write() as connection:
            run = rows.decode(RunRecord, connection.execute(select(_runs).where(_runs.c.id == id)).one())
            _save(connection, replace(run, name=name, uuid=uuid))

    def cancel_asked(self, id: str) -> bool:
        query = select(_runs.c.cancel_requested_utc).where(_runs.c.id == id)
        with self._database.read() as connection:
            return connection.execute(query).scalar() is not None


def _of_key(connection: Connection, key: Once) -> RunRecord | None:
    id = once.run_of(connection, key)
    row = None if id is None else connection.execute(select(_runs).where(_runs.c.id == id)).first()
    return None if row is None else rows.decode(RunRecord, row)


def _is_due(run: RunRecord, now_utc: datetime) -> bool:
    return run.not_before_utc is None or not now_utc < run.not_before_utc <= now_utc + _FAR


def _turn() -> ColumnElement[int]:
    return case((_runs.c.kind == RunKind.RESTORE.value, 0), (_runs.c.kind == RunKind.BACKUP.value, 1), else_=2)


def _place(run: RunRecord) -> str | None:
    """Which one runs at the same place at most; None: any number."""
    if run.kind is RunKind.RESTORE:
        return None
    return run.machine if run.kind is RunKind.BACKUP else "repository"


def _not_beside(run: RunRecord) -> ColumnElement[bool]:
    if run.kind is RunKind.RESTORE:
        return false()
    if run.kind is RunKind.BACKUP:
        return _same(run)
    return _runs.c.kind.not_in([RunKind.RESTORE.value, RunKind.BACKUP.value])


def _same(run: RunRecord) -> ColumnElement[bool]:
    """What one that waits does as well. Of the same machine, as far as is known of either: one that was queued by its
    name is looked up when it runs."""
    if run.kind is RunKind.RESTORE:
        return _runs.c.id == run.id
    same = and_(_runs.c.name == run.name, _runs.c.kind == run.kind.value)
    if run.machine_kind == "vm":
        same = and_(same, _runs.c.host == run.host)
        if run.uuid is not None:
            known = and_(_runs.c.uuid == run.uuid, _runs.c.kind == run.kind.value)
            same = or_(known, and_(_runs.c.uuid.is_(None), same))
    return and_(_runs.c.machine_kind == run.machine_kind, same)


def _for_all(before: RunArguments | None, asked: RunArguments | None) -> RunArguments | None:
    """What one run is to do for who asked before and who asks now: the more of it."""
    if before is None or asked is None:
        return asked
    names = (*before.names, *asked.names) if before.names and asked.names else ()  # none: all
    if before.read_data != asked.read_data:
        return before if before.read_data else asked
    days = None if before.every_days is None or asked.every_days is None else min(before.every_days, asked.every_days)
    return replace(
        asked, names=tuple(dict.fromkeys(names)), every_days=days, hashes_only=before.hashes_only and asked.hashes_only
    )


def _cancelled(run: RunRecord, now_utc: datetime) -> RunRecord:
    return replace(run, state=RunState.CANCELLED, ended_utc=now_utc, error=None, not_before_utc=None)


def _save(connection: Connection, run: RunRecord) -> None:
    connection.execute(update(_runs).where(_runs.c.id == run.id), row_of(run))
