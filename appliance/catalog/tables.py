"""The catalog's tables, as SQLAlchemy sees them.

The rule: nothing here is particular to one engine: text, integers, moments with a zone, JSON. What lists of values hold
(disks, notes) is never searched for, and so is JSON. What is under way is of the appliance that began it; machines and
points are everybody's. A change here needs a migration; a test compares the two.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Date,
    DateTime,
    Dialect,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    TypeDecorator,
    false,
    text,
    true,
)

ID_CHARACTERS = 32
UUID_CHARACTERS = 36

metadata = MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "ix": "ix_%(table_name)s_%(column_0_name)s",
        "uq": "uq_%(table_name)s_%(column_0_name)s",
    }
)


class Moment(TypeDecorator[datetime]):
    """An aware moment, given and returned in UTC (SQLite forgets the zone)."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError("the catalog takes no moments without a time zone")
        return value.astimezone(UTC)

    def process_result_value(self, value: Any | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        moment: datetime = value
        return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)


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

runs = Table(
    "runs",
    metadata,
    Column("id", String(ID_CHARACTERS), primary_key=True),
    Column("appliance", String(ID_CHARACTERS), nullable=False),
    Column("name", Text, nullable=False),
    Column("machine_kind", String(16), nullable=False),
    Column("uuid", String(UUID_CHARACTERS), nullable=True),
    Column("host", String(64), nullable=True),
    Column("state", String(16), nullable=False),
    Column("started_utc", Moment, nullable=False),
    Column("ended_utc", Moment, nullable=True),
    Column("point", String(ID_CHARACTERS), nullable=True),
    Column("error", Text, nullable=True),
    Column("disks", JSON, nullable=False),
    Column("notes", JSON, nullable=False),
    Column("dismissed_utc", Moment, nullable=True),
    Column("asked_utc", Moment, nullable=True),
    Column("full_read", Boolean(create_constraint=False), nullable=False, server_default=false()),
    Column("limit_bytes_s", BigInteger, nullable=True),
    Column("image_path", Text, nullable=True),
    Column("image_format", String(16), nullable=True),
    Column("attempts", Integer, nullable=False, server_default="0"),
    Column("not_before_utc", Moment, nullable=True),
    Column("cancel_requested_utc", Moment, nullable=True),
    Column("kind", String(16), nullable=False, server_default="backup"),
    Column("arguments", JSON(none_as_null=True), nullable=True),
    Column("result", Text, nullable=True),
    Column("due", JSON, nullable=True),
    Column("quiesce", Boolean(create_constraint=False), nullable=False, server_default=true()),
    # Each in the order of a list, so that a page of it, and the last run of a machine, is a look into an index.
    Column("machine", Text, nullable=False, server_default=text("''")),
    Index("ix_runs_started_utc", "started_utc", "id"),
    Index("ix_runs_state", "state", "started_utc", "id"),
    Index("ix_runs_machine", "machine", "started_utc", "id"),
    Index("ix_runs_host", "host", "started_utc", "id"),
    Index("ix_runs_kind", "kind", "started_utc", "id"),
    Column("noticed_utc", Moment, nullable=True),  # no part of the record: kept by `notices`
    Index("ix_runs_noticed_utc", "noticed_utc", "ended_utc"),
)

