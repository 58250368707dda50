"""What was asked under a key of the asker's own: asked again within a day, it is the same run, however that went.

The rule: the key is written in the transaction that queues the run, so there is never one without the other. It is of
one actor: nobody can learn of another's runs by guessing keys. What it was used for is told by a hash, so that a key
used for something else is an error and no answer.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from sqlalchemy import ColumnElement, Connection, and_, delete, insert, or_, select

from appliance.catalog import tables
from appliance.catalog.errors import KeyUsedOtherwise

KEPT: Final = timedelta(days=1)
_keys = tables.request_keys


@dataclass(frozen=True, slots=True)
class Once:
    """`actor`: who asks, as a text that no other actor has. `asked`: a hash of what is asked, 64 hex digits."""

    actor: str
    key: str
    asked: str
    now_utc: datetime


def run_of(connection: Connection, once: Once) -> str | None:
    """The run that was queued under this key. KeyUsedOtherwise."""
    young = _keys.c.created_utc > once.now_utc - KEPT
    row = connection.execute(select(_keys.c.asked, _keys.c.run).where(_is(once), young)).first()
    if row is None:
        return None
    if row.asked != once.asked:
        raise KeyUsedOtherwise(once.key, row.run)
    run: str = row.run
    return run


def note(connection: Connection, once: Once, run: str) -> None:
    """This run was queued under that key; keys that are too old are forgotten."""
    connection.execute(delete(_keys).where(or_(_keys.c.created_utc <= once.now_utc - KEPT, _is(once))))
    row = {"actor": once.actor, "key": once.key, "asked": once.asked, "run": run, "created_utc": once.now_utc}
    connection.execute(insert(_keys).values(row))


def _is(once: Once) -> ColumnElement[bool]:
    return and_(_keys.c.actor == once.actor, _keys.c.key == once.key)
