"""The repository: its space, what it costs, and looking after it. What is done to all of it goes through the queue."""

from __future__ import annotations

from flask import Blueprint, flash, redirect, render_template, url_for
from werkzeug.wrappers import Response

from appliance import home
from appliance.services.access import Act, Subject
from appliance.services.queue.service import QueueService
from appliance.services.repositories import RepositoryService, still_opens
from appliance.services.signing import SigningService, What
from web.acts import act
from web.current import appliance, browsing
from web.guarding import access, actor, performing

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


@blueprint.get("/repository/keys")
@act(Act.REPOSITORY_SEE)
def keys() -> str:
    return render_template("repository/keys.html", slots=RepositoryService(appliance()).keys(), title="Keys")


@blueprint.post("/repository/keys/<id>/remove")
@act(Act.KEY_REMOVE)
def remove_key(id: str) -> Response:
    """What the repository's guard keeps becomes a request."""
    service = RepositoryService(appliance())
    slot = service.find_key(id)
    access().check(actor(), Act.KEY_REMOVE)
    if SigningService(appliance()).question(What.KEY, slot.id).why:
        return redirect(url_for("requests.new", what=What.KEY, id=slot.id))
    with performing(Act.KEY_REMOVE, Subject("key", slot.id, slot.label)):
        service.remove_key(slot)
    flash(f"The key is removed. {still_opens(slot)}", "good")
    return redirect(url_for("repository.keys"))
