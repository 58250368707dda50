"""The key that the secrets of second factors are sealed with, and sealing those that are not yet.

The rule: a catalog has one key at a time, and it changes in the transaction that seals all rows with it anew.
"""

from __future__ import annotations

from collections.abc import Callable

from sqlalchemy import Connection, delete, insert, select, update

from appliance.catalog import rows, tables
from appliance.catalog.database import Database
from appliance.sealed import CatalogKeyRecord, of_link, of_user

_keys = tables.catalog_keys
_users = tables.users
_links = tables.setup_links

Seal = Callable[[str, str], str]
"""What a secret is about, and the secret as it is: sealed."""
Reseal = Callable[[str, str], str | None]
"""What a secret is about, and the sealed one: sealed anew; None: it is lost."""


class Sealing:
    def __init__(self, database: Database) -> None:
        self._database = database

    def current(self) -> CatalogKeyRecord | None:
        with self._database.read() as connection:
            return _current(connection)

    def is_owed(self) -> bool:
        """Whether a secret is there as it is: a program that did not seal them yet wrote it."""
        with self._database.read() as connection:
            return _plain(connection)

    def found(self, record: CatalogKeyRecord) -> CatalogKeyRecord:
        """Make this key the catalog's, unless it has one; returns the one that holds."""
        with self._database.write() as connection:
            known = _current(connection)
            if known is not None:
                return known
            connection.execute(insert(_keys).values(rows.encode(record)))
        return record

    def settle(self, id: str, seal: Seal) -> None:
        """Seal what is there as it is, all at once, if this key still is the catalog's."""
        with self._database.write() as connection:
            known = _current(connection)
            if known is not None and known.id == id:
                _seal_all(connection, seal)
        self._database.forget_what_is_gone()

    def wrap(self, id: str, repository: str, wrapped: str) -> None:
        """What the repository now keeps of this key, if it still is the catalog's."""
        with self._database.write() as connection:
            connection.execute(update(_keys).where(_keys.c.id == id).values(repository=repository, wrapped=wrapped))

    def renew(self, record: CatalogKeyRecord, reseal: Reseal, seal: Seal) -> tuple[str, ...]:
        """Another key in place of the one that is there, and no set-up link any more. Returns the names of those whose
        second factor is lost by it: they need a new one."""
        lost = []
        with self._database.write() as connection:
            connection.execute(delete(_keys))
            connection.execute(insert(_keys).values(rows.encode(record)))
            connection.execute(delete(_links))
            held = select(_users).where(_users.c.totp_sealed.is_not(None)).order_by(_users.c.name)
            for user in connection.execute(held).all():
                sealed = reseal(of_user(user.id), user.totp_sealed)
                connection.execute(update(_users).where(_users.c.id == user.id).values(totp_sealed=sealed))
                if sealed is None:
                    lost.append(user.name)
            _seal_all(connection, seal)
        return tuple(lost)


def _seal_all(connection: Connection, seal: Seal) -> None:
    for user in connection.execute(select(_users).where(_users.c.totp_secret.is_not(None))).all():
        values = {"totp_sealed": seal(of_user(user.id), user.totp_secret), "totp_secret": None}
        connection.execute(update(_users).where(_users.c.id == user.id).values(values))
    for link in connection.execute(select(_links).where(_links.c.totp_secret != "")).all():
        values = {"totp_sealed": seal(of_link(link.hash), link.totp_secret), "totp_secret": ""}
        connection.execute(update(_links).where(_links.c.hash == link.hash).values(values))


def _current(connection: Connection) -> CatalogKeyRecord | None:
    row = connection.execute(select(_keys)).first()
    return None if row is None else rows.decode(CatalogKeyRecord, row)


def _plain(connection: Connection) -> bool:
    users = select(_users.c.id).where(_users.c.totp_secret.is_not(None))
    links = select(_links.c.hash).where(_links.c.totp_secret != "")
    return connection.execute(users.union_all(links).limit(1)).first() is not None
