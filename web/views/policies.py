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
from appliance.policy.policies import Policy
from appliance.services.access import Act, Subject
from appliance.services.browsing import Standing
from appliance.services.policies import PolicyService
from web.acts import act
from web.current import appliance, browsing
from web.forms import FormWrong, flag, whole
from web.guarding import performing
from web.policy_form import COUNTS, fields_of, read_form, unshown

blueprint = Blueprint("policies", __name__)
_WHERE: Final = {
    "name": "name", "select": "include", "schedule": "cron", "window": "window_from", "limit_bytes_s": "limit",
    "per_host": "per_host", "rpo_minutes": "rpo", "retention": "daily", "verify_every_days": "verify",
    "copies": "copies",
}  # fmt: skip
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
    return _form(fields_of(known.policy) | {"version": str(known.version)}, name)


@blueprint.get("/policy/preview")
@act(Act.POLICY_SAVE)
def preview() -> str:
    """A part of the editor: what the fields would do, or what is wrong with one."""
    try:
        policy = read_form(request.args, _stored(request.args.get("former")))
    except (PolicyInvalid, FormWrong) as err:
        return render_template("policies/preview.html", wrong=err, preview=None)
    return render_template("policies/preview.html", wrong=None, preview=PolicyService(appliance()).preview(policy))


@blueprint.post("/policies")
@act(Act.POLICY_SAVE)
def save() -> Response | str:
    former = request.form.get("former") or None
    service = PolicyService(appliance())
    stored = _stored(former)
    try:
        policy = read_form(request.form, stored)
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
    service, looked, stored = PolicyService(appliance()), None, _stored(former)
    if wrong is None:
        try:
            looked = service.preview(read_form(MultiDict(given), stored))
        except (PolicyInvalid, FormWrong):
            looked = None
    return render_template(
        "policies/form.html", given=given, former=former, wrong=wrong, field_wrong=field, losing=losing,
        preview=looked, counts=COUNTS, zones=_zones(),
        repositories=[name for name, _ in appliance().settings.policies.copies],
        unshown=[] if stored is None else unshown(stored),
        title=f"Policy {former}" if former else "New policy",
    )  # fmt: skip


def _stored(former: str | None) -> Policy | None:
    """What the form was filled from. RecordMissing."""
    return PolicyService(appliance()).get(former).policy if former else None


@cache
def _zones() -> tuple[str, ...]:
    """A folder of the system is searched for them."""
    return tuple(sorted(available_timezones()))