request_keys = Table(
    "request_keys",
    metadata,
    Column("actor", String(128), primary_key=True),
    Column("key", String(200), primary_key=True),
    Column("asked", String(64), nullable=False),
    Column("run", String(ID_CHARACTERS), nullable=False),
    Column("created_utc", Moment, nullable=False, index=True),
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

recoveries = Table(
    "recoveries",
    metadata,
    Column("id", String(ID_CHARACTERS), primary_key=True),
    Column("appliance", String(ID_CHARACTERS), nullable=False),
    Column("state", String(16), nullable=False, index=True),
    Column("point", String(ID_CHARACTERS), nullable=False),
    Column("manifest_name", String(128), nullable=False),
    Column("source_name", Text, nullable=False),
    Column("host", String(64), nullable=False),
    Column("machine_name", Text, nullable=False),
    Column("machine_uuid", String(UUID_CHARACTERS), nullable=False),
    Column("network", String(64), nullable=False),
    Column("started_utc", Moment, nullable=False),
    Column("updated_utc", Moment, nullable=False),
    Column("hold", String(ID_CHARACTERS), nullable=True),
    Column("disks", JSON, nullable=False),
    Column("definition_xml", Text, nullable=False),
    Column("final_xml", Text, nullable=False),
    Column("folder", Text, nullable=False),
    Column("method", String(16), nullable=True),
    Column("start_ms", BigInteger, nullable=True),
    Column("error", Text, nullable=True),
    Column("notes", JSON, nullable=False),
)

exports = Table(
    "exports",
    metadata,
    Column("id", String(ID_CHARACTERS), primary_key=True),
    Column("appliance", String(ID_CHARACTERS), nullable=False),
    Column("kind", String(16), nullable=False),
    Column("point", String(ID_CHARACTERS), nullable=False),
    Column("manifest_name", String(128), nullable=False),
    Column("name", Text, nullable=False),
    Column("disks", JSON, nullable=False),
    Column("started_utc", Moment, nullable=False),
    Column("hold", String(ID_CHARACTERS), nullable=True),
    Column("address", Text, nullable=False),
    Column("sockets", JSON, nullable=False),
)

owed_thaws = Table(
    "owed_thaws",
    metadata,
    Column("appliance", String(ID_CHARACTERS), primary_key=True),
    Column("machine_uuid", String(UUID_CHARACTERS), primary_key=True),
    Column("host", String(64), primary_key=True),
    Column("name", Text, nullable=False),
    Column("since_utc", Moment, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("last_error", Text, nullable=True),
)

cleanups = Table(
    "cleanups",
    metadata,
    Column("id", String(ID_CHARACTERS), primary_key=True),
    Column("appliance", String(ID_CHARACTERS), nullable=False),
    Column("owner", String(64), nullable=False, index=True),
    Column("action", String(32), nullable=False),
    Column("created_utc", Moment, nullable=False),
    Column("host", String(64), nullable=True),
    Column("machine_uuid", String(UUID_CHARACTERS), nullable=True),
    Column("machine_name", Text, nullable=True),
    Column("subject", Text, nullable=False),
    Column("paths", JSON, nullable=False),
    Column("disks", JSON, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("last_error", Text, nullable=True),
)

policies = Table(
    "policies",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("document", JSON, nullable=False),
    Column("version", Integer, nullable=False),
    Column("since_utc", Moment, nullable=False),
    Column("changed_utc", Moment, nullable=False),
    Column("paused_utc", Moment, nullable=True),
)

machine_pauses = Table(
    "machine_pauses",
    metadata,
    Column("machine", Text, primary_key=True),
    Column("name", Text, nullable=False),
    Column("paused_utc", Moment, nullable=False),
)

audit = Table(
    "audit",
    metadata,
    Column("number", BigInteger, primary_key=True, autoincrement=False),
    Column("id", String(ID_CHARACTERS), nullable=False, unique=True),
    Column("at_utc", Moment, nullable=False),
    Column("ended_utc", Moment, nullable=True),
    Column("appliance", String(ID_CHARACTERS), nullable=False),
    Column("act", String(64), nullable=False),
    Column("result", String(16), nullable=False),
    Column("error", Text, nullable=False),
    Column("actor_kind", String(16), nullable=False),
    Column("actor_id", Text, nullable=False),
    Column("actor_name", Text, nullable=False),
    Column("actor_role", String(16), nullable=False),
    Column("via", String(16), nullable=False),
    Column("address", Text, nullable=False),
    Column("subject_kind", String(32), nullable=False),
    Column("subject_id", Text, nullable=False),
    Column("subject_name", Text, nullable=False),
    Column("machine", Text, nullable=True),
    Column("details", JSON, nullable=False),
    Column("hash", String(64), nullable=False),
    Index("ix_audit_act", "act", "number"),
    Index("ix_audit_actor_name", "actor_name", "number"),
    Index("ix_audit_machine", "machine", "number"),
    Index("ix_audit_subject_id", "subject_id", "number"),
)

notice_concerns = Table(
    "notice_concerns",
    metadata,
    Column("id", String(ID_CHARACTERS), primary_key=True),
    Column("kind", String(16), nullable=False),
    Column("key", Text, nullable=False),
    Column("subject", Text, nullable=False),
    Column("detail", Text, nullable=False),
    Column("lasting", Boolean(create_constraint=False), nullable=False),
    Column("seen_utc", Moment, nullable=False),
    Column("told_utc", Moment, nullable=True),
)

notices = Table(
    "notices",
    metadata,
    Column("id", String(ID_CHARACTERS), primary_key=True),
    Column("kind", String(16), nullable=False),
    Column("urgency", String(16), nullable=False),
    Column("created_utc", Moment, nullable=False, index=True),
    Column("title", Text, nullable=False),
    Column("body", Text, nullable=False),
    Column("concerns", Integer, nullable=False),
)

notice_deliveries = Table(
    "notice_deliveries",
    metadata,
    Column("notice", String(ID_CHARACTERS), ForeignKey("notices.id", ondelete="CASCADE"), primary_key=True),
    Column("target", String(32), primary_key=True),
    Column("state", String(16), nullable=False, index=True),
    Column("attempts", Integer, nullable=False),
    Column("next_utc", Moment, nullable=False),
    Column("error", Text, nullable=True),
)

notice_state = Table(
    "notice_state",
    metadata,
    Column("name", String(32), primary_key=True),
    Column("value", JSON, nullable=False),
)

users = Table(
    "users",
    metadata,
    Column("id", String(ID_CHARACTERS), primary_key=True),
    Column("name", String(64), nullable=False, unique=True),
    Column("role", String(16), nullable=False),
    Column("grants", JSON, nullable=False),
    Column("created_utc", Moment, nullable=False),
    Column("disabled_utc", Moment, nullable=True),
    Column("password_hash", Text, nullable=True),
    Column("totp_secret", String(64), nullable=True),  # as it is: of a program that did not seal it yet
    Column("totp_sealed", Text, nullable=True),
    Column("totp_step", BigInteger, nullable=True),
    Column("signed_in_utc", Moment, nullable=True),
)

recovery_codes = Table(
    "recovery_codes",
    metadata,
    Column("hash", String(64), primary_key=True),
    Column("user", String(ID_CHARACTERS), ForeignKey("users.id", ondelete="CASCADE"), nullable=False, index=True),
)

setup_links = Table(
    "setup_links",
    metadata,
    Column("hash", String(64), primary_key=True),
    Column("user", String(ID_CHARACTERS), ForeignKey("users.id", ondelete="CASCADE"), nullable=True),
    Column("created_utc", Moment, nullable=False),
    Column("expires_utc", Moment, nullable=False),
    Column("totp_secret", String(64), nullable=False),  # as above; else nothing
    Column("totp_sealed", Text, nullable=True),
)

catalog_keys = Table(
    "catalog_keys",
    metadata,
    Column("id", String(16), primary_key=True),
    Column("created_utc", Moment, nullable=False),
    Column("repository", String(ID_CHARACTERS), nullable=True),
    Column("wrapped", Text, nullable=True),
)

sessions = Table(
    "sessions",
    metadata,
    Column("id", String(ID_CHARACTERS), primary_key=True),
    Column("hash", String(64), nullable=False, unique=True),
    Column("user", String(ID_CHARACTERS), ForeignKey("users.id", ondelete="CASCADE"), nullable=False, index=True),
    Column("created_utc", Moment, nullable=False),
    Column("seen_utc", Moment, nullable=False),
    Column("authenticated_utc", Moment, nullable=False),
    Column("address", String(64), nullable=False),
    Column("agent", Text, nullable=False),
)

signers = Table(
    "signers",
    metadata,
    Column("person", String(ID_CHARACTERS), primary_key=True),
    Column("user", String(ID_CHARACTERS), ForeignKey("users.id", ondelete="CASCADE"), nullable=False, unique=True),
    Column("since_utc", Moment, nullable=False),
)

tokens = Table(
    "tokens",
    metadata,
    Column("id", String(ID_CHARACTERS), primary_key=True),
    Column("hash", String(64), nullable=False, unique=True),
    Column("name", String(64), nullable=False),
    Column("owner", String(ID_CHARACTERS), ForeignKey("users.id", ondelete="CASCADE"), nullable=True),
    Column("role", String(16), nullable=False),
    Column("acts", JSON, nullable=True),
    Column("grants", JSON, nullable=False),
    Column("created_utc", Moment, nullable=False),
    Column("expires_utc", Moment, nullable=False),
    Column("revoked_utc", Moment, nullable=True),
    Column("used_utc", Moment, nullable=True),
    Column("used_from", String(64), nullable=False),
)

sign_in_failures = Table(
    "sign_in_failures",
    metadata,
    Column("key", String(64), primary_key=True),
    Column("failures", Integer, nullable=False),
    Column("last_utc", Moment, nullable=False, index=True),
)

known_addresses = Table(
    "known_addresses",
    metadata,
    Column("user", String(ID_CHARACTERS), ForeignKey("users.id", ondelete="CASCADE"), primary_key=True),
    Column("address", String(64), primary_key=True),
    Column("last_utc", Moment, nullable=False),
)

schedulers = Table(
    "schedulers",
    metadata,
    Column("appliance", String(ID_CHARACTERS), primary_key=True),
    Column("since_utc", Moment, nullable=False),
    Column("looked_utc", Moment, nullable=False),
)
