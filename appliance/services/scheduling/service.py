"""How the policies stand: what is due and waits for what, what missed its RPO, and whether a scheduler lives.

The rule: it is what the scheduler would find if it looked now, told without asking the queue for anything.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from appliance.policy.due import Look, look
from appliance.policy.rpo import Watched
from appliance.services import spawning
from appliance.services.scheduling.following import GAP, follow
from appliance.services.scheduling.gathering import Memory, gather

if TYPE_CHECKING:
    from appliance.bootstrap import Appliance


@dataclass(frozen=True, slots=True)
class Standing:
    """Of the machines that this appliance looks after. `selected`: how many of them a policy selects. `alive`: a
    scheduler of this home lives; `looked_utc`: when it last looked, to a minute. `problems`: sentences."""

    look: Look
    selected: int
    alive: bool
    looked_utc: datetime | None
    problems: tuple[str, ...]
    follows_utc: datetime | None = None  # when pruning, verification and copies are due next

    @property
    def missed(self) -> tuple[Watched, ...]:
        return self.look.missed

    @property
    def unserved(self) -> bool:
        """Policies select something, and nobody looks."""
        return self.selected > 0 and not self.alive


class SchedulingService:
    """Borrows the appliance."""

    def __init__(self, appliance: Appliance) -> None:
        self._appliance = appliance

    def standing(self) -> Standing:
        """CatalogError."""
        now = self._appliance.clock.now_utc()
        gathered = gather(self._appliance, now, Memory())
        mark = self._appliance.catalog.scheduling.mark()
        goes_on = mark is not None and mark.since_utc <= now <= mark.looked_utc + GAP
        since = mark.since_utc if mark is not None and goes_on else now
        found = look(gathered.policies, gathered.machines, gathered.assigned, now, looking_since_utc=since)
        following = follow(self._appliance, gathered, now)
        return Standing(
            found,
            sum(bool(names) for names in gathered.assigned.values()),
            self._appliance.alive(spawning.SCHEDULER),
            None if mark is None else mark.looked_utc,
            (*gathered.problems, *following.problems),
            following.next_utc,
        )
