"""Whether an actor may do an act. Pure: role, grants, what a token names, and how long ago they proved who they are.

The rule: everything that is not plainly allowed is refused. A clock that went back proves nothing.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Final

from appliance.acts import TRAITS, Act, Scope
from appliance.doing import Subject
from appliance.services.access.actors import Actor, ActorKind
from appliance.services.access.errors import AccessError, NotAllowed, NotGranted, ReauthenticationNeeded

PROVEN_FOR: Final = timedelta(minutes=5)
_PERSONS_ONLY: Final = frozenset({Act.REQUEST_CONFIRM})


def refusal(actor: Actor, act: Act, subject: Subject | None, now_utc: datetime) -> AccessError | None:
    """None: they may. `subject` None: whether there is anything at all that they may do it to, as for a button."""
    if actor.trusted:
        return None
    who, traits = _who(actor), TRAITS[act]
    if actor.kind is ActorKind.NOBODY or actor.role is None:
        return NotAllowed(who, act, "nobody is signed in", hint="Sign in first.")
    if actor.role not in traits.roles:
        return NotAllowed(who, act, f"the role {actor.role} does not include it")
    if actor.acts is not None and act not in actor.acts:
        return NotAllowed(who, act, "the token is not for it", hint="Make a token for it: 'strongroom token add'.")
    if actor.kind is ActorKind.TOKEN and (act in _PERSONS_ONLY or (traits.scope is Scope.SELF and traits.audited)):
        return NotAllowed(who, act, "a token is no person", hint="Sign in to the console for it.")
    if actor.limited and traits.scope is Scope.FLEET:
        return NotAllowed(who, act, "it is about the whole fleet, and they have some machines only")
    if actor.limited and traits.scope is Scope.MACHINE and not _is_granted(actor, subject):
        return NotGranted(who, act, "that is none of their machines")  # nor is its name theirs to know
    if traits.proven and subject is not None:
        return _unproven(actor, act, now_utc)
    return None


def _is_granted(actor: Actor, subject: Subject | None) -> bool:
    if subject is None or subject.filtered:
        return True
    return subject.machine is not None and actor.granted(subject.machine)


def _unproven(actor: Actor, act: Act, now_utc: datetime) -> AccessError | None:
    who = _who(actor)
    if actor.kind is ActorKind.TOKEN:
        # A program cannot prove itself again: who made the token said that it is for just this.
        if actor.acts is None:
            return NotAllowed(
                who, act, "a token has to name such an act", hint=f"'strongroom token add … --act {act}' makes one."
            )
        return None
    if not is_fresh(actor.authenticated_utc, now_utc):
        return ReauthenticationNeeded(who, act)
    return None


def is_fresh(proven_utc: datetime | None, now_utc: datetime) -> bool:
    """Whether a proof of who somebody is still counts."""
    return proven_utc is not None and timedelta(0) <= now_utc - proven_utc <= PROVEN_FOR


def _who(actor: Actor) -> str:
    return f"{actor.kind} {actor.name}" if actor.name else "nobody"
