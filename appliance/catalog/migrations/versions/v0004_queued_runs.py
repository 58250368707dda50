"""Runs can wait in a queue, with what was asked, and be tried again

What was recorded before was begun at once; so is what is recorded by a program of before, which may still run: it knows
nothing of these columns, and their defaults stay.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from appliance.catalog.tables import Moment

revision = "0004"
down_revision: str | None = "0003"
branch_labels: str | None = None
depends_on: str | None = None

_COLUMNS = (
    "asked_utc",
    "full_read",
    "limit_bytes_s",
    "image_path",
    "image_format",
    "attempts",
    "not_before_utc",
    "cancel_requested_utc",
)


def upgrade() -> None:
    with op.batch_alter_table("runs", schema=None) as batch_op:
        batch_op.add_column(sa.Column("asked_utc", Moment(), nullable=True))
        batch_op.add_column(
            sa.Column("full_read", sa.Boolean(create_constraint=False), nullable=False, server_default=sa.false())
        )
        batch_op.add_column(sa.Column("limit_bytes_s", sa.BigInteger(), nullable=True))
        batch_op.add_column(sa.Column("image_path", sa.Text(), nullable=True))
        batch_op.add_column(sa.Column("image_format", sa.String(length=16), nullable=True))
        batch_op.add_column(sa.Column("attempts", sa.Integer(), nullable=False, server_default="0"))
        batch_op.add_column(sa.Column("not_before_utc", Moment(), nullable=True))
        batch_op.add_column(sa.Column("cancel_requested_utc", Moment(), nullable=True))


def downgrade() -> None:
    """What waits cannot be told to a program that knows no queue: it is given up."""
    runs = sa.table("runs", sa.column("state", sa.String))
    op.execute(sa.delete(runs).where(runs.c.state == "queued"))
    op.execute(sa.update(runs).where(runs.c.state == "cancelled").values(state="failed"))
    with op.batch_alter_table("runs", schema=None) as batch_op:
        for name in reversed(_COLUMNS):
            batch_op.drop_column(name)
