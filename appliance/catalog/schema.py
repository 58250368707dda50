"""Bringing a catalog up to the version that this program writes.

The rule: a catalog is brought up to date when it is opened, in one transaction, by the scripts shipped in the package,
by one process at a time: a lock file keeps those of a home apart, the writers' lock those of all appliances; one that a
newer program wrote is left alone. Alembic is imported only when there is something to do.
"""

from __future__ import annotations

from importlib.resources import as_file, files
from pathlib import Path

from sqlalchemy import Connection, inspect, text

from appliance.catalog.database import Database
from appliance.catalog.errors import REBUILD_HINT, CatalogVersionUnknown
from appliance.ownership import own

HEAD = "0020"  # the newest script in migrations/versions; a test compares

_SHARED_HINT = (
    "All appliances that share a catalog run the same version: update this one. No restore point is lost, whatever"
    " becomes of the catalog: an empty database is made a catalog from the repository ('If the catalog is lost' in"
    " docs/operations.md)."
)


def upgrade(database: Database, lock_file: Path) -> bool:
    """Make the catalog's tables what this program expects; whether they were not. CatalogVersionUnknown when it is
    newer than this program."""
    with database.read() as connection:
        if version(connection) == HEAD:
            return False
    with own(lock_file, "the catalog", wait=True), database.write() as connection:
        found = version(connection)
        if found != HEAD:  # unless another process was quicker
            _migrate(connection, found, f"Use that program. {REBUILD_HINT}" if not database.is_shared else _SHARED_HINT)
    return True


def version(connection: Connection) -> str | None:
    if not inspect(connection).has_table("alembic_version"):
        return None
    return connection.execute(text("SELECT version_num FROM alembic_version")).scalar_one_or_none()


def _migrate(connection: Connection, found: str | None, hint: str) -> None:
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
                hint=hint,
                found=found,
            )
        command.upgrade(config, "head")
