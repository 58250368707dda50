"""The monthly report: on a page, to be read and printed; and as a file that stands alone."""

from __future__ import annotations

import calendar
from typing import Final

from flask import Blueprint, redirect, render_template, request, url_for
from werkzeug.wrappers import Response

from appliance.reports.months import Month
from appliance.services.access import Act
from web.acts import act
from web.current import appliance, browsing, made_reports
from web.forms import flag
from web.guarding import actor, sees

blueprint = Blueprint("reports", __name__)
_MONTHS: Final = 24  # to choose from; the address takes others, too


@blueprint.get("/report")
@act(Act.REPORT_SEE)
def month() -> Response | str:
    """Of the month that is asked for, or of the last that is over; or what asks again until it is made.
    MonthNotUnderstood."""
    wanted, reports = _wanted(), made_reports()
    if flag(request.args, "anew"):
        reports.forget(wanted, _whose())
        return redirect(url_for("reports.month", month=wanted))
    alone = request.headers.get("HX-Target") == "report"
    made = reports.find(wanted, _whose(), sees())
    return render_template(
        "reports/report.html" if alone else "reports/page.html", report=None if made is None else made.body,
        wanted=str(wanted), months=_months(wanted), title="Report",
    )  # fmt: skip


@blueprint.get("/report/file")
@act(Act.REPORT_SEE)
def file() -> Response:
    """As it was made for the page; or now, however long that takes."""
    wanted = _wanted()
    made = made_reports().find(wanted, _whose(), sees(), patience_s=None)
    assert made is not None
    return Response(
        made.file, mimetype="text/html",
        headers={"Content-Disposition": f'attachment; filename="strongroom-{wanted}.html"'},
    )  # fmt: skip


def _whose() -> str:
    """The same for all who may see all; else of one person, as long as that one sees the same machines: what was made
    before one of them got another tag, host or name is not shown any more."""
    who = actor()
    return repr((who.id, sorted(browsing().fleet(sees()).keys))) if who.limited else ""


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
