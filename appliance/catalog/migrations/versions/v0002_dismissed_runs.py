"""A failed run can be dismissed"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from appliance.catalog.tables import Moment

revision = "0002"
down_revision: str | None = "0001"
branch_labels: str | None = None
depends_on: str | None = None


def upgrade() -> None:
    with op.batch_alter_table("runs", schema=None) as batch_op:
        batch_op.add_column(sa.Column("dismissed_utc", Moment(), nullable=True))


def downgrade() -> None:
    with op.batch_alter_table("runs", schema=None) as batch_op:
        batch_op.drop_column("dismissed_utc")
