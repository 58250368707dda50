"""Who may sign in, as the catalog keeps it: plain frozen values.

The rule: of what proves somebody (passwords, codes, links, sessions, tokens) only hashes are kept, but for the secret
of the second factor, which codes are made of: that is sealed (`appliance.sealed`). No such value is shown by repr.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from appliance.acts import Act, Role
from appliance.policy.selectors import Selector, read_selector

USER_NAME = re.compile(r"[a-z0-9][a-z0-9._@-]{0,63}")


@dataclass(frozen=True, slots=True)
class UserRecord:
    """`password_hash` and `totp_sealed`: None until the set-up link was used. `totp_step`: the last one of which a code
    was used. `grants`: JSON of selectors."""

    id: str
    name: str
    role: Role
    grants: tuple[dict[str, Any], ...]
    created_utc: datetime
    disabled_utc: datetime | None = None
    password_hash: str | None = field(default=None, repr=False)
    totp_sealed: str | None = field(default=None, repr=False)
    totp_step: int | None = None
    signed_in_utc: datetime | None = None

    @property
    def ready(self) -> bool:
        """Whether they have set up what they sign in with."""
        return self.password_hash is not None and self.totp_sealed is not None

    @property
    def enabled(self) -> bool:
        return self.disabled_utc is None

    @property
    def selectors(self) -> tuple[Selector, ...]:
        return tuple(read_selector(each, "grants") for each in self.grants)


@dataclass(frozen=True, slots=True)
class SetupLink:
    """`user`: whose it is; None: of the first admin, who is not there yet. `totp_sealed`: what is offered for the
    account."""

    hash: str = field(repr=False)
    user: str | None
    created_utc: datetime
    expires_utc: datetime
    totp_sealed: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class SessionRecord:
    """`id`: for lists and the audit, and no secret. `seen_utc`: to the minute."""

    id: str
    hash: str = field(repr=False)
    user: str
    created_utc: datetime
    seen_utc: datetime
    authenticated_utc: datetime
    address: str
    agent: str


@dataclass(frozen=True, slots=True)
class TokenRecord:
    """`acts`: only these of the role's; None: all of them that need no renewed proof. `owner`: the user without whom it
    is worth nothing; None: whoever could make it on the appliance itself."""

    id: str
    hash: str = field(repr=False)
    name: str
    owner: str | None
    role: Role
    acts: tuple[str, ...] | None
    grants: tuple[dict[str, Any], ...]
    created_utc: datetime
    expires_utc: datetime
    revoked_utc: datetime | None = None
    used_utc: datetime | None = None
    used_from: str = ""

    @property
    def selectors(self) -> tuple[Selector, ...]:
        return tuple(read_selector(each, "grants") for each in self.grants)

    @property
    def named(self) -> frozenset[Act] | None:
        """An act that this program does not know is none."""
        return None if self.acts is None else frozenset(Act(name) for name in self.acts if name in set(Act))


@dataclass(frozen=True, slots=True)
class Attempts:
    """Sign-ins and signatures that failed, by what they have in common. `key`: a hash of it."""

    key: str
    failures: int
    last_utc: datetime
