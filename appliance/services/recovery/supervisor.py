"""One process per home that keeps recovered machines alive, carries on what dead commands began, and pays what is owed.

The rule: it holds the home's supervisor lock; it works on a recovery only while nobody else does, one look at a time,
so that a command waits for it a moment at most; one recovery's trouble never keeps it from the others, and is told
once, in the log and in the record. Started by a command, it ends when there is nothing left to look after, or when
`strongroom serve` takes over.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from appliance.catalog.errors import CatalogError
from appliance.errors import StrongroomError
from appliance.hypervisor.protocol import Hypervisor
from appliance.models import RecoveryRecord, RecoveryState
from appliance.ownership import InUse
from appliance.progress import SilentProgress
from appliance.services.recovery import locking
from appliance.services.recovery.errors import KeepsPausing
from appliance.services.recovery.exporting import RecoveryExports
from appliance.services.recovery.lifecycle import Recovery, tell
from appliance.services.recovery.migrating import Migration
from appliance.services.spawning import DAEMON, SUPERVISOR
from appliance.services.upkeep import UpkeepService
from imaging.errors import ImagingError

if TYPE_CHECKING:
    from appliance.bootstrap import Appliance

_UPKEEP_S = 30.0
_TAKE_OVER_S = 0.1
_PAUSE_MOST_S = 5.0
_RESUMES_MOST = 20
_log = logging.getLogger(__name__)


class LoggedProgress(SilentProgress):
    """What a person would read goes to the log."""

    def note(self, text: str) -> None:
        _log.info("%s", text)


@dataclass(slots=True)
class _Memory:
    """Of one recovery, between looks."""

    revived: bool = False
    next_s: float = 0.0  # not before, on the monotonic clock
    failures: int = 0
    resumes: int = 0  # in a row, with living exports
    words: str | None = None  # its trouble, as it was told
    migration: Migration | None = None


class Supervisor:
    """Looks after every recovery of the home. Borrows the appliance; owns its connections while it runs.

    `for_ever`: as `strongroom serve` does, which also starts machines that went off with the host.
    """

    def __init__(self, appliance: Appliance, *, for_ever: bool) -> None:
        self._appliance = appliance
        self._for_ever = for_ever
        self._connections: dict[str, Hypervisor] = {}
        self._memory: dict[str, _Memory] = {}
        self._catalog_words = ""

    def run(self, stop: threading.Event) -> None:
        """Until `stop`, or, unless for ever, until nothing is left to look after. InUse if another one lives."""
        while True:
            with self._owning(stop), self._upkeep():
                self._loop(stop)
            # A recovery that was begun while we were ending saw a living supervisor, and relied on it.
            if self._for_ever or stop.is_set() or self._superseded() or not self._needed():
                return

    @contextlib.contextmanager
    def _owning(self, stop: threading.Event) -> Iterator[None]:
        """The supervisor's lock; a daemon waits until a spawned supervisor has made way."""
        with contextlib.ExitStack() as stack:
            stack.callback(self._disconnect)
            if self._for_ever:
                stack.enter_context(self._appliance.own(DAEMON, "the daemon of this home"))
            while not stop.is_set():
                try:
                    stack.enter_context(self._appliance.own(SUPERVISOR, "the supervisor of this home"))
                    break
                except InUse:
                    if not self._for_ever:
                        raise
                stop.wait(_TAKE_OVER_S)
            yield

    def _loop(self, stop: threading.Event) -> None:
        while not stop.is_set():
            self.look()
            if not self._for_ever and (self._superseded() or not self._needed()):
                return
            stop.wait(self._appliance.settings.recovery.supervise_interval_s)

    def _superseded(self) -> bool:
        return self._appliance.alive(DAEMON)

    def _needed(self) -> bool:
        """Whether anything is left; not when the whole home was removed."""
        try:
            if self._appliance.catalog.recoveries.list(ended=False):
                return True
        except CatalogError as err:
            self._tell_catalog(str(err))
        return UpkeepService(self._appliance).guest_hurt()

    def look(self) -> None:
        """One look at every recovery that has not ended."""
        try:
            records = self._appliance.catalog.recoveries.list(ended=False)
        except CatalogError as err:
            self._tell_catalog(str(err))
            return
        self._tell_catalog("")
        self._memory = {record.id: self._memory.get(record.id, _Memory()) for record in records}
        for record in records:
            memory = self._memory[record.id]
            if self._appliance.clock.monotonic_s() >= memory.next_s:
                self._look_at(record, memory)

    def _tell_catalog(self, words: str) -> None:
        """A database that is away for a night is one line of the log; so is that it is back."""
        if words != self._catalog_words:
            _log.warning("%s", words or "the catalog answers again")
            self._catalog_words = words

    def _look_at(self, record: RecoveryRecord, memory: _Memory) -> None:
        try:
            hypervisor = self._reached(record)
            with locking.looking(self._appliance, record.id):
                # What the list said may be over: a command may have ended it since.
                record = self._appliance.catalog.recoveries.get(record.id)
                if record.state.ended:
                    locking.forget(self._appliance, record.id)
                    return
                recovery = Recovery(self._appliance, hypervisor, record)
                try:
                    self._work(recovery, memory)
                    self._all_well(recovery, memory)
                except (StrongroomError, ImagingError) as err:
                    self._trouble(recovery, memory, err)
        except InUse:
            memory.migration = None  # whoever works on it tends it
        except (StrongroomError, ImagingError) as err:
            self._wait_longer(record, memory, err)
        except Exception as err:  # noqa: BLE001  (a mistake about one recovery must not cost the others their supervisor)
            if memory.words != str(err):
                _log.exception("recovery %s", record.id)
            memory.words = str(err)
            self._wait_longer(record, memory, err)

    def _reached(self, record: RecoveryRecord) -> Hypervisor:
        """Its host, which may take long: nobody has to wait for that. That it does not answer is told in the record,
        and its exports are kept up all the same."""
        try:
            return self._connection(record.host)
        except StrongroomError as err:
            with locking.looking(self._appliance, record.id):
                tell(self._appliance, record.id, err)
                now = self._appliance.catalog.recoveries.get(record.id)
                if now.state.ended:
                    locking.forget(self._appliance, record.id)
                elif now.state in (RecoveryState.RUNNING, RecoveryState.MIGRATING):
                    RecoveryExports(self._appliance, now).ensure()
            raise

    def _work(self, recovery: Recovery, memory: _Memory) -> None:
        state = recovery.record.state
        if state is RecoveryState.DISCARDING:
            recovery.discard()
            return
        if state is RecoveryState.SERVING:
            recovery.begin()
        elif self._for_ever and not memory.revived:
            recovery.revive()
        memory.revived = True
        if state is RecoveryState.MIGRATING:
            if memory.migration is None:
                memory.migration = Migration(recovery, None, LoggedProgress())
            memory.migration.recovery = recovery
            if memory.migration.step():
                _log.info("%s is migrated", recovery.record.machine_name)
            return
        done = recovery.tend()
        for words in done:
            _log.info("%s", words)
        memory.resumes = memory.resumes + 1 if done else 0
        if memory.resumes > _RESUMES_MOST:
            raise KeepsPausing(recovery.record.machine_name, recovery.exports.last_words())

    def _all_well(self, recovery: Recovery, memory: _Memory) -> None:
        """Takes back what it told of trouble; what a command told (a migration that failed, say) stays."""
        memory.failures, memory.next_s = 0, 0.0
        if memory.words is not None and recovery.record.error == memory.words and not recovery.record.state.ended:
            recovery.update(error=None)
        memory.words = None

    def _trouble(self, recovery: Recovery, memory: _Memory, err: Exception) -> None:
        self._wait_longer(recovery.record, memory, err)
        if recovery.record.error != str(err):
            recovery.update(error=str(err))

    def _wait_longer(self, record: RecoveryRecord, memory: _Memory, err: Exception) -> None:
        if memory.words != str(err):
            _log.warning("recovery %s of %s: %s", record.id[:12], record.source_name, err)
            memory.words = str(err)
        interval_s = self._appliance.settings.recovery.supervise_interval_s
        pause_s = min(interval_s * 2**memory.failures, max(_PAUSE_MOST_S, interval_s))
        memory.failures = min(memory.failures + 1, 16)
        memory.next_s = self._appliance.clock.monotonic_s() + pause_s

    @contextlib.contextmanager
    def _upkeep(self) -> Iterator[None]:
        """What is owed is paid in a thread of its own: a host that does not answer must not keep machines paused."""
        over = threading.Event()

        def work() -> None:
            upkeep = UpkeepService(self._appliance)
            told: tuple[str, ...] = ()
            retry_s = pause_s = self._appliance.settings.agent.thaw_retry_s
            while True:
                problems = upkeep.once()
                for problem in problems:
                    if problem not in told:
                        _log.warning("%s", problem)
                told = problems
                hurt = upkeep.guest_hurt()
                if over.wait(pause_s if hurt else _UPKEEP_S):
                    return
                pause_s = min(2 * pause_s, _UPKEEP_S) if hurt else retry_s

        thread = threading.Thread(target=work, name="upkeep", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def _connection(self, host: str) -> Hypervisor:
        if host not in self._connections:
            self._connections[host] = self._appliance.connect(host)
        return self._connections[host]

    def _disconnect(self) -> None:
        for connection in self._connections.values():
            connection.close()
        self._connections.clear()
