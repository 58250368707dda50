"""The engine under the catalog, and its transactions.

The rule: every access is one short transaction, read or write, and a write is on disk when its `with` ends. A writer
takes the write lock when it begins, so of all processes of all appliances one writes at a time, sees what the others
have written, and never fails half-way by finding another writer. Only this module, `postgres` and `schema` know which
engine it is.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event, exc
from sqlalchemy.pool import NullPool

from appliance.catalog import postgres
from appliance.catalog.errors import REBUILD_HINT, CatalogBusy, CatalogError

_BUSY_TIMEOUT_MS = 30_000


class Database:
    """Owns the engine. Of SQLite, connections are opened per transaction, so that forks and threads share none."""

    def __init__(self, engine: Engine, where: str) -> None:
        self.engine = engine
        self._pinned: ContextVar[Connection | None] = ContextVar("strongroom_reading", default=None)
        self.where = where  # for people: without a password

    @classmethod
    def at(cls, path: Path) -> Database:
        """The SQLite file at `path`, made if it is not there, readable by its owner alone."""
        try:
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        except OSError as err:
            raise CatalogError(f"catalog {path} cannot be opened: {err.strerror}", hint="Check its folder.") from err
        engine = create_engine(f"sqlite+pysqlite:///{path}", poolclass=NullPool)
        event.listen(engine, "connect", _sqlite_connected)
        event.listen(engine, "begin", _sqlite_begin)
        return cls(engine, str(path))

    @classmethod
    def shared(cls, url: str) -> Database:
        """The PostgreSQL database that several appliances share; nothing is asked of it yet. CatalogDriverMissing,
        CatalogError."""
        engine = postgres.engine(url)
        return cls(engine, postgres.place(engine.url))

    @property
    def is_shared(self) -> bool:
        return self.engine.dialect.name == "postgresql"

    @contextmanager
    def read(self) -> Iterator[Connection]:
        pinned = self._pinned.get()
        if pinned is not None:
            with self._translated():
                yield pinned
            return
        with self._translated(), self.engine.connect() as connection, connection.begin():
            yield connection

    @contextmanager
    def reading(self) -> Iterator[None]:
        """All that this thread reads in the body is one transaction: a page that asks for many things has one
        connection for them, not one for each. Ends with the first error."""
        with self.read() as connection:
            token = self._pinned.set(connection)
            try:
                yield
            finally:
                self._pinned.reset(token)

    @contextmanager
    def write(self) -> Iterator[Connection]:
        with self._translated(), self.engine.connect() as connection:
            connection = connection.execution_options(strongroom_write=True)
            with connection.begin():
                if self.is_shared:
                    postgres.lock_writers(connection)
                yield connection

    @contextmanager
    def exclusively(self, name: str, *, wait: bool = False) -> Iterator[bool]:
        """Hold the lock of this name among the appliances that share the catalog; False: another one has it, and did
        not let go of it within half a minute if that was waited for.

        It is gone with the connection, so with its holder. A catalog of one home has none: there, `ownership` does it.
        """
        if not self.is_shared:
            yield True
            return
        with self._translated():
            held = postgres.Lock(self.engine, name)
            got = held.take(wait=wait)
        try:
            yield got
        finally:
            held.release()

    def forget_what_is_gone(self) -> None:
        """Of SQLite, make the file anew without what deleted and changed rows left in it. A server does that in its own
        time, and neither its dumps nor its copies that are made later have it."""
        if self.is_shared:
            return
        with self._translated():
            connection = self.engine.raw_connection()  # no transaction: that is what it has to be
        try:
            connection.cursor().execute("VACUUM")
        except sqlite3.Error as err:
            raise CatalogError(
                f"catalog {self.where} could not be made anew without what was deleted: {err}",
                hint="It takes as much room as the file has, and nobody who reads or writes meanwhile.",
            ) from err
        finally:
            connection.close()

    def close(self) -> None:
        self.engine.dispose()

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except exc.DBAPIError as err:
            if self.is_shared:
                raise postgres.translated(err, self.where) from err
            raise self._of_sqlite(err) from err

    def _of_sqlite(self, err: exc.DBAPIError) -> CatalogError:
        reason = str(err.orig)
        if "locked" in reason or "busy" in reason:
            return CatalogBusy(
                f"catalog {self.where} is locked by another process", hint="Try again when that process is done."
            )
        if isinstance(err.orig, sqlite3.DatabaseError) and ("malformed" in reason or "not a database" in reason):
            return CatalogError(f"catalog {self.where} is damaged: {reason}", hint=REBUILD_HINT)
        return CatalogError(
            f"catalog {self.where} failed: {reason}", hint="Check that its file system has room and is writable."
        )


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
