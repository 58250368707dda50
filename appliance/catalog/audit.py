"""The audit's chain, in the catalog.

The rule: one transaction, which has the writers' lock from its beginning, reads the newest entry and adds the next
ones, so there is one chain for all appliances that share the catalog. Nothing here changes or removes an entry.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from sqlalchemy import ColumnElement, Connection, false, insert, or_, select

from appliance.audit import AuditEntry, Draft, Head, chained, clean, head_of
from appliance.catalog import rows, tables
from appliance.catalog.database import Database

_entries = tables.audit
_AT_A_TIME: Final = 1000


@dataclass(frozen=True, slots=True)
class Filter:
    """All that is stated has to fit. `act`: "run.start", or "run." for all that begin so."""

    act: str | None = None
    actor: str | None = None
    machine: str | None = None
    subject: str | None = None
    result: str | None = None


class Audit:
    def __init__(self, database: Database, me: str) -> None:
        self._database = database
        self._me = me

    def append(self, drafts: Sequence[Draft]) -> tuple[AuditEntry, ...]:
        """In their order, at the end of the chain. One whose id is there already is left out."""
        with self._database.write() as connection:
            there = set(
                connection.execute(
                    select(_entries.c.id).where(_entries.c.id.in_([draft.id for draft in drafts]))
                ).scalars()
            )
            head = _head(connection)
            added = []
            for draft in drafts:
                if draft.id in there:
                    continue
                there.add(draft.id)
                entry = chained(rows.owned(draft, self._me), head)
                connection.execute(insert(_entries), rows.encode(entry))
                added.append(entry)
                head = head_of(entry)
        return tuple(added)

    def head(self) -> Head | None:
        """None: nothing was written down yet."""
        with self._database.read() as connection:
            return _head(connection)

    def entries(self, after: int = 0) -> Iterator[AuditEntry]:
        """All beyond this number, in order; read some at a time, each time as the catalog is then."""
        while True:
            query = select(_entries).where(_entries.c.number > after).order_by(_entries.c.number).limit(_AT_A_TIME)
            with self._database.read() as connection:
                found = [rows.decode(AuditEntry, row) for row in connection.execute(query)]
            yield from found
            if len(found) < _AT_A_TIME:
                return
            after = found[-1].number

    def between(self, begin: datetime, end: datetime, acts: Sequence[str] = ("",)) -> Iterator[AuditEntry]:
        """What began in that time and is called so, or begins so, in order."""
        at, after = _entries.c.at_utc, 0
        called = or_(*(_entries.c.act.startswith(act, autoescape=True) for act in acts))
        while True:
            query = select(_entries).where(_entries.c.number > after, at >= begin, at < end, called)
            query = query.order_by(_entries.c.number)
            with self._database.read() as connection:
                found = [rows.decode(AuditEntry, row) for row in connection.execute(query.limit(_AT_A_TIME))]
            yield from found
            if len(found) < _AT_A_TIME:
                return
            after = found[-1].number

    def newest(self, wanted: Filter, *, before: int | None = None, limit: int = 50) -> tuple[AuditEntry, ...]:
        """The newest ones that fit, below the number `before`; newest first."""
        query = select(_entries).where(*_fits(wanted)).order_by(_entries.c.number.desc()).limit(limit)
        if before is not None:
            query = query.where(_entries.c.number < before)
        with self._database.read() as connection:
            return tuple(rows.decode(AuditEntry, row) for row in connection.execute(query))


def _head(connection: Connection) -> Head | None:
    query = select(_entries.c.number, _entries.c.hash).order_by(_entries.c.number.desc()).limit(1)
    row = connection.execute(query).first()
    return None if row is None else Head(row.number, row.hash)


def _fits(wanted: Filter) -> Iterator[ColumnElement[bool]]:
    if wanted.act is not None:
        act = _entries.c.act
        fits = act.startswith(wanted.act, autoescape=True) if wanted.act.endswith(".") else act == wanted.act
        yield fits if _is_plain(wanted.act) else false()
    for column, value in (
        (_entries.c.actor_name, wanted.actor),
        (_entries.c.machine, wanted.machine),
        (_entries.c.subject_id, wanted.subject),
        (_entries.c.result, wanted.result),
    ):
        if value is not None:
            yield column == value if _is_plain(value) else false()


def _is_plain(text: str) -> bool:
    """Whether an entry can have it at all: engines differ in what they say to other texts."""
    return clean(text) == text
