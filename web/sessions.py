"""Who asks, by the cookie of a session; and proving again who one is, in the midst of a form.

The rule: the cookie holds a random token and nothing else; what it is worth is asked of the appliance at each request.
It is `__Host-`, so no other name, port or path can set it, and no script can read it.
"""

from __future__ import annotations

from urllib.parse import urlsplit

from flask import Flask, Response, g, make_response, render_template, request

from appliance.errors import StrongroomError
from appliance.services.access import Actor, ReauthenticationNeeded, Via
from appliance.services.accounts.errors import SessionOver, SignInRefused, SignInThrottled
from appliance.services.accounts.signing_in import Origin, SignInService
from web.current import appliance
from web.forms import local

COOKIE = "__Host-strongroom"
PASSWORD, CODE = "proof_password", "proof_code"
_OURS = frozenset({"csrf_token", PASSWORD, CODE})


def authenticate() -> Actor | None:
    """By the cookie; with a form that proves again who it is, with what that gives. SignInRefused, SignInThrottled."""
    secret = request.cookies.get(COOKIE, "")
    if not secret:
        return None
    service = SignInService(appliance())
    try:
        actor = service.actor_of(secret, origin())
        if request.method == "POST" and PASSWORD in request.form:
            g.actor = actor  # for the page that tells of a refusal
            proven = service.reauthenticate(secret, request.form[PASSWORD], request.form.get(CODE, ""), origin())
            g.new_secret = proven.secret
            return proven.actor
    except SessionOver:
        g.new_secret = ""
        return None
    return actor


def origin() -> Origin:
    return Origin(request.remote_addr or "", request.headers.get("User-Agent", ""), Via.CONSOLE)


def signed_in(secret: str) -> None:
    """The answer to this request sets the cookie; "" takes it away."""
    g.new_secret = secret


def set_up(app: Flask) -> None:
    @app.after_request
    def cookie(response: Response) -> Response:
        secret = g.pop("new_secret", None)
        if secret:
            response.set_cookie(COOKIE, secret, secure=True, httponly=True, samesite="Lax", path="/")
        elif secret == "":
            response.delete_cookie(COOKIE, secure=True, httponly=True, samesite="Lax", path="/")
        return response

    app.register_error_handler(ReauthenticationNeeded, lambda error: ask_proof(error, 403))
    app.register_error_handler(SignInRefused, lambda error: ask_proof(error, 403))
    app.register_error_handler(SignInThrottled, lambda error: ask_proof(error, 429))


def ask_proof(error: StrongroomError, status: int) -> Response:
    """The form that was sent, once more, with the password and a code beside it. What is secret of it is not sent back
    to the browser: such a form is filled in again."""
    secret = any("password" in name or "passphrase" in name for name in request.form if name not in _OURS)
    fields = [] if secret else [(k, v) for k, v in request.form.items(multi=True) if k not in _OURS]
    page = render_template(
        "account/proof.html", error=error, asked_again=not isinstance(error, ReauthenticationNeeded), fields=fields,
        secret=secret, back=_form_page() if secret else "", title="Prove that it is you",
    )  # fmt: skip
    response = make_response(page, status)
    if isinstance(error, SignInThrottled):
        response.headers["Retry-After"] = str(error.retry_after_s)
    return response


def _form_page() -> str:
    """Where the form was that was sent, to fill it in again; "" if the browser does not tell."""
    there = urlsplit(request.referrer or "")
    return local(f"{there.path}?{there.query}" if there.query else there.path) if there.netloc == request.host else ""
