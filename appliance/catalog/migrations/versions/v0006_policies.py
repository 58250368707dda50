"""Policies, and pauses of machines"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from appliance.catalog.tables import Moment

revision = "0006"
down_revision: str | None = "0005"
branch_labels: str | None = None
depends_on: str | None = None


def upgrade() -> None:
    op.create_table(
        "policies",
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("document", sa.JSON(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("since_utc", Moment(), nullable=False),
        sa.Column("changed_utc", Moment(), nullable=False),
        sa.Column("paused_utc", Moment(), nullable=True),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_policies")),
    )
    op.create_table(
        "machine_pauses",
        sa.Column("machine", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("paused_utc", Moment(), nullable=False),
        sa.PrimaryKeyConstraint("machine", name=op.f("pk_machine_pauses")),
    )


def downgrade() -> None:
    op.drop_table("machine_pauses")
    op.drop_table("policies")
