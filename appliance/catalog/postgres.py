"""PostgreSQL under a catalog that several appliances share: connections, locks, and what its errors mean.

The rule: a process that is suspended, cut off or dead holds up the others for half a minute at most, and a server that
is away is told as such in seconds. The password is in no message: whatever is said names host, port and database.
"""

from __future__ import annotations

import hashlib
from contextlib import suppress
from typing import Any

from sqlalchemy import URL, Connection, Engine, create_engine, event, exc, make_url, text

from appliance.catalog.errors import (
    CatalogBusy,
    CatalogDriverMissing,
    CatalogError,
    CatalogUnreachable,
)

_CONNECT_TIMEOUT_S = 10
_LOCK_TIMEOUT_S = 30
_IDLE_TIMEOUT_S = 20  # less than others wait for a lock: who was suspended while writing is thrown out before
_SILENCE_S = 30
_WRITERS = 0x5354524F4E47524D  # "STRONGRM": the key of the lock that writers take
_REACH = {
    "connect_timeout": _CONNECT_TIMEOUT_S,
    "keepalives": 1,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": _SILENCE_S * 1000,
    "application_name": "strongroom",
}
_SESSION = (
    f"SET lock_timeout = '{_LOCK_TIMEOUT_S}s'",
    f"SET idle_in_transaction_session_timeout = '{_IDLE_TIMEOUT_S}s'",
    # A holder of locks that vanished from the network is noticed, and loses them. Sockets of this machine ignore it.
    "SET tcp_keepalives_idle = 10",
    "SET tcp_keepalives_interval = 5",
    "SET tcp_keepalives_count = 3",
    # A write is on disk when it is acknowledged; what waits for more than that (a standby) is left so.
    "SELECT set_config('synchronous_commit', 'on', false) WHERE current_setting('synchronous_commit') = 'off'",
)
# https://www.postgresql.org/docs/current/errcodes-appendix.html
_REFUSED = {"28000", "28P01"}
_NO_DATABASE = "3D000"
_NOT_ALLOWED = "42501"
_LOCKED = {"55P03", "40P01", "57014"}
_READ_ONLY = "25006"
_FULL = {"53100", "53200", "53300"}
_GOING = ("08", "57P", "25P03")  # broken connections, a server that ends or starts, a session that idled too long


def engine(url: str) -> Engine:
    """Connections are kept and shared by the threads of this process; one that died meanwhile is replaced."""
    try:
        parsed = make_url(url).set(drivername="postgresql+psycopg")
        reach = {name: value for name, value in _REACH.items() if name not in parsed.query}
        # The isolation is stated, as a database may have another default: each statement after the lock has to see
        # what was written until then.
        made = create_engine(parsed, pool_pre_ping=True, max_overflow=-1, isolation_level="READ COMMITTED",
                             hide_parameters=True, connect_args=reach)  # fmt: skip
    except ImportError as err:
        raise CatalogDriverMissing(str(err)) from err
    except (exc.ArgumentError, ValueError):
        raise CatalogError(
            "catalog.url is no URL of a PostgreSQL database",
            hint="postgresql+psycopg://USER:PASSWORD@HOST:PORT/DATABASE; write @ : / and % in a password as %40 %3A %2F"
            " %25.",
        ) from None
    event.listen(made, "connect", _connected)
    return made


def connect(url: str) -> Any:
    """A connection of the driver's own, for what does not go through SQLAlchemy; the caller closes it. Errors are the
    driver's."""
    import psycopg

    parsed = make_url(url)
    reach = {name: str(value) for name, value in _REACH.items()}
    address = parsed.set(drivername="postgresql", query=reach | dict(parsed.query))
    return psycopg.connect(address.render_as_string(hide_password=False))


def place(url: URL) -> str:
    """Host, port and database."""
    host = url.host or url.query.get("host") or "this machine"
    return f"postgresql://{host}{f':{url.port}' if url.port else ''}/{url.database or ''}"


def lock_writers(connection: Connection) -> None:
    """Until the end of the transaction."""
    connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _WRITERS})


class Lock:
    """A named lock of this database, held by a connection of its own."""

    def __init__(self, engine: Engine, name: str) -> None:
        digest = hashlib.blake2b(name.encode(), digest_size=8).digest()
        self._key = {"key": int.from_bytes(digest, "big", signed=True)}
        self._connection = engine.connect().execution_options(isolation_level="AUTOCOMMIT")
        self._held = False

    def take(self, *, wait: bool) -> bool:
        """Whether it is held now; `wait` waits for it, half a minute at most."""
        try:
            if wait:
                self._connection.execute(text("SELECT pg_advisory_lock(:key)"), self._key)
                self._held = True
            else:
                tried = self._connection.execute(text("SELECT pg_try_advisory_lock(:key)"), self._key)
                self._held = bool(tried.scalar_one())
        except exc.DBAPIError as err:
            if _state(err) not in _LOCKED:
                self._connection.close()
                raise
        return self._held

    def release(self) -> None:
        """A connection that is gone has given it up already."""
        with suppress(exc.DBAPIError):
            if self._held:
                self._connection.execute(text("SELECT pg_advisory_unlock(:key)"), self._key)
        with suppress(exc.DBAPIError):
            self._connection.close()


def translated(err: exc.DBAPIError, where: str) -> CatalogError:
    """What an admin has to know of it."""
    state, reason = _state(err), " ".join(str(err.orig).split())
    if state in _LOCKED:
        return CatalogBusy(f"catalog {where} is locked by another process", hint="Try again when that process is done.")
    if state in _REFUSED:
        return CatalogError(f"catalog {where} refuses the login: {reason}", hint="Correct catalog.url.")
    if state == _NO_DATABASE:
        return CatalogError(f"catalog {where}: {reason}", hint="Make it: createdb --owner USER DATABASE.")
    if state == _NOT_ALLOWED:
        return CatalogError(
            f"catalog {where}: {reason}", hint="Let that user own the database: ALTER DATABASE … OWNER TO ….",
        )  # fmt: skip
    if state == _READ_ONLY:
        return CatalogError(f"catalog {where} is read-only: {reason}", hint="Let catalog.url lead to the primary.")
    if state in _FULL:
        return CatalogError(f"catalog {where} is out of resources: {reason}", hint="See the server's log.")
    if not state or state.startswith(_GOING) or err.connection_invalidated:
        return CatalogUnreachable(where, reason)
    return CatalogError(f"catalog {where} failed: {reason}", hint="See the server's log.")


def _state(err: exc.DBAPIError) -> str:
    """The SQLSTATE; "" where the server said none, as when it cannot be reached. A refused login has none either, as
    it comes from the library that connects."""
    state = str(getattr(err.orig, "sqlstate", None) or "")
    if not state:
        said = str(err.orig)
        if "authentication failed" in said or "no password supplied" in said:
            return "28P01"
        if "database" in said and "does not exist" in said:
            return _NO_DATABASE
    return state


def _connected(connection: Any, _record: Any) -> None:
    with connection.cursor() as cursor:
        for statement in _SESSION:
            cursor.execute(statement)
    connection.commit()
