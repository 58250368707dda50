"""Who works with the appliance, what they did, and what they are told."""

from __future__ import annotations

from sqlalchemy import JSON, BigInteger, Boolean, Column, ForeignKey, Index, Integer, String, Table, Text

from appliance.catalog.tables.common import ID_CHARACTERS, Moment, metadata

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
