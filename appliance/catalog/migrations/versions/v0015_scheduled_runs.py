"""Runs know the policies that wanted them, and schedulers since when they have looked

What was recorded before, a person wanted.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from appliance.catalog.tables import Moment

revision = "0015"
down_revision: str | None = "0014"
branch_labels: str | None = None
depends_on: str | None = None


def upgrade() -> None:
    op.create_table(
        "schedulers",
        sa.Column("appliance", sa.String(length=32), nullable=False),
        sa.Column("since_utc", Moment(), nullable=False),
        sa.Column("looked_utc", Moment(), nullable=False),
        sa.PrimaryKeyConstraint("appliance", name=op.f("pk_schedulers")),
    )
    with op.batch_alter_table("runs", schema=None) as batch_op:
        # Nothing, or a default, as a process of an older version may still have the catalog open.
        batch_op.add_column(sa.Column("due", sa.JSON(), nullable=True))
        batch_op.add_column(
            sa.Column("quiesce", sa.Boolean(create_constraint=False), nullable=False, server_default=sa.true())
        )


def downgrade() -> None:
    with op.batch_alter_table("runs", schema=None) as batch_op:
        batch_op.drop_column("quiesce")
        batch_op.drop_column("due")
    op.drop_table("schedulers")
