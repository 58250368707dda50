"""The monthly report: on a page, to be read and printed; and as a file that stands alone."""

from __future__ import annotations

import calendar
from typing import Final

from flask import Blueprint, Response, render_template, request

from appliance.reports.compliance import Report
from appliance.reports.months import Month
from appliance.services.access import Act
from appliance.services.reports import ReportService
from appliance.services.reports.page import body, page
from web.acts import act
from web.current import appliance
from web.guarding import sees

blueprint = Blueprint("reports", __name__)
_MONTHS: Final = 24  # to choose from; the address takes others, too


@blueprint.get("/report")
@act(Act.REPORT_SEE)
def month() -> str:
    """Of the month that is asked for, or of the last that is over. MonthNotUnderstood."""
    wanted = _wanted()
    return render_template(
        "reports/page.html", report=body(_report(wanted)), wanted=str(wanted), months=_months(wanted), title="Report"
    )


@blueprint.get("/report/file")
@act(Act.REPORT_SEE)
def file() -> Response:
    """As `month`."""
    wanted = _wanted()
    return Response(
        page(_report(wanted)).html, mimetype="text/html",
        headers={"Content-Disposition": f'attachment; filename="strongroom-{wanted}.html"'},
    )  # fmt: skip


def _report(wanted: Month) -> Report:
    return ReportService(appliance()).month(wanted, may_see=sees())


def _wanted() -> Month:
    zone, asked = appliance().settings.notices.zone, request.args.get("month", "")
    return Month.parse(asked, zone) if asked else Month.before(appliance().clock.now_utc(), zone)


def _months(wanted: Month) -> list[tuple[str, str]]:
    """The newest first: each as it is asked for, and what it is called."""
    last = Month.before(appliance().clock.now_utc(), wanted.zone)
    this = last.year * 12 + last.month  # months from 0: the one after the last that is over
    numbers = list(range(this, this - _MONTHS, -1))
    chosen = wanted.year * 12 + wanted.month - 1
    if chosen not in numbers:
        numbers.append(chosen)
    return [
        (
            f"{number // 12}-{number % 12 + 1:02}",
            f"{calendar.month_name[number % 12 + 1]} {number // 12}{', so far' if number == this else ''}",
        )
        for number in numbers
    ]
