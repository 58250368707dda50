"""Runs that are no backups"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision: str | None = "0010"
branch_labels: str | None = None
depends_on: str | None = None


def upgrade() -> None:
    with op.batch_alter_table("runs", schema=None) as batch_op:
        # With a default, as a process of an older version may still have the catalog open.
        batch_op.add_column(sa.Column("kind", sa.String(length=16), nullable=False, server_default="backup"))
        batch_op.add_column(sa.Column("arguments", sa.JSON(none_as_null=True), nullable=True))
        batch_op.add_column(sa.Column("result", sa.Text(), nullable=True))


def downgrade() -> None:
    """An older version would take them for backups."""
    runs = sa.table("runs", sa.column("kind", sa.String))
    op.execute(sa.delete(runs).where(runs.c.kind != "backup"))
    with op.batch_alter_table("runs", schema=None) as batch_op:
        for name in ("result", "arguments", "kind"):
            batch_op.drop_column(name)
