"""Who does something.

The rule: an actor is made where somebody proved who they are (a session, a token, a login on this machine), and carries
all that decides what they may do; so nothing is asked of the catalog for a decision.
"""

from __future__ import annotations

import ipaddress
import os
import pwd
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Final

from appliance.acts import Act, Role
from appliance.policy.selectors import Machine, Selector


class ActorKind(StrEnum):
    USER = "user"  # in a session
    TOKEN = "token"  # noqa: S105  (a program, by an API token)
    LOCAL = "local"  # whoever may run strongroom on the appliance's machine
    SYSTEM = "system"  # the appliance itself: the scheduler, and what follows from it
    NOBODY = "nobody"  # who has not said yet who they are, or could not prove it


class Via(StrEnum):
    CONSOLE = "console"
    API = "api"
    CLI = "cli"
    SYSTEM = "system"


@dataclass(frozen=True, slots=True)
class Actor:
    """`grants`: the machines that one of them fits; none: every machine (for a restorer: no machine). `within`: of a
    token that is granted machines, those of its owner, who has some only: it has what is in both.
    `authenticated_utc`: when a user proved last who they are. `acts`: what a token names; None: all of its role."""

    kind: ActorKind
    id: str
    name: str
    role: Role | None
    grants: tuple[Selector, ...] = ()
    address: str = ""
    via: Via = Via.CLI
    authenticated_utc: datetime | None = None
    acts: frozenset[Act] | None = None
    session: str | None = None  # the id of the session, or of the token
    within: tuple[Selector, ...] = ()

    @property
    def trusted(self) -> bool:
        """Who could do it without asking: root on the appliance, and the appliance."""
        return self.kind in (ActorKind.LOCAL, ActorKind.SYSTEM)

    @property
    def limited(self) -> bool:
        """Whether there are machines that are none of theirs."""
        return not self.trusted and (bool(self.grants) or self.role is Role.RESTORER)

    def granted(self, machine: Machine) -> bool:
        return not self.limited or (_fits(self.grants, machine) and (not self.within or _fits(self.within, machine)))


def _fits(selectors: tuple[Selector, ...], machine: Machine) -> bool:
    return any(selector.surely_selects(machine) for selector in selectors)


SYSTEM: Final = Actor(ActorKind.SYSTEM, "system", "system", Role.ADMIN, via=Via.SYSTEM)


def nobody(via: Via, address: str) -> Actor:
    return Actor(ActorKind.NOBODY, "", "", None, address=address, via=via)


def local_actor(environment: Mapping[str, str] | None = None) -> Actor:
    """Whoever runs this process; behind sudo, who called it."""
    environment = os.environ if environment is None else environment
    name = _user_name(os.getuid())
    caller = environment.get("SUDO_USER", "")
    if os.getuid() == 0 and caller and caller != name and _exists(caller):
        name = caller
    return Actor(ActorKind.LOCAL, f"unix:{name}", name, Role.ADMIN, address=_ssh_address(environment), via=Via.CLI)


def _user_name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _exists(name: str) -> bool:
    try:
        pwd.getpwnam(name)
    except (KeyError, ValueError):
        return False
    return True


def _ssh_address(environment: Mapping[str, str]) -> str:
    """From where they logged in, if over SSH."""
    given = environment.get("SSH_CONNECTION", "").partition(" ")[0].partition("%")[0]
    try:
        return str(ipaddress.ip_address(given))
    except ValueError:
        return ""
