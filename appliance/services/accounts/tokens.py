"""API tokens: who a program is.

The rule: a token is worth no more than its owner is at that moment, and no more than it says. What loses something it
does only if it names that act; who made it then said that it may.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Final

from appliance.accounts import TokenRecord, UserRecord
from appliance.acts import TRAITS, Act, Role
from appliance.models import new_id
from appliance.policy.selectors import Selector
from appliance.services.access import Access, Actor, ActorKind, Subject, role_may
from appliance.services.accounts.errors import TokenRefused, TokenUnfit
from appliance.services.accounts.signing_in import Origin, token_hash

if TYPE_CHECKING:
    from appliance.bootstrap import Appliance

PREFIX: Final = "strongroom_"  # so that those who look for leaked secrets find it
LONGEST: Final = timedelta(days=366)
_NAME_CHARACTERS_MAX: Final = 64
_USED_EVERY: Final = timedelta(minutes=1)


@dataclass(frozen=True, slots=True)
class NewToken:
    """`secret`: to be shown once."""

    secret: str = field(repr=False)
    record: TokenRecord


@dataclass(frozen=True, slots=True)
class TokenView:
    """`owner`: the name of its user; None: made on the appliance itself."""

    record: TokenRecord
    owner: str | None


class TokenService:
    """Borrows the appliance."""

    def __init__(self, appliance: Appliance) -> None:
        self._appliance = appliance
        self._access = Access(appliance)

    def list(self, actor: Actor) -> tuple[TokenView, ...]:
        """NotAllowed."""
        self._access.check(actor, Act.USER_SEE)
        names = {user.id: user.name for user in self._appliance.catalog.users.list()}
        return tuple(
            TokenView(record, names.get(record.owner or "")) for record in self._appliance.catalog.tokens.list()
        )

    def add(
        self, actor: Actor, name: str, role: Role, *, acts: Sequence[Act] | None = None,
        grants: Sequence[Selector] = (), good_for: timedelta, owner: str | None = None,
    ) -> NewToken:  # fmt: skip
        """`owner`: a user by name, for whom it is made; else the actor, if they are a user, or whose token it is.
        TokenUnfit, NotAllowed, ReauthenticationNeeded, RecordMissing."""
        user = self._owner(actor, owner)
        grants_json = [selector.to_json() for selector in grants]
        details = {
            "role": role.value, "acts": None if acts is None else sorted(acts), "grants": grants_json,
            "owner": user.name if user else None, "days": round(good_for / timedelta(days=1), 3),
        }  # fmt: skip
        with self._access.performing(actor, Act.TOKEN_ADD, Subject("token", name=name), details) as doing:
            _check(name, role, acts, grants, good_for, user)
            _check_maker(actor, acts)
            secret, now = PREFIX + secrets.token_urlsafe(32), self._appliance.clock.now_utc()
            record = TokenRecord(
                new_id(), token_hash(secret), name, user.id if user else None, role,
                None if acts is None else tuple(sorted(act.value for act in acts)), tuple(grants_json),
                now, now + good_for,
            )  # fmt: skip
            self._appliance.catalog.tokens.add(record)
            doing.subject = Subject("token", record.id, name)
        return NewToken(secret, record)

    def revoke(self, actor: Actor, wanted: str) -> TokenRecord:
        """By its id or a unique beginning of it; for ever. NotAllowed, RecordMissing."""
        record = self._appliance.catalog.tokens.get(wanted)
        with self._access.performing(actor, Act.TOKEN_REVOKE, Subject("token", record.id, record.name)):
            self._appliance.catalog.tokens.revoke(record.id, self._appliance.clock.now_utc())
        return record

    def actor_of(self, secret: str, origin: Origin) -> Actor:
        """Who has this token; that it was used is noted. TokenRefused."""
        tokens = self._appliance.catalog.tokens
        return self._good(tokens.find(token_hash(secret)) if secret.startswith(PREFIX) else None, origin)

    def again(self, actor: Actor) -> Actor:
        """Who that is now, of somebody who came in by a token and is still at it. TokenRefused."""
        found = self._appliance.catalog.tokens.by_id(actor.session or "")
        return self._good(found, Origin(actor.address, "", actor.via))

    def _good(self, found: tuple[TokenRecord, UserRecord | None] | None, origin: Origin) -> Actor:
        if found is None:
            raise TokenRefused
        record, owner = found
        now = self._appliance.clock.now_utc()
        if why := _worthless(record, owner, now):
            raise TokenRefused(why)
        used = record.used_utc
        if used is None or abs(now - used) >= _USED_EVERY or record.used_from != origin.place:
            self._appliance.catalog.tokens.used(record.id, now, origin.place)
        owners = owner.selectors if owner is not None else ()  # who has some machines only has no others by a token
        return Actor(
            ActorKind.TOKEN, record.id, record.name, record.role, record.selectors or owners, origin.address,
            origin.via, acts=record.named, session=record.id, within=owners if record.selectors else (),
        )  # fmt: skip

    def _owner(self, actor: Actor, wanted: str | None) -> UserRecord | None:
        users = self._appliance.catalog.users
        if wanted is not None:
            return users.get(wanted)
        if actor.kind is ActorKind.TOKEN:  # what it makes is worth no more than its own owner
            maker = self._appliance.catalog.tokens.get(actor.id).owner
            return None if maker is None else users.get(maker)
        return users.get(actor.id) if actor.kind is ActorKind.USER else None


def _check(
    name: str, role: Role, acts: Sequence[Act] | None, grants: Sequence[Selector], good_for: timedelta,
    owner: UserRecord | None,
) -> None:  # fmt: skip
    """TokenUnfit."""
    if not name.strip() or len(name) > _NAME_CHARACTERS_MAX or not name.isprintable():
        raise TokenUnfit(f"a name has 1 to {_NAME_CHARACTERS_MAX} printable characters")
    if not timedelta(0) < good_for <= LONGEST:
        raise TokenUnfit(f"it is good for {LONGEST.days} days at most")
    if owner is not None and not owner.enabled:
        raise TokenUnfit(f"user {owner.name} is disabled")
    if owner is not None and not _within(role, owner.role):
        raise TokenUnfit(f"the role {role} may do what {owner.name}, {owner.role}, may not")
    if owner is not None and owner.grants and grants:
        raise TokenUnfit(f"{owner.name} has some machines only: their tokens have just these")
    if role is Role.RESTORER and not grants and not (owner and owner.grants):
        raise TokenUnfit("a restorer has to be granted machines")
    for act in acts or ():
        if not role_may(role, act):
            raise TokenUnfit(f"the role {role} does not include {act}")


def _check_maker(actor: Actor, acts: Sequence[Act] | None) -> None:
    """What loses something a token gives no other that it was not itself made for. TokenUnfit."""
    if actor.kind is ActorKind.TOKEN:
        for act in acts or ():
            if TRAITS[act].proven and act not in (actor.acts or ()):
                raise TokenUnfit(f"the token that makes it is not for {act} itself")


def _worthless(record: TokenRecord, owner: UserRecord | None, now: datetime) -> str:
    """ "": it counts."""
    if record.revoked_utc is not None:
        return "it was revoked"
    if now >= record.expires_utc:
        return "it has expired"
    if record.owner is not None and (owner is None or not owner.enabled):
        return "its owner is disabled"
    if owner is not None and not _within(record.role, owner.role):
        return f"its owner is {owner.role} only"
    return ""


def _within(role: Role, other: Role) -> bool:
    """Whether everything that the one may do, the other may."""
    return all(other in traits.roles for traits in TRAITS.values() if role in traits.roles)
