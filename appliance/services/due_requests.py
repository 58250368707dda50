"""Requests of a guarded repository, carried out by `strongroom serve` once their delay is over.

The rule: to look is what counts a delay on this appliance, so it looks all the time; whether a request may be carried
out, the guard says. What cannot be done (a point that something uses) is told once, and tried again after a while.
"""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING, Final

from appliance import home
from appliance.doing import Subject
from appliance.looking import keep_looking
from appliance.services.access import SYSTEM, Access, Act
from appliance.services.guard import Applied, GuardService
from imaging.guard.errors import RequestNotReady
from imaging.guard.requests import Standing

if TYPE_CHECKING:
    from appliance.bootstrap import Appliance

_log = logging.getLogger(__name__)
_EVERY_S: Final = 120.0
_AGAIN_S: Final = 3600.0


class DueRequests:
    """Borrows the appliance. One for as long as a process looks: it knows what it has tried."""

    def __init__(self, appliance: Appliance) -> None:
        self._appliance = appliance
        self._tried_s: dict[str, float] = {}

    def look(self) -> tuple[Applied, ...]:
        """Carries out what is due. StrongroomError, ImagingError."""
        if not home.in_use(self._appliance.settings):
            return ()
        service, now_s = GuardService(self._appliance), self._appliance.clock.monotonic_s()
        if not service.state().rules.on:
            return ()
        found, _ = service.requests()
        ready = [each.request for each in found if each.request.standing in (Standing.DUE, Standing.RELEASED)]
        done: list[Applied] = []
        for request in ready:
            if now_s < self._tried_s.get(request.id, now_s):
                continue
            self._tried_s[request.id] = now_s + _AGAIN_S
            with Access(self._appliance).performing(SYSTEM, Act.REQUEST_APPLY, Subject("request", request.id)) as doing:
                try:
                    applied = service.apply([request.id])
                except RequestNotReady:  # refused since, or another appliance was faster
                    doing.drop()
                    continue
                problems = [problem for each in applied for problem in each.problems]
                if problems:
                    doing.partly("; ".join(problems))
            done += applied
        return tuple(done)

    def keep_looking(self, stop: threading.Event) -> None:
        """Until `stop`."""
        keep_looking(self._look_and_log, "requests of the guard", _EVERY_S, stop, _log)

    def _look_and_log(self) -> None:
        for each in self.look():
            _log.info("request %s: %s", each.told.request.id[:12], each.told.request.ask.act.describe())
            for why in each.problems:
                _log.warning("request %s: %s", each.told.request.id[:12], why)
