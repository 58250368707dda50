"""The repository: its space, what it costs, and looking after it. What is done to all of it goes through the queue."""

from __future__ import annotations

from flask import Blueprint, redirect, render_template, url_for
from werkzeug.wrappers import Response

from appliance import home
from appliance.services.access import Act, Subject
from appliance.services.queue.service import QueueService
from web.acts import act
from web.current import appliance, browsing
from web.guarding import performing

blueprint = Blueprint("repository", __name__)
_REPOSITORY = Subject("repository", "", "repository")


@blueprint.get("/repository")
@act(Act.REPOSITORY_SEE)
def page() -> str:
    rows = browsing().fleet().rows
    return render_template(
        "repository/page.html", growth=browsing().growth(), location=str(home.location_of(appliance().settings)),
        machines=sum(row.last_point is not None for row in rows),
        protected_bytes=sum(row.size_bytes or 0 for row in rows if row.last_point is not None), title="Repository",
    )  # fmt: skip


@blueprint.post("/repository/verify")
@act(Act.REPOSITORY_VERIFY)
def verify() -> Response:
    with performing(Act.REPOSITORY_VERIFY, _REPOSITORY, {"read_data": False}) as doing:
        run = QueueService(appliance()).ask_verify().run
        doing.note(run=run.id)
    return redirect(url_for("runs.page", id=run.id))


@blueprint.post("/repository/collect")
@act(Act.REPOSITORY_COLLECT)
def collect() -> Response:
    with performing(Act.REPOSITORY_COLLECT, _REPOSITORY) as doing:
        run = QueueService(appliance()).ask_collect().run
        doing.note(run=run.id)
    return redirect(url_for("runs.page", id=run.id))
