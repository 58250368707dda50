"""Runs of one kind are a list of their own"""

from __future__ import annotations

from alembic import op

revision = "0014"
down_revision: str | None = "0013"
branch_labels: str | None = None
depends_on: str | None = None


def upgrade() -> None:
    op.create_index(op.f("ix_runs_kind"), "runs", ["kind", "started_utc", "id"], unique=False)


def downgrade() -> None:
    op.drop_index(op.f("ix_runs_kind"), table_name="runs")
