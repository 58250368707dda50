"""The planner: what the fleet will need, reckoned while it is asked."""

from __future__ import annotations

from typing import Final

from flask import Blueprint, render_template, request
from werkzeug.datastructures import MultiDict

from appliance.planning.capacity import MONTHS_MAX
from appliance.planning.plans import Numbers, Plan
from appliance.policy.retention import Rules
from appliance.services.access import Act
from web.acts import act
from web.current import planning
from web.forms import FormWrong, real, whole
from web.guarding import sees

blueprint = Blueprint("plan", __name__)
_KINDS: Final = ("last", "hourly", "daily", "weekly", "monthly", "yearly")
_HOUR_S: Final = 3600.0
_GB: Final = 1_000_000_000
_MB: Final = 1_000_000
_MONTHS: Final = 12
_SHOWN: Final = 20
_KEEP_MAX: Final = 1000
_USUAL: Final = {"months": "12", "change": "2", "reduction": "2", "runs_a_day": "1", "read_speed": "100"}


@blueprint.get("/plan")
@act(Act.PLAN_SEE)
def page() -> str:
    """The page at once, which asks for the answer; or the answer, also for one who types. Without a script: both."""
    alone = request.headers.get("HX-Target") == "answer"
    found, wrong = None, None
    if alone or request.args:
        try:
            found = _plan(request.args)
        except FormWrong as err:
            wrong = err
    return render_template(
        "plan/answer.html" if alone else "plan/page.html", plan=found, wrong=wrong,
        given={**_USUAL, **request.args.to_dict()}, kinds=_KINDS, shown=_SHOWN, months_max=MONTHS_MAX,
        drawn=None if found is None else _drawn(found), typed=bool(request.args.get("machines")), title="Plan",
    )  # fmt: skip


def _plan(given: MultiDict[str, str]) -> Plan:
    """FormWrong."""
    months = whole(given, "months", 1, MONTHS_MAX) or _MONTHS
    last, hourly, daily, weekly, monthly, yearly = (whole(given, kind, 0, _KEEP_MAX) or 0 for kind in _KINDS)
    rules = Rules(last, hourly, daily, weekly, monthly, yearly)
    window_s = real(given, "window", 0.1, 24)
    window_s = None if window_s is None else window_s * _HOUR_S
    restore = whole(given, "restore_speed", 1, 1_000_000)
    restore_bytes_s = None if restore is None else restore * _MB
    service = planning()
    if (numbers := _numbers(given)) is not None:
        return service.plan_typed(numbers, rules, months=months, window_s=window_s, restore_bytes_s=restore_bytes_s)
    return service.plan(
        months=months, rules=None if rules.empty else rules, window_s=window_s, restore_bytes_s=restore_bytes_s,
        may_see=sees(),
    )  # fmt: skip


def _numbers(given: MultiDict[str, str]) -> Numbers | None:
    """None: the fleet that there is. FormWrong."""
    machines = whole(given, "machines", 1, 1_000_000)
    gigabytes = real(given, "size", 0.1, 1_000_000)
    change, reduction = real(given, "change", 0.001, 100), real(given, "reduction", 0.5, 1000)
    runs_a_day, speed = real(given, "runs_a_day", 0.03, 96), whole(given, "read_speed", 1, 1_000_000)
    if machines is None and gigabytes is None:
        return None
    if machines is None or gigabytes is None:
        raise FormWrong(
            "machines" if machines is None else "size", "how many machines and how large each is go together"
        )
    return Numbers(
        machines, round(gigabytes * _GB), change or float(_USUAL["change"]), reduction or float(_USUAL["reduction"]),
        runs_a_day or float(_USUAL["runs_a_day"]), float((speed or int(_USUAL["read_speed"])) * _MB),
    )  # fmt: skip


def _drawn(found: Plan) -> dict[str, object]:
    """For the plot, from now on: bytes at moments (seconds since 1970)."""
    months, used = found.months, found.room.used_bytes
    told: dict[str, object] = {
        "at": [round(moment.timestamp()) for moment in (found.made_utc, *(each.end_utc for each in months))],
        "low": [used, *(each.low_bytes for each in months)],
        "high": [used, *(each.high_bytes for each in months)],
    }
    if all(each.trend_bytes is not None for each in months):
        told["trend"] = [used, *(each.trend_bytes for each in months)]
    if found.change is not None:
        told["then_low"] = [used, *(each.low_bytes for each in found.change.months)]
        told["then_high"] = [used, *(each.high_bytes for each in found.change.months)]
    if found.room.free_bytes is not None:
        told["holds"] = used + found.room.free_bytes
    return told
