"""Who may do what, and what was done.

access = Access(appliance)
with access.performing(actor, Act.RUN_START, Subject.of_machine(machine), details={"full": False}) as doing:
    run = QueueService(appliance).ask(...)
    doing.note(run=run.id)
"""

from appliance.acts import TRAITS, Act, Role, Scope, role_may
from appliance.audit import Result
from appliance.doing import FILTERED, NOTHING, Doing, Subject, about
from appliance.services.access.access import Access
from appliance.services.access.actors import (
    SYSTEM,
    Actor,
    ActorKind,
    Via,
    local_actor,
    nobody,
)
from appliance.services.access.errors import (
    AccessError,
    NotAllowed,
    NotGranted,
    PlaceNotAllowed,
    ReauthenticationNeeded,
)

__all__ = [
    "FILTERED",
    "NOTHING",
    "SYSTEM",
    "TRAITS",
    "Access",
    "AccessError",
    "Act",
    "Actor",
    "ActorKind",
    "Doing",
    "NotAllowed",
    "NotGranted",
    "PlaceNotAllowed",
    "ReauthenticationNeeded",
    "Result",
    "Role",
    "Scope",
    "Subject",
    "Via",
    "about",
    "local_actor",
    "nobody",
    "role_may",
]
