"""The workers of `strongroom serve`: each takes one run after the other, and has it executed by a process of its own.

The rule: a worker decides nothing; it starts a process, which claims the run in the catalog, and waits for its end. So
the death of a run hurts that run alone, and the death of this daemon none: a run goes on to its end, and whoever comes
next sees its lock. Every few seconds the catalog is swept: runs of dead processes are settled, and what is due and has
no message gets one. Whatever hangs, no run is begun once the daemon is told to end, and it ends in bounded time.
"""

from __future__ import annotations

import logging
import signal
import subprocess
import threading
from datetime import datetime
from typing import TYPE_CHECKING

from huey.consumer import Consumer, Scheduler, Worker

from appliance.catalog.errors import CatalogError
from appliance.errors import StrongroomError
from appliance.models import RunKind, RunRecord
from appliance.services import spawning
from appliance.services.cleaning import CleaningService
from appliance.services.queue import hanging
from appliance.services.queue.messages import QueueUnusable, Wakes, engine_errors

if TYPE_CHECKING:
    from appliance.bootstrap import Appliance

_log = logging.getLogger(__name__)
_SWEEP_S = 5.0
_LOOK_S = 0.1
_POLL_S = 0.5  # for messages in a file; PostgreSQL tells
_END_MOST_S = 50.0  # what runs that were told to end may take to clean up; then they are left to themselves
_SWEEP_END_S = 1.5  # a sweep that hangs, on a store that is away, is not waited for


