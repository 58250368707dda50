"""What there is: appliances, their repository, hosts, machines and restore points, and what is known of these."""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Date,
    Float,
    ForeignKey,
    Index,
    Integer,
    String,
    Table,
    Text,
    text,
)

from appliance.catalog.tables.common import ID_CHARACTERS, UUID_CHARACTERS, Moment, metadata

appliances = Table(
    "appliances",
    metadata,
    Column("id", String(ID_CHARACTERS), primary_key=True),
    Column("created_utc", Moment, nullable=False),
    Column("name", Text, nullable=False),
    Column("home", Text, nullable=False),
    Column("place", String(64), nullable=False),
    Column("seen_utc", Moment, nullable=True),
)

repositories = Table(
    "repositories",
    metadata,
    Column("id", String(ID_CHARACTERS), primary_key=True),
    Column("location", Text, nullable=False),
    Column("attached_utc", Moment, nullable=False),
)

repository_sizes = Table(
    "repository_sizes",
    metadata,
    Column("repository", String(ID_CHARACTERS), primary_key=True),
    Column("day", Date, primary_key=True),
    Column("taken_utc", Moment, nullable=False),
    Column("used_bytes", BigInteger, nullable=False),
    Column("free_bytes", BigInteger, nullable=True),
)

hosts = Table(
    "hosts",
    metadata,
    Column("appliance", String(ID_CHARACTERS), primary_key=True),
    Column("name", String(64), primary_key=True),
    Column("transport", String(16), nullable=False),
    Column("hostname", String(255), nullable=False),
    Column("user", String(64), nullable=False),
    Column("port", Integer, nullable=False),
    Column("keyfile", Text, nullable=False),
    Column("known_hosts", Text, nullable=False),
    Column("socket", Text, nullable=False),
    Column("session", Boolean(create_constraint=False), nullable=False),
    Column("accelerator", String(16), nullable=False),
    Column("timeout_s", Float, nullable=False),
    Column("added_utc", Moment, nullable=False),
)

host_looks = Table(
    "host_looks",
    metadata,
    Column("appliance", String(ID_CHARACTERS), primary_key=True),
    Column("host", String(64), primary_key=True),
    Column("asked_utc", Moment, nullable=False),
    Column("answered_utc", Moment, nullable=True),
    Column("failing_since_utc", Moment, nullable=True),
    Column("error", Text, nullable=True),
    Column("hint", Text, nullable=True),
)

seen_machines = Table(
    "seen_machines",
    metadata,
    Column("host", String(64), primary_key=True),
    Column("uuid", String(UUID_CHARACTERS), primary_key=True, index=True),
    Column("name", Text, nullable=False),
    Column("state", String(16), nullable=False),
    Column("state_reason", Text, nullable=False),
    Column("memory_bytes", BigInteger, nullable=False),
    Column("vcpus", Integer, nullable=False),
    Column("agent", Boolean(create_constraint=False), nullable=False),
    Column("size_bytes", BigInteger, nullable=False),
    Column("disks", JSON, nullable=False),
    Column("tags", JSON, nullable=False),
    Column("known_utc", Moment, nullable=False),
    Column("current", Boolean(create_constraint=False), nullable=False),
    Column("unreadable", Text, nullable=True),
)

machines = Table(
    "machines",
    metadata,
    Column("series", String(ID_CHARACTERS), primary_key=True),
    Column("kind", String(16), nullable=False),
    Column("name", Text, nullable=False),
    Column("uuid", String(UUID_CHARACTERS), nullable=True, index=True),
    Column("host", Text, nullable=True),
    Column("last_point", String(ID_CHARACTERS), nullable=True),
    Column("last_point_utc", Moment, nullable=True),
    Column("disks", JSON, nullable=False),
    # No part of the record: another one after each change of its points.
    Column("points_mark", String(ID_CHARACTERS), nullable=False, server_default=text("''")),
)

points = Table(
    "points",
    metadata,
    Column("id", String(ID_CHARACTERS), primary_key=True),
    Column("manifest_name", String(128), nullable=False, unique=True),
    Column("manifest_hash", String(64), nullable=False),
    Column("series", String(ID_CHARACTERS), ForeignKey("machines.series", ondelete="CASCADE"), nullable=False),
    Column("generation", BigInteger, nullable=False),
    Column("machine_kind", String(16), nullable=False),
    Column("name", Text, nullable=False),
    Column("uuid", String(UUID_CHARACTERS), nullable=True),
    Column("host", Text, nullable=True),
    Column("created_utc", Moment, nullable=False),
    Column("kind", String(16), nullable=False),
    Column("consistency", String(16), nullable=False),
    Column("size_bytes", BigInteger, nullable=False),
    Column("read_bytes", BigInteger, nullable=False),
    Column("stored_bytes", BigInteger, nullable=False),
    Column("duration_ms", BigInteger, nullable=False),
    Column("checkpoint", Text, nullable=True),
    Column("disks", JSON, nullable=False),
    Column("skipped", JSON, nullable=False),
    Column("notes", JSON, nullable=False),
    Index("ix_points_created_utc", "created_utc", "id", "stored_bytes"),
    Index("ix_points_series", "series", "created_utc", "id"),
    Index("ix_points_host", "host", "created_utc", "id"),
)

verifications = Table(
    "verifications",
    metadata,
    Column("id", String(ID_CHARACTERS), primary_key=True),
    Column("began_utc", Moment, nullable=False),
    Column("ended_utc", Moment, nullable=False, index=True),
    Column("reading", String(16), nullable=False),
    Column("every_days", Integer, nullable=False),
    Column("read_bytes", BigInteger, nullable=False),
    Column("problems", Integer, nullable=False),
    Column("affected", JSON, nullable=False),
    Column("noticed_utc", Moment, nullable=True),  # no part of the record: kept by `notices`
)

proofs = Table(
    "proofs",
    metadata,
    Column("id", String(ID_CHARACTERS), primary_key=True),
    Column("series", String(ID_CHARACTERS), nullable=False),
    Column("point", String(ID_CHARACTERS), nullable=False),
    Column("kind", String(16), nullable=False),
    Column("proven_utc", Moment, nullable=False),
    Column("took_ms", BigInteger, nullable=False),
    Index("ix_proofs_series", "series", "proven_utc"),
)
