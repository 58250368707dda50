"""Who asks something of the API, and whether they may.

The rule: nothing of a view runs for somebody who may do its act to nothing at all; whether they may do it to this very
thing, the view asks with `performing` or `looking`. A view that asks neither gives nothing to anybody: its answer is
thrown away. A token proves who asks; a session of the console does too, but for what changes something it has to show
what only its own pages know.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, cast

from flask import Response, current_app, g, request
from werkzeug.datastructures import WWWAuthenticate
from werkzeug.exceptions import Forbidden, Unauthorized

from appliance.policy.selectors import Machine
from appliance.services.access import FILTERED, NOTHING, Access, Act, Actor, Doing, Role, Subject, Via
from appliance.services.access.subjects import Subjects
from appliance.services.accounts.errors import TokenRefused
from appliance.services.accounts.signing_in import Origin
from appliance.services.accounts.tokens import TokenService
from web.acts import PUBLIC, stated
from web.api.problems import problem
from web.current import appliance, browsing
from web.hiding import begin, let_in, was_let_in

__all__ = [
    "answering", "appliance", "browsing", "caller", "check_answer", "check_caller", "looking", "only_admins",
    "performing", "subjects", "visible",
]  # fmt: skip

_log = logging.getLogger("strongroom.api")
_CHALLENGE: Final = WWWAuthenticate("bearer", {"realm": "strongroom"})
_REFUSED: Final = WWWAuthenticate("bearer", {"realm": "strongroom", "error": "invalid_token"})  # RFC 6750


def caller() -> Actor:
    """Who asks, of a view that is not public."""
    return cast(Actor, g.actor)


def identify() -> Actor:
    """By a token. Unauthorized."""
    origin = Origin(request.remote_addr or "", request.user_agent.string, Via.API)
    given = request.authorization
    if given is None or given.type != "bearer" or not given.token:
        raise Unauthorized("It is not known who asks.", www_authenticate=_CHALLENGE)
    try:
        return TokenService(appliance()).actor_of(given.token, origin)
    except TokenRefused as err:
        raise Unauthorized(f"{str(err).capitalize()}.", www_authenticate=_REFUSED) from err


def check_caller() -> None:
    """To be called before every view. Unauthorized, NotAllowed."""
    which = stated(current_app.view_functions[request.endpoint or ""])
    assert which is not None, "the application has refused to start with such a view"
    if which == PUBLIC:
        return
    wanted, actor = Act(which), identify()
    begin(actor, wanted)
    if not Access(appliance()).may(actor, wanted):
        Access(appliance()).check(actor, wanted, FILTERED)


def check_answer(response: Response) -> Response:
    """To be called after every view: nothing leaves that nobody was asked about."""
    if response.status_code < 400 and not was_let_in():
        _log.error("request %s: %s asked for no permission", g.get("request_id", "?"), request.endpoint)
        return problem(500, "Something went wrong here.")
    return response


@contextmanager
def performing(subject: Subject = NOTHING, which: Act | None = None, /, **details: object) -> Iterator[Doing]:
    """The body is the act of this view, or `which`, which hangs on what it is done to: who may not do the view's to it
    does not learn which that is. NotAllowed, ReauthenticationNeeded. `details`: as the other ways to do the same have
    them."""
    if which is not None:
        Access(appliance()).check(caller(), Act(g.act), subject)
    with Access(appliance()).performing(caller(), which or Act(g.act), subject, details) as doing:
        let_in()
        yield doing


def looking(subject: Subject = NOTHING) -> None:
    """This view shows this. NotAllowed."""
    Access(appliance()).check(caller(), Act(g.act), subject)
    let_in()


def only_admins(what: str) -> None:
    """For what the act alone does not say: whoever names a path on the appliance can do there what root can.
    Forbidden."""
    if caller().role is not Role.ADMIN:
        raise Forbidden(f"Only an admin may {what}.")


def visible() -> Callable[[Machine], bool] | None:
    """What a list may show to who asks; None: everything. The list is to be filtered by it."""
    looking(FILTERED)
    return caller().granted if caller().limited else None


def subjects() -> Subjects:
    """Of this request."""
    if "api_subjects" not in g:
        g.api_subjects = Subjects(appliance())
    return cast(Subjects, g.api_subjects)


def answering() -> Actor:
    """Who asks, for a service that asks itself whether they may, and writes down what it does."""
    let_in()
    return caller()
