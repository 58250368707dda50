"""Looking back at a month, and ahead at the months that come."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated, Final

from flask import Response
from pydantic import BaseModel, Field, PlainSerializer, model_validator

from appliance.notices.targets import read_zone
from appliance.planning.load import HostLoad
from appliance.planning.plans import Change, Numbers, Plan
from appliance.policy.retention import Rules
from appliance.reports.compliance import Report
from appliance.reports.months import Month
from appliance.services.access import Act
from web.acts import act
from web.api.callers import appliance, visible
from web.api.problems import FieldError, Unprocessable
from web.api.resources import resource
from web.api.schemas import schema_of, send
from web.current import planning, report

resources = resource("outlooks", "The report of a month, and a plan of those that come.")
ReportOut: Final = schema_of(Report, "Report")
_Seconds = Annotated[timedelta, PlainSerializer(lambda span: span // timedelta(seconds=1), return_type=int)]
_Rules: Final = schema_of(Rules, "Rules", change={"within": _Seconds | None})
_Change: Final = schema_of(Change, "Change", change={"rules": _Rules})
_Load: Final = schema_of(HostLoad, "HostLoad", add={"fits": bool})
PlanOut: Final = schema_of(
    Plan,
    "Plan",
    change={"change": _Change | None, "hosts": list[_Load]},  # type: ignore[valid-type]
)
_HOUR_S: Final = 3600
_KEEP_MAX: Final = 1000  # these two bound what one question costs here to a few seconds
_POINTS_MAX: Final = 1200


class Which(BaseModel):
    month: str | None = Field(None, max_length=40, description="2026-10; without it, the last that is over.")
    zone: str | None = Field(None, max_length=64, description="Of the month; without it, notices.zone.")


class PlanQuery(BaseModel):
    """Of the fleet as it is, or, with `machines` and `machine_bytes`, of one that is not there yet."""

    months: int = Field(12, ge=1, le=120, description="So far ahead.")
    keep_last: int = Field(0, ge=0, le=_KEEP_MAX, description="Compare with a retention that keeps so many.")
    keep_hourly: int = Field(0, ge=0, le=_KEEP_MAX)
    keep_daily: int = Field(0, ge=0, le=_KEEP_MAX)
    keep_weekly: int = Field(0, ge=0, le=_KEEP_MAX)
    keep_monthly: int = Field(0, ge=0, le=_KEEP_MAX)
    keep_yearly: int = Field(0, ge=0, le=_KEEP_MAX)
    exact: bool = Field(False, description="Ask the repository what that retention would free now.")
    window_hours: float | None = Field(None, ge=0.1, le=24, description="In which a day's runs have to be done.")
    restore_bytes_s: int | None = Field(None, ge=1, le=1 << 50, description="What a restore writes.")
    machines: int | None = Field(None, ge=1, le=1_000_000)
    machine_bytes: int | None = Field(None, ge=1, le=1 << 60, description="The size of each, in use.")
    change_percent: float = Field(2.0, ge=0.001, le=100, description="Of each, in a day.")
    reduction: float = Field(2.0, ge=0.5, le=1000, description="How many bytes become one in the repository.")
    runs_a_day: float = Field(1.0, ge=0.03, le=96)
    read_bytes_s: int = Field(100_000_000, ge=1, le=1 << 50)

    @model_validator(mode="after")
    def _fits(self) -> PlanQuery:
        if (self.machines is None) != (self.machine_bytes is None):
            raise ValueError("give machines and machine_bytes together, or neither")
        if self.rules.empty and self.months * self.runs_a_day > _POINTS_MAX:
            raise ValueError("that would be too many points: say with keep_… which stay")
        if self.exact and (self.rules.empty or self.machines is not None):
            raise ValueError("exact asks what a retention of real points would free: give keep_…, and no machines")
        return self

    @property
    def rules(self) -> Rules:
        return Rules(
            self.keep_last, self.keep_hourly, self.keep_daily, self.keep_weekly, self.keep_monthly, self.keep_yearly
        )


@resources.get("/report", summary="A month: what was protected, proven, and not as it should be",
               responses={200: ReportOut})  # fmt: skip
@act(Act.REPORT_SEE)
def show_report(query: Which) -> Response:
    """What is only known as it is now (policies, points that are kept) is told as that. MonthNotUnderstood."""
    may_see = visible()
    zone = _zone(query.zone)
    now = appliance().clock.now_utc()
    month = Month.before(now, zone) if query.month is None else Month.parse(query.month, zone)
    return send(ReportOut, report().month(month, may_see=may_see))


@resources.get("/plan", summary="Room, bandwidth and time to recover, months ahead", responses={200: PlanOut})
@act(Act.PLAN_SEE)
def show_plan(query: PlanQuery) -> Response:
    """From the fleet's history. `how` tells in sentences where the numbers are from."""
    may_see = visible()
    if query.exact and may_see is not None:
        raise Unprocessable(
            [FieldError(where="exact", reason="it is asked of the whole repository, for who may see all")]
        )
    service, rules = planning(), query.rules
    window_s = None if query.window_hours is None else query.window_hours * _HOUR_S
    if query.machines is not None and query.machine_bytes is not None:
        numbers = Numbers(
            query.machines, query.machine_bytes, query.change_percent, query.reduction, query.runs_a_day,
            float(query.read_bytes_s),
        )  # fmt: skip
        made = service.plan_typed(
            numbers, rules, months=query.months, window_s=window_s, restore_bytes_s=query.restore_bytes_s
        )
    else:
        made = service.plan(
            months=query.months, rules=None if rules.empty else rules, window_s=window_s,
            restore_bytes_s=query.restore_bytes_s, exact=query.exact, may_see=may_see,
        )  # fmt: skip
    return send(PlanOut, made)


def _zone(name: str | None) -> str:
    """Unprocessable."""
    if name is None:
        return appliance().settings.notices.zone
    try:
        return read_zone(name)
    except ValueError as err:
        raise Unprocessable([FieldError(where="zone", reason=str(err))]) from err
