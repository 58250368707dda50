"""Where the catalogs of the contract tests are: in every engine, and shared by two appliances."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from appliance.catalog import Catalog
from appliance.catalog.database import Database

ME, OTHER = "a" * 32, "b" * 32


@dataclass(frozen=True)
class Place:
    """Where a catalog is: a file, or a database of a server that runs."""

    where: str
    lock: Path

    @property
    def shared(self) -> bool:
        return "://" in self.where

    def database(self) -> Database:
        return Database.shared(self.where) if self.shared else Database.at(Path(self.where))

    @contextmanager
    def open(self, me: str = ME) -> Iterator[Catalog]:
        catalog = Catalog.open(self.database(), self.lock, me)
        with closing(catalog):
            yield catalog
