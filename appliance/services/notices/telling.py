"""The part of the daemon that tells people: looks, makes notices of what it has seen, and delivers them.

The rule: it hurts nothing else. What goes wrong here is logged once and tried again at the next look; a target that
does not answer keeps no other waiting for longer than its time-out. Of appliances that share a catalog one does this at
a time; what it knows is in the catalog, so whoever comes next goes on where it was.
"""

from __future__ import annotations

import logging
import threading
from datetime import time, timedelta
from typing import TYPE_CHECKING, Final
from zoneinfo import ZoneInfo

from appliance.catalog.notices import LOCK
from appliance.clock import format_utc, parse_utc
from appliance.errors import StrongroomError
from appliance.notices import daily, grouping, retrying, wording
from appliance.notices.records import Delivery, DeliveryState, Notice
from appliance.services.fleet import FleetService
from appliance.services.notices.days import day_since
from appliance.services.notices.observing import Observer
from appliance.services.notices.sending import AppriseSender, Sender

if TYPE_CHECKING:
    from appliance.bootstrap import Appliance

_log = logging.getLogger(__name__)
_OWNER: Final = "notices"
_KEPT: Final = timedelta(days=90)
_DIGEST: Final = "digest"


class TellingService:
    """Borrows the appliance."""

    def __init__(self, appliance: Appliance, sender: Sender | None = None) -> None:
        self._appliance = appliance
        self._settings = appliance.settings.notices
        self._sender = sender or AppriseSender()
        self._observer = Observer(appliance)
        self._told: str | None = None
        self._forgot_day = ""

    def keep_telling(self, stop: threading.Event) -> None:
        """Every `notices.look_s`, until `stop`. InUse if this home has somebody who does."""
        with self._appliance.own(_OWNER, "telling people"):
            while not stop.is_set():
                self._try(stop)
                stop.wait(self._settings.look_s)

    def _try(self, stop: threading.Event) -> None:
        try:
            self.once(stop)
            self._told = None
        except StrongroomError as err:
            self._log_once(str(err), None)
        except Exception as err:  # noqa: BLE001  (a mistake here must not end the daemon, which has more to do)
            self._log_once(f"a mistake in strongroom itself: {type(err).__name__}", err)

    def _log_once(self, problem: str, err: Exception | None) -> None:
        if problem != self._told:
            _log.warning("notices: %s", problem, exc_info=err)
        self._told = problem

    def once(self, stop: threading.Event | None = None) -> None:
        """One look, and all that is due by it. CatalogError."""
        with self._appliance.catalog.database.exclusively(LOCK) as mine:
            if not mine:
                return
            self._observe()
            self._make_notices()
            self._make_digest()
            self._deliver(stop or threading.Event())
            self._forget()

    def _observe(self) -> None:
        notices = self._appliance.catalog.notices
        known = [each for each in notices.concerns() if each.lasting]
        look = self._observer.look(known)
        found = grouping.changes(known, look.lasting, self._observer.is_unknown, look.now_utc)
        new = (*found.new, *look.events)
        if new or found.gone or look.runs or look.verifications or look.state:
            notices.keep(
                new, found.gone, runs=look.runs, verifications=look.verifications, state=look.state,
                now_utc=look.now_utc,
            )  # fmt: skip

    def _make_notices(self) -> None:
        notices, settings = self._appliance.catalog.notices, self._settings
        untold = [each for each in notices.concerns() if each.told_utc is None]
        if not untold:
            return
        now = self._appliance.clock.now_utc()
        due = grouping.ripe(
            untold, notices.last_told(), now, wait_s=settings.wait_s, interval_s=settings.interval_s
        )  # fmt: skip
        targets = [target.name for target in settings.of(settings.alerts_to)]
        for kind, concerns in due:
            notices.tell(wording.notice(kind, concerns, self._name(), now), targets, concerns)

    def _make_digest(self) -> None:
        settings, notices, now = self._settings, self._appliance.catalog.notices, self._appliance.clock.now_utc()
        if not settings.digest_at:
            return
        at, zone = time.fromisoformat(settings.digest_at), ZoneInfo(settings.zone)
        last = notices.state(_DIGEST)
        if last is None:  # the first one comes when it is due next
            notices.keep((), (), state={_DIGEST: format_utc(daily.latest_due(now, at, zone))}, now_utc=now)
            return
        since = daily.due_since(parse_utc(last), now, at, zone)
        if since is None:
            return
        made = daily.digest(day_since(self._appliance, self._observer, since, now), self._name(), now)
        targets = [target.name for target in settings.of(settings.digest_to)]
        notices.tell(made, targets, state={_DIGEST: format_utc(now)})

    def _deliver(self, stop: threading.Event) -> None:
        """What is due, oldest first. After a failure its target is left alone until the next look."""
        notices, clock = self._appliance.catalog.notices, self._appliance.clock
        targets = {target.name: target for target in self._settings.targets}
        failing: set[str] = set()
        for notice, delivery in notices.waiting():
            if stop.is_set():
                return
            if delivery.target in failing or not retrying.is_due(delivery, clock.now_utc()):
                continue
            target = targets.get(delivery.target)
            if target is None:
                self._give_up(delivery)
                continue
            error = self._sender.send(target, notice)
            notices.settle(done := retrying.attempted(delivery, error, notice.created_utc, clock.now_utc()))
            if error is not None:
                failing.add(target.name)
                _log_failure(notice, done)

    def _give_up(self, delivery: Delivery) -> None:
        self._appliance.catalog.notices.settle(
            Delivery(
                delivery.notice,
                delivery.target,
                DeliveryState.GIVEN_UP,
                delivery.attempts,
                self._appliance.clock.now_utc(),
                "there is no target of this name any more",
            )
        )

    def _forget(self) -> None:
        now = self._appliance.clock.now_utc()
        if (day := f"{now:%Y-%m-%d}") != self._forgot_day:
            self._forgot_day = day
            self._appliance.catalog.notices.forget(now - _KEPT)

    def _name(self) -> str:
        return FleetService(self._appliance).name(self._appliance.catalog.me)


def _log_failure(notice: Notice, delivery: Delivery) -> None:
    """The first attempt and the last: those between are in `notice list`."""
    if delivery.state is DeliveryState.GIVEN_UP:
        _log.warning("notices: %s to %s is given up: %s", notice.kind, delivery.target, delivery.error)
    elif delivery.attempts == 1:
        _log.warning("notices: %s to %s is tried again: %s", notice.kind, delivery.target, delivery.error)
