"""Requests of a guarded repository: asked for by one person, confirmed by another, carried out after the delay.

The rule: what a page shows of a request is told from the repository, and not by the words of who asked. Who confirms
gives a passphrase of their own, which the repository checks; an account takes its place in nothing.
"""

from __future__ import annotations

from typing import Final

from flask import Blueprint, flash, make_response, redirect, render_template, request, url_for
from werkzeug.exceptions import NotFound
from werkzeug.wrappers import Response

from appliance.errors import StrongroomError
from appliance.services.access import Act, Subject
from appliance.services.accounts.errors import Throttled
from appliance.services.guard import GuardService
from appliance.services.signing import NothingToAsk, NotSigned, SigningService, What
from web.acts import act
from web.current import appliance, open_requests
from web.forms import choice, required, text
from web.guarding import actor, performing
from web.rendering import sentence

blueprint = Blueprint("requests", __name__)
_OVER: Final = 50
_REASON_CHARACTERS_MAX: Final = 1000
_TITLES: Final = {
    What.POINT: "Ask to delete a restore point",
    What.PROTECTION: "Ask to lift a protection",
    What.KEY: "Ask to remove a key",
    What.UNKEPT: "Ask to delete what no policy keeps",
}


@blueprint.get("/requests")
@act(Act.REQUEST_SEE)
def listing() -> str:
    service = GuardService(appliance())
    told, damaged = service.requests(closed=True)
    return render_template(
        "requests/listing.html", rules=service.state().rules, persons=service.persons(), damaged=damaged,
        title="Requests",
        going=[each for each in reversed(told) if each.request.standing.is_open],
        over=[each for each in reversed(told) if not each.request.standing.is_open][:_OVER],
    )  # fmt: skip


@blueprint.get("/requests/count")
@act(Act.REQUEST_SEE)
def count() -> Response | str:
    """For the menu, which waits for no repository."""
    many = open_requests()
    return render_template("requests/count.html", many=many) if many else Response(status=204)


@blueprint.get("/requests/new")
@act(Act.REQUEST_ASK)
def new() -> Response | str:
    try:
        return _question()
    except NothingToAsk as err:
        flash(sentence(str(err)), "good")
        return redirect(url_for("requests.listing"))


@blueprint.post("/requests")
@act(Act.REQUEST_ASK)
def ask() -> Response:
    given = request.form
    service, what = SigningService(appliance()), _what()
    question = service.question(what, text(given, "id", most=64))
    person, reason = text(given, "person", most=100), text(given, "reason", most=_REASON_CHARACTERS_MAX)
    try:
        with performing(Act.REQUEST_ASK, Subject("request"), {"to": list(question.words)}):
            made = service.ask(actor(), question, person, given.get("passphrase", ""), reason)
    except (NotSigned, Throttled) as err:
        return _again(_question(str(err)), err)
    open_requests(anew=True)
    flash("It is asked for. Another person has to confirm it; then the delay counts.", "good")
    if len(made) > 1:
        return redirect(url_for("requests.listing"))
    return redirect(url_for("requests.page", id=made[0].request.id))


@blueprint.get("/requests/<id>")
@act(Act.REQUEST_SEE)
def page(id: str) -> str:
    return _page(id)


@blueprint.post("/requests/<id>/confirm")
@act(Act.REQUEST_CONFIRM)
def confirm(id: str) -> Response:
    person = text(request.form, "person", most=100)
    try:
        with performing(Act.REQUEST_CONFIRM, Subject("request", id)):
            SigningService(appliance()).confirm(actor(), id, person, request.form.get("passphrase", ""))
    except (NotSigned, Throttled) as err:
        return _again(_page(id, str(err)), err)
    flash("It is confirmed: the delay counts from now on.", "good")
    return redirect(url_for("requests.page", id=id))


@blueprint.post("/requests/<id>/refuse")
@act(Act.REQUEST_REFUSE)
def refuse(id: str) -> Response:
    reason = text(request.form, "reason", most=_REASON_CHARACTERS_MAX)
    with performing(Act.REQUEST_REFUSE, Subject("request", id)):
        GuardService(appliance()).refuse(id, reason)
    open_requests(anew=True)
    flash("It is refused, for ever.", "good")
    return redirect(url_for("requests.page", id=id))


@blueprint.post("/requests/<id>/apply")
@act(Act.REQUEST_APPLY)
def apply(id: str) -> Response:
    with performing(Act.REQUEST_APPLY, Subject("request", id)) as doing:
        problems = [problem for each in GuardService(appliance()).apply([id]) for problem in each.problems]
        if problems:
            doing.partly("; ".join(problems))
    open_requests(anew=True)
    for problem in problems:
        flash(problem, "bad")
    if not problems:
        flash("It is carried out.", "good")
    return redirect(url_for("requests.page", id=id))


def _again(page: str, err: StrongroomError) -> Response:
    """The form, with what is wrong."""
    if isinstance(err, Throttled):
        return make_response(page, 429, {"Retry-After": str(err.retry_after_s)})
    return make_response(page, 400)


def _question(wrong: str = "") -> str:
    """NotFound for anything that cannot be asked for."""
    service, what, id = SigningService(appliance()), _what(), text(request.values, "id", most=64)
    question = service.question(what, id)
    return render_template(
        "requests/question.html", question=question, what=what, id=id, persons=service.persons(actor()),
        rules=GuardService(appliance()).state().rules, wrong=wrong, reason=request.form.get("reason", ""),
        title=_TITLES[what],
    )  # fmt: skip


def _page(id: str, wrong: str = "") -> str:
    told = GuardService(appliance()).request(id)
    persons = [name for name in SigningService(appliance()).persons(actor()) if name != told.asked_by]
    return render_template("requests/page.html", told=told, persons=persons, wrong=wrong, title="Request")


def _what() -> What:
    what = choice(request.values, "what", What)
    if what is None:
        raise NotFound
    if what is not What.UNKEPT:
        required(request.values, "id", most=64)
    return what
