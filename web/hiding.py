"""What is told of a failure to who was granted some machines: of those of others as of none at all.

The rule: until who asks was let in to what the request names, it may be another's, whatever is wrong with it; so what
is another's, what is not there, and what cannot be told apart from either have one answer, on pages and in the API.
"""

from __future__ import annotations

from typing import Final

from flask import g

from appliance.acts import TRAITS, Scope
from appliance.failures import Failure, Kind, failure_of, names_nothing
from appliance.services.access import Act, Actor, NotGranted

_NOTHING_GRANTED: Final = Failure(
    Kind.MISSING, "NothingGranted", "nothing that was granted goes by this name or id, or not by that alone",
    "Give the whole id, or the host too. An admin can grant the machine ('strongroom user edit').",
)  # fmt: skip


def begin(who: Actor, which: Act) -> None:
    """Before the view of a request runs: who asks, and for which act; what they name is looked for now."""
    g.actor, g.act, g.let_in = who, which, False


def let_in() -> None:
    """They may do it to what the request names, or are shown a list from which what is others' is left out."""
    g.let_in = True


def was_let_in() -> bool:
    """Also where nothing is asked first: before it is known who asks, and of what is for everybody."""
    return bool(g.get("let_in", True))


def failure_told(error: Exception) -> Failure | None:
    """As `failure_of`, as far as it may be told to who asks."""
    return _NOTHING_GRANTED if _hides(error) else failure_of(error)


def _hides(error: Exception) -> bool:
    """Whether it would tell who has some machines only that there is another."""
    return isinstance(error, NotGranted) or (_looked_for() and names_nothing(error))


def _looked_for() -> bool:
    """Whether a machine, or something of one, is still being looked for on behalf of who has some only."""
    return not was_let_in() and g.actor.limited and TRAITS[g.act].scope is Scope.MACHINE
