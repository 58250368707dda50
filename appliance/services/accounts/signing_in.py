"""Signing in and out, and who somebody is at each request.

The rule: name, password and code are given together, and one answer is given to all that may be wrong with them. A
session's token is random, new at each sign-in and at each renewed proof, and kept as a hash; whether it still counts is
asked of the catalog each time, with the account as it is then.
"""

from __future__ import annotations

import hashlib
import logging
import secrets
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Final

from appliance.accounts import SessionRecord, UserRecord
from appliance.acts import Act
from appliance.audit import Result
from appliance.models import new_id
from appliance.sealed import CatalogKey, NotOpened, of_user
from appliance.services.access import Access, Actor, ActorKind, Subject, Via, nobody
from appliance.services.accounts import throttle
from appliance.services.accounts.codes import Proof, read_code
from appliance.services.accounts.errors import SessionOver, SignInRefused, SignInThrottled
from appliance.services.accounts.passwords import Passwords

if TYPE_CHECKING:
    from appliance.bootstrap import Appliance

_log = logging.getLogger(__name__)
_SEEN_EVERY: Final = timedelta(minutes=1)
_AHEAD: Final = timedelta(minutes=5)  # a session from further in the future was begun by a clock that was wrong
_AGENT_CHARACTERS_MAX: Final = 300
_ADDRESS_CHARACTERS_MAX: Final = 64


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a request comes from. `agent`: what the browser says that it is."""

    address: str
    agent: str = ""
    via: Via = Via.CONSOLE

    @property
    def place(self) -> str:
        return throttle.place_of(self.address)[:_ADDRESS_CHARACTERS_MAX]


@dataclass(frozen=True, slots=True)
class SignedIn:
    """`secret`: the session's token, for the cookie alone. `codes_left`: recovery codes that were not used yet."""

    secret: str = field(repr=False)
    actor: Actor
    codes_left: int


