"""The repository: its space, what it costs, and looking after it."""

from __future__ import annotations

from collections.abc import Callable

from flask import Blueprint, redirect, render_template, request, url_for
from werkzeug.exceptions import NotFound
from werkzeug.wrappers import Response

from appliance import home
from appliance.bootstrap import Appliance
from appliance.services.access import Access, Act, Subject
from appliance.services.maintenance import MaintenanceService
from appliance.services.repositories import RepositoryService
from web.acts import act
from web.current import appliance, browsing, parts
from web.guarding import access, actor
from web.jobs import Job

blueprint = Blueprint("repository", __name__)
_WAIT_S = 600.0
Work = Callable[[Appliance, Job], object]


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
    return _begin(Act.REPOSITORY_VERIFY, "Verify", lambda own, job: RepositoryService(own).verify(progress=job))


@blueprint.post("/repository/collect")
@act(Act.REPOSITORY_COLLECT)
def collect() -> Response:
    return _begin(
        Act.REPOSITORY_COLLECT,
        "Collect",
        lambda own, job: MaintenanceService(own).collect(wait_s=_WAIT_S, progress=job),
    )


@blueprint.get("/repository/jobs/<id>")
@act(Act.REPOSITORY_SEE)
def job(id: str) -> str:
    found = parts().jobs.find(id, actor().id)
    if found is None:
        raise NotFound
    template = "repository/job_now.html" if request.headers.get("HX-Request") else "repository/job.html"
    return render_template(template, job=found, now=appliance().clock.now_utc(), title=found.about)


def _begin(which: Act, about: str, work: Work) -> Response:
    who, subject = actor(), Subject("repository", "", "repository")
    access().check(who, which, subject)

    def perform(own: Appliance, job: Job) -> object:
        with Access(own).performing(who, which, subject):
            return work(own, job)

    return redirect(url_for("repository.job", id=parts().jobs.begin(about, who.id, perform).id))
