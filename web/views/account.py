"""One's own account: sessions, password, recovery codes, another second factor."""

from __future__ import annotations

from flask import Blueprint, flash, redirect, render_template, request, url_for
from werkzeug.wrappers import Response

from appliance.services.access import Act
from appliance.services.accounts.users import OwnAccountService, UserService
from web.acts import act
from web.current import appliance
from web.forms import FormWrong, local
from web.guarding import actor

blueprint = Blueprint("account", __name__)


@blueprint.get("/account")
@act(Act.ACCOUNT_SEE)
def page() -> str:
    own = OwnAccountService(appliance())
    return render_template(
        "account/page.html", sessions=own.sessions(actor()), codes_left=own.codes_left(actor()), title="Your account"
    )


@blueprint.post("/account/sessions/<id>/end")
@act(Act.SESSION_END)
def end_session(id: str) -> Response:
    UserService(appliance()).end_session(actor(), id)
    flash("That session is over.", "good")
    return redirect(url_for("account.page"))


@blueprint.post("/account/password")
@act(Act.ACCOUNT_CHANGE)
def change_password() -> Response:
    if request.form.get("password", "") != request.form.get("again", ""):
        raise FormWrong("again", "the two passwords are not the same")
    OwnAccountService(appliance()).change_password(actor(), request.form.get("password", "")[:1000])
    flash("Your password is changed; all other sessions are over.", "good")
    return redirect(url_for("account.page"))


@blueprint.post("/account/codes")
@act(Act.ACCOUNT_CHANGE)
def new_codes() -> str:
    codes = OwnAccountService(appliance()).new_recovery_codes(actor())
    return render_template("account/codes.html", codes=codes, name=actor().name, first=False, title="Recovery codes")


@blueprint.post("/account/second-factor")
@act(Act.ACCOUNT_CHANGE)
def second_factor() -> Response:
    link = OwnAccountService(appliance()).new_second_factor(actor())
    return redirect(link.path)


@blueprint.post("/account/prove")
@act(Act.ACCOUNT_REAUTHENTICATE)
def prove() -> Response:
    """The proof was looked at before any view."""
    flash("For five minutes it is known to be you.", "good")
    return redirect(local(request.form.get("back", "")) or url_for("account.page"))
