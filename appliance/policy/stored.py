"""Policies and pauses as the catalog keeps them. Pure values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True, slots=True)
class StoredPolicy:
    """`document`: its JSON form, which may be of another program and so not readable. `version` grows with every
    change. `since_utc`: due times before that are nobody's; `paused_utc`: None: it is not."""

    name: str
    document: Mapping[str, object]
    version: int
    since_utc: datetime
    changed_utc: datetime
    paused_utc: datetime | None = None


@dataclass(frozen=True, slots=True)
class MachinePause:
    """`machine`: the key of `selectors.Machine`; `name` as it was when it was paused, for people."""

    machine: str
    name: str
    paused_utc: datetime
