"""Machines whose definitions cannot be read are seen all the same"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0017"
down_revision: str | None = "0016"
branch_labels: str | None = None
depends_on: str | None = None


def upgrade() -> None:
    op.add_column("seen_machines", sa.Column("unreadable", sa.Text(), nullable=True))


def downgrade() -> None:
    op.drop_column("seen_machines", "unreadable")
