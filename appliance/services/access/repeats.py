"""Which act it is to have a run's work done once more. Pure.

The rule: who may not do something may not have it repeated either: "once more" is as grave as what is done by it.
"""

from __future__ import annotations

from appliance.acts import Act, Role
from appliance.models import RunKind, RunRecord
from appliance.services.access.actors import Actor
from appliance.services.access.errors import NotAllowed


def check_repeat(actor: Actor, run: RunRecord) -> None:
    """Beside the act itself: what goes to a place on the appliance that somebody named, only who may name such a place
    has written there once more. NotAllowed."""
    arguments = run.arguments
    place = arguments is not None and (arguments.target if run.kind is RunKind.RESTORE else arguments.home)
    if place and not actor.trusted and actor.role is not Role.ADMIN:
        raise NotAllowed(
            f"{actor.kind} {actor.name}", act_to_repeat(run), f"it writes to {place}, for admins alone",
            hint="Ask an admin to run it again.",
        )  # fmt: skip


def act_to_repeat(run: RunRecord) -> Act:
    match run.kind:
        case RunKind.BACKUP:
            return Act.RUN_RETRY
        case RunKind.RESTORE:
            overwrites = run.arguments is not None and run.arguments.force
            return Act.RESTORE_OVERWRITE if overwrites else Act.RESTORE_START
        case RunKind.VERIFY:
            return Act.REPOSITORY_VERIFY
        case RunKind.COLLECT:
            return Act.REPOSITORY_COLLECT
        case RunKind.COPY:
            return Act.REPOSITORY_COPY
        case RunKind.PRUNE:
            return Act.POINT_PRUNE
