"""Policies: the list, one of them, and the editor that tells what it would do while it is typed."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from functools import cache
from typing import Final
from zoneinfo import available_timezones

from flask import Blueprint, flash, redirect, render_template, request, url_for
from werkzeug.datastructures import MultiDict
from werkzeug.wrappers import Response

from appliance.policy.errors import PolicyInvalid
from appliance.policy.policies import Policy, read_policy
from appliance.services.access import Act, Subject
from appliance.services.browsing import Standing
from appliance.services.policies import PolicyService
from web.acts import act
from web.current import appliance, browsing
from web.forms import FormWrong, flag, text, whole
from web.guarding import performing

blueprint = Blueprint("policies", __name__)
_COUNTS: Final = ("last", "hourly", "daily", "weekly", "monthly", "yearly")
_WHERE: Final = {
    "name": "name", "select": "include", "schedule": "cron", "window": "window_from", "limit_bytes_s": "limit",
    "per_host": "per_host", "rpo_minutes": "rpo", "retention": "daily", "verify_every_days": "verify",
}  # fmt: skip
_MB: Final = 1_000_000
_NEW: Final = {
    "what": "all", "cron": "0 22 * * *", "daily": "14", "weekly": "8", "monthly": "12", "rpo": "26", "per_host": "2",
    "quiesce": "on", "verify": "30",
}  # fmt: skip


@blueprint.get("/policies")
@act(Act.POLICY_SEE)
def listing() -> str:
    found, now = PolicyService(appliance()).list(), appliance().clock.now_utc()
    rows = (row for row in browsing().fleet().rows if row.standing is not Standing.RECOVERED)
    counts = Counter(name for row in rows for name in row.policies)
    due = {each.name: each.policy.schedule.around(now).next_utc for each in found.readable}
    return render_template("policies/listing.html", found=found, counts=counts, due=due, title="Policies")


@blueprint.get("/policies/<name>")
@act(Act.POLICY_SEE)
def page(name: str) -> str:
    service = PolicyService(appliance())
    known = service.get(name)
    return render_template(
        "policies/page.html", known=known, policy=known.policy, preview=service.preview(known.policy),
        document=json.dumps(known.policy.to_json(), indent=2), title=name,
    )  # fmt: skip


@blueprint.get("/policy/new")
@act(Act.POLICY_SAVE)
def form() -> str:
    given = dict(_NEW, name="nightly")
    machine = request.args.get("vm")
    if machine:
        given |= {"what": "some", "include": f"name {machine}", "name": re.sub(r"[^A-Za-z0-9._-]", "-", machine)[:50]}
    return _form(given, None)


@blueprint.get("/policies/<name>/edit")
@act(Act.POLICY_SAVE)
def edit(name: str) -> str:
    known = PolicyService(appliance()).get(name)
    return _form(_given(known.policy) | {"version": str(known.version)}, name)


@blueprint.get("/policy/preview")
@act(Act.POLICY_SAVE)
def preview() -> str:
    """A part of the editor: what the fields would do, or what is wrong with one."""
    try:
        policy = read_form(request.args)
    except (PolicyInvalid, FormWrong) as err:
        return render_template("policies/preview.html", wrong=err, preview=None)
    return render_template("policies/preview.html", wrong=None, preview=PolicyService(appliance()).preview(policy))


@blueprint.post("/policies")
@act(Act.POLICY_SAVE)
def save() -> Response | str:
    former = request.form.get("former") or None
    service = PolicyService(appliance())
    try:
        policy = read_form(request.form)
        losing = () if former is None else service.losing(former, policy)
    except (PolicyInvalid, FormWrong) as err:
        return _form(request.form.to_dict(), former, err)
    if losing and not flag(request.form, "lose"):
        return _form(request.form.to_dict(), former, losing=losing)
    with performing(Act.POLICY_SAVE, Subject("policy", policy.name, policy.name), {"policy": policy.to_json()}):
        if former is None:
            service.add(policy)
        else:
            service.replace(former, policy, seen=whole(request.form, "version", 1, 1 << 31))
    flash(f"Policy {policy.name} is saved.", "good")
    return redirect(url_for("policies.page", name=policy.name))


@blueprint.post("/policies/<name>/pause")
@act(Act.POLICY_PAUSE)
def pause(name: str) -> Response:
    with performing(Act.POLICY_PAUSE, Subject("policy", name, name)):
        PolicyService(appliance()).pause(name)
    return redirect(url_for("policies.page", name=name))


@blueprint.post("/policies/<name>/resume")
@act(Act.POLICY_RESUME)
def resume(name: str) -> Response:
    with performing(Act.POLICY_RESUME, Subject("policy", name, name)):
        PolicyService(appliance()).resume(name)
    return redirect(url_for("policies.page", name=name))


@blueprint.post("/policies/<name>/remove")
@act(Act.POLICY_REMOVE)
def remove(name: str) -> Response:
    with performing(Act.POLICY_REMOVE, Subject("policy", name, name)):
        PolicyService(appliance()).remove(name, seen=whole(request.form, "version", 1, 1 << 31))
    flash(f"Policy {name} is removed; restore points stay.", "good")
    return redirect(url_for("policies.listing"))


def _form(given: Mapping[str, str], former: str | None, wrong: object = None, losing: object = ()) -> str:
    field = ""
    if isinstance(wrong, PolicyInvalid):
        field = next((input for part, input in _WHERE.items() if f".{part}" in f".{wrong.where}"), "")
    elif isinstance(wrong, FormWrong):
        field = wrong.field
    service, looked = PolicyService(appliance()), None
    if wrong is None:
        try:
            looked = service.preview(read_form(MultiDict(given)))
        except (PolicyInvalid, FormWrong):
            looked = None
    return render_template(
        "policies/form.html", given=given, former=former, wrong=wrong, field_wrong=field, losing=losing,
        preview=looked, counts=_COUNTS, zones=_zones(),
        title=f"Policy {former}" if former else "New policy",
    )  # fmt: skip


@cache
def _zones() -> tuple[str, ...]:
    """A folder of the system is searched for them."""
    return tuple(sorted(available_timezones()))


def read_form(given: MultiDict[str, str]) -> Policy:
    """PolicyInvalid, FormWrong."""
    document: dict[str, object] = {
        "version": 1,
        "name": text(given, "name", most=100),
        "select": {
            "include": [{"all": True}] if given.get("what", "all") == "all" else clauses(given, "include"),
            "exclude": clauses(given, "exclude"),
        },
        "schedule": {"cron": text(given, "cron", most=300), "zone": text(given, "zone", most=100) or "UTC"},
        "quiesce": flag(given, "quiesce"),
        "per_host": whole(given, "per_host", 1, 1000),
        "verify_every_days": whole(given, "verify", 1, 36_600),
    }
    begins, ends = text(given, "window_from", most=10), text(given, "window_to", most=10)
    if begins or ends:
        document["window"] = [{"from": begins, "to": ends}]
    limit, rpo = whole(given, "limit", 1, 1_000_000), whole(given, "rpo", 1, 878_000)
    if limit is not None:
        document["limit_bytes_s"] = limit * _MB
    if rpo is not None:
        document["rpo_minutes"] = rpo * 60
    kept = {name: whole(given, name, 0, 100_000) or 0 for name in _COUNTS}
    if any(kept.values()):
        document["retention"] = kept
    return read_policy(document)


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


def _given(policy: Policy) -> dict[str, str]:
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
        **{name: _or_empty(getattr(rules, name) or None) for name in _COUNTS},
    }
    window = document["window"]
    if isinstance(window, list) and len(window) == 1:
        found |= {"window_from": window[0]["from"], "window_to": window[0]["to"]}
    return found


def lines(clauses: object) -> str:
    assert isinstance(clauses, list)
    return "\n".join(" ".join(f"{key} {value}" for key, value in clause.items()) for clause in clauses)


def _or_empty(value: int | None) -> str:
    return "" if value is None else str(value)
