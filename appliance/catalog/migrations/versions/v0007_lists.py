"""Lists are read by indexes in their order; a run knows what tells its machine from others"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision: str | None = "0006"
branch_labels: str | None = None
depends_on: str | None = None

_NEW: dict[str, dict[str, list[str]]] = {
    "runs": {
        "started_utc": ["started_utc", "id"],
        "state": ["state", "started_utc", "id"],
        "machine": ["machine", "started_utc", "id"],
        "host": ["host", "started_utc", "id"],
    },
    "points": {
        "created_utc": ["created_utc", "id", "stored_bytes"],
        "series": ["series", "created_utc", "id"],
        "host": ["host", "created_utc", "id"],
    },
    "machines": {"uuid": ["uuid"]},
}
_OLD = {"runs": {"started_utc": ["started_utc"], "state": ["state"]}, "points": {"series": ["series"]}}


def upgrade() -> None:
    with op.batch_alter_table("runs", schema=None) as batch_op:
        # With a default, as of 0004: a program of before, which may still run, knows nothing of it.
        batch_op.add_column(sa.Column("machine", sa.Text(), nullable=False, server_default=sa.text("''")))
    runs = sa.table("runs", *(sa.column(name, sa.Text) for name in ("machine", "machine_kind", "uuid", "name")))
    # Of a name that no index takes, as models.machine_key has it, but for its hash: nobody looks for that of old runs.
    key = runs.c.machine_kind + ":" + sa.func.substr(sa.func.coalesce(runs.c.uuid, runs.c.name), 1, 500)
    op.execute(sa.update(runs).values(machine=key))
    _change(_OLD, _NEW)


def downgrade() -> None:
    _change(_NEW, _OLD)
    with op.batch_alter_table("runs", schema=None) as batch_op:
        batch_op.drop_column("machine")


def _change(old: dict[str, dict[str, list[str]]], new: dict[str, dict[str, list[str]]]) -> None:
    for table, indexes in old.items():
        for name in indexes:
            op.drop_index(op.f(f"ix_{table}_{name}"), table_name=table)
    for table, indexes in new.items():
        for name, columns in indexes.items():
            op.create_index(op.f(f"ix_{table}_{name}"), table, columns, unique=False)
