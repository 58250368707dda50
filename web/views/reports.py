"""The monthly report, as a file that stands alone."""

from __future__ import annotations

from flask import Blueprint, Response, request

from appliance.reports.months import Month
from appliance.services.access import Act
from appliance.services.reports import ReportService
from appliance.services.reports.page import page
from web.acts import act
from web.current import appliance

blueprint = Blueprint("reports", __name__)


@blueprint.get("/report")
@act(Act.REPORT_SEE)
def month() -> Response:
    """Of the month that is asked for, or of the last that is over. MonthNotUnderstood."""
    zone, asked = appliance().settings.notices.zone, request.args.get("month", "")
    wanted = Month.parse(asked, zone) if asked else Month.before(appliance().clock.now_utc(), zone)
    made = page(ReportService(appliance()).month(wanted))
    return Response(
        made.html, mimetype="text/html",
        headers={"Content-Disposition": f'attachment; filename="strongroom-{wanted}.html"'},
    )  # fmt: skip
