"""What the views need of the application that answers: the appliance, and services worth keeping."""

from __future__ import annotations

import threading
from functools import cached_property
from typing import TYPE_CHECKING, Final

from flask import Flask, current_app

from appliance.bootstrap import Appliance
from appliance.services.browsing import BrowsingService
from appliance.services.files.service import FilesService
from appliance.services.files.sessions import Sessions
from appliance.services.watcher import RunWatcher
from web.jobs import Jobs

if TYPE_CHECKING:
    from appliance.services.metrics import MetricsService
    from appliance.services.planning import PlanningService
    from appliance.services.reports import ReportService
    from web.made_reports import MadeReports
    from web.server import Streams

_COUNTED_S: Final = 30.0


class Parts:
    """Of one application, for all its threads."""

    def __init__(self, appliance: Appliance, streams: Streams) -> None:
        self.appliance = appliance
        self.streams = streams
        self.jobs = Jobs(appliance.settings)
        self.counted: tuple[float, int | None] | None = None  # requests that are open, and when they were counted
        self.counting = threading.Lock()
        self._sessions = Sessions(appliance)
        self.files = FilesService(appliance, self._sessions)

    def close(self) -> None:
        """Ends the processes that read file systems."""
        self._sessions.close()

    @cached_property
    def browsing(self) -> BrowsingService:
        return BrowsingService(self.appliance)

    @cached_property
    def metrics(self) -> MetricsService:
        from appliance.services.metrics import MetricsService

        return MetricsService(self.appliance)

    @cached_property
    def planning(self) -> PlanningService:
        from appliance.services.planning import PlanningService

        return PlanningService(self.appliance)

    @cached_property
    def report(self) -> ReportService:
        from appliance.services.reports import ReportService

        return ReportService(self.appliance)

    @cached_property
    def made_reports(self) -> MadeReports:
        from web.made_reports import MadeReports

        return MadeReports(self.appliance, self.report)

    @cached_property
    def watcher(self) -> RunWatcher:
        return RunWatcher(self.appliance)


def parts() -> Parts:
    return parts_of(current_app)


def parts_of(app: Flask) -> Parts:
    found = app.extensions["strongroom"]
    assert isinstance(found, Parts)
    return found


def appliance() -> Appliance:
    return parts().appliance


def browsing() -> BrowsingService:
    return parts().browsing


def files() -> FilesService:
    return parts().files


def metrics() -> MetricsService:
    return parts().metrics


def planning() -> PlanningService:
    return parts().planning


def report() -> ReportService:
    return parts().report


def made_reports() -> MadeReports:
    return parts().made_reports


def open_requests(*, anew: bool = False) -> int | None:
    """How many requests of the repository's guard are open, as of the last half minute; None: it cannot be told. Every
    page asks, so one at a time counts and the others are told what was known: a store that hangs has one thread."""
    from appliance.services.signing import SigningService

    found, now_s = parts(), appliance().clock.monotonic_s()
    stale = anew or found.counted is None or now_s - found.counted[0] >= _COUNTED_S
    if stale and found.counting.acquire(blocking=False):
        try:
            found.counted = (now_s, SigningService(appliance()).open())
        finally:
            found.counting.release()
    return None if found.counted is None else found.counted[1]