class SignInService:
    """Borrows the appliance. `passwords`: tests pass cheap ones."""

    def __init__(self, appliance: Appliance, *, passwords: Passwords | None = None) -> None:
        self._appliance = appliance
        self._access = Access(appliance)
        self._passwords = passwords or Passwords()

    def sign_in(self, name: str, password: str, code: str, origin: Origin) -> SignedIn:
        """`code`: of the second factor, or a recovery code. SignInRefused, SignInThrottled; CatalogKeyMissing, the same
        for everybody."""
        name = name.strip().lower()[:_AGENT_CHARACTERS_MAX]
        catalog, key = self._appliance.catalog, self._appliance.catalog_keys.current()
        user = catalog.users.find(name)
        counted = self._count(user, name, origin)
        proof = self._checked(user, password, code, key)
        if user is None or proof is None:
            raise self._refused(user, Act.SESSION_START, origin)
        now = self._appliance.clock.now_utc()
        secret = secrets.token_urlsafe(32)
        session = SessionRecord(
            new_id(), token_hash(secret), user.id, now, now, now, origin.place, _plain(origin.agent)
        )
        if not catalog.sessions.open(
            session, user.password_hash or "", step=proof.step, now_step=proof.now_step, code=proof.recovery_hash
        ):
            raise self._refused(user, Act.SESSION_START, origin)
        self._succeeded(user, password, counted)
        actor = actor_of(user, session, origin)
        how = {"second_factor": "code" if proof.step is not None else "recovery code"}
        self._access.record(actor, Act.SESSION_START, _subject(user), how)
        self._end_old(now)
        return SignedIn(secret, actor, catalog.users.codes_left(user.id))

    def actor_of(self, secret: str, origin: Origin) -> Actor:
        """Who has this session; that it was used is noted. SessionOver."""
        return self._seen(*self._session(secret), origin)

    def again(self, actor: Actor) -> Actor:
        """Who that is now, of somebody who came in by a session and is still at it. SessionOver."""
        origin = Origin(actor.address, "", actor.via)
        return self._seen(*self._good(self._appliance.catalog.sessions.by_id(actor.session or "")), origin)

    def _seen(self, session: SessionRecord, user: UserRecord, origin: Origin) -> Actor:
        now = self._appliance.clock.now_utc()
        if now - session.seen_utc >= _SEEN_EVERY or session.address != origin.place:
            self._appliance.catalog.sessions.seen(session.id, now, origin.place)
        return actor_of(user, session, origin)

    def reauthenticate(self, secret: str, password: str, code: str, origin: Origin) -> SignedIn:
        """Prove again who has this session, which has another token afterwards. SessionOver, SignInRefused,
        SignInThrottled."""
        key = self._appliance.catalog_keys.current()
        session, user = self._session(secret)
        counted = self._count(user, user.name, origin)
        proof = self._checked(user, password, code, key)
        if proof is None:
            raise self._refused(user, Act.ACCOUNT_REAUTHENTICATE, origin)
        now = self._appliance.clock.now_utc()
        fresh = secrets.token_urlsafe(32)
        if not self._appliance.catalog.sessions.prove(
            session.id, user.password_hash or "", token_hash(fresh), now,
            step=proof.step, now_step=proof.now_step, code=proof.recovery_hash,
        ):  # fmt: skip
            raise self._refused(user, Act.ACCOUNT_REAUTHENTICATE, origin)
        self._succeeded(user, password, counted)
        actor = actor_of(user, replace(session, authenticated_utc=now), origin)
        self._access.record(actor, Act.ACCOUNT_REAUTHENTICATE, _subject(user))
        return SignedIn(fresh, actor, self._appliance.catalog.users.codes_left(user.id))

    def sign_out(self, secret: str, origin: Origin) -> None:
        """Who is not signed in is that already."""
        try:
            session, user = self._session(secret)
        except SessionOver:
            return
        self._appliance.catalog.sessions.end([session.id])
        self._access.record(actor_of(user, session, origin), Act.SESSION_END, _subject(user))

    def _session(self, secret: str) -> tuple[SessionRecord, UserRecord]:
        return self._good(self._appliance.catalog.sessions.find(token_hash(secret)))

    def _good(self, found: tuple[SessionRecord, UserRecord] | None) -> tuple[SessionRecord, UserRecord]:
        if found is None:
            raise SessionOver
        session, user = found
        now, limits = self._appliance.clock.now_utc(), self._appliance.settings.accounts
        idle, age = now - session.seen_utc, now - session.created_utc
        if (
            not user.enabled
            or idle > timedelta(seconds=limits.session_idle_s)
            or not -_AHEAD <= age <= timedelta(seconds=limits.session_s)
        ):
            self._appliance.catalog.sessions.end([session.id])
            raise SessionOver
        return session, user

    def _count(self, user: UserRecord | None, name: str, origin: Origin) -> throttle.Keys:
        """The attempt as one that failed, until it succeeds. SignInThrottled."""
        now, attempts = self._appliance.clock.now_utc(), self._appliance.catalog.attempts
        known = attempts.is_known(user.id if user else "", origin.place, now)
        keys = throttle.keys(name, origin.place, known=known)
        wait_s = attempts.begin(keys.delays(), now)
        if wait_s > 0:
            raise SignInThrottled(wait_s)
        return keys

    def _checked(self, user: UserRecord | None, password: str, code: str, key: CatalogKey | None) -> Proof | None:
        """None: something is wrong. Everything is looked at in any case, so that the time tells nothing."""
        fits = self._passwords.fits(password, user.password_hash if user else None)
        proof = read_code(code, _secret_of(user, key), self._appliance.clock.now_utc())
        return proof if fits and proof.possible and user is not None and user.enabled else None

    def _succeeded(self, user: UserRecord, password: str, counted: throttle.Keys) -> None:
        catalog = self._appliance.catalog
        catalog.attempts.succeeded(forget=counted.forgotten, less=[counted.address])
        known = user.password_hash or ""
        if self._passwords.is_dated(known):
            catalog.users.rehash(user.id, known, self._passwords.hash(password))

    def _refused(self, user: UserRecord | None, act: Act, origin: Origin) -> SignInRefused:
        """Audited; not what was typed for a name, as that is sometimes a password."""
        error = SignInRefused()
        subject = Subject("user", name="unknown") if user is None else _subject(user)
        actor = nobody(origin.via, origin.address)
        self._access.record(actor, act, subject, result=Result.REFUSED, error=str(error))
        return error

    def _end_old(self, now: datetime) -> None:
        limits = self._appliance.settings.accounts
        self._appliance.catalog.sessions.end_old(
            now - timedelta(seconds=limits.session_idle_s), now - timedelta(seconds=limits.session_s)
        )


def token_hash(secret: str) -> str:
    return hashlib.sha256(b"strongroom token " + secret.encode("utf-8", "surrogatepass")).hexdigest()


def actor_of(user: UserRecord, session: SessionRecord, origin: Origin) -> Actor:
    return Actor(
        ActorKind.USER, user.id, user.name, user.role, user.selectors, origin.address, origin.via,
        authenticated_utc=session.authenticated_utc, session=session.id,
    )  # fmt: skip


def _secret_of(user: UserRecord | None, key: CatalogKey | None) -> str | None:
    """None: they have none, or what the catalog has for theirs is not."""
    if user is None or user.totp_sealed is None or key is None:
        return None
    try:
        return key.open(of_user(user.id), user.totp_sealed)
    except NotOpened:
        _log.warning(
            "the second factor of user %s does not open: it is another's, or was changed; 'strongroom user reset %s'"
            " makes a new link", user.name, user.name,
        )  # fmt: skip
        return None


def _subject(user: UserRecord) -> Subject:
    return Subject("user", user.id, user.name)


def _plain(agent: str) -> str:
    shown = "".join(character if character.isprintable() else "?" for character in agent[:_AGENT_CHARACTERS_MAX])
    return shown.encode("utf-8", "replace").decode("utf-8")
