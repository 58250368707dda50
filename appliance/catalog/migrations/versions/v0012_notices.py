"""What is told without having been asked: concerns, notices, deliveries

Runs and verifications that are over by now are nobody's news.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from appliance.catalog.tables import Moment

revision = "0012"
down_revision: str | None = "0011"
branch_labels: str | None = None
depends_on: str | None = None


def upgrade() -> None:
    with op.batch_alter_table("runs", schema=None) as batch_op:
        batch_op.add_column(sa.Column("noticed_utc", Moment(), nullable=True))
    runs = sa.table("runs", sa.column("ended_utc", Moment()), sa.column("noticed_utc", Moment()))
    op.execute(sa.update(runs).where(runs.c.ended_utc.is_not(None)).values(noticed_utc=runs.c.ended_utc))
    op.create_index(op.f("ix_runs_noticed_utc"), "runs", ["noticed_utc", "ended_utc"], unique=False)
    with op.batch_alter_table("verifications", schema=None) as batch_op:
        batch_op.add_column(sa.Column("noticed_utc", Moment(), nullable=True))
    verifications = sa.table("verifications", sa.column("ended_utc", Moment()), sa.column("noticed_utc", Moment()))
    op.execute(sa.update(verifications).values(noticed_utc=verifications.c.ended_utc))
    op.create_table(
        "notice_concerns",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("subject", sa.Text(), nullable=False),
        sa.Column("detail", sa.Text(), nullable=False),
        sa.Column("lasting", sa.Boolean(create_constraint=False), nullable=False),
        sa.Column("seen_utc", Moment(), nullable=False),
        sa.Column("told_utc", Moment(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_notice_concerns")),
    )
    op.create_table(
        "notices",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("urgency", sa.String(length=16), nullable=False),
        sa.Column("created_utc", Moment(), nullable=False),
        sa.Column("title", sa.Text(), nullable=False),
        sa.Column("body", sa.Text(), nullable=False),
        sa.Column("concerns", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_notices")),
    )
    op.create_index(op.f("ix_notices_created_utc"), "notices", ["created_utc"], unique=False)
    op.create_table(
        "notice_deliveries",
        sa.Column("notice", sa.String(length=32), nullable=False),
        sa.Column("target", sa.String(length=32), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("next_utc", Moment(), nullable=False),
        sa.Column("error", sa.Text(), nullable=True),
        sa.ForeignKeyConstraint(
            ["notice"], ["notices.id"], name=op.f("fk_notice_deliveries_notice"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("notice", "target", name=op.f("pk_notice_deliveries")),
    )
    op.create_index(op.f("ix_notice_deliveries_state"), "notice_deliveries", ["state"], unique=False)
    op.create_table(
        "notice_state",
        sa.Column("name", sa.String(length=32), nullable=False),
        sa.Column("value", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_notice_state")),
    )


def downgrade() -> None:
    """What is untold is not told any more."""
    op.drop_table("notice_state")
    op.drop_table("notice_deliveries")
    op.drop_table("notices")
    op.drop_table("notice_concerns")
    with op.batch_alter_table("verifications", schema=None) as batch_op:
        batch_op.drop_column("noticed_utc")
    op.drop_index(op.f("ix_runs_noticed_utc"), table_name="runs")
    with op.batch_alter_table("runs", schema=None) as batch_op:
        batch_op.drop_column("noticed_utc")
