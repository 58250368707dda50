"""The catalog's tables, as SQLAlchemy sees them.

The rule: nothing here is particular to one engine: text, integers, moments with a zone, JSON. What lists of values hold
(disks, notes) is never searched for, and so is JSON. What is under way is of the appliance that began it; machines and
points are everybody's. A change here needs a migration; a test compares the two.
"""

from __future__ import annotations

from appliance.catalog.tables.common import ID_CHARACTERS, UUID_CHARACTERS, Moment, metadata
from appliance.catalog.tables.of_machines import (
    appliances,
    host_looks,
    hosts,
    machines,
    points,
    proofs,
    repositories,
    repository_sizes,
    seen_machines,
    verifications,
)
from appliance.catalog.tables.of_people import (
    audit,
    catalog_keys,
    known_addresses,
    notice_concerns,
    notice_deliveries,
    notice_state,
    notices,
    recovery_codes,
    sessions,
    setup_links,
    sign_in_failures,
    signers,
    tokens,
    users,
)
from appliance.catalog.tables.of_work import (
    cleanups,
    exports,
    machine_pauses,
    owed_thaws,
    policies,
    recoveries,
    request_keys,
    runs,
    schedulers,
)

__all__ = [
    "ID_CHARACTERS",
    "UUID_CHARACTERS",
    "Moment",
    "appliances",
    "audit",
    "catalog_keys",
    "cleanups",
    "exports",
    "host_looks",
    "hosts",
    "known_addresses",
    "machine_pauses",
    "machines",
    "metadata",
    "notice_concerns",
    "notice_deliveries",
    "notice_state",
    "notices",
    "owed_thaws",
    "points",
    "policies",
    "proofs",
    "recoveries",
    "recovery_codes",
    "repositories",
    "repository_sizes",
    "request_keys",
    "runs",
    "schedulers",
    "seen_machines",
    "sessions",
    "setup_links",
    "sign_in_failures",
    "signers",
    "tokens",
    "users",
    "verifications",
]
