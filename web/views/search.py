"""Search over everything, while it is typed."""

from __future__ import annotations

from flask import Blueprint, render_template, request

from appliance.services.access import Act
from web.acts import act
from web.current import browsing
from web.guarding import may, sees

blueprint = Blueprint("search", __name__)


@blueprint.get("/search")
@act(Act.OVERVIEW_SEE)
def page() -> str:
    text = request.args.get("q", "")
    found = browsing().search(text, may_see=sees())
    template = "search/found.html" if request.headers.get("HX-Target") == "found" else "search/page.html"
    return render_template(
        template, found=found, text=text, runs=found.runs if may(Act.RUN_SEE) else (),
        policies=found.policies if may(Act.POLICY_SEE) else (), hosts=found.hosts if may(Act.HOST_SEE) else (),
        title="Search",
    )  # fmt: skip
