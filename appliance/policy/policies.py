"""A policy: what an admin wants for some machines, as one value, and its JSON form. Pure.

The rule: a policy that was read is valid as a whole; its JSON form has a version, units are in the names of fields, and
writing what was read loses nothing. What is left out has the default below.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Final

from appliance.policy.crowds import Crowd
from appliance.policy.documents import Document, check_text
from appliance.policy.errors import PolicyInvalid
from appliance.policy.retention import Rules
from appliance.policy.schedules import Schedule, read_schedule
from appliance.policy.selectors import Machine, Selector, read_selector
from appliance.policy.windows import Window, read_window

VERSION: Final = 1
PER_HOST: Final = 2
SPREAD_S: Final = 300
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_COUNTS: Final = ("last", "hourly", "daily", "weekly", "monthly", "yearly")
_COPIES_MAX: Final = 8
_DAYS_MAX: Final = 36_600


@dataclass(frozen=True, slots=True)
class Policy:
    name: str
    select: Selector
    schedule: Schedule
    retention: Rules = field(default_factory=Rules)  # empty: nothing is pruned
    window: Window | None = None  # None: always open; its times are in the schedule's zone
    limit_bytes_s: int | None = None
    per_host: int = PER_HOST  # runs at once on a host
    spread_s: int = SPREAD_S  # over which machines that are due together begin
    quiesce: bool = True
    verify_every_days: int | None = None
    copies: tuple[str, ...] = ()  # other repositories, by the names that the appliance knows them by
    rpo: timedelta | None = None  # how old the newest point of a machine may be; whole minutes

    def to_json(self) -> dict[str, object]:
        return {
            "version": VERSION,
            "name": self.name,
            "select": self.select.to_json(),
            "schedule": self.schedule.to_json(),
            "window": None if self.window is None else self.window.to_json(),
            "limit_bytes_s": self.limit_bytes_s,
            "per_host": self.per_host,
            "spread_s": self.spread_s,
            "quiesce": self.quiesce,
            "verify_every_days": self.verify_every_days,
            "copies": list(self.copies),
            "rpo_minutes": None if self.rpo is None else self.rpo // timedelta(minutes=1),
            "retention": None if self.retention.empty else _retention_json(self.retention),
        }


def assign(policies: Iterable[Policy], machines: Iterable[Machine]) -> dict[str, tuple[str, ...]]:
    """The names of the policies that select each machine, in order, by its key. What is worth doing once for many
    looks."""
    crowd = Crowd(machines)
    names: list[list[str]] = [[] for _ in crowd.machines]
    for policy in sorted(policies, key=lambda each: each.name):
        for number in crowd.selected(policy.select):
            names[number].append(policy.name)
    return {machine.key: tuple(mine) for machine, mine in zip(crowd.machines, names, strict=True)}


def assign_keeping(policies: Iterable[Policy], machines: Iterable[Machine]) -> dict[str, tuple[str, ...]]:
    """As `assign`, for what keeps restore points: of a machine that is gone, whose tags nobody knows any more, every
    policy has a say that may have selected it. So what was removed by mistake keeps what it had."""
    known = sorted(policies, key=lambda each: each.name)
    return {
        machine.key: tuple(policy.name for policy in known if policy.select.may_select(machine))
        for machine in machines
    }  # fmt: skip


def read_policy(value: object) -> Policy:
    """From its JSON form, decoded. PolicyInvalid."""
    document = Document(value, "policy")
    version = document.integer("version", 1, 1_000_000)
    if version != VERSION:
        raise PolicyInvalid(
            "policy.version", f"it must be {VERSION}, not {version}",
            hint="A newer strongroom wrote it: read it with that one." if version else f'Add "version": {VERSION}.',
        )  # fmt: skip
    name = document.text("name") or ""
    if _NAME.fullmatch(name) is None:
        raise PolicyInvalid(
            "policy.name", f"{name[:60]!r} is no name",
            hint="1 to 64 letters, digits, dots, dashes and underscores, the first a letter or digit.",
        )  # fmt: skip
    per_host = document.integer("per_host", 1, 1000)
    spread_s = document.integer("spread_s", 0, 86_400)
    quiesce = document.switch("quiesce")
    rpo_minutes = document.integer("rpo_minutes", 1, _DAYS_MAX * 1440)
    policy = Policy(
        name=name,
        select=read_selector(document.get("select"), "policy.select"),
        schedule=read_schedule(document.get("schedule"), "policy.schedule"),
        retention=_read_retention(document.get("retention"), "policy.retention"),
        window=read_window(document, "window"),
        limit_bytes_s=document.integer("limit_bytes_s", 1024, 1 << 50),
        per_host=PER_HOST if per_host is None else per_host,
        spread_s=SPREAD_S if spread_s is None else spread_s,
        quiesce=True if quiesce is None else quiesce,
        verify_every_days=document.integer("verify_every_days", 1, _DAYS_MAX),
        copies=_read_copies(document),
        rpo=None if rpo_minutes is None else timedelta(minutes=rpo_minutes),
    )
    document.finish()
    return policy


def _retention_json(rules: Rules) -> dict[str, object]:
    hours = None if rules.within is None else rules.within // timedelta(hours=1)
    return {**{kind: getattr(rules, kind) for kind in _COUNTS}, "within_hours": hours}


def _read_copies(document: Document) -> tuple[str, ...]:
    copies = tuple(check_text(item, at) for at, item in document.items("copies"))
    if len(copies) > _COPIES_MAX or len(set(copies)) != len(copies):
        raise PolicyInvalid(
            document.at("copies"), f"it must name at most {_COPIES_MAX} other repositories, each one once"
        )
    return copies


def _read_retention(value: object, where: str) -> Rules:
    if value is None:
        return Rules()
    document = Document(value, where)
    counts = {kind: document.integer(kind, 0, 100_000) or 0 for kind in _COUNTS}
    hours = document.integer("within_hours", 1, _DAYS_MAX * 24)
    document.finish()
    rules = Rules(**counts, within=None if hours is None else timedelta(hours=hours))
    if rules.empty:
        raise PolicyInvalid(
            where, "no rule says what is kept, so all but the newest point would go",
            hint='Give at least one, as {"daily": 14}; leave retention out, and nothing is pruned.',
        )  # fmt: skip
    return rules
