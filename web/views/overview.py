"""One glance: whether tonight is fine."""

from __future__ import annotations

from flask import Blueprint, render_template, request

from appliance.services.access import Act
from web.acts import act
from web.current import browsing
from web.guarding import sees

blueprint = Blueprint("overview", __name__)


@blueprint.get("/")
@act(Act.OVERVIEW_SEE)
def page() -> str:
    template = "overview/now.html" if request.headers.get("HX-Request") else "overview/page.html"
    return render_template(template, seen=browsing().overview(may_see=sees()), title="Overview")
