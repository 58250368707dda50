"""Whether a machine's points have changed is told by a mark"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0019"
down_revision: str | None = "0018"
branch_labels: str | None = None
depends_on: str | None = None


def upgrade() -> None:
    op.add_column(
        "machines", sa.Column("points_mark", sa.String(length=32), nullable=False, server_default=sa.text("''"))
    )


def downgrade() -> None:
    op.drop_column("machines", "points_mark")
