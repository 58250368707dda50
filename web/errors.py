"""Every failure as a page: what happened, the way out, and an id that the log has too.

The rule: what we raised on purpose tells its own sentence and hint; of anything else only the id is shown. Who has not
signed in is told what kind of thing is away or broken, and neither its name nor where it is: the log has that. Who was
granted some machines is told nothing of others (`web.hiding`).
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Final

from flask import Flask, Response, current_app, g, make_response, render_template, request
from werkzeug.exceptions import HTTPException, InternalServerError

from appliance.failures import Failure, Kind
from appliance.services.access import ActorKind
from web.hiding import failure_told

_log = logging.getLogger("strongroom.web")

STATUSES: Final = {
    Kind.MISSING: 404,
    Kind.CONFLICT: 409,
    Kind.UNUSABLE: 422,
    Kind.FORBIDDEN: 403,
    Kind.THROTTLED: 429,
    Kind.AWAY: 503,
    Kind.BROKEN: 500,
}
_OF_PAGES: Final = STATUSES | {Kind.UNUSABLE: 400}

Renderer = Callable[[int, str, str, str], Response]
"""Makes an answer of a status, a title, a sentence and a hint."""

_TOLD = {
    400: ("That request cannot be read", "Go back, and try again."),
    403: ("That is not allowed", "Sign in as somebody who may, or ask an administrator."),
    404: ("There is nothing here", "It may have been removed, or never have been."),
    405: ("That cannot be done here", "Go back, and use the buttons of the page."),
    413: ("That is too much at once", "Send less."),
    415: ("That is of a kind that is not understood here", "Use the forms of the page."),
    421: ("This console does not go by that name", "Use its address, or add the name to web.names in strongroom.toml."),
    429: ("Too many attempts", "Wait a little, then try again."),
    500: ("Something went wrong here", "The log of strongroom serve has the details under this id."),
    503: ("Something that this page needs is away", "It is asked again with each try."),
}


def show_errors(app: Flask) -> None:
    app.register_error_handler(HTTPException, _http)
    app.register_error_handler(Exception, _any)


def tell_otherwise(app: Flask, prefix: str, renderer: Renderer) -> None:
    """Answers under this path are made by this renderer: the API's are no pages."""
    app.extensions.setdefault("strongroom_errors", {})[prefix] = renderer


def answer(status: int, sentence: str = "", hint: str = "", title: str = "") -> Response:
    known_title, known_hint = _TOLD.get(status, _TOLD[400 if status < 500 else 500])
    title, hint = title or known_title, hint or known_hint
    renderers: dict[str, Renderer] = current_app.extensions.get("strongroom_errors", {})
    for prefix, renderer in renderers.items():
        if request.path.startswith(prefix):
            return renderer(status, title, sentence, hint)
    template = "error_part.html" if request.headers.get("HX-Request") else "error.html"
    page = render_template(template, status=status, title=title, sentence=sentence, hint=hint)
    return make_response(page, status)


def _http(error: HTTPException) -> Response:
    if error.response is not None or error.code is None or error.code < 400:
        return make_response(error.get_response())
    told = answer(error.code, error.description or "" if error.code == 403 else "")
    for name, value in error.get_headers(request.environ):
        if name not in ("Content-Type", "Content-Length"):  # Allow, Retry-After
            told.headers[name] = value
    return told


def _any(error: Exception) -> Response:
    failure = told(error)
    if failure is None:
        return answer(InternalServerError.code)
    return answer(_OF_PAGES[failure.kind], failure.sentence, failure.hint, "That did not work")


def told(error: Exception) -> Failure | None:
    """What is told of it to who asks, by pages and by the API; what is ours to mend is logged. None: its id alone."""
    failure = failure_told(error)
    if failure is None:
        _log.error("request %s: %s %s", g.get("request_id", "?"), request.method, request.path, exc_info=error)
    elif STATUSES[failure.kind] >= 500:
        _log.warning("request %s: %s %s: %s", g.get("request_id", "?"), request.method, request.path, error)
        who = g.get("actor")
        if who is None or who.kind is ActorKind.NOBODY:
            failure = _for_strangers(failure)
    return failure


def _for_strangers(failure: Failure) -> Failure:
    """Of something within that fails: enough for an admin to know where to look, and no host, path or reason."""
    sentence = f"Strongroom cannot work: {words(failure.name).lower()}."
    return replace(failure, sentence=sentence, hint=_TOLD[500][1], facts={})


def words(name: str) -> str:
    """Of an error's class: 'CatalogUnreachable' is 'Catalog unreachable'."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).capitalize()
