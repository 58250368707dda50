"""A real PostgreSQL for tests, from Debian's package, on a socket of its own and on loopback, and nowhere else.

The rule: it is started once per process, when it is first asked for, and ends with that process, however that ends: by
its own id, or by the kernel. What a process that was killed left on disk goes when the next one starts. Nothing that
it writes outlives the tests, so it never waits for a disk.

    url = running().fresh()            # of an empty database
    url = running().fresh_catalog()    # of an empty catalog
"""

from __future__ import annotations

import atexit
import functools
import os
import pwd
import secrets
import signal
import subprocess
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from types import TracebackType
from typing import Final, LiteralString, Self

import psycopg
from psycopg import sql

from appliance.catalog.database import Database
from appliance.catalog.schema import upgrade
from tests.lab.owned import PARENT, OwnedFolder, swept
from tests.lab.ports import free_port

START_TIMEOUT_S: Final = 90.0
_PREFIX: Final = "strongroom-pg-"
_USER: Final = "strongroom"
_ACCOUNT: Final = "postgres"  # the server refuses to run as root
_STARTS: Final = 3


class PostgresServer:
    """Owns the processes and their folder below `parent`. `durable`: as it is run for real, for measurements."""

    def __init__(self, parent: Path = PARENT, *, durable: bool = False) -> None:
        swept(_PREFIX, parent)
        self._durable = durable
        self._owned = OwnedFolder(_PREFIX, parent)
        self.folder = self._owned.path
        self._owner = os.getpid()
        self._as_whom = ["setpriv", "--pdeathsig=KILL", "--"]
        if os.geteuid() == 0:
            account = pwd.getpwnam(_ACCOUNT)
            os.chown(self.folder, account.pw_uid, account.pw_gid)
            self._as_whom = ["setpriv", f"--reuid={_ACCOUNT}", f"--regid={account.pw_gid}", "--init-groups",
                             "--pdeathsig=KILL", "--"]  # fmt: skip
        self.password = secrets.token_urlsafe(12)
        self.port = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._catalog: sql.Identifier | None = None

    def __enter__(self) -> Self:
        self.make()
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def runs(self) -> bool:
        return self._process is not None

    def make(self) -> None:
        """Whoever reaches the socket is let in; over TCP a password is asked for."""
        password = self.folder / "password"
        password.write_text(self.password)
        password.chmod(0o644)
        self._run("initdb", "--no-sync", "--no-instructions", "--locale=C", "--encoding=UTF8", "--auth-local=trust",
                  "--auth-host=scram-sha-256", f"--username={_USER}", f"--pwfile={password}",
                  f"--pgdata={self.folder / 'data'}")  # fmt: skip
        password.unlink()

    def start(self) -> None:
        """Until it answers. Its port is a free one the first time, which somebody else may take in the meantime: then
        another is tried. Later it comes back where it was."""
        for attempt in range(_STARTS):
            port = self.port or free_port()
            self._process = self._spawn(port)
            try:
                self._wait(port)
            except RuntimeError:
                self._process.kill()
                self._process.wait(timeout=60)
                if attempt == _STARTS - 1:
                    raise
            else:
                self.port = port
                break

    def stop(self) -> None:
        """At once, cutting off its clients, as a server that goes away does; what was committed stays."""
        assert self._process is not None
        self._process.send_signal(signal.SIGQUIT if self._process.poll() is None else signal.SIGKILL)
        self._process.wait(timeout=60)
        self._process = None

    def close(self) -> None:
        """Ends it, unless this is a fork of the process that started it."""
        if os.getpid() != self._owner:
            return
        if self._process is not None:
            self.stop()
        self._owned.remove(ignore_errors=True)

    def fresh(self) -> str:
        """The URL of a new and empty database, over the socket."""
        name = f"t{secrets.token_hex(6)}"
        self.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        return self._url(name)

    def _url(self, name: str) -> str:
        return f"postgresql+psycopg://{_USER}@/{name}?host={self.folder}&port={self.port}"

    def fresh_catalog(self) -> str:
        """As `fresh`, with the tables of an empty catalog: a copy of one that every migration has made."""
        if self._catalog is None:
            url = self.fresh()
            with closing(Database.shared(url)) as database:
                upgrade(database, self.folder / "lock")
            self._wait_unused(url)
            self._catalog = sql.Identifier(_database_of(url))
        name = f"t{secrets.token_hex(6)}"
        self.execute(sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(sql.Identifier(name), self._catalog))
        return self._url(name)

    def _wait_unused(self, url: str) -> None:
        """Nobody's: a session ends some time after its client, and until then the server copies no database of it."""
        sessions = sql.SQL("SELECT pid FROM pg_stat_activity WHERE datname = {}").format(_database_of(url))
        until = time.monotonic() + START_TIMEOUT_S
        while self.execute(sessions):
            assert time.monotonic() < until, "a session does not end"
            time.sleep(0.02)

    def over_tcp(self, url: str, password: str | None = None) -> str:
        """The same database, with a password."""
        return f"postgresql+psycopg://{_USER}:{password or self.password}@127.0.0.1:{self.port}/{_database_of(url)}"

    def execute(self, statement: LiteralString | sql.Composed, url: str | None = None) -> list[tuple[object, ...]]:
        """As the database's owner, in that of `url` or the server's own; the rows that it answers."""
        database = "postgres" if url is None else _database_of(url)
        with psycopg.connect(host=str(self.folder), port=self.port, user=_USER, dbname=database,
                             autocommit=True) as connection:  # fmt: skip
            cursor = connection.execute(statement)
            return cursor.fetchall() if cursor.description else []

    def log(self) -> str:
        """What it said, for the message of a failing test."""
        return (self.folder / "out").read_text(errors="replace")[-3000:]

    def _spawn(self, port: int) -> subprocess.Popen[bytes]:
        options = {"listen_addresses": "127.0.0.1", "port": port, "unix_socket_directories": self.folder,
                   "max_connections": 60}  # fmt: skip
        if not self._durable:
            options |= {"fsync": "off", "full_page_writes": "off"}
        words = [word for name, value in options.items() for word in ("-c", f"{name}={value}")]
        with (self.folder / "out").open("ab") as out:
            return subprocess.Popen(
                [*self._as_whom, str(_programs() / "postgres"), "-D", str(self.folder / "data"), *words],
                stdin=subprocess.DEVNULL, stdout=out, stderr=out, cwd="/", env=_environment(),
            )  # fmt: skip

    def _wait(self, port: int) -> None:
        assert self._process is not None
        until = time.monotonic() + START_TIMEOUT_S
        while True:
            try:
                psycopg.connect(host=str(self.folder), port=port, user=_USER, dbname="postgres").close()
                return
            except psycopg.OperationalError as error:
                if self._process.poll() is not None or time.monotonic() > until:
                    raise RuntimeError(f"PostgreSQL does not come up: {error}\n{self.log()}") from error
                time.sleep(0.02)

    def _run(self, program: str, *arguments: str) -> None:
        words: Sequence[str] = [*self._as_whom, str(_programs() / program), *arguments]
        done = subprocess.run(words, capture_output=True, text=True, cwd="/", env=_environment(), check=False)
        assert done.returncode == 0, done.stdout + done.stderr


@functools.cache
def running() -> PostgresServer:
    """The server of this process."""
    server = PostgresServer()
    atexit.register(server.close)
    server.make()
    server.start()
    return server


def _database_of(url: str) -> str:
    return url.split("?")[0].rsplit("/", 1)[1]


def _programs() -> Path:
    """The newest that is installed; Debian keeps them out of PATH."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda folder: int(folder.parent.name))
    assert found, "PostgreSQL is not installed: run '.ci/setup --test'"
    return found[-1]


def _environment() -> dict[str, str]:
    return {"PATH": os.environ["PATH"], "LC_ALL": "C"}
