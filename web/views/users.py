"""Users: who may sign in, what they may do, and their sessions."""

from __future__ import annotations

from flask import Blueprint, flash, redirect, render_template, request, url_for
from werkzeug.wrappers import Response

from appliance.accounts import UserRecord
from appliance.policy.selectors import Selector, read_selector
from appliance.services.access import Act, Role
from appliance.services.accounts.setting_up import Link
from appliance.services.accounts.users import UserService
from web.acts import act
from web.current import appliance
from web.forms import FormWrong, choice, required
from web.guarding import actor
from web.policy_form import clauses, lines

blueprint = Blueprint("users", __name__)


@blueprint.get("/users")
@act(Act.USER_SEE)
def listing() -> str:
    service = UserService(appliance())
    users = service.list(actor())
    return render_template(
        "users/listing.html", users=users, sessions=service.sessions(actor()),
        names={each.id: each.name for each in users},
        grants={each.id: list(map(str, each.selectors)) for each in users},
        typed={each.id: _typed(each) for each in users}, roles=Role,
        title="Users",
    )  # fmt: skip


@blueprint.post("/users")
@act(Act.USER_SAVE)
def add() -> str:
    made = UserService(appliance()).add(actor(), required(request.form, "name", most=100), _role(), _grants())
    return _link(made.user.name, made.link, new=True)


@blueprint.post("/users/<id>")
@act(Act.USER_SAVE)
def edit(id: str) -> Response:
    service = UserService(appliance())
    user = service.edit(actor(), id, role=_role(), grants=_changed_grants(service.get(actor(), id)))
    flash(f"{user.name} is {user.role} now.", "good")
    return redirect(url_for("users.listing"))


@blueprint.post("/users/<id>/reset")
@act(Act.USER_RESET)
def reset(id: str) -> str:
    made = UserService(appliance()).reset(actor(), id)
    return _link(made.user.name, made.link, new=False)


@blueprint.post("/users/<id>/disable")
@act(Act.USER_DISABLE)
def disable(id: str) -> Response:
    user = UserService(appliance()).disable(actor(), id)
    flash(f"{user.name} cannot sign in any more, and is signed out.", "good")
    return redirect(url_for("users.listing"))


@blueprint.post("/users/<id>/enable")
@act(Act.USER_ENABLE)
def enable(id: str) -> Response:
    user = UserService(appliance()).enable(actor(), id)
    flash(f"{user.name} can sign in again.", "good")
    return redirect(url_for("users.listing"))


@blueprint.post("/users/<id>/remove")
@act(Act.USER_REMOVE)
def remove(id: str) -> Response:
    user = UserService(appliance()).remove(actor(), id)
    flash(f"{user.name} is removed; what they did stays in the audit.", "good")
    return redirect(url_for("users.listing"))


@blueprint.post("/users/sessions/<id>/end")
@act(Act.SESSION_REVOKE)
def end_session(id: str) -> Response:
    UserService(appliance()).end_session(actor(), id)
    flash("That session is over.", "good")
    return redirect(url_for("users.listing"))


def _link(name: str, link: Link, *, new: bool) -> str:
    address = request.url_root.rstrip("/") + link.path
    return render_template("users/link.html", name=name, address=address, link=link, new=new, title=f"Link for {name}")


def _role() -> Role:
    role = choice(request.form, "role", Role)
    if role is None:
        raise FormWrong("role", "choose a role")
    return role


def _changed_grants(user: UserRecord) -> tuple[Selector, ...] | None:
    """None: as the field showed them, so that they stay, with what it does not show. PolicyInvalid, FormWrong."""
    if [line.split() for line in request.form.get("grants", "").strip().splitlines()] == [
        line.split() for line in _typed(user).splitlines()
    ]:
        return None
    if any(each.exclude for each in user.selectors):
        raise FormWrong(
            "grants",
            f"what {user.name} may see leaves machines out, which this field cannot say: leave it as it is, or give "
            "other grants by the API or 'strongroom user edit'",
        )
    return _grants()


def _typed(user: UserRecord) -> str:
    """The grants as they are typed, without what they leave out."""
    return "\n".join(lines([each for each in grant["include"] if each != {"all": True}]) for grant in user.grants)


def _grants() -> tuple[Selector, ...]:
    """None given: every machine (for a restorer: none). PolicyInvalid, FormWrong."""
    include = clauses(request.form, "grants")
    return (read_selector({"include": include}, "grants"),) if include else ()
