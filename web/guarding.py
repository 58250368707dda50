"""Who asks, and whether they may: before any view runs.

The rule: a route is public, or an act. Of an act it is asked here whether this person's role, grants and session allow
it at all, and a refusal is audited; about which machine or what else it is, the view says, through `performing`,
`check` or `looking`. Until it has, nothing is told of what it names to who was granted some machines (`web.hiding`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from typing import Final

from flask import Flask, Response, current_app, g, redirect, request, url_for
from werkzeug.wrappers import Response as AnyResponse

from appliance.policy.selectors import Machine
from appliance.services.access import FILTERED, NOTHING, Access, Act, Actor, ActorKind, Doing, Subject, Via, nobody
from web.acts import PUBLIC, stated
from web.current import appliance
from web.hiding import begin, let_in

API: Final = "api_"
"""What the names of the API's blueprints begin with, and of no others."""

_SOON: Final = timedelta(minutes=1)

Authenticate = Callable[[], Actor | None]
"""Of the request that is under way: who asks; None: nobody who can be told from others."""


def guard(app: Flask, authenticate: Authenticate) -> None:
    @app.before_request
    def decide() -> AnyResponse | None:
        if request.blueprint is not None and request.blueprint.startswith(API):
            return None  # it asks for a token, and answers otherwise: `api.callers`
        g.actor = authenticate() or nobody(Via.CONSOLE, request.remote_addr or "")
        if request.endpoint is None:
            return None  # no such page: whoever asks
        which = stated(current_app.view_functions[request.endpoint])
        if which == PUBLIC:
            return None
        if which is None:  # the application does not start with one; added later, it is nobody's
            raise LookupError(f"{request.endpoint} states no act")
        if g.actor.kind is ActorKind.NOBODY:
            return _to_sign_in()
        wanted = Act(which)
        begin(g.actor, wanted)
        if not access().may(g.actor, wanted):
            access().check(g.actor, wanted, FILTERED)  # raises, and writes it down
        return None

    app.jinja_env.globals["may"] = may
    app.context_processor(lambda: {"actor": actor(), "Act": Act, "proven": proven()})


def _to_sign_in() -> AnyResponse:
    """Back here afterwards, if this is a page that can be shown again."""
    again = request.full_path.rstrip("?") if request.method == "GET" and not request.headers.get("HX-Request") else None
    address = url_for("sign_in.form", next=again)
    if request.headers.get("HX-Request"):
        return Response(status=401, headers={"HX-Redirect": address})
    return redirect(address)


def access() -> Access:
    return Access(appliance())


def actor() -> Actor:
    """Who asks. In an error before anybody was looked at, nobody."""
    found = g.get("actor")
    return found if isinstance(found, Actor) else nobody(Via.CONSOLE, request.remote_addr or "")


def proven() -> bool:
    """Whether who asks has proven who they are, and that counts for a while yet: a form need not ask for it."""
    who = actor()
    soon = replace(who, authenticated_utc=None if who.authenticated_utc is None else who.authenticated_utc - _SOON)
    return access().is_proven(soon)


def may(act: Act, machine: Machine | None = None) -> bool:
    """For what is shown."""
    return access().may(actor(), act, None if machine is None else Subject.of_machine(machine))


def sees() -> Callable[[Machine], bool] | None:
    """What lists leave out; None: nothing. What is looked for is to be looked for in such a list."""
    let_in()
    who = actor()
    return who.granted if who.limited else None


def check(act: Act, subject: Subject) -> None:
    """As `performing` does first. NotAllowed, ReauthenticationNeeded; both are audited."""
    access().check(actor(), act, subject)
    let_in()


def looking(act: Act, subject: Subject) -> None:
    """As `check`, for a page that shows this, or asks what shall be done with it: to prove again who they are is for
    later."""
    if not access().may(actor(), act, subject):
        access().check(actor(), act, subject)
    let_in()


@contextmanager
def performing(act: Act, subject: Subject = NOTHING, details: Mapping[str, object] | None = None) -> Iterator[Doing]:
    """As `Access.performing`, for who asks."""
    with access().performing(actor(), act, subject, details) as doing:
        let_in()
        yield doing
