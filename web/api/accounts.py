"""Users and API tokens: who may ask for what."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any, Final

from flask import Response
from pydantic import BaseModel, Field

from appliance.accounts import SessionRecord, TokenRecord, UserRecord
from appliance.acts import Act, Role
from appliance.policy.selectors import Selector, read_selector
from appliance.services.accounts.tokens import LONGEST, TokenService
from appliance.services.accounts.users import UserService, WithLink
from web.acts import act
from web.api.callers import answering, appliance
from web.api.resources import Id, resource
from web.api.schemas import In, list_of, schema_of, send, values_of

resources = resource("accounts", "Users, their sessions, and API tokens.")
User: Final = schema_of(
    UserRecord, "User", leave_out=frozenset({"password_hash", "totp_sealed", "totp_step"}), add={"ready": bool}
)
UserList: Final = list_of(User)
Session: Final = schema_of(SessionRecord, "Session", leave_out=frozenset({"hash"}))
SessionList: Final = list_of(Session)
Token: Final = schema_of(TokenRecord, "Token", leave_out=frozenset({"hash"}))
Grants = list[dict[str, Any]]
_GRANTS: Final = "Selectors of machines, as policies have them; none: every machine."


class ListedToken(Token):  # type: ignore[misc,valid-type]
    owner_name: str | None = Field(description="null: it was made on the appliance itself.")


TokenList: Final = list_of(ListedToken)


class UserWithLink(User):  # type: ignore[misc,valid-type]
    path: str = Field(description="Of the console: what sets the account up. For whom it is alone; shown once.")
    expires_utc: datetime


class NewToken(Token):  # type: ignore[misc,valid-type]
    secret: str = Field(description="The token itself: shown once.")


class UserName(BaseModel):
    name: str = Field(min_length=1, max_length=64, description="Or the id.")


class UserIn(In):
    name: str = Field(min_length=1, max_length=64)
    role: Role = Field(strict=False)
    grants: Grants = Field([], max_length=100, description=_GRANTS)


class UserChange(In):
    role: Role | None = Field(None, strict=False)
    grants: Grants | None = Field(None, max_length=100, description=_GRANTS)


class TokenIn(In):
    name: str = Field(min_length=1, max_length=64)
    role: Role = Field(strict=False)
    acts: list[Act] | None = Field(
        None, max_length=200, strict=False,
        description="Only these of the role's; null: all of them but those that lose something.",
    )  # fmt: skip
    grants: Grants = Field([], max_length=100, description=_GRANTS)
    days: int = Field(90, ge=1, le=LONGEST.days, description="So long it is good.")
    owner: str | None = Field(None, min_length=1, max_length=64, description="The user for whom it is.")


@resources.get("/users", summary="Users", responses={200: UserList})
@act(Act.USER_SEE)
def list_users() -> Response:
    return send(UserList, {"items": UserService(appliance()).list(answering())})


@resources.post("/users", summary="Add a user", responses={201: UserWithLink})
@act(Act.USER_SAVE)
def add_user(body: UserIn) -> Response:
    """It comes back with a link for whom it is: there they choose a password and a second factor."""
    grants = _selectors(body.grants)
    return _send_link(UserService(appliance()).add(answering(), body.name, body.role, grants), 201)


@resources.get("/users/<name>", summary="A user", responses={200: User})
@act(Act.USER_SEE)
def show_user(path: UserName) -> Response:
    return send(User, UserService(appliance()).get(answering(), path.name))


@resources.patch("/users/<name>", summary="Give a user another role, or other machines", responses={200: User})
@act(Act.USER_SAVE)
def change_user(path: UserName, body: UserChange) -> Response:
    grants = None if body.grants is None else _selectors(body.grants)
    return send(User, UserService(appliance()).edit(answering(), path.name, role=body.role, grants=grants))


@resources.delete("/users/<name>", summary="Remove a user", responses={204: None})
@act(Act.USER_REMOVE)
def remove_user(path: UserName) -> Response:
    """With their tokens and sessions. What they did stays in the audit."""
    UserService(appliance()).remove(answering(), path.name)
    return Response(status=204)


@resources.post("/users/<name>/disable", summary="Let a user in no more", responses={200: User})
@act(Act.USER_DISABLE)
def disable_user(path: UserName) -> Response:
    return send(User, UserService(appliance()).disable(answering(), path.name))


@resources.post("/users/<name>/enable", summary="Let a user in again", responses={200: User})
@act(Act.USER_ENABLE)
def enable_user(path: UserName) -> Response:
    return send(User, UserService(appliance()).enable(answering(), path.name))


@resources.post("/users/<name>/reset", summary="Make a new set-up link", responses={200: UserWithLink})
@act(Act.USER_RESET)
def reset_user(path: UserName) -> Response:
    """Until it is used they sign in as before."""
    return _send_link(UserService(appliance()).reset(answering(), path.name), 200)


@resources.get("/sessions", summary="Sessions of the console", responses={200: SessionList})
@act(Act.USER_SEE)
def list_sessions() -> Response:
    return send(SessionList, {"items": UserService(appliance()).sessions(answering())})


@resources.delete("/sessions/<id>", summary="End a session", responses={204: None})
@act(Act.SESSION_REVOKE)
def end_session(path: Id) -> Response:
    UserService(appliance()).end_session(answering(), path.id)
    return Response(status=204)


@resources.get("/tokens", summary="API tokens", responses={200: TokenList})
@act(Act.USER_SEE)
def list_tokens() -> Response:
    found = TokenService(appliance()).list(answering())
    return send(TokenList, {"items": [values_of(Token, each.record) | {"owner_name": each.owner} for each in found]})


@resources.post("/tokens", summary="Make an API token", responses={201: NewToken})
@act(Act.TOKEN_ADD)
def add_token(body: TokenIn) -> Response:
    made = TokenService(appliance()).add(
        answering(), body.name, body.role, acts=body.acts, grants=_selectors(body.grants),
        good_for=timedelta(days=body.days), owner=body.owner,
    )  # fmt: skip
    return send(NewToken, values_of(Token, made.record) | {"secret": made.secret}, 201)


@resources.delete("/tokens/<id>", summary="Revoke an API token", responses={204: None})
@act(Act.TOKEN_REVOKE)
def revoke_token(path: Id) -> Response:
    TokenService(appliance()).revoke(answering(), path.id)
    return Response(status=204)


def _selectors(grants: Grants) -> list[Selector]:
    """PolicyInvalid."""
    return [read_selector(each, f"grants[{number}]") for number, each in enumerate(grants)]


def _send_link(made: WithLink, status: int) -> Response:
    link = {"path": made.link.path, "expires_utc": made.link.expires_utc}
    return send(UserWithLink, values_of(User, made.user) | link, status)
