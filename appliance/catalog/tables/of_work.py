"""What is done and has to be done: runs, recoveries, exports, what is owed after them, and policies that want runs."""

from __future__ import annotations

from sqlalchemy import JSON, BigInteger, Boolean, Column, Index, Integer, String, Table, Text, false, text, true

from appliance.catalog.tables.common import ID_CHARACTERS, UUID_CHARACTERS, Moment, metadata

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

recoveries = Table(
    "recoveries",
    metadata,
    Column("id", String(ID_CHARACTERS), primary_key=True),
    Column("appliance", String(ID_CHARACTERS), nullable=False),
    Column("state", String(16), nullable=False),
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
    Index("ix_recoveries_started_utc", "started_utc", "id"),
    Index("ix_recoveries_state", "state", "started_utc", "id"),
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

schedulers = Table(
    "schedulers",
    metadata,
    Column("appliance", String(ID_CHARACTERS), primary_key=True),
    Column("since_utc", Moment, nullable=False),
    Column("looked_utc", Moment, nullable=False),
)
