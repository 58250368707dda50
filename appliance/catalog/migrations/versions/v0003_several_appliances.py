"""Several appliances can share a catalog: what is under way is of one of them

What was recorded before is of the one appliance that the catalog had.
"""

from __future__ import annotations

from datetime import UTC, datetime

import sqlalchemy as sa
from alembic import op

from appliance.catalog.tables import Moment
from appliance.models import new_id

revision = "0003"
down_revision: str | None = "0002"
branch_labels: str | None = None
depends_on: str | None = None

_OWNED = ("runs", "recoveries", "exports", "cleanups", "hosts", "owed_thaws")
_KEYS = {"hosts": ["name"], "owed_thaws": ["machine_uuid", "host"]}


def upgrade() -> None:
    appliances = op.create_table(
        "appliances",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("created_utc", Moment(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("home", sa.Text(), nullable=False),
        sa.Column("place", sa.String(length=64), nullable=False),
        sa.Column("seen_utc", Moment(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_appliances")),
    )
    op.execute(
        "INSERT INTO appliances (id, created_utc, name, home, place) SELECT id, created_utc, '', '', '' FROM appliance"
    )
    op.drop_table("appliance")
    connection = op.get_bind()
    owner = connection.execute(sa.select(appliances.c.id)).scalar()
    if owner is None and any(_count(table) for table in _OWNED):
        owner = new_id()
        made = {"id": owner, "created_utc": datetime.now(UTC), "name": "", "home": "", "place": ""}
        connection.execute(appliances.insert().values(made))
    for table in _OWNED:
        with op.batch_alter_table(table, schema=None) as batch_op:
            batch_op.add_column(sa.Column("appliance", sa.String(length=32), nullable=True))
        column = sa.table(table, sa.column("appliance", sa.String))
        connection.execute(sa.update(column).values(appliance=owner))
        with op.batch_alter_table(table, schema=None) as batch_op:
            batch_op.alter_column("appliance", existing_type=sa.String(length=32), nullable=False)
            if table in _KEYS:
                batch_op.drop_constraint(batch_op.f(f"pk_{table}"), type_="primary")
                batch_op.create_primary_key(batch_op.f(f"pk_{table}"), ["appliance", *_KEYS[table]])


def _count(table: str) -> int:
    return op.get_bind().execute(sa.select(sa.func.count()).select_from(sa.table(table))).scalar_one()


def downgrade() -> None:
    for table in reversed(_OWNED):
        with op.batch_alter_table(table, schema=None) as batch_op:
            if table in _KEYS:
                batch_op.drop_constraint(batch_op.f(f"pk_{table}"), type_="primary")
                batch_op.create_primary_key(batch_op.f(f"pk_{table}"), _KEYS[table])
            batch_op.drop_column("appliance")
    op.create_table(
        "appliance",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("created_utc", Moment(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_appliance")),
    )
    op.execute("INSERT INTO appliance (id, created_utc) SELECT id, created_utc FROM appliances")
    op.drop_table("appliances")
