"""Where the catalogs of the contract tests are: in every engine, and shared by two appliances."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection

import appliance.catalog
from appliance.catalog import Catalog
from appliance.catalog.database import Database

ME, OTHER = "a" * 32, "b" * 32
_MIGRATIONS = Path(appliance.catalog.__file__).parent / "migrations"


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


def downgrade(connection: Connection, version: str) -> None:
    """As the program of that version has its catalog."""
    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    command.downgrade(config, version)
