"""What goes on for long after somebody was let in.

The rule: it ends soon after their session or token does, or once they may not do it any more: that is asked again now
and then by who they are, as what they showed may have been replaced since.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from appliance.services.access import Access, Act, Actor, ActorKind, Subject
from appliance.services.accounts.errors import SessionOver, TokenRefused
from appliance.services.accounts.signing_in import SignInService
from appliance.services.accounts.tokens import TokenService

if TYPE_CHECKING:
    from appliance.bootstrap import Appliance


def may_still(appliance: Appliance, actor: Actor, act: Act, subject: Subject) -> bool:
    """Whether somebody who does this would be let in again, to the same. That they are at it is noted. CatalogError."""
    try:
        if actor.kind is ActorKind.USER:
            actor = SignInService(appliance).again(actor)
        elif actor.kind is ActorKind.TOKEN:
            actor = TokenService(appliance).again(actor)
    except (SessionOver, TokenRefused):
        return False
    return Access(appliance).may(actor, act, subject)