class Workers:
    """Borrows the appliance; owns the processes while it runs.

    Until `stop`; then runs under way are given `queue.end_s` (none with `at_once`), told to end in order, and waited
    for. It sets `stop` itself when it fails."""

    def __init__(self, appliance: Appliance, stop: threading.Event, at_once: threading.Event) -> None:
        self._appliance = appliance
        self._stop = stop
        self._at_once = at_once
        self._settings = appliance.settings.queue
        self._lock = threading.Lock()
        self._in_hand: dict[str, subprocess.Popen[bytes] | None] = {}
        self._not_before_s: dict[str, float] = {}  # runs whose process ended without having claimed them
        self._sweep_now = threading.Event()
        self._beside = 0  # restores under way for which no worker was waited
        self._told: frozenset[str] = frozenset()
        self._failed: Exception | None = None
        self._sweeping: tuple[float, datetime] | None = None  # when the sweep under way began, by both clocks
        self._hangs = False

    def run(self) -> None:
        """A database that is away is waited for. InUse if this home has workers."""
        with self._appliance.own(spawning.WORKERS, "the queue of this home"):
            hanging.over(self._appliance)  # that of workers before
            while not self._stop.is_set():
                try:
                    wakes = Wakes(self._appliance, self._appliance.catalog.me, self._take)
                except (CatalogError, QueueUnusable) as err:
                    self._tell({str(err)})
                    self._stop.wait(_SWEEP_S)
                else:
                    self._work(wakes)
        if self._failed is not None:
            raise self._failed

    def _work(self, wakes: Wakes) -> None:
        consumer = _ThreadedConsumer(
            wakes.huey, workers=self._settings.workers, periodic=False, initial_delay=_LOOK_S,
            max_delay=_POLL_S,
        )  # fmt: skip
        sweeping = threading.Thread(target=self._sweep_until_stopped, args=(wakes,), name="sweep", daemon=True)
        consumer.start()
        sweeping.start()
        try:
            while not self._stop.wait(_SWEEP_S):
                consumer.check_worker_health()
                self._watch_sweep()
        finally:
            self._stop.set()
            self._sweep_now.set()
            consumer.stop()
            end_s = self._end_all()
            threads = [sweeping, *(thread for _, thread in consumer.worker_threads)]
            sweeping.join(_SWEEP_END_S)
            for thread in threads[1:]:
                thread.join(max(0.0, end_s - self._appliance.clock.monotonic_s()))
            if not any(thread.is_alive() for thread in threads):  # one that hangs may have it locked
                wakes.close()

    def _sweep_until_stopped(self, wakes: Wakes) -> None:
        """In a thread of its own: hosts, stores and databases may keep it for long."""
        try:
            while not self._stop.is_set():
                self._sweep_now.clear()
                self._sweeping = (self._appliance.clock.monotonic_s(), self._appliance.clock.now_utc())
                self._sweep(wakes)
                self._sweeping = None
                self._sweep_now.wait(self._until_due_s())
        except Exception as err:  # noqa: BLE001  (run() raises it)
            self._failed = err
            self._stop.set()

    def _sweep(self, wakes: Wakes) -> None:
        """Settle runs of dead processes, and see that each run that is due has a message."""
        problems = set(CleaningService(self._appliance).tidy())
        try:
            due = self._appliance.catalog.queue.due(self._appliance.clock.now_utc())
            waits = wakes.pending() if due else frozenset()
            for run in due:
                if not self._is_free(run.id):
                    continue
                if run.kind is RunKind.RESTORE and self._room_beside():
                    threading.Thread(
                        target=self._take_beside, args=(run.id,), name=f"run-{run.id}", daemon=True
                    ).start()
                elif run.id not in waits:
                    wakes.leave(run.id)
        except (CatalogError, QueueUnusable) as err:
            problems.add(str(err))
        self._tell(problems)

    def _watch_sweep(self) -> None:
        """A store that neither answers nor fails holds the sweep up for as long as it likes: people are told."""
        sweeping = self._sweeping
        hangs = sweeping is not None and self._appliance.clock.monotonic_s() - sweeping[0] > hanging.AFTER_S
        if sweeping is not None and hangs and not self._hangs:
            _log.warning("the sweep of the queue hangs: 'strongroom status' says where")
            hanging.note(self._appliance, sweeping[1])
        if self._hangs and not hangs:
            _log.info("the sweep of the queue goes on")
            hanging.over(self._appliance)
        self._hangs = hangs

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
        return _SWEEP_S if moment is None else max(_LOOK_S, min(_SWEEP_S, (moment - now).total_seconds()))

    def _is_free(self, id: str) -> bool:
        with self._lock:
            if self._not_before_s.get(id, 0.0) > self._appliance.clock.monotonic_s():
                return False
            self._not_before_s.pop(id, None)
            return id not in self._in_hand

    def _room_beside(self) -> bool:
        """A person waits for a restore: not until a worker has time. But so many at a time as the machine can bear, as
        after a disaster everything is restored at once."""
        with self._lock:
            if self._beside >= self._settings.restores:
                return False
            self._beside += 1
            return True

    def _take_beside(self, id: str) -> None:
        try:
            self._begin(id)
        finally:
            with self._lock:
                self._beside -= 1

    def _take(self, id: str) -> None:
        """Called in a worker's thread, for each message: what is first is begun, whichever run the message is of. One
        for what is not due, in hand, or not ours is used up by this."""
        try:
            due = self._appliance.catalog.queue.due(self._appliance.clock.now_utc())
        except CatalogError as err:
            _log.warning("run %s: %s", id[:12], err)
            return
        next((run for run in due if self._begin(run.id)), None)

    def _begin(self, id: str) -> bool:
        """False: it is not to be begun now, or somebody has it in hand."""
        if not self._is_free(id):
            return False
        with self._lock:
            if self._stop.is_set() or id in self._in_hand:
                return False
            self._in_hand[id] = None
        try:
            run = self._due(id)
            if run is not None:
                self._execute(run)
            return run is not None
        except (StrongroomError, OSError) as err:
            _log.warning("run %s: %s", id[:12], err)
            self._put_off(id)
            return True
        finally:
            with self._lock:
                del self._in_hand[id]
            self._sweep_now.set()

    def _due(self, id: str) -> RunRecord | None:
        return next(iter(self._appliance.catalog.queue.due(self._appliance.clock.now_utc(), id=id)), None)

    def _execute(self, run: RunRecord) -> None:
        with self._lock:
            if self._stop.is_set():
                return  # since it was found; the next `serve` finds it again
            _log.info("run %s of %s: attempt %d", run.id[:12], run.name, run.attempts + 1)
            process = spawning.start_run(self._appliance.settings, run.id, run.limit_bytes_s)
            self._in_hand[run.id] = process
        code = process.wait()
        _log.info("run %s of %s: its process ended with %d", run.id[:12], run.name, code)
        if self._due(run.id) is not None:  # it did not even begin: whatever kept it from that is not asked in vain
            self._put_off(run.id)

    def _put_off(self, id: str) -> None:
        with self._lock:
            self._not_before_s[id] = self._appliance.clock.monotonic_s() + self._settings.retry_s

    def _end_all(self) -> float:
        """Returns until when threads are waited for, by the monotonic clock."""
        clock = self._appliance.clock
        if under_way := len(self._held()):
            _log.info("told to end: runs under way, %d, are given %g s", under_way, self._settings.end_s)
        grace_s = clock.monotonic_s() + self._settings.end_s
        while self._held() and clock.monotonic_s() < grace_s and not self._at_once.wait(_LOOK_S):
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
        return end_s

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


class _IdleScheduler(Scheduler):  # type: ignore[misc]
    """huey's own asks for what it is to put in later, which is never anything."""

    def loop(self, now: object = None) -> None:
        self.stop_flag.wait()


class _ThreadedConsumer(Consumer):  # type: ignore[misc]
    """huey's own, in a thread: signals are the daemon's."""

    worker_class = _Worker
    scheduler_class = _IdleScheduler

    def _set_signal_handlers(self) -> None:
        pass
