"""Users: who they are to the appliance, and what they may do.

The rule: each of these says who does it, and asks and tells Access itself. An account is made without a password; what
comes back is a link for whom it is. No program makes an admin, or gets into an admin's account.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from appliance.accounts import UserRecord
from appliance.acts import Act, Role
from appliance.models import new_id
from appliance.policy.selectors import Selector
from appliance.services.access import Access, Actor, ActorKind, NotAllowed, Subject
from appliance.services.accounts import codes
from appliance.services.accounts.errors import GrantsMissing, SessionOver
from appliance.services.accounts.passwords import Passwords, check_password
from appliance.services.accounts.setting_up import Link, SetUpService, check_name

if TYPE_CHECKING:
    from appliance.accounts import SessionRecord
    from appliance.bootstrap import Appliance


@dataclass(frozen=True, slots=True)
class WithLink:
    user: UserRecord
    link: Link


class UserService:
    """Borrows the appliance. All of it: NotAllowed, ReauthenticationNeeded; RecordMissing for a user that is not."""

    def __init__(self, appliance: Appliance) -> None:
        self._appliance = appliance
        self._access = Access(appliance)

    def list(self, actor: Actor) -> tuple[UserRecord, ...]:
        self._access.check(actor, Act.USER_SEE)
        return self._appliance.catalog.users.list()

    def get(self, actor: Actor, wanted: str) -> UserRecord:
        """By name or id."""
        self._access.check(actor, Act.USER_SEE)
        return self._appliance.catalog.users.get(wanted)

    def add(self, actor: Actor, name: str, role: Role, grants: Sequence[Selector] = ()) -> WithLink:
        """NameUnfit, GrantsMissing, RecordExists."""
        details = {"role": role.value, "grants": [selector.to_json() for selector in grants], "new": True}
        with self._access.performing(actor, Act.USER_SAVE, Subject("user", name=name), details) as doing:
            _check_reach(actor, Act.USER_SAVE, role)
            name = check_name(name)
            _check_grants(role, grants)
            now = self._appliance.clock.now_utc()
            user = UserRecord(new_id(), name, role, tuple(selector.to_json() for selector in grants), now)
            self._appliance.catalog.users.add(user)
            doing.subject = _subject(user)
            return WithLink(user, self._link(user))

    def edit(
        self, actor: Actor, wanted: str, *, role: Role | None = None, grants: Sequence[Selector] | None = None
    ) -> UserRecord:
        """What is None stays. GrantsMissing, LastAdmin."""
        user = self._appliance.catalog.users.get(wanted)
        role = role or user.role
        kept = list(user.grants) if grants is None else [selector.to_json() for selector in grants]
        details = {"role": role.value, "grants": kept, "new": False}
        with self._access.performing(actor, Act.USER_SAVE, _subject(user), details):
            _check_reach(actor, Act.USER_SAVE, role, user.role)
            _check_grants(role, kept)
            return self._appliance.catalog.users.edit(user.id, role=role, grants=kept)

    def disable(self, actor: Actor, wanted: str) -> UserRecord:
        """Their sessions end, and their tokens count no more. LastAdmin."""
        user = self._appliance.catalog.users.get(wanted)
        with self._access.performing(actor, Act.USER_DISABLE, _subject(user)):
            return self._appliance.catalog.users.edit(user.id, disabled_utc=self._appliance.clock.now_utc())

    def enable(self, actor: Actor, wanted: str) -> UserRecord:
        user = self._appliance.catalog.users.get(wanted)
        with self._access.performing(actor, Act.USER_ENABLE, _subject(user)):
            _check_reach(actor, Act.USER_ENABLE, user.role)
            return self._appliance.catalog.users.edit(user.id, disabled_utc=None)

    def reset(self, actor: Actor, wanted: str) -> WithLink:
        """A new link: until it is used they sign in as before. It waits for nothing, whatever failed before."""
        user = self._appliance.catalog.users.get(wanted)
        with self._access.performing(actor, Act.USER_RESET, _subject(user)):
            _check_reach(actor, Act.USER_RESET, user.role)
            return WithLink(user, self._link(user))

    def remove(self, actor: Actor, wanted: str) -> UserRecord:
        """With their tokens and sessions; what they did stays in the audit. LastAdmin."""
        user = self._appliance.catalog.users.get(wanted)
        with self._access.performing(actor, Act.USER_REMOVE, _subject(user)):
            self._appliance.catalog.users.remove(user.id)
        return user

    def renew_key(self, actor: Actor) -> tuple[str, ...]:
        """Seal second factors with another key. Returns the names of those who have to set theirs up anew, as the key
        is lost that they were sealed with; links that were not used yet count no more. HomeUnusable."""
        with self._access.performing(actor, Act.USER_RESET, Subject("user", name="everybody's second factor")) as doing:
            lost = self._appliance.catalog_keys.renew()
            doing.note(lost=list(lost))
        return lost

    # Sessions

    def sessions(self, actor: Actor, wanted: str | None = None) -> tuple[SessionRecord, ...]:
        """Of this user, or all."""
        self._access.check(actor, Act.USER_SEE)
        id = None if wanted is None else self._appliance.catalog.users.get(wanted).id
        return self._appliance.catalog.sessions.list(id)

    def end_session(self, actor: Actor, id: str) -> None:
        """One's own, or another's. RecordMissing."""
        session = self._appliance.catalog.sessions.get(id)
        own = actor.kind is ActorKind.USER and session.user == actor.id
        user = self._appliance.catalog.users.get(session.user)
        act = Act.SESSION_END if own else Act.SESSION_REVOKE
        with self._access.performing(actor, act, _subject(user), {"session": session.id}):
            self._appliance.catalog.sessions.end([session.id])

    def _link(self, user: UserRecord) -> Link:
        link = SetUpService(self._appliance).new_link(user.id)
        assert link is not None  # of a user, there always is one
        return link


class OwnAccountService:
    """What whoever is signed in does with their own account. SessionOver for who is no user; NotAllowed,
    ReauthenticationNeeded. `passwords`: tests pass cheap ones."""

    def __init__(self, appliance: Appliance, *, passwords: Passwords | None = None) -> None:
        self._appliance = appliance
        self._access = Access(appliance)
        self._passwords = passwords or Passwords()

    def sessions(self, actor: Actor) -> tuple[SessionRecord, ...]:
        self._access.check(actor, Act.ACCOUNT_SEE)
        return self._appliance.catalog.sessions.list(self._user(actor).id)

    def codes_left(self, actor: Actor) -> int:
        """Recovery codes that were not used yet."""
        self._access.check(actor, Act.ACCOUNT_SEE)
        return self._appliance.catalog.users.codes_left(self._user(actor).id)

    def change_password(self, actor: Actor, new: str) -> None:
        """All other sessions end. PasswordUnfit."""
        user = self._user(actor)
        with self._access.performing(actor, Act.ACCOUNT_CHANGE, _subject(user), {"what": "password"}):
            check_password(new, user.name)
            hashed = self._passwords.hash(new)
            self._appliance.catalog.users.set_password(user.id, hashed, keep_session=actor.session)

    def new_recovery_codes(self, actor: Actor) -> tuple[str, ...]:
        """To be shown once, in place of those that were left."""
        user = self._user(actor)
        with self._access.performing(actor, Act.ACCOUNT_CHANGE, _subject(user), {"what": "recovery codes"}):
            made = codes.new_recovery_codes()
            self._appliance.catalog.users.set_codes(user.id, [codes.recovery_hash(each) for each in made])
        return made

    def new_second_factor(self, actor: Actor) -> Link:
        """A set-up link for oneself: with another phone, everything is set up anew."""
        user = self._user(actor)
        with self._access.performing(actor, Act.ACCOUNT_CHANGE, _subject(user), {"what": "second factor"}):
            link = SetUpService(self._appliance).new_link(user.id)
        assert link is not None
        return link

    def _user(self, actor: Actor) -> UserRecord:
        if actor.kind is not ActorKind.USER:
            raise SessionOver
        return self._appliance.catalog.users.get(actor.id)


def _subject(user: UserRecord) -> Subject:
    return Subject("user", user.id, user.name)


def _check_reach(actor: Actor, act: Act, *roles: Role) -> None:
    """Or a token that may save or reset users would be worth an admin, with all that asks for a renewed proof.
    NotAllowed."""
    if actor.kind is ActorKind.TOKEN and Role.ADMIN in roles:
        raise NotAllowed(
            f"token {actor.name}", act, "an admin's account is for admins who are signed in",
            hint="Sign in to the console for it, or use 'strongroom user' on the appliance's machine.",
        )  # fmt: skip


def _check_grants(role: Role, grants: Sequence[object]) -> None:
    if role is Role.RESTORER and not grants:
        raise GrantsMissing
