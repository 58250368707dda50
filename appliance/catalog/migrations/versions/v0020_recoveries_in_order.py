"""The list of recoveries is read by indexes in its order"""

from __future__ import annotations

from alembic import op

revision = "0020"
down_revision: str | None = "0019"
branch_labels: str | None = None
depends_on: str | None = None


def upgrade() -> None:
    op.drop_index(op.f("ix_recoveries_state"), table_name="recoveries")
    op.create_index(op.f("ix_recoveries_state"), "recoveries", ["state", "started_utc", "id"], unique=False)
    op.create_index(op.f("ix_recoveries_started_utc"), "recoveries", ["started_utc", "id"], unique=False)


def downgrade() -> None:
    op.drop_index(op.f("ix_recoveries_started_utc"), table_name="recoveries")
    op.drop_index(op.f("ix_recoveries_state"), table_name="recoveries")
    op.create_index(op.f("ix_recoveries_state"), "recoveries", ["state"], unique=False)
