"""What takes longer than an answer should: done by a thread, looked at by pages.

The rule: a job works with an appliance of its own, opened and closed by it, so that nothing it does can disturb the
pages. What must survive this process is in the catalog, not here: a job that is gone with it has left its record there.
"""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime

from appliance.bootstrap import Appliance
from appliance.clock import SystemClock
from appliance.errors import StrongroomError
from appliance.models import new_id
from appliance.settings import Settings

_log = logging.getLogger("strongroom.web")
_KEPT = 200
_AT_ONCE = 8


class TooMuchAtOnce(StrongroomError):
    retryable = True

    def __init__(self) -> None:
        super().__init__("as much is being done as can be at once", hint="Wait until something of it has ended.")


@dataclass(slots=True)
class Job:
    """`about`: what it is called on its page. `actor`: the id of who began it: nobody else sees it. `form`: the address
    from where it is begun once more. `told`: what the act that it does has told of itself so far. `result`: what the
    work returned."""

    id: str
    about: str
    actor: str
    form: str
    began_utc: datetime
    ended_utc: datetime | None = None
    told: Mapping[str, object] = field(default_factory=dict)
    notes: list[tuple[datetime, str]] = field(default_factory=list)
    label: str = ""
    done_bytes: int = 0
    total_bytes: int | None = None
    result: object = None
    error: str = ""
    hint: str = ""

    @property
    def failed(self) -> bool:
        return bool(self.error)

    # As `appliance.progress.Progress`.

    def start(self, label: str, total_bytes: int | None) -> None:
        self.label, self.done_bytes, self.total_bytes = label, 0, total_bytes

    def advance(self, count_bytes: int) -> None:
        self.done_bytes += count_bytes

    def note(self, text: str) -> None:
        self.notes.append((SystemClock().now_utc(), text))

    def finish(self) -> None:
        self.label = ""


class Jobs:
    """Those of this process, the newest so many. Thread-safe."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._known: OrderedDict[str, Job] = OrderedDict()
        self._lock = threading.Lock()

    def begin(self, about: str, actor: str, form: str, work: Callable[[Appliance, Job], object]) -> Job:
        """TooMuchAtOnce."""
        job = Job(new_id(), about, actor, form, SystemClock().now_utc())
        with self._lock:
            if sum(each.ended_utc is None for each in self._known.values()) >= _AT_ONCE:
                raise TooMuchAtOnce
            self._known[job.id] = job
            while len(self._known) > _KEPT:
                self._known.popitem(last=False)
        threading.Thread(target=self._run, args=(job, work), name=f"job-{job.id[:8]}", daemon=True).start()
        return job

    def find(self, id: str, actor: str) -> Job | None:
        with self._lock:
            job = self._known.get(id)
        return job if job is not None and job.actor == actor else None

    def _run(self, job: Job, work: Callable[[Appliance, Job], object]) -> None:
        try:
            with Appliance(self._settings) as appliance:
                job.result = work(appliance, job)
        except Exception as err:  # noqa: BLE001  (its page tells it)
            told = getattr(err, "hint", None)
            if told is None:
                _log.error("job %s (%s)", job.id[:12], job.about, exc_info=err)
                job.error, job.hint = "something went wrong", f"The log of strongroom serve has it under {job.id[:12]}."
            else:
                job.error, job.hint = str(err), str(told)
        finally:
            job.ended_utc = SystemClock().now_utc()
