"""Runs that were asked for under a key"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from appliance.catalog.tables import Moment

revision = "0008"
down_revision: str | None = "0007"
branch_labels: str | None = None
depends_on: str | None = None


def upgrade() -> None:
    op.create_table(
        "request_keys",
        sa.Column("actor", sa.String(length=128), nullable=False),
        sa.Column("key", sa.String(length=200), nullable=False),
        sa.Column("asked", sa.String(length=64), nullable=False),
        sa.Column("run", sa.String(length=32), nullable=False),
        sa.Column("created_utc", Moment(), nullable=False),
        sa.PrimaryKeyConstraint("actor", "key", name=op.f("pk_request_keys")),
    )
    op.create_index(op.f("ix_request_keys_created_utc"), "request_keys", ["created_utc"], unique=False)


def downgrade() -> None:
    """What was asked under a key, and is asked once more, is queued once more."""
    op.drop_index(op.f("ix_request_keys_created_utc"), table_name="request_keys")
    op.drop_table("request_keys")
