"""A policy as the fields of a form, and back.

The rule: a form that was filled from a policy and is sent back as it is makes the same policy, with all that no field
shows (several windows, an RPO of minutes, points kept for some hours).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Final

from werkzeug.datastructures import MultiDict

from appliance.policy.policies import SPREAD_S, Policy, read_policy
from web.forms import FormWrong, flag, text, whole

COUNTS: Final = ("last", "hourly", "daily", "weekly", "monthly", "yearly")
_MB: Final = 1_000_000


def read_form(given: MultiDict[str, str], stored: Policy | None = None) -> Policy:
    """`stored`: what the form was filled from; of that, what no field shows in full stays, unless the fields that tell
    of it were changed. PolicyInvalid, FormWrong."""
    document: dict[str, object] = {"version": 1} if stored is None else stored.to_json()
    document |= {
        "name": text(given, "name", most=100),
        "quiesce": flag(given, "quiesce"),
        "per_host": whole(given, "per_host", 1, 1000),
        "verify_every_days": whole(given, "verify", 1, 36_600),
    }
    shown = {} if stored is None else fields_of(stored)
    for part, (fields, read) in _PARTS.items():
        if stored is None or any(_lines(given, name) != _lines(shown, name) for name in fields):
            document[part] = read(given, document.get(part))
    return read_policy(document)


def _lines(given: Mapping[str, str], name: str) -> list[str]:
    """As a browser sends it back, whatever it makes of the ends of lines."""
    return [line.strip() for line in given.get(name, "").strip().splitlines()]


def _select(given: MultiDict[str, str], _before: object) -> object:
    every = given.get("what", "all") == "all"
    return {"include": [{"all": True}] if every else clauses(given, "include"), "exclude": clauses(given, "exclude")}


def _schedule(given: MultiDict[str, str], _before: object) -> object:
    return {"cron": text(given, "cron", most=300), "zone": text(given, "zone", most=100) or "UTC"}


def _window(given: MultiDict[str, str], before: object) -> object:
    begins, ends = text(given, "window_from", most=10), text(given, "window_to", most=10)
    if not begins and not ends:
        return None
    days = before[0] if isinstance(before, list) and len(before) == 1 else {}
    return [{**days, "from": begins, "to": ends}]


def _limit(given: MultiDict[str, str], _before: object) -> object:
    limit = whole(given, "limit", 1, 1_000_000)
    return None if limit is None else limit * _MB


def _rpo(given: MultiDict[str, str], _before: object) -> object:
    hours = whole(given, "rpo", 1, 878_000)
    return None if hours is None else hours * 60


def _retention(given: MultiDict[str, str], before: object) -> object:
    hours = before.get("within_hours") if isinstance(before, dict) else None
    kept = {name: whole(given, name, 0, 100_000) or 0 for name in COUNTS}
    return {**kept, "within_hours": hours} if any(kept.values()) or hours is not None else None


def _copies(given: MultiDict[str, str], _before: object) -> object:
    return [name.strip() for name in text(given, "copies").split(",") if name.strip()]


_PARTS: Final[Mapping[str, tuple[tuple[str, ...], Callable[[MultiDict[str, str], object], object]]]] = {
    "select": (("what", "include", "exclude"), _select),
    "schedule": (("cron", "zone"), _schedule),
    "window": (("window_from", "window_to"), _window),
    "limit_bytes_s": (("limit",), _limit),
    "rpo_minutes": (("rpo",), _rpo),
    "retention": (COUNTS, _retention),
    "copies": (("copies",), _copies),
}
"""A part of the policy's document: the fields that tell of it, and how they are read."""


def clauses(given: MultiDict[str, str], name: str) -> list[dict[str, str]]:
    """One a line: `name web-*`, `host rack1 tag gold`. FormWrong."""
    clauses = []
    for line in text(given, name, most=20_000).splitlines():
        words = line.split()
        if not words:
            continue
        if words[0] not in ("name", "host", "tag", "image"):
            words = ["name", *words] if len(words) == 1 else words
        if len(words) % 2 or any(word not in ("name", "host", "tag", "image") for word in words[::2]):
            raise FormWrong(name, f"{line[:60]!r}: write name, host, tag or image, then a pattern, such as: name web-*")
        clauses.append(dict(zip(words[::2], words[1::2], strict=True)))
    return clauses


def fields_of(policy: Policy) -> dict[str, str]:
    """The form's fields of a policy."""
    document = policy.to_json()
    select, rules = policy.select.to_json(), policy.retention
    every = select["include"] == [{"all": True}]
    found = {
        "name": policy.name,
        "what": "all" if every else "some",
        "include": "" if every else lines(select["include"]),
        "exclude": lines(select["exclude"]),
        "cron": policy.schedule.cron,
        "zone": policy.schedule.zone,
        "per_host": str(policy.per_host),
        "quiesce": "on" if policy.quiesce else "",
        "verify": _or_empty(policy.verify_every_days),
        "limit": _or_empty(None if policy.limit_bytes_s is None else max(1, policy.limit_bytes_s // _MB)),
        "rpo": _or_empty(None if policy.rpo is None else int(policy.rpo.total_seconds() // 3600)),
        "copies": ", ".join(policy.copies),
        **{name: _or_empty(getattr(rules, name) or None) for name in COUNTS},
    }
    window = document["window"]
    if isinstance(window, list) and len(window) == 1:
        found |= {"window_from": window[0]["from"], "window_to": window[0]["to"]}
    return found


def unshown(policy: Policy) -> list[str]:
    """What of a policy no field shows in full."""
    window, rules, rpo = policy.to_json()["window"], policy.retention, policy.rpo
    found = []
    if isinstance(window, list) and len(window) > 1:
        found.append(f"{len(window)} windows")
    elif isinstance(window, list) and len(window[0]["days"]) < 7:
        found.append("the days of its window")
    if rules.within is not None:
        found.append(f"every restore point of the last {rules.within // timedelta(hours=1)} hours")
    if rpo is not None and rpo % timedelta(hours=1):
        found.append(f"an RPO of {rpo // timedelta(minutes=1)} minutes")
    if policy.spread_s != SPREAD_S:
        found.append(f"begins spread over {policy.spread_s} s")
    return found


def lines(clauses: object) -> str:
    assert isinstance(clauses, list)
    return "\n".join(" ".join(f"{key} {value}" for key, value in clause.items()) for clause in clauses)


def _or_empty(value: int | None) -> str:
    return "" if value is None else str(value)
