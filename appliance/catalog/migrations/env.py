"""How Alembic reaches the catalog: over the connection that `catalog.schema` hands it, in that one transaction."""

from __future__ import annotations

from typing import Any, Literal

from alembic import context

from appliance.catalog.tables import Moment, metadata


def _written_as(kind: str, item: object, _autogenerate: Any) -> str | Literal[False]:
    return "Moment()" if kind == "type" and isinstance(item, Moment) else False


context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    compare_type=True,
    render_item=_written_as,
    # SQLite cannot alter a column: Alembic then copies the table.
    render_as_batch=True,
)
context.run_migrations()
