"""Signing in and out, and setting an account up by its link."""

from __future__ import annotations

import io
import socket

import segno
from flask import Blueprint, make_response, redirect, render_template, request, session, url_for
from markupsafe import Markup
from werkzeug.wrappers import Response

from appliance.errors import StrongroomError
from appliance.services.access import Act
from appliance.services.accounts.errors import (
    CodeWrong,
    LinkUnusable,
    NameUnfit,
    PasswordUnfit,
    SignInRefused,
    SignInThrottled,
)
from appliance.services.accounts.setting_up import SetUpService
from appliance.services.accounts.signing_in import SignInService
from web.acts import act, public
from web.current import appliance
from web.forms import FormWrong, local, required
from web.guarding import actor
from web.sessions import COOKIE, origin, signed_in

blueprint = Blueprint("sign_in", __name__)
_CHARACTERS_MAX = 1000


@blueprint.get("/sign-in")
@public
def form() -> Response | str:
    if actor().session is not None:
        return redirect(url_for("overview.page"))
    return render_template("account/sign_in.html", again=local(request.args.get("next", "")), title="Sign in")


@blueprint.post("/sign-in")
@public
def enter() -> Response:
    given, again = request.form, local(request.form.get("next", ""))
    try:
        found = SignInService(appliance()).sign_in(
            given.get("name", "")[:_CHARACTERS_MAX], given.get("password", "")[:_CHARACTERS_MAX],
            given.get("code", "")[:_CHARACTERS_MAX], origin(),
        )  # fmt: skip
    except (SignInRefused, SignInThrottled) as err:
        status = 429 if isinstance(err, SignInThrottled) else 403
        page = render_template("account/sign_in.html", wrong=err, again=again, name=given.get("name", "")[:100],
                               title="Sign in")  # fmt: skip
        response = make_response(page, status)
        if isinstance(err, SignInThrottled):
            response.headers["Retry-After"] = str(err.retry_after_s)
        return response
    session.clear()  # whatever was before, also the token of forms
    signed_in(found.secret)
    return redirect(again or url_for("overview.page"))


@blueprint.post("/sign-out")
@act(Act.SESSION_END)
def out() -> Response:
    SignInService(appliance()).sign_out(request.cookies.get(COOKIE, ""), origin())
    session.clear()
    signed_in("")
    response = redirect(url_for("sign_in.form"))
    response.headers["Clear-Site-Data"] = '"cache", "storage"'
    return response


@blueprint.get("/set-up/<secret>")
@public
def set_up(secret: str) -> Response | str:
    return _set_up(secret)


@blueprint.post("/set-up/<secret>")
@public
def finish(secret: str) -> Response | str:
    given = request.form
    try:
        name = None if "name" not in given else required(given, "name", most=100)
        if given.get("password", "") != given.get("again", ""):
            raise FormWrong("again", "it is not the same password")
        done = SetUpService(appliance()).complete(
            secret, name, given.get("password", "")[:_CHARACTERS_MAX], given.get("code", "")[:100], origin()
        )
    except LinkUnusable:
        raise
    except (CodeWrong, NameUnfit, PasswordUnfit, FormWrong) as err:
        return _set_up(secret, err)
    session.clear()
    return render_template("account/codes.html", codes=done.recovery_codes, name=done.user.name, first=True,
                           title="Recovery codes")  # fmt: skip


def _set_up(secret: str, wrong: StrongroomError | None = None) -> Response | str:
    offer = SetUpService(appliance()).offer(secret, socket.gethostname())
    page = render_template(
        "account/set_up.html", offer=offer, picture=picture(offer.uri), wrong=wrong,
        name=request.form.get("name", "")[:100], title="Set up your account",
    )  # fmt: skip
    return page if wrong is None else make_response(page, 400)


def picture(text: str) -> Markup:
    """A QR code, as an SVG that takes its size from where it is."""
    made = io.BytesIO()
    segno.make(text, error="m").save(
        made, kind="svg", xmldecl=False, svgns=False, omitsize=True, border=2, svgclass=None, lineclass=None,
        title="QR code of the second factor",
    )  # fmt: skip
    return Markup(made.getvalue().decode("utf-8"))  # noqa: S704  (made by us of modules, not of what somebody typed)
