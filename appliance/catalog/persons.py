"""Which account signs as which person of the repository's guard.

The rule: an account is one person, and a person one account, for as long as both are there.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from datetime import datetime

from sqlalchemy import delete, insert, or_, select

from appliance.catalog import tables
from appliance.catalog.database import Database

_signers = tables.signers


class Persons:
    def __init__(self, database: Database) -> None:
        self._database = database

    def all(self) -> Mapping[str, str]:
        """Ids of users, by those of the persons as whom they sign."""
        with self._database.read() as connection:
            return {row.person: row.user for row in connection.execute(select(_signers.c.person, _signers.c.user))}

    def tie(self, person: str, user: str, now_utc: datetime, *, counting: Collection[str]) -> tuple[str, str] | None:
        """For good; tied already: fine. None: so it is. Else the (person, user) that stands against it. `counting`: the
        persons of the guard; what ties others is gone with them."""
        either = or_(_signers.c.person == person, _signers.c.user == user)
        with self._database.write() as connection:
            there = connection.execute(select(_signers.c.person, _signers.c.user).where(either)).all()
            for row in sorted(there, key=lambda each: each.user != user):  # what the account is, first
                if row.person not in counting:
                    connection.execute(delete(_signers).where(_signers.c.person == row.person))
                elif (row.person, row.user) != (person, user):
                    return row.person, row.user
                else:
                    return None
            connection.execute(insert(_signers).values(person=person, user=user, since_utc=now_utc))
        return None
