"""Second factors are sealed

Which SQL cannot do: what is there as it is gets sealed when a program opens the catalog that has the key, or makes it.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from appliance.catalog.tables import Moment

revision = "0016"
down_revision: str | None = "0015"
branch_labels: str | None = None
depends_on: str | None = None


def upgrade() -> None:
    op.create_table(
        "catalog_keys",
        sa.Column("id", sa.String(length=16), nullable=False),
        sa.Column("created_utc", Moment(), nullable=False),
        sa.Column("repository", sa.String(length=32), nullable=True),
        sa.Column("wrapped", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_catalog_keys")),
    )
    # Added, and nothing else: SQLite would make these tables anew, and lose with `users` all that refers to it.
    op.add_column("users", sa.Column("totp_sealed", sa.Text(), nullable=True))
    op.add_column("setup_links", sa.Column("totp_sealed", sa.Text(), nullable=True))


def downgrade() -> None:
    """Whoever had a second factor needs a new link: an older program cannot open what is sealed."""
    op.drop_column("setup_links", "totp_sealed")
    op.drop_column("users", "totp_sealed")
    op.drop_table("catalog_keys")
