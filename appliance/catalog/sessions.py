"""Who is signed in, by sessions and by tokens, and which sign-ins failed.

The rule: a session begins in the transaction that uses up the code; a failure is counted before the password is looked
at, so that attempts made at the same moment all count.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from datetime import datetime, timedelta
from typing import Final

from sqlalchemy import ColumnElement, Connection, Row, and_, delete, func, insert, or_, select, update

from appliance.accounts import SessionRecord, TokenRecord, UserRecord
from appliance.catalog import rows, tables
from appliance.catalog.database import Database
from appliance.catalog.errors import RecordMissing
from appliance.catalog.users import use_code, use_step

_sessions = tables.sessions
_tokens = tables.tokens
_failures = tables.sign_in_failures
_known = tables.known_addresses
_KNOWN_FOR: Final = timedelta(days=90)
_KNOWN_MOST: Final = 20  # addresses of one user
_FAILURES_FOR: Final = timedelta(days=1)
_AHEAD_S: Final = 300.0


class Sessions:
    def __init__(self, database: Database) -> None:
        self._database = database

    def open(self, session: SessionRecord, password_hash: str, *, step: int | None, now_step: int, code: str | None
             ) -> bool:  # fmt: skip
        """Sign in: by the `step` of a code of the second factor, or by the hash of a recovery code. False: that was
        used already, or the account is another one than the password was checked for."""
        with self._database.write() as connection:
            if not _is_still(connection, session.user, password_hash):
                return False
            if not _used_up(connection, session.user, step, now_step, code):
                return False
            now = session.created_utc
            connection.execute(insert(_sessions).values(rows.encode(session)))
            connection.execute(update(tables.users).where(tables.users.c.id == session.user).values(signed_in_utc=now))
            _know(connection, session.user, session.address, now)
        return True

    def prove(self, id: str, password_hash: str, hash: str, now_utc: datetime, *, step: int | None, now_step: int,
              code: str | None) -> bool:  # fmt: skip
        """As `open`, for a session that goes on, under another token from now on."""
        with self._database.write() as connection:
            user = connection.execute(select(_sessions.c.user).where(_sessions.c.id == id)).scalar()
            if user is None or not _is_still(connection, user, password_hash):
                return False
            if not _used_up(connection, user, step, now_step, code):
                return False
            values = {"authenticated_utc": now_utc, "seen_utc": now_utc, "hash": hash}
            connection.execute(update(_sessions).where(_sessions.c.id == id).values(values))
        return True

    def find(self, hash: str) -> tuple[SessionRecord, UserRecord] | None:
        return self._with_user(_sessions.c.hash == hash)

    def by_id(self, id: str) -> tuple[SessionRecord, UserRecord] | None:
        """As `find`."""
        return self._with_user(_sessions.c.id == id)

    def _with_user(self, which: ColumnElement[bool]) -> tuple[SessionRecord, UserRecord] | None:
        query = (
            select(_sessions, *(column.label(f"user_{column.name}") for column in tables.users.c))
            .join(tables.users, tables.users.c.id == _sessions.c.user)
            .where(which)
        )
        with self._database.read() as connection:
            row = connection.execute(query).first()
        if row is None:
            return None
        return rows.decode(SessionRecord, row), _joined_user(row)

    def seen(self, id: str, now_utc: datetime, address: str) -> None:
        with self._database.write() as connection:
            connection.execute(update(_sessions).where(_sessions.c.id == id).values(seen_utc=now_utc, address=address))

    def list(self, user: str | None = None) -> tuple[SessionRecord, ...]:
        """Of this user or all, newest first."""
        query = select(_sessions).order_by(_sessions.c.created_utc.desc(), _sessions.c.id)
        if user is not None:
            query = query.where(_sessions.c.user == user)
        with self._database.read() as connection:
            return tuple(rows.decode(SessionRecord, row) for row in connection.execute(query))

    def get(self, id: str) -> SessionRecord:
        """RecordMissing."""
        query = select(_sessions).where(rows.begins(_sessions.c.id, id), func.length(_sessions.c.id) == len(id))
        with self._database.read() as connection:
            row = connection.execute(query).first()
        if row is None:
            raise RecordMissing("session", id, hint="It is over.")
        return rows.decode(SessionRecord, row)

    def end(self, ids: Iterable[str]) -> None:
        """Those that are over already are."""
        with self._database.write() as connection:
            connection.execute(delete(_sessions).where(_sessions.c.id.in_(list(ids))))

    def end_old(self, seen_before_utc: datetime, created_before_utc: datetime) -> None:
        with self._database.write() as connection:
            old = or_(_sessions.c.seen_utc < seen_before_utc, _sessions.c.created_utc < created_before_utc)
            connection.execute(delete(_sessions).where(old))


class Tokens:
    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, record: TokenRecord) -> None:
        with self._database.write() as connection:
            connection.execute(insert(_tokens).values(rows.encode(record)))

    def find(self, hash: str) -> tuple[TokenRecord, UserRecord | None] | None:
        """With its owner, if it has one."""
        return self._with_owner(_tokens.c.hash == hash)

    def by_id(self, id: str) -> tuple[TokenRecord, UserRecord | None] | None:
        """As `find`."""
        return self._with_owner(_tokens.c.id == id)

    def _with_owner(self, which: ColumnElement[bool]) -> tuple[TokenRecord, UserRecord | None] | None:
        query = (
            select(_tokens, *(column.label(f"user_{column.name}") for column in tables.users.c))
            .join(tables.users, tables.users.c.id == _tokens.c.owner, isouter=True)
            .where(which)
        )
        with self._database.read() as connection:
            row = connection.execute(query).first()
        if row is None:
            return None
        token = rows.decode(TokenRecord, row)
        return token, None if token.owner is None else _joined_user(row)

    def list(self, owner: str | None = None) -> tuple[TokenRecord, ...]:
        """Of this owner or all, newest first."""
        query = select(_tokens).order_by(_tokens.c.created_utc.desc(), _tokens.c.id)
        if owner is not None:
            query = query.where(_tokens.c.owner == owner)
        with self._database.read() as connection:
            return tuple(rows.decode(TokenRecord, row) for row in connection.execute(query))

    def get(self, wanted: str) -> TokenRecord:
        """By its id or a unique beginning of it. RecordMissing."""
        query = select(_tokens).where(rows.begins(_tokens.c.id, wanted))
        with self._database.read() as connection:
            found = [rows.decode(TokenRecord, row) for row in connection.execute(query)] if wanted else []
        if len(found) != 1:
            raise RecordMissing("token" if not found else "single token", wanted, hint="See 'strongroom token list'.")
        return found[0]

    def revoke(self, id: str, now_utc: datetime) -> None:
        with self._database.write() as connection:
            here = (_tokens.c.id == id) & _tokens.c.revoked_utc.is_(None)
            connection.execute(update(_tokens).where(here).values(revoked_utc=now_utc))

    def used(self, id: str, now_utc: datetime, address: str) -> None:
        with self._database.write() as connection:
            connection.execute(update(_tokens).where(_tokens.c.id == id).values(used_utc=now_utc, used_from=address))


class Attempts:
    """Failed sign-ins and signatures, counted under keys; what has no failure for a day is forgotten."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def begin(self, delays: Mapping[str, Callable[[int], float]], now_utc: datetime) -> float:
        """Count an attempt as a failure under all these keys, unless one says to wait (`delays`: seconds after so many
        failures). Returns how many seconds are to be waited; 0.0: the attempt goes on."""
        with self._database.read() as connection:  # a flood does not hold up those who write
            wait_s, _ = _wait(connection, delays, now_utc)
        if wait_s > 0:
            return wait_s
        with self._database.write() as connection:
            connection.execute(delete(_failures).where(_failures.c.last_utc < now_utc - _FAILURES_FOR))
            wait_s, found = _wait(connection, delays, now_utc)
            if wait_s > 0:
                return wait_s
            for key in delays:
                if key in found:
                    failures = _failures.c.failures + 1
                    connection.execute(
                        update(_failures).where(_failures.c.key == key).values(failures=failures, last_utc=now_utc)
                    )
                else:
                    connection.execute(insert(_failures).values(key=key, failures=1, last_utc=now_utc))
        return 0.0

    def succeeded(self, *, forget: Iterable[str], less: Iterable[str]) -> None:
        """It was none after all: nothing is left under the keys of `forget`, and one fewer under those of `less`."""
        with self._database.write() as connection:
            connection.execute(delete(_failures).where(_failures.c.key.in_(list(forget))))
            for key in less:
                fewer = update(_failures).where(_failures.c.key == key, _failures.c.failures > 0)
                connection.execute(fewer.values(failures=_failures.c.failures - 1))

    def begin_anew(self, user: str, address: str, now_utc: datetime, *, forget: Iterable[str]) -> None:
        """They have set up their account from there: nothing is left under these keys, and the address is known."""
        with self._database.write() as connection:
            connection.execute(delete(_failures).where(_failures.c.key.in_(list(forget))))
            _know(connection, user, address, now_utc)

    def is_known(self, user: str, address: str, now_utc: datetime) -> bool:
        """Whether they have signed in from there lately."""
        here = and_(_known.c.user == user, _known.c.address == address, _known.c.last_utc > now_utc - _KNOWN_FOR)
        with self._database.read() as connection:
            return connection.execute(select(_known.c.address).where(here)).first() is not None


