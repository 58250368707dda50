"""The first catalog"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from appliance.catalog.tables import Moment

revision = "0001"
down_revision: str | None = None
branch_labels: str | None = None
depends_on: str | None = None


def upgrade() -> None:
    op.create_table(
        "appliance",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("created_utc", Moment(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_appliance")),
    )
    op.create_table(
        "cleanups",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("owner", sa.String(length=64), nullable=False),
        sa.Column("action", sa.String(length=32), nullable=False),
        sa.Column("created_utc", Moment(), nullable=False),
        sa.Column("host", sa.String(length=64), nullable=True),
        sa.Column("machine_uuid", sa.String(length=36), nullable=True),
        sa.Column("machine_name", sa.Text(), nullable=True),
        sa.Column("subject", sa.Text(), nullable=False),
        sa.Column("paths", sa.JSON(), nullable=False),
        sa.Column("disks", sa.JSON(), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("last_error", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_cleanups")),
    )
    with op.batch_alter_table("cleanups", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_cleanups_owner"), ["owner"], unique=False)

    op.create_table(
        "exports",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("point", sa.String(length=32), nullable=False),
        sa.Column("manifest_name", sa.String(length=128), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("disks", sa.JSON(), nullable=False),
        sa.Column("started_utc", Moment(), nullable=False),
        sa.Column("hold", sa.String(length=32), nullable=True),
        sa.Column("address", sa.Text(), nullable=False),
        sa.Column("sockets", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_exports")),
    )
    op.create_table(
        "hosts",
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("transport", sa.String(length=16), nullable=False),
        sa.Column("hostname", sa.String(length=255), nullable=False),
        sa.Column("user", sa.String(length=64), nullable=False),
        sa.Column("port", sa.Integer(), nullable=False),
        sa.Column("keyfile", sa.Text(), nullable=False),
        sa.Column("known_hosts", sa.Text(), nullable=False),
        sa.Column("socket", sa.Text(), nullable=False),
        sa.Column("session", sa.Boolean(), nullable=False),
        sa.Column("accelerator", sa.String(length=16), nullable=False),
        sa.Column("timeout_s", sa.Float(), nullable=False),
        sa.Column("added_utc", Moment(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_hosts")),
    )
    op.create_table(
        "machines",
        sa.Column("series", sa.String(length=32), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("uuid", sa.String(length=36), nullable=True),
        sa.Column("host", sa.Text(), nullable=True),
        sa.Column("last_point", sa.String(length=32), nullable=True),
        sa.Column("last_point_utc", Moment(), nullable=True),
        sa.Column("disks", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("series", name=op.f("pk_machines")),
    )
    op.create_table(
        "owed_thaws",
        sa.Column("machine_uuid", sa.String(length=36), nullable=False),
        sa.Column("host", sa.String(length=64), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("since_utc", Moment(), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("last_error", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("machine_uuid", "host", name=op.f("pk_owed_thaws")),
    )
    op.create_table(
        "recoveries",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("point", sa.String(length=32), nullable=False),
        sa.Column("manifest_name", sa.String(length=128), nullable=False),
        sa.Column("source_name", sa.Text(), nullable=False),
        sa.Column("host", sa.String(length=64), nullable=False),
        sa.Column("machine_name", sa.Text(), nullable=False),
        sa.Column("machine_uuid", sa.String(length=36), nullable=False),
        sa.Column("network", sa.String(length=64), nullable=False),
        sa.Column("started_utc", Moment(), nullable=False),
        sa.Column("updated_utc", Moment(), nullable=False),
        sa.Column("hold", sa.String(length=32), nullable=True),
        sa.Column("disks", sa.JSON(), nullable=False),
        sa.Column("definition_xml", sa.Text(), nullable=False),
        sa.Column("final_xml", sa.Text(), nullable=False),
        sa.Column("folder", sa.Text(), nullable=False),
        sa.Column("method", sa.String(length=16), nullable=True),
        sa.Column("start_ms", sa.BigInteger(), nullable=True),
        sa.Column("error", sa.Text(), nullable=True),
        sa.Column("notes", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_recoveries")),
    )
    with op.batch_alter_table("recoveries", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_recoveries_state"), ["state"], unique=False)

    op.create_table(
        "repositories",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("location", sa.Text(), nullable=False),
        sa.Column("attached_utc", Moment(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_repositories")),
    )
    op.create_table(
        "runs",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("machine_kind", sa.String(length=16), nullable=False),
        sa.Column("uuid", sa.String(length=36), nullable=True),
        sa.Column("host", sa.String(length=64), nullable=True),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("started_utc", Moment(), nullable=False),
        sa.Column("ended_utc", Moment(), nullable=True),
        sa.Column("point", sa.String(length=32), nullable=True),
        sa.Column("error", sa.Text(), nullable=True),
        sa.Column("disks", sa.JSON(), nullable=False),
        sa.Column("notes", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_runs")),
    )
    with op.batch_alter_table("runs", schema=None) as batch_op:
        batch_op.create_index("ix_runs_started_utc", ["started_utc"], unique=False)
        batch_op.create_index("ix_runs_state", ["state"], unique=False)

    op.create_table(
        "points",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("manifest_name", sa.String(length=128), nullable=False),
        sa.Column("manifest_hash", sa.String(length=64), nullable=False),
        sa.Column("series", sa.String(length=32), nullable=False),
        sa.Column("generation", sa.BigInteger(), nullable=False),
        sa.Column("machine_kind", sa.String(length=16), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("uuid", sa.String(length=36), nullable=True),
        sa.Column("host", sa.Text(), nullable=True),
        sa.Column("created_utc", Moment(), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("consistency", sa.String(length=16), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("read_bytes", sa.BigInteger(), nullable=False),
        sa.Column("stored_bytes", sa.BigInteger(), nullable=False),
        sa.Column("duration_ms", sa.BigInteger(), nullable=False),
        sa.Column("checkpoint", sa.Text(), nullable=True),
        sa.Column("disks", sa.JSON(), nullable=False),
        sa.Column("skipped", sa.JSON(), nullable=False),
        sa.Column("notes", sa.JSON(), nullable=False),
        sa.ForeignKeyConstraint(["series"], ["machines.series"], name=op.f("fk_points_series"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_points")),
        sa.UniqueConstraint("manifest_name", name=op.f("uq_points_manifest_name")),
    )
    with op.batch_alter_table("points", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_points_series"), ["series"], unique=False)


def downgrade() -> None:
    with op.batch_alter_table("points", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_points_series"))

    op.drop_table("points")
    with op.batch_alter_table("runs", schema=None) as batch_op:
        batch_op.drop_index("ix_runs_state")
        batch_op.drop_index("ix_runs_started_utc")

    op.drop_table("runs")
    op.drop_table("repositories")
    with op.batch_alter_table("recoveries", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_recoveries_state"))

    op.drop_table("recoveries")
    op.drop_table("owed_thaws")
    op.drop_table("machines")
    op.drop_table("hosts")
    op.drop_table("exports")
    with op.batch_alter_table("cleanups", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_cleanups_owner"))

    op.drop_table("cleanups")
    op.drop_table("appliance")
