"""Set-up links: how somebody gets their password, second factor and recovery codes, the first time or again.

The rule: a link is random, good once and for a day, and the newest of an account is the only one. Who makes it never
learns what the account signs in with. There is no default password, and no account without a second factor.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Final

from appliance.accounts import USER_NAME, SetupLink, UserRecord
from appliance.acts import Act, Role
from appliance.models import new_id
from appliance.sealed import NotOpened, of_link, of_user
from appliance.services.access import SYSTEM, Access, Actor, ActorKind, Subject
from appliance.services.accounts import codes, throttle
from appliance.services.accounts.errors import CodeWrong, LinkUnusable, NameUnfit, UsersExist
from appliance.services.accounts.passwords import Passwords, check_password
from appliance.services.accounts.signing_in import Origin, token_hash

if TYPE_CHECKING:
    from appliance.bootstrap import Appliance

LINK_GOOD_FOR: Final = timedelta(days=1)
PATH: Final = "/set-up/"  # of the console; then the secret


@dataclass(frozen=True, slots=True)
class Link:
    """`secret`: for whom the account is, and nobody else."""

    secret: str = field(repr=False)
    expires_utc: datetime

    @property
    def path(self) -> str:
        """Below the console's address."""
        return PATH + self.secret


@dataclass(frozen=True, slots=True)
class Offer:
    """What a link leads to. `name`: None where the first admin chooses one. `secret`, `uri`: of the second factor."""

    name: str | None
    secret: str = field(repr=False)
    uri: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class SetUp:
    """`recovery_codes`: to be shown once."""

    user: UserRecord
    recovery_codes: tuple[str, ...] = field(repr=False)


class SetUpService:
    """Borrows the appliance. `passwords`: tests pass cheap ones."""

    def __init__(self, appliance: Appliance, *, passwords: Passwords | None = None) -> None:
        self._appliance = appliance
        self._access = Access(appliance)
        self._passwords = passwords or Passwords()

    def first_link(self, actor: Actor = SYSTEM) -> Link:
        """For the first admin, in place of an earlier one. UsersExist."""
        if self._appliance.catalog.users.exist():
            raise UsersExist
        with self._access.performing(actor, Act.USER_RESET, Subject("user", name="the first admin")):
            link = self.new_link(None)
            if link is None:
                raise UsersExist
        return link

    def new_link(self, user: str | None) -> Link | None:
        """For this user (an id), or the first admin: None where there are users already. CatalogKeyMissing."""
        secret, now = secrets.token_urlsafe(32), self._appliance.clock.now_utc()
        expires = now + LINK_GOOD_FOR
        hash = token_hash(secret)
        sealed = self._appliance.catalog_keys.needed().seal(of_link(hash), codes.new_secret())
        record = SetupLink(hash, user, now, expires, sealed)
        return Link(secret, expires) if self._appliance.catalog.users.put_link(record) else None

    def offer(self, secret: str, place: str = "") -> Offer:
        """What the page of a link shows; the same each time. `place`: what tells this appliance from others in the
        app. LinkUnusable."""
        link, user = self._link(secret)
        name = user.name if user else None
        offered = self._offered(link)
        return Offer(name, offered, codes.uri(offered, name or "admin", place))

    def complete(self, secret: str, name: str | None, password: str, code: str, origin: Origin) -> SetUp:
        """Use the link up. `name`: of the first admin; else it is the user's. `code`: of the offered second factor, to
        see that it works. LinkUnusable, NameUnfit, PasswordUnfit, CodeWrong, CatalogKeyMissing."""
        link, user = self._link(secret)
        chosen = user.name if user else check_name(name or "")
        check_password(password, chosen)
        now = self._appliance.clock.now_utc()
        offered = self._offered(link)
        step = codes.read_code(code, offered, now).step
        if step is None:
            raise CodeWrong
        recovery = codes.new_recovery_codes()
        new = None if user else UserRecord(new_id(), chosen, Role.ADMIN, (), now)
        owner = user or new
        assert owner is not None
        made = self._appliance.catalog.users.redeem(
            link.hash, now, new=new, password_hash=self._passwords.hash(password),
            totp_sealed=self._appliance.catalog_keys.needed().seal(of_user(owner.id), offered), totp_step=step,
            codes=[codes.recovery_hash(each) for each in recovery],
        )  # fmt: skip
        if made is None:
            raise LinkUnusable
        keys = throttle.keys(made.name, origin.place, known=True)
        self._appliance.catalog.attempts.begin_anew(made.id, origin.place, now, forget=[keys.pair, keys.address])
        actor = Actor(
            ActorKind.USER, made.id, made.name, made.role, made.selectors, address=origin.address, via=origin.via
        )
        subject = Subject("user", made.id, made.name)
        self._access.record(actor, Act.ACCOUNT_SET_UP, subject, {"first": user is None})
        return SetUp(made, recovery)

    def _offered(self, link: SetupLink) -> str:
        """The secret of its second factor. LinkUnusable where it does not open: another link's, or of a key before."""
        try:
            return self._appliance.catalog_keys.needed().open(of_link(link.hash), link.totp_sealed)
        except NotOpened as err:
            raise LinkUnusable from err

    def _link(self, secret: str) -> tuple[SetupLink, UserRecord | None]:
        found = self._appliance.catalog.users.link(token_hash(secret), self._appliance.clock.now_utc())
        if found is None:
            raise LinkUnusable
        return found


def check_name(name: str) -> str:
    """As it is kept. NameUnfit."""
    plain = name.strip().lower()
    if USER_NAME.fullmatch(plain) is None:
        raise NameUnfit(name[:80])
    return plain