def _wait(
    connection: Connection, delays: Mapping[str, Callable[[int], float]], now_utc: datetime
) -> tuple[float, frozenset[str]]:
    """Seconds, and the keys that have failures."""
    query = select(_failures).where(_failures.c.key.in_(list(delays)))
    found = {row.key: (row.failures, row.last_utc) for row in connection.execute(query)}
    wait_s = max((_left_s(delays[key], *found[key], now_utc) for key in found), default=0.0)
    return max(wait_s, 0.0), frozenset(found)


def _left_s(delay: Callable[[int], float], failures: int, last_utc: datetime, now_utc: datetime) -> float:
    """A clock that went back makes nobody wait longer than the delay; what was told by one that was far ahead makes
    nobody wait until then, over and over."""
    whole_s, passed_s = delay(failures), (now_utc - last_utc).total_seconds()
    return min(whole_s, whole_s - passed_s) if passed_s > -_AHEAD_S else 0.0


def _is_still(connection: Connection, user: str, password_hash: str) -> bool:
    query = select(tables.users.c.password_hash).where(tables.users.c.id == user, tables.users.c.disabled_utc.is_(None))
    return connection.execute(query).scalar() == password_hash


def _used_up(connection: Connection, user: str, step: int | None, now_step: int, code: str | None) -> bool:
    if step is not None:
        return use_step(connection, user, step, now_step)
    return code is not None and use_code(connection, user, code)


def _know(connection: Connection, user: str, address: str, now_utc: datetime) -> None:
    here = and_(_known.c.user == user, _known.c.address == address)
    if connection.execute(update(_known).where(here).values(last_utc=now_utc)).rowcount == 0:
        connection.execute(insert(_known).values(user=user, address=address, last_utc=now_utc))
    if connection.execute(select(func.count()).where(_known.c.user == user)).scalar_one() > _KNOWN_MOST:
        oldest = select(func.min(_known.c.last_utc)).where(_known.c.user == user).scalar_subquery()
        connection.execute(delete(_known).where(_known.c.user == user, _known.c.last_utc == oldest))


def _joined_user(row: Row[tuple[object, ...]]) -> UserRecord:
    values = {name.removeprefix("user_"): value for name, value in row._mapping.items() if name.startswith("user_")}
    return rows.decode(UserRecord, values)
