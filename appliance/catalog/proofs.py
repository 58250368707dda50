"""What verifications found, what was recovered, and how large the repository was, day by day.

The rule: this is history, written when it happens and not made again from the repository; nothing is decided by it that
could lose data.
"""

from __future__ import annotations

from datetime import date, datetime
from typing import ClassVar

from sqlalchemy import and_, delete, func, select

from appliance.catalog import rows, tables
from appliance.catalog.database import Database
from appliance.proofs import Proof, RepositorySize, Verification

_sizes = tables.repository_sizes
_proofs = tables.proofs


class Proofs:
    KEPT: ClassVar[int] = 400  # verifications: a year of nights

    def __init__(self, database: Database) -> None:
        self._database = database
        self._known: tuple[tuple[object, ...], tuple[Verification, ...]] | None = None

    def verified(self, record: Verification) -> None:
        verifications = tables.verifications
        with self._database.write() as connection:
            connection.execute(verifications.insert().values(rows.encode(record)))
            newest = select(verifications.c.id).order_by(verifications.c.ended_utc.desc(), verifications.c.id)
            connection.execute(delete(verifications).where(verifications.c.id.not_in(newest.limit(self.KEPT))))

    def verifications(self) -> tuple[Verification, ...]:
        """Newest first."""
        table, ended = tables.verifications, tables.verifications.c.ended_utc
        with self._database.read() as connection:
            # None is changed, and each that comes is another one or makes the oldest go: so these tell.
            mark = tuple(connection.execute(select(func.count(), func.min(ended), func.max(ended))).one())
            known = self._known
            if known is None or known[0] != mark:
                found = connection.execute(select(table).order_by(ended.desc()))
                known = self._known = (mark, tuple(rows.decode(Verification, row) for row in found))
            return known[1]

    def proven(self, proof: Proof) -> None:
        with self._database.write() as connection:
            rows.save(connection, _proofs, proof, _proofs.c.id == proof.id)

    def last(self) -> tuple[Proof, ...]:
        """The newest of each series."""
        newest = select(_proofs.c.series, func.max(_proofs.c.proven_utc).label("at")).group_by(_proofs.c.series)
        found = newest.subquery()
        same = and_(_proofs.c.series == found.c.series, _proofs.c.proven_utc == found.c.at)
        query = select(_proofs).join(found, same)
        with self._database.read() as connection:
            proofs = [rows.decode(Proof, row) for row in connection.execute(query)]
        return tuple({proof.series: proof for proof in proofs}.values())

    def between(self, begin: datetime, end: datetime) -> tuple[Proof, ...]:
        """Of all series, oldest first."""
        query = select(_proofs).where(_proofs.c.proven_utc >= begin, _proofs.c.proven_utc < end)
        with self._database.read() as connection:
            found = connection.execute(query.order_by(_proofs.c.proven_utc, _proofs.c.id))
            return tuple(rows.decode(Proof, row) for row in found)

    def of_series(self, series: str, limit: int) -> tuple[Proof, ...]:
        """Newest first."""
        query = select(_proofs).where(_proofs.c.series == series).order_by(_proofs.c.proven_utc.desc()).limit(limit)
        with self._database.read() as connection:
            return tuple(rows.decode(Proof, row) for row in connection.execute(query))

    def took(self, size: RepositorySize) -> None:
        """How large the repository is; of a day, the newest is kept."""
        here = and_(_sizes.c.repository == size.repository, _sizes.c.day == size.day)
        with self._database.write() as connection:
            rows.save(connection, _sizes, size, here)

    def sizes(self, repository: str, since: date) -> tuple[RepositorySize, ...]:
        """Oldest first."""
        query = select(_sizes).where(_sizes.c.repository == repository, _sizes.c.day >= since).order_by(_sizes.c.day)
        with self._database.read() as connection:
            return tuple(rows.decode(RepositorySize, row) for row in connection.execute(query))
