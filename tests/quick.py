"""What makes the homes of tests in this process quick, where it is not what they show.

The rule: what is spared is work, never a check: a passphrase costs the least that the format permits, and the first
catalog of a process is made by every migration, the others by what those made. Processes that tests start know nothing
of this, but for a quick benchmark's own; tests of the costs (test_slots, test_cli_init) and of migrations
(test_catalog_contract) see the real ones.
"""

from __future__ import annotations

import functools
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from sqlalchemy import Connection, inspect

from appliance.catalog import schema
from appliance.catalog.database import Database
from imaging import slots

CHEAP = slots.Argon2Cost(memory_kib=19_456, passes=1, lanes=1)
_migrate = schema._migrate


@contextmanager
def quick_homes() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(slots, "Argon2Cost", lambda: CHEAP)
        patch.setattr(schema, "_migrate", _migrated)
        yield


def _migrated(connection: Connection, found: str | None, hint: str) -> None:
    if connection.dialect.name != "sqlite" or inspect(connection).get_table_names():
        _migrate(connection, found, hint)
        return
    for statement in _made_by_migrations():
        connection.exec_driver_sql(statement)


@functools.cache
def _made_by_migrations() -> tuple[str, ...]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "catalog.sqlite")
        with closing(Database.at(path)) as database, database.write() as connection:
            _migrate(connection, None, "")
        with closing(sqlite3.connect(path)) as made:
            return tuple(each for each in made.iterdump() if each not in ("BEGIN TRANSACTION;", "COMMIT;"))
