"""What the hosts were seen to have is kept"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from appliance.catalog.tables import Moment

revision = "0005"
down_revision: str | None = "0004"
branch_labels: str | None = None
depends_on: str | None = None


def upgrade() -> None:
    op.create_table(
        "host_looks",
        sa.Column("appliance", sa.String(length=32), nullable=False),
        sa.Column("host", sa.String(length=64), nullable=False),
        sa.Column("asked_utc", Moment(), nullable=False),
        sa.Column("answered_utc", Moment(), nullable=True),
        sa.Column("failing_since_utc", Moment(), nullable=True),
        sa.Column("error", sa.Text(), nullable=True),
        sa.Column("hint", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("appliance", "host", name=op.f("pk_host_looks")),
    )
    op.create_table(
        "seen_machines",
        sa.Column("host", sa.String(length=64), nullable=False),
        sa.Column("uuid", sa.String(length=36), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("state_reason", sa.Text(), nullable=False),
        sa.Column("memory_bytes", sa.BigInteger(), nullable=False),
        sa.Column("vcpus", sa.Integer(), nullable=False),
        sa.Column("agent", sa.Boolean(create_constraint=False), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("disks", sa.JSON(), nullable=False),
        sa.Column("tags", sa.JSON(), nullable=False),
        sa.Column("known_utc", Moment(), nullable=False),
        sa.Column("current", sa.Boolean(create_constraint=False), nullable=False),
        sa.PrimaryKeyConstraint("host", "uuid", name=op.f("pk_seen_machines")),
    )
    op.create_index(op.f("ix_seen_machines_uuid"), "seen_machines", ["uuid"], unique=False)


def downgrade() -> None:
    """Lost is nothing that the next look at the hosts does not tell."""
    op.drop_index(op.f("ix_seen_machines_uuid"), table_name="seen_machines")
    op.drop_table("seen_machines")
    op.drop_table("host_looks")
