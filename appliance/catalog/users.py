"""Users, what they set up to sign in with, and the links by which they do that.

The rule: what may be used once (a link, a recovery code, a code of the second factor) is used up by the transaction
that finds it good, so of two processes that have it, one does. As long as there was an admin who can sign in, there is
one afterwards.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, delete, func, insert, or_, select, update

from appliance.accounts import USER_NAME, SetupLink, UserRecord
from appliance.acts import Role
from appliance.catalog import rows, tables
from appliance.catalog.database import Database
from appliance.catalog.errors import CatalogError, RecordExists, RecordMissing

_users = tables.users
_links = tables.setup_links
_codes = tables.recovery_codes


class LastAdmin(CatalogError):
    def __init__(self, name: str) -> None:
        super().__init__(
            f"{name} is the last admin who can sign in",
            hint="Make another user an admin first, and let them set up their account.",
            name=name,
        )


class Users:
    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, record: UserRecord) -> None:
        """RecordExists."""
        with self._database.write() as connection:
            _add(connection, record)

    def list(self) -> tuple[UserRecord, ...]:
        """By name."""
        with self._database.read() as connection:
            found = connection.execute(select(_users).order_by(_users.c.name))
            return tuple(rows.decode(UserRecord, row) for row in found)

    def find(self, name: str) -> UserRecord | None:
        """By the whole name, whatever text that is."""
        if USER_NAME.fullmatch(name) is None:
            return None
        with self._database.read() as connection:
            row = connection.execute(select(_users).where(_users.c.name == name)).first()
        return None if row is None else rows.decode(UserRecord, row)

    def get(self, wanted: str) -> UserRecord:
        """By name or id. RecordMissing."""
        row = None
        if USER_NAME.fullmatch(wanted):  # nothing else is asked of an engine, which may not even take it
            query = select(_users).where(or_(_users.c.name == wanted, _users.c.id == wanted))
            with self._database.read() as connection:
                row = connection.execute(query).first()
        if row is None:
            raise RecordMissing("user", wanted, hint="See 'strongroom user list'.")
        return rows.decode(UserRecord, row)

    def exist(self) -> bool:
        with self._database.read() as connection:
            return connection.execute(select(_users.c.id).limit(1)).first() is not None

    def edit(self, id: str, **changes: Any) -> UserRecord:
        """Role, grants, or whether they are disabled, which ends their sessions. RecordMissing, LastAdmin."""
        with self._database.write() as connection:
            before = _get(connection, id)
            were = _admins(connection)
            values = {name: getattr(value, "value", value) for name, value in changes.items()}
            connection.execute(update(_users).where(_users.c.id == id).values(values))
            after = _get(connection, id)
            _keep_an_admin(connection, before, were)
            if not after.enabled:
                connection.execute(delete(tables.sessions).where(tables.sessions.c.user == id))
                connection.execute(delete(_links).where(_links.c.user == id))
        return after

    def remove(self, id: str) -> None:
        """With their sessions, tokens, codes and links. RecordMissing, LastAdmin."""
        with self._database.write() as connection:
            before = _get(connection, id)
            were = _admins(connection)
            connection.execute(delete(_users).where(_users.c.id == id))
            _keep_an_admin(connection, before, were)

    def set_password(self, id: str, password_hash: str, *, keep_session: str | None = None) -> None:
        """Other sessions than `keep_session` end. RecordMissing."""
        with self._database.write() as connection:
            changed = update(_users).where(_users.c.id == id).values(password_hash=password_hash)
            if connection.execute(changed).rowcount == 0:
                raise RecordMissing("user", id)
            others = tables.sessions.c.user == id
            if keep_session is not None:
                others &= tables.sessions.c.id != keep_session
            connection.execute(delete(tables.sessions).where(others))

    def rehash(self, id: str, before: str, after: str) -> None:
        """The same password, hashed with the parameters of today."""
        with self._database.write() as connection:
            here = (_users.c.id == id) & (_users.c.password_hash == before)
            connection.execute(update(_users).where(here).values(password_hash=after))

    def set_codes(self, id: str, hashes: Sequence[str]) -> None:
        """In place of those that are left. RecordMissing."""
        with self._database.write() as connection:
            _get(connection, id)
            _set_codes(connection, id, hashes)

    def codes_left(self, id: str) -> int:
        with self._database.read() as connection:
            return connection.execute(select(func.count()).select_from(_codes).where(_codes.c.user == id)).scalar_one()

    # Links

    def put_link(self, link: SetupLink) -> bool:
        """In place of an earlier one for the same user. One for the first admin: False when there is a user already."""
        with self._database.write() as connection:
            if link.user is None:
                if _any(connection):
                    return False
                connection.execute(delete(_links).where(_links.c.user.is_(None)))
            else:
                _get(connection, link.user)
                connection.execute(delete(_links).where(_links.c.user == link.user))
            connection.execute(insert(_links).values(rows.encode(link) | {"totp_secret": ""}))
        return True

    def link(self, hash: str, now_utc: datetime) -> tuple[SetupLink, UserRecord | None] | None:
        """One that can be used now, and whose it is."""
        with self._database.read() as connection:
            return _link(connection, hash, now_utc)

    def redeem(
        self, hash: str, now_utc: datetime, *, new: UserRecord | None, password_hash: str, totp_sealed: str,
        totp_step: int, codes: Sequence[str],
    ) -> UserRecord | None:  # fmt: skip
        """Use the link up: the account signs in so from now on, and nobody is signed in to it. `new`: the first admin,
        where the link is for that. `totp_sealed`: what the link offered, sealed for the account. None: the link is
        used, too old, or for the other kind of account."""
        with self._database.write() as connection:
            found = _link(connection, hash, now_utc)
            if found is None or (found[0].user is None) != (new is not None):
                return None
            link = found[0]
            if new is not None:
                _add(connection, new)
            id = link.user or (new.id if new else "")
            connection.execute(
                update(_users)
                .where(_users.c.id == id)
                .values(password_hash=password_hash, totp_secret=None, totp_sealed=totp_sealed, totp_step=totp_step)
            )
            _set_codes(connection, id, codes)
            connection.execute(delete(tables.sessions).where(tables.sessions.c.user == id))
            connection.execute(delete(_links).where(or_(_links.c.hash == hash, _links.c.user == id)))
            return _get(connection, id)


def use_step(connection: Connection, id: str, step: int, now_step: int) -> bool:
    """Use up a code of the second factor: False if it, or a later one, was used before.

    A step far ahead was written by a clock that was wrong: it would keep the user out until then, and does not count.
    """
    used = _users.c.totp_step
    here = (_users.c.id == id) & or_(used.is_(None), used < step, used > now_step + 2)
    return connection.execute(update(_users).where(here).values(totp_step=step)).rowcount == 1


def use_code(connection: Connection, id: str, hash: str) -> bool:
    """Use up a recovery code: False if there is none such."""
    return connection.execute(delete(_codes).where(_codes.c.user == id, _codes.c.hash == hash)).rowcount == 1


def _link(connection: Connection, hash: str, now_utc: datetime) -> tuple[SetupLink, UserRecord | None] | None:
    row = connection.execute(select(_links).where(_links.c.hash == hash, _links.c.expires_utc > now_utc)).first()
    if row is None:
        return None
    link = rows.decode(SetupLink, row)
    if link.user is None:
        return None if _any(connection) else (link, None)
    user = _get(connection, link.user)
    return (link, user) if user.enabled else None


def _any(connection: Connection) -> bool:
    return connection.execute(select(_users.c.id).limit(1)).first() is not None


def _add(connection: Connection, record: UserRecord) -> None:
    if connection.execute(select(_users.c.id).where(_users.c.name == record.name)).first() is not None:
        raise RecordExists("user", record.name, hint="See 'strongroom user list', or choose another name.")
    connection.execute(insert(_users).values(rows.encode(record)))


def _get(connection: Connection, id: str) -> UserRecord:
    row = connection.execute(select(_users).where(_users.c.id == id)).first()
    if row is None:
        raise RecordMissing("user", id, hint="See 'strongroom user list'.")
    return rows.decode(UserRecord, row)


def _set_codes(connection: Connection, id: str, hashes: Sequence[str]) -> None:
    connection.execute(delete(_codes).where(_codes.c.user == id))
    if hashes:
        connection.execute(insert(_codes), [{"user": id, "hash": hash} for hash in hashes])


def _admins(connection: Connection) -> int:
    query = select(func.count()).where(
        _users.c.role == Role.ADMIN.value,
        _users.c.disabled_utc.is_(None),
        _users.c.password_hash.is_not(None),
    )
    return connection.execute(query.select_from(_users)).scalar_one()


def _keep_an_admin(connection: Connection, changed: UserRecord, were: int) -> None:
    if were and not _admins(connection):
        raise LastAdmin(changed.name)
