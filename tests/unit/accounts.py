"""Accounts for tests: a clock, cheap passwords, and users who are set up."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

import pyotp
from argon2 import PasswordHasher

from appliance.acts import Role
from appliance.bootstrap import Appliance
from appliance.policy.selectors import Clause, Selector
from appliance.services.access import Access, Actor, local_actor
from appliance.services.accounts.passwords import Passwords
from appliance.services.accounts.setting_up import SetUpService
from appliance.services.accounts.signing_in import Origin, SignedIn, SignInService
from appliance.services.accounts.tokens import TokenService
from appliance.services.accounts.users import OwnAccountService, UserService
from tests.unit.records import NOW

CHEAP = Passwords(PasswordHasher(time_cost=1, memory_cost=8, parallelism=1))
PASSWORD = "correct horse battery staple"
ORIGIN = Origin("192.0.2.7", "Firefox")
WEB_ONLY = (Selector((Clause(name="web-*"),)),)


class Clock:
    """Stands still until it is moved."""

    def __init__(self) -> None:
        self.now = NOW

    def now_utc(self) -> datetime:
        return self.now

    def monotonic_s(self) -> float:
        return (self.now - NOW).total_seconds()

    def sleep(self, seconds: float) -> None:
        self.pass_s(seconds)

    def pass_s(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)


@dataclass
class Accounts:
    """The services on one appliance, and what a person would do with them."""

    appliance: Appliance
    clock: Clock

    def __post_init__(self) -> None:
        self.access = Access(self.appliance)
        self.setting_up = SetUpService(self.appliance, passwords=CHEAP)
        self.signing_in = SignInService(self.appliance, passwords=CHEAP)
        self.own = OwnAccountService(self.appliance, passwords=CHEAP)
        self.users = UserService(self.appliance)
        self.tokens = TokenService(self.appliance)
        self.local = local_actor()
        self.secrets: dict[str, str] = {}
        self.recovery: dict[str, tuple[str, ...]] = {}

    def code(self, name: str, *, steps: int = 0) -> str:
        """What their app shows now, or so many times 30 seconds later."""
        return pyotp.TOTP(self.secrets[name]).at(self.clock.now, counter_offset=steps)

    def next_code(self, name: str) -> str:
        """Of the next 30 seconds, which begin now."""
        self.clock.pass_s(30)
        return self.code(name)

    def use(self, secret: str, name: str, password: str = PASSWORD) -> None:
        """A set-up link."""
        offer = self.setting_up.offer(secret)
        self.secrets[name] = offer.secret
        done = self.setting_up.complete(secret, name, password, self.code(name), ORIGIN)
        self.recovery[name] = done.recovery_codes

    def add(self, name: str, role: Role = Role.ADMIN, grants: tuple[Selector, ...] = ()) -> str:
        """A user who can sign in; returns their id. The first one is an admin, by the first link."""
        if not self.appliance.catalog.users.exist():
            assert role is Role.ADMIN
            self.use(self.setting_up.first_link().secret, name)
            return self.appliance.catalog.users.get(name).id
        made = self.users.add(self.local, name, role, grants)
        self.use(made.link.secret, name)
        return made.user.id

    def sign_in(self, name: str, password: str = PASSWORD, origin: Origin = ORIGIN) -> SignedIn:
        return self.signing_in.sign_in(name, password, self.next_code(name), origin)

    def actor(self, name: str) -> Actor:
        return self.sign_in(name).actor
