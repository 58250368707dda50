"""Runs: what waits, goes on and is over; one of them live."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from typing import Final

from flask import (
    Blueprint,
    Response,
    current_app,
    flash,
    redirect,
    render_template,
    request,
    stream_with_context,
    url_for,
)
from werkzeug.wrappers import Response as AnyResponse

from appliance.models import RunRecord, RunState
from appliance.services.access import Act, NotAllowed, Subject
from appliance.services.access.places import folder_of
from appliance.services.access.repeats import act_to_repeat, check_repeat
from appliance.services.access.subjects import Subjects
from appliance.services.browsing import RunFilter
from appliance.services.queue.service import QueueService, Seen
from appliance.services.runlogs import read_run_log
from appliance.services.status import StatusService
from appliance.services.watcher import RunEvent
from appliance.throughput import bytes_s
from web.acts import act
from web.current import appliance, browsing, parts
from web.forms import choice
from web.guarding import access, actor, looking, performing, sees
from web.server import TooManyStreams

blueprint = Blueprint("runs", __name__)
_LIMIT: Final = 50
_LONGEST_S: Final = 3600


@blueprint.get("/runs")
@act(Act.RUN_SEE)
def listing() -> str:
    state = choice(request.args, "state", RunState)
    wanted = RunFilter(frozenset({state}) if state is not None else frozenset(), host=request.args.get("host") or None)
    page = browsing().runs(wanted, after=request.args.get("after"), limit=_LIMIT, may_see=sees())
    arguments = {name: value for name, value in request.args.items() if name != "after" and value}
    template = "runs/rows.html" if request.headers.get("HX-Target") == "rows" else "runs/listing.html"
    return render_template(template, page=page, state=state, states=RunState, arguments=arguments, title="Runs")


@blueprint.get("/runs/<id>")
@act(Act.RUN_SEE)
def page(id: str) -> str:
    seen = found(id)
    template = "runs/now.html" if request.headers.get("HX-Request") else "runs/page.html"
    log = read_run_log(appliance().settings, seen.run.id)
    return render_template(
        template,
        seen=seen,
        run=seen.run,
        machine=subject_of(seen.run).machine,
        repeatable=_may_repeat(seen.run),
        lines=log.lines,
        rates=bytes_s(log.samples) if seen.run.state.ended else (),
        title=f"Run of {seen.run.name}",
    )


def _may_repeat(run: RunRecord) -> bool:
    try:
        check_repeat(actor(), run)
    except NotAllowed:
        return False
    asked, act = run.arguments, act_to_repeat(run)
    place = None if asked is None else folder_of(asked.storage, asked.new_name)
    return access().may(actor(), act, subject_of(run)) and access().may_name(actor(), act, place)


@blueprint.get("/runs/<id>/events")
@act(Act.RUN_SEE)
def events(id: str) -> Response:
    """Server-sent: "far" with how far it is as JSON when that changes, the first time with how fast it was until then;
    "over" once it has ended."""
    run = found(id).run
    clock, watcher, streams = appliance().clock, parts().watcher, parts().streams

    def told() -> Iterator[str]:
        try:
            with streams.one() as ending, closing(watcher.watch(ending, [run.id])) as events:
                began_s, first = clock.monotonic_s(), True
                for event in events:
                    if isinstance(event, RunEvent) and event.run.state.ended:
                        yield "event: over\ndata: {}\n\n"
                        return
                    if isinstance(event, RunEvent):
                        yield f"event: far\ndata: {_far(event, first)}\n\n"
                        first = False
                    else:
                        yield ": alive\n\n"  # nothing is new, or the catalog is away
                    if clock.monotonic_s() - began_s > _LONGEST_S:
                        return
        except TooManyStreams:
            yield "event: busy\ndata: {}\n\n"

    response = current_app.response_class(stream_with_context(told()), mimetype="text/event-stream")
    response.headers["X-Accel-Buffering"] = "no"
    return response


def _far(event: RunEvent, first: bool) -> str:
    far = event.far
    told: dict[str, object] = {"state": event.run.state.value, "attempts": event.run.attempts}
    if far is not None:
        told |= {"label": far.label, "done": far.done_bytes, "total": far.total_bytes or 0, "rate": far.bytes_s}
        if first:
            told["rates"] = bytes_s(far.samples)
    return json.dumps(told)


@blueprint.post("/runs/<id>/cancel")
@act(Act.RUN_CANCEL)
def cancel(id: str) -> AnyResponse:
    run = found(id).run
    with performing(Act.RUN_CANCEL, subject_of(run), {"run": run.id}):
        QueueService(appliance()).cancel(run.id, lambda text: flash(text, "warn"))
    flash("It is told to end.", "good")
    return redirect(url_for("runs.page", id=run.id))


@blueprint.post("/runs/<id>/retry")
@act(Act.RUN_RETRY)
def retry(id: str) -> AnyResponse:
    run = found(id).run
    with performing(act_to_repeat(run), subject_of(run), {"run": run.id}) as doing:
        check_repeat(actor(), run)
        again = QueueService(appliance()).again(run.id).run
        doing.note(again=again.id)
    return redirect(url_for("runs.page", id=again.id))


@blueprint.post("/runs/<id>/dismiss")
@act(Act.RUN_DISMISS)
def dismiss(id: str) -> AnyResponse:
    run = found(id).run
    with performing(Act.RUN_DISMISS, subject_of(run), {"run": run.id}):
        StatusService(appliance()).dismiss(run.id)
    flash("It needs no eye any more.", "good")
    return redirect(url_for("runs.page", id=run.id))


def found(id: str) -> Seen:
    """Of a machine that whoever asks may see. RecordMissing, NotAllowed."""
    seen = QueueService(appliance()).run(id)
    looking(Act.RUN_SEE, subject_of(seen.run))
    return seen


def subject_of(run: RunRecord) -> Subject:
    return Subjects(appliance()).run(run)
