"""The engine under the catalog, and its transactions.

The rule: every access is one short transaction, read or write, and a write is on disk when its `with` ends
(SQLite: WAL, synchronous=FULL). A writer takes the write lock when it begins, so it never fails half-way by finding
another writer. Only this module and `schema` know which engine it is.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event, exc
from sqlalchemy.pool import NullPool

from appliance.catalog.errors import REBUILD_HINT, CatalogBusy, CatalogError

_BUSY_TIMEOUT_MS = 30_000


class Database:
    """Owns the engine. Connections are opened per transaction, so that forks and threads share none."""

    def __init__(self, url: str) -> None:
        self.engine: Engine = create_engine(url, poolclass=NullPool)
        if self.engine.dialect.name == "sqlite":
            event.listen(self.engine, "connect", _sqlite_connected)
            event.listen(self.engine, "begin", _sqlite_begin)

    @classmethod
    def at(cls, path: Path) -> Database:
        """The SQLite file at `path`, made if it is not there, readable by its owner alone."""
        try:
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        except OSError as err:
            raise CatalogError(f"catalog {path} cannot be opened: {err.strerror}", hint="Check its folder.") from err
        return cls(f"sqlite+pysqlite:///{path}")

    @property
    def is_sqlite(self) -> bool:
        return self.engine.dialect.name == "sqlite"

    @contextmanager
    def read(self) -> Iterator[Connection]:
        with self._translated(), self.engine.connect() as connection, connection.begin():
            yield connection

    @contextmanager
    def write(self) -> Iterator[Connection]:
        with self._translated(), self.engine.connect() as connection:
            connection = connection.execution_options(strongroom_write=True)
            with connection.begin():
                yield connection

    def close(self) -> None:
        self.engine.dispose()

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except exc.DBAPIError as err:
            where = self.engine.url.database or self.engine.url.host
            reason = str(err.orig)
            if "locked" in reason or "busy" in reason:
                raise CatalogBusy(
                    f"catalog {where} is locked by another process", hint="Try again when that process is done."
                ) from err
            if isinstance(err.orig, sqlite3.DatabaseError) and ("malformed" in reason or "not a database" in reason):
                raise CatalogError(f"catalog {where} is damaged: {reason}", hint=REBUILD_HINT) from err
            raise CatalogError(
                f"catalog {where} failed: {reason}", hint="Check that its file system has room and is writable."
            ) from err


def _sqlite_connected(connection: sqlite3.Connection, _record: Any) -> None:
    # The driver's own idea of transactions is switched off: `begin` below sends the statement.
    connection.isolation_level = None
    cursor = connection.cursor()
    try:
        cursor.execute(f"PRAGMA busy_timeout={_BUSY_TIMEOUT_MS}")
        cursor.execute("PRAGMA journal_mode=WAL")
        cursor.execute("PRAGMA synchronous=FULL")
        cursor.execute("PRAGMA foreign_keys=ON")
    finally:
        cursor.close()


def _sqlite_begin(connection: Connection) -> None:
    writing = connection.get_execution_options().get("strongroom_write", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writing else "BEGIN")
