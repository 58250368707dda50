"""Bringing a catalog up to the version that this program writes.

The rule: a catalog is brought up to date when it is opened, under a lock, in one transaction, by the scripts shipped in
the package; one that a newer program wrote is left alone. Alembic is imported only when there is something to do.
"""

from __future__ import annotations

from importlib.resources import as_file, files
from pathlib import Path

from sqlalchemy import Connection, inspect, text

from appliance.catalog.database import Database
from appliance.catalog.errors import REBUILD_HINT, CatalogVersionUnknown
from appliance.ownership import own

HEAD = "0002"  # the newest script in migrations/versions; a test compares

_POSTGRES_LOCK = 0x5354524F4E47524D  # "STRONGRM"


def upgrade(database: Database, lock_file: Path) -> None:
    """Make the catalog's tables what this program expects. CatalogVersionUnknown when it is newer than this program."""
    with database.read() as connection:
        if version(connection) == HEAD:
            return
    with own(lock_file, "the catalog", wait=True), database.write() as connection:
        if not database.is_sqlite:
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _POSTGRES_LOCK})
        found = version(connection)
        if found != HEAD:  # unless another process was quicker
            _migrate(connection, found)


def version(connection: Connection) -> str | None:
    if not inspect(connection).has_table("alembic_version"):
        return None
    return connection.execute(text("SELECT version_num FROM alembic_version")).scalar_one_or_none()


def _migrate(connection: Connection, found: str | None) -> None:
    from alembic import command
    from alembic.config import Config
    from alembic.script import ScriptDirectory

    with as_file(files("appliance.catalog") / "migrations") as folder:
        config = Config()
        config.set_main_option("script_location", str(folder).replace("%", "%%"))
        config.set_main_option("path_separator", "os")
        config.attributes["connection"] = connection
        known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
        if found is not None and found not in known:
            raise CatalogVersionUnknown(
                f"the catalog was written by a newer program (its version is {found}, this program knows up to {HEAD})",
                hint=f"Use that program. {REBUILD_HINT}",
                found=found,
            )
        command.upgrade(config, "head")
