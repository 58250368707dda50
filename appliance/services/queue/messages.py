"""What wakes a worker: messages in huey, each with the id of a run and nothing else.

The rule: whoever can write to the queue can have nothing done but a run that the catalog has. So no message is pickled,
which would run what it says; it is an id in JSON, and whatever else arrives is refused. A message that is lost, doubled
or late does no harm: the workers sweep the catalog, and claim there. So a file that is damaged, or that somebody
removed, is made anew wherever that is met, before or while it is used. Each appliance has a queue of its own name.
"""

from __future__ import annotations

import json
import logging
import os
import re
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from huey import PostgresHuey, SqliteHuey
from huey.registry import Message
from huey.storage import SqliteStorage
from sqlalchemy import inspect

from appliance.catalog import postgres
from appliance.errors import StrongroomError

if TYPE_CHECKING:
    from appliance.bootstrap import Appliance

_log = logging.getLogger(__name__)
_TASK = f"{__name__}.run"  # as huey names it
_ID = re.compile(r"[0-9a-f]{32}")
_MESSAGE_BYTES_MAX = 200
_TABLES = "strongroom_queue"
_LOCK_TIMEOUT_S = 30
_DAMAGED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


class QueueUnusable(StrongroomError):
    def __init__(self, where: str, reason: str) -> None:
        super().__init__(
            f"the queue {where} cannot be used: {reason}",
            hint="The catalog has every run that waits: see that the place is writable and has room.",
            where=where,
        )


class RunMessages:
    """huey's serializer. `deserialize` raises ValueError for anything that is not the id of a run."""

    def serialize(self, message: Any) -> bytes:
        (id,) = message.args
        return json.dumps({"run": id}).encode()

    def deserialize(self, data: Any) -> Message:
        id = run_of(bytes(data))
        return Message(id=id, name=_TASK, retries=0, retry_delay=0, args=(id,), kwargs={})


def run_of(data: bytes) -> str:
    """The id of the run that a message is about. ValueError."""
    found = json.loads(data) if len(data) <= _MESSAGE_BYTES_MAX else None
    id = found["run"] if isinstance(found, dict) and found.keys() == {"run"} else None
    if not isinstance(id, str) or _ID.fullmatch(id) is None:
        raise ValueError(f"a message of {len(data)} bytes is no id of a run")
    return id


class Wakes:
    """The queue of one appliance, this or another of the same catalog. Owns its connections; borrows the appliance.

    `take` is called with the id of each run that a message is about, in a worker's thread.
    """

    def __init__(self, appliance: Appliance, whose: str, take: Callable[[str], None] = lambda _: None) -> None:
        """QueueUnusable."""
        self._shared = appliance.catalog.database.is_shared
        self.where = appliance.catalog.database.where if self._shared else str(appliance.settings.queue_file)
        try:
            self.huey = _in_postgres(appliance, whose) if self._shared else _in_file(appliance, whose)
        except engine_errors() as err:
            raise QueueUnusable(self.where, " ".join(str(err).split())) from err

        def run(id: str) -> None:
            take(id)

        self._task = self.huey.task(name="run")(run)

    def put(self, id: str) -> bool:
        """Wake a worker for this run. False: that cannot be done now; the workers' next sweep of the catalog finds the
        run, and says what it meets."""
        try:
            self.leave(id)
        except QueueUnusable:
            return False
        return True

    def leave(self, id: str) -> None:
        """As put. QueueUnusable."""
        try:
            self.huey.enqueue(self._task.s(id))
        except engine_errors() as err:
            raise QueueUnusable(self.where, " ".join(str(err).split())) from err

    def pending(self) -> frozenset[str]:
        """Runs that a message waits for. QueueUnusable."""
        try:
            waiting = self.huey.storage.enqueued_items()
        except engine_errors() as err:
            raise QueueUnusable(self.where, " ".join(str(err).split())) from err
        found = set()
        for data in waiting:
            with suppress(ValueError):  # a worker that meets it says so
                found.add(run_of(bytes(data)))
        return frozenset(found)

    def forget(self) -> None:
        """All messages: of an appliance that is gone. What cannot be removed is never read."""
        with suppress(*engine_errors()):
            self.huey.storage.flush_queue()

    def close(self) -> None:
        with suppress(*engine_errors()):
            self.huey.storage.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _File(SqliteStorage):  # type: ignore[misc]
    """huey's own, with the tables made as it is opened. After any error it is opened anew; after one of damage, it is
    made anew: it holds nothing that the catalog does not have."""

    _conn: sqlite3.Connection | None

    def _create_connection(self) -> sqlite3.Connection:
        os.close(os.open(self.filename, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        connection: sqlite3.Connection = super()._create_connection()
        try:
            for statement in self.ddl:
                connection.execute(statement)
            self._opened = _which(self.filename)
        except BaseException:
            connection.close()
            raise
        return connection

    @contextmanager
    def db(self, commit: bool = False, close: bool = False) -> Iterator[sqlite3.Cursor]:
        with self.lock:
            used = self._conn
            if used is not None and _which(self.filename) != self._opened:  # others put messages into another one now
                self._forget(used)
                used = None
        try:
            with super().db(commit=commit, close=close) as cursor:
                used = cursor.connection
                yield cursor
        except sqlite3.Error as err:
            with self.lock:
                if self._conn is used:  # else another thread was here first
                    self._forget(used)
                    if getattr(err, "sqlite_errorcode", 0) & 0xFF in _DAMAGED:
                        _log.warning("%s is damaged (%s): it is made anew", self.filename, err)
                        _remove(Path(self.filename))
            raise

    def _forget(self, connection: sqlite3.Connection | None) -> None:
        self._conn = None
        if connection is not None:
            with suppress(sqlite3.Error):
                connection.close()


def _which(path: str) -> tuple[int, int] | None:
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino


def _remove(path: Path) -> None:
    for left in path.parent.glob(f"{path.name}*"):
        left.unlink(missing_ok=True)


def _in_file(appliance: Appliance, whose: str) -> Any:
    path = appliance.settings.queue_file
    huey = SqliteHuey(
        _name(whose), storage_class=_File, filename=str(path), create_tables=False, results=False,
        serializer=RunMessages(), timeout=_LOCK_TIMEOUT_S,
    )  # fmt: skip
    try:
        huey.storage.queue_size()
    except sqlite3.OperationalError:
        raise
    except sqlite3.DatabaseError:
        huey.storage.queue_size()  # it was damaged, and is not any more
    return huey


def _in_postgres(appliance: Appliance, whose: str) -> Any:
    database, url = appliance.catalog.database, appliance.settings.catalog.url
    huey = PostgresHuey(
        _name(whose), connection=lambda: postgres.connect(url), table_prefix=_TABLES, create_tables=False,
        results=False, serializer=RunMessages(),
    )  # fmt: skip
    with database.read() as connection:
        there = inspect(connection).has_table(f"{_TABLES}_counter")  # the last that is made
    if not there:
        # Two that make the same table at once fail, `if not exists` or not.
        with database.exclusively(_TABLES, wait=True):
            huey.storage.initialize_schema()
    return huey


def _name(whose: str) -> str:
    return f"runs-{whose}"


def engine_errors() -> tuple[type[Exception], ...]:
    """Of the engines below huey."""
    try:
        import psycopg
    except ImportError:
        return (sqlite3.Error, OSError)
    return (sqlite3.Error, OSError, psycopg.Error)
