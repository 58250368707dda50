"""The scheduler of `strongroom serve`: looks when something may have become due, and asks the queue for what has.

The rule: it decides nothing (`policy.due` does) and remembers nothing that would be missed: what was due is told by
when runs began, which the catalog has. So it may end, or lose the catalog, at any moment, and goes on from what it then
finds. It looks when the time has come that the last look named, when a run or a policy has changed, and when the clock
was set.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Final

from appliance.catalog.errors import CatalogError
from appliance.catalog.scheduling import Stamp
from appliance.models import RunDue, RunKind, RunRecord, RunState, new_id
from appliance.policy.due import LONGEST_LOOK, Look, Request, look
from appliance.policy.selectors import Kind
from appliance.services import spawning
from appliance.services.queue.service import QueueService
from appliance.services.scheduling.following import GAP, follow
from appliance.services.scheduling.gathering import Gathered, Memory, gather

if TYPE_CHECKING:
    from appliance.bootstrap import Appliance

_log = logging.getLogger(__name__)
_POLL_S: Final = 2.0
_MARK_EVERY: Final = timedelta(minutes=1)


class Scheduler:
    """Borrows the appliance, and its clock."""

    def __init__(self, appliance: Appliance) -> None:
        self._appliance = appliance
        self._clock = appliance.clock
        self._memory = Memory()
        self._stamp: Stamp | None = None
        self._looked_utc: datetime | None = None
        self._looked_s = 0.0
        self._next_utc: datetime | None = None
        self._since_utc: datetime | None = None
        self._marked_utc: datetime | None = None
        self._told: frozenset[str] = frozenset()

    def run(self, stop: threading.Event) -> None:
        """Until `stop`. A catalog that is away is waited for. InUse if this home has a scheduler."""
        with self._appliance.own(spawning.SCHEDULER, "the scheduler of this home"):
            while not stop.is_set():
                try:
                    self.turn()
                except CatalogError as err:
                    self._tell({str(err)})
                stop.wait(_POLL_S)

    def turn(self) -> Look | None:
        """Look, if there may be something to see; returns what was found, once it is asked for. CatalogError, and then
        the next turn looks again."""
        now, now_s = self._clock.now_utc(), self._clock.monotonic_s()
        if not self._may_differ(now, now_s):
            return None
        self._stamp = None  # should this fail, the next turn looks
        gathered = gather(self._appliance, now, self._memory)
        since = self._since(now)
        found = look(
            gathered.policies, gathered.machines, gathered.assigned, now, looking_since_utc=since
        )  # fmt: skip
        following = follow(self._appliance, gathered, now)
        self._ask([*self._backups(found, gathered), *following.runs])
        self._mark(since, now)
        self._tell({*gathered.problems, *following.problems})
        # With what was asked for now, all is as it was once that has ended; so that is looked at in between.
        self._stamp = None if found.requests or following.runs else gathered.stamp
        self._looked_utc, self._looked_s = now, now_s
        self._next_utc = min(filter(None, (found.next_utc, following.next_utc)))
        return found

    def _may_differ(self, now: datetime, now_s: float) -> bool:
        if self._stamp is None or self._looked_utc is None or self._next_utc is None:
            return True
        # Set back, the clock would reach the next time only much later.
        back = now < self._looked_utc
        late = now_s - self._looked_s >= LONGEST_LOOK.total_seconds()
        return back or late or now >= self._next_utc or self._appliance.catalog.scheduling.stamp() != self._stamp

    def _since(self, now: datetime) -> datetime:
        """Since when looks have gone on without a gap: of an earlier process of this home too."""
        since, looked = self._since_utc, self._looked_utc
        if since is None or looked is None:
            mark = self._appliance.catalog.scheduling.mark()
            if mark is None:
                return now
            since, looked = mark.since_utc, mark.looked_utc
        return since if since <= now <= looked + GAP else now

    def _backups(self, found: Look, gathered: Gathered) -> list[RunRecord]:
        now = self._clock.now_utc()
        # The queue goes by when they were asked for, and they come in an order.
        return [
            self._run(request, gathered, now + timedelta(microseconds=number))
            for number, request in enumerate(found.requests)
        ]

    def _ask(self, wanted: Sequence[RunRecord]) -> None:
        for asked in QueueService(self._appliance).ask_due(wanted) if wanted else ():
            run = asked.run
            why = "; ".join(f"{each.cause} of {each.policy}, due {each.due_utc:%Y-%m-%d %H:%M}Z" for each in run.due)
            what = run.name if run.kind is RunKind.BACKUP else f"{run.kind} {run.name}"
            _log.info("run %s of %s is queued: %s", run.id[:12], what, why)

    def _run(self, request: Request, gathered: Gathered, asked_utc: datetime) -> RunRecord:
        machine = request.machine
        uuid = machine.id if machine.kind is Kind.VM else None
        run = RunRecord(
            new_id(), machine.name, machine.kind.value, uuid, machine.host, RunState.QUEUED, asked_utc,
            asked_utc=asked_utc, appliance=self._appliance.catalog.me, limit_bytes_s=request.limit_bytes_s,
            quiesce=request.quiesce,
            due=tuple(RunDue(each.policy, each.due_utc, each.cause.value) for each in request.due),
        )  # fmt: skip
        if machine.kind is Kind.IMAGE:
            placed = gathered.images[machine.key]
            run = replace(run, image_path=placed.image_path, image_format=placed.image_format)
        return run

    def _mark(self, since: datetime, now: datetime) -> None:
        marked = self._marked_utc
        if since != self._since_utc or marked is None or not marked <= now < marked + _MARK_EVERY:
            self._appliance.catalog.scheduling.keep_mark(since, now)
            self._since_utc, self._marked_utc = since, now

    def _tell(self, problems: set[str]) -> None:
        """Each once, as long as it lasts."""
        for problem in sorted(problems - self._told):
            _log.warning("policies: %s", problem)
        self._told = frozenset(problems)
