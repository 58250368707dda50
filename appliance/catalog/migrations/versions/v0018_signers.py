"""An account signs as one person of the repository's guard"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from appliance.catalog.tables import Moment

revision = "0018"
down_revision: str | None = "0017"
branch_labels: str | None = None
depends_on: str | None = None


def upgrade() -> None:
    op.create_table(
        "signers",
        sa.Column("person", sa.String(length=32), nullable=False),
        sa.Column("user", sa.String(length=32), nullable=False),
        sa.Column("since_utc", Moment(), nullable=False),
        sa.ForeignKeyConstraint(["user"], ["users.id"], name=op.f("fk_signers_user"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("person", name=op.f("pk_signers")),
        sa.UniqueConstraint("user", name=op.f("uq_signers_user")),
    )


def downgrade() -> None:
    op.drop_table("signers")
