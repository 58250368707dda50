"""The workers of `strongroom serve`: each takes one run after the other, and has it executed by a process of its own.

The rule: a worker decides nothing; it starts a process, which claims the run in the catalog, and waits for its end. So
the death of a run hurts that run alone, and the death of this daemon none: a run goes on to its end, and whoever comes
next sees its lock. Every few seconds the catalog is swept: runs of dead processes are settled, and what is due and has
no message gets one.
"""

from __future__ import annotations

import logging
import signal
import subprocess
import threading
from typing import TYPE_CHECKING

from huey.consumer import Consumer, Worker

from appliance.catalog.errors import CatalogError
from appliance.errors import StrongroomError
from appliance.models import RunRecord
from appliance.services import spawning
from appliance.services.cleaning import CleaningService
from appliance.services.queue.messages import QueueUnusable, Wakes, engine_errors

if TYPE_CHECKING:
    from appliance.bootstrap import Appliance

_log = logging.getLogger(__name__)
_SWEEP_S = 5.0
_LOOK_S = 0.1
_POLL_S = 0.5  # for messages in a file; PostgreSQL tells
_END_MOST_S = 120.0  # what a run that was told to end may take to clean up; then it is left to itself


class Workers:
    """Borrows the appliance; owns the processes while it runs."""

    def __init__(self, appliance: Appliance) -> None:
        self._appliance = appliance
        self._settings = appliance.settings.queue
        self._lock = threading.Lock()
        self._in_hand: dict[str, subprocess.Popen[bytes] | None] = {}
        self._not_before_s: dict[str, float] = {}  # runs whose process ended without having claimed them
        self._stopping = False
        self._sweep_now = threading.Event()
        self._told: frozenset[str] = frozenset()

    def run(self, stop: threading.Event, at_once: threading.Event) -> None:
        """Until `stop`; then runs under way are given `queue.end_s` (none with `at_once`), told to end in order, and
        waited for. A database that is away is waited for. InUse if this home has workers."""
        with self._appliance.own(spawning.WORKERS, "the queue of this home"):
            while not stop.is_set():
                try:
                    wakes = Wakes(self._appliance, self._appliance.catalog.me, self._take)
                except (CatalogError, QueueUnusable) as err:
                    self._tell({str(err)})
                    stop.wait(_SWEEP_S)
                    continue
                with wakes:
                    self._work(wakes, stop, at_once)

    def _work(self, wakes: Wakes, stop: threading.Event, at_once: threading.Event) -> None:
        consumer = _ThreadedConsumer(
            wakes.huey, workers=self._settings.workers, periodic=False, scheduler_interval=60,
            initial_delay=_LOOK_S, max_delay=_POLL_S,
        )  # fmt: skip
        consumer.start()
        try:
            self._look_after(wakes, consumer, stop)
        finally:
            with self._lock:
                self._stopping = True
            consumer.stop()
            self._end_all(at_once)
            for _, thread in consumer.worker_threads:
                thread.join(_END_MOST_S)

    def _look_after(self, wakes: Wakes, consumer: _ThreadedConsumer, stop: threading.Event) -> None:
        clock = self._appliance.clock
        next_s = clock.monotonic_s()
        while not stop.is_set():
            if self._sweep_now.is_set() or clock.monotonic_s() >= next_s:
                self._sweep_now.clear()
                self._sweep(wakes)
                consumer.check_worker_health()
                next_s = clock.monotonic_s() + self._until_due_s()
            stop.wait(_LOOK_S)

    def _sweep(self, wakes: Wakes) -> None:
        """Settle runs of dead processes, and see that each run that is due has a message."""
        problems = set(CleaningService(self._appliance).tidy())
        try:
            due = self._appliance.catalog.queue.due(self._appliance.clock.now_utc())
            waits = wakes.pending() if due else frozenset()
            for run in due:
                if run.id not in waits and self._is_free(run.id):
                    wakes.put(run.id)
        except (CatalogError, QueueUnusable) as err:
            problems.add(str(err))
        self._tell(problems)

    def _tell(self, problems: set[str]) -> None:
        """Each once, as long as it lasts: a database may be away for a night."""
        for problem in problems - self._told:
            _log.warning("%s", problem)
        self._told = frozenset(problems)

    def _until_due_s(self) -> float:
        """Until the next sweep: sooner than usual, if a run becomes due before."""
        now = self._appliance.clock.now_utc()
        try:
            moment = self._appliance.catalog.queue.next_due(now)
        except CatalogError:
            return _SWEEP_S
        return _SWEEP_S if moment is None else min(_SWEEP_S, (moment - now).total_seconds())

    def _is_free(self, id: str) -> bool:
        with self._lock:
            if self._not_before_s.get(id, 0.0) > self._appliance.clock.monotonic_s():
                return False
            self._not_before_s.pop(id, None)
            return id not in self._in_hand

    def _take(self, id: str) -> None:
        """Called in a worker's thread. A message for what is not due, in hand, or not ours is used up by this."""
        if not self._is_free(id):
            return
        with self._lock:
            if self._stopping or id in self._in_hand:
                return
            self._in_hand[id] = None
        try:
            run = self._due(id)
            if run is not None:
                self._execute(run)
        except (StrongroomError, OSError) as err:
            _log.warning("run %s: %s", id[:12], err)
            self._put_off(id)
        finally:
            with self._lock:
                del self._in_hand[id]
            self._sweep_now.set()

    def _due(self, id: str) -> RunRecord | None:
        return next(iter(self._appliance.catalog.queue.due(self._appliance.clock.now_utc(), id=id)), None)

    def _execute(self, run: RunRecord) -> None:
        _log.info("run %s of %s: attempt %d", run.id[:12], run.name, run.attempts + 1)
        process = spawning.start_run(self._appliance.settings, run.id, run.limit_bytes_s)
        with self._lock:
            self._in_hand[run.id] = process
        code = process.wait()
        _log.info("run %s of %s: its process ended with %d", run.id[:12], run.name, code)
        if self._due(run.id) is not None:  # it did not even begin: whatever kept it from that is not asked in vain
            self._put_off(run.id)

    def _put_off(self, id: str) -> None:
        with self._lock:
            self._not_before_s[id] = self._appliance.clock.monotonic_s() + self._settings.retry_s

    def _end_all(self, at_once: threading.Event) -> None:
        clock = self._appliance.clock
        if under_way := len(self._held()):
            _log.info("told to end: runs under way, %d, are given %g s", under_way, self._settings.end_s)
        grace_s = clock.monotonic_s() + self._settings.end_s
        while self._held() and clock.monotonic_s() < grace_s and not at_once.wait(_LOOK_S):
            pass
        told: set[int] = set()
        end_s = clock.monotonic_s() + _END_MOST_S
        while (held := self._held()) and clock.monotonic_s() < end_s:
            for process in held.values():
                if process is not None and process.pid not in told:
                    told.add(process.pid)
                    process.send_signal(signal.SIGTERM)  # of one that has ended already, it knows
            clock.sleep(_LOOK_S)
        for id in held:
            _log.warning("run %s goes on although it was told to end", id[:12])

    def _held(self) -> dict[str, subprocess.Popen[bytes] | None]:
        with self._lock:
            return dict(self._in_hand)


class _Worker(Worker):  # type: ignore[misc]
    """huey's own, which would tell of a database that is away twice a second, with a traceback: the sweep tells it."""

    def loop(self, now: object = None) -> None:
        try:
            task = self.huey.dequeue()
            if task is not None:
                self.delay = self.default_delay
                self.huey.execute(task, now)
            elif not self.huey.storage.blocking:
                self.sleep()
        except ValueError as err:
            _log.warning("a message is thrown away: %s", err)
        except engine_errors():
            self.stop_flag.wait(_SWEEP_S)


class _ThreadedConsumer(Consumer):  # type: ignore[misc]
    """huey's own, in a thread: signals are the daemon's."""

    worker_class = _Worker

    def _set_signal_handlers(self) -> None:
        pass
