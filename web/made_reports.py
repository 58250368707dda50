"""Reports as pages: made by a thread, kept for an hour, and told with when they were made.

The rule: a report is of a moment, and says of which; whoever wants one of now has it made anew. A report of 1,000
machines takes most of a second to make, and a small one is there before anybody waits: who asks for one waits for a
moment, and is told then that it is being made.
"""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from dataclasses import dataclass
from typing import Final

from markupsafe import Markup

from appliance.bootstrap import Appliance
from appliance.errors import StrongroomError
from appliance.reports.months import Month
from appliance.services.browsing.service import MaySee
from appliance.services.reports import ReportService
from appliance.services.reports.page import body, page
from web.jobs import TooMuchAtOnce

_log = logging.getLogger("strongroom.web")
_KEPT: Final = 12
_AT_ONCE: Final = 4
_KEPT_S: Final = 3600.0
_PATIENCE_S: Final = 0.05


@dataclass(frozen=True, slots=True)
class MadeReport:
    """`body`: for a page that has its own head; `file`: a page that stands alone."""

    body: Markup
    file: str


class ReportFailed(StrongroomError):
    def __init__(self) -> None:
        super().__init__("the report could not be made", hint="The log of strongroom serve says why.")


class _Making:
    def __init__(self) -> None:
        self.over = threading.Event()
        self.ended_s = 0.0
        self.report: MadeReport | None = None
        self.error: Exception | None = None


class MadeReports:
    """Borrows the appliance; the newest so many. Thread-safe."""

    def __init__(self, appliance: Appliance, service: ReportService) -> None:
        self._appliance = appliance
        self._service = service
        self._known: OrderedDict[tuple[Month, str], _Making] = OrderedDict()
        self._lock = threading.Lock()

    def find(
        self, month: Month, whose: str, may_see: MaySee | None, *, patience_s: float | None = _PATIENCE_S
    ) -> MadeReport | None:
        """None: it is being made. `whose`: what tells apart those who may see other machines; `patience_s` None: until
        it is there. TooMuchAtOnce; and what making it raises, as CatalogError."""
        making = self._making(month, whose, may_see)
        if not making.over.wait(patience_s):
            return None
        if making.error is not None:
            self.forget(month, whose)
            raise making.error
        return making.report

    def forget(self, month: Month, whose: str) -> None:
        """One that is being made goes on being made."""
        with self._lock:
            making = self._known.get((month, whose))
            if making is not None and making.over.is_set():
                del self._known[month, whose]

    def _making(self, month: Month, whose: str, may_see: MaySee | None) -> _Making:
        now_s, key = self._appliance.clock.monotonic_s(), (month, whose)
        with self._lock:
            making = self._known.get(key)
            if making is None or (making.over.is_set() and now_s - making.ended_s >= _KEPT_S):
                if sum(not each.over.is_set() for each in self._known.values()) >= _AT_ONCE:
                    raise TooMuchAtOnce
                making = self._known[key] = _Making()
                threading.Thread(target=self._make, args=(making, month, may_see), name="report", daemon=True).start()
            self._known.move_to_end(key)
            while len(self._known) > _KEPT:
                self._known.popitem(last=False)
            return making

    def _make(self, making: _Making, month: Month, may_see: MaySee | None) -> None:
        try:
            report = self._service.month(month, may_see=may_see)
            making.report = MadeReport(body(report), page(report).html)
        except StrongroomError as err:
            making.error = err
        except Exception as err:  # noqa: BLE001  (who asks is told)
            _log.error("a report of %s", month, exc_info=err)
            making.error = ReportFailed()
        finally:
            making.ended_s = self._appliance.clock.monotonic_s()
            making.over.set()
