"""Runs as they go on, for whoever watches them: how each stands and how far it is, told when it changes.

The rule: however many watch, the catalog is asked once a second, with one statement, and the files of runs of this home
are read once; while nobody watches, nothing is. Who is slow gets the newest, and never a backlog. What was asked for by
one is told to no other.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Collection, Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from appliance.catalog.errors import CatalogError
from appliance.models import RunRecord, RunState
from appliance.services.backup.watching import HowFar, how_far

if TYPE_CHECKING:
    from appliance.bootstrap import Appliance

WATCHED_MOST: Final = 100  # runs, by one who watches
_QUIET_S: Final = 15.0
_STOP_S: Final = 0.5
_KEPT_ROUNDS: Final = 60


@dataclass(frozen=True, slots=True)
class RunEvent:
    """`alive` and `far` are known of this appliance's own alone."""

    run: RunRecord
    alive: bool | None
    far: HowFar | None


@dataclass(frozen=True, slots=True)
class Trouble:
    """Nothing is known until this is over; "": it is."""

    sentence: str


@dataclass(frozen=True, slots=True)
class _Round:
    number: int = 0
    events: Mapping[str, RunEvent] = field(default_factory=dict)
    trouble: str = ""


class RunWatcher:
    """One for a process. Borrows the appliance; owns a thread while somebody watches. Thread-safe."""

    def __init__(self, appliance: Appliance, every_s: float = 1.0) -> None:
        self._appliance = appliance
        self._every_s = every_s
        self._changed = threading.Condition()
        self._wake = threading.Event()
        self._wanted: Counter[str] = Counter()
        self._watchers = 0
        self._looking = False
        self._round = _Round()
        self._ended: dict[str, tuple[RunEvent, int]] = {}

    def watch(
        self,
        stop: threading.Event,
        ids: Collection[str] | None = None,
        *,
        may_see: Callable[[RunRecord], bool] | None = None,
        quiet_s: float = _QUIET_S,
    ) -> Generator[RunEvent | Trouble | None, None, None]:
        """Of these runs, the first 100 of them, until all have ended; or of all that are under way. First how each
        stands, then what changes; None when nothing did for `quiet_s`. Ends within half a second after `stop`."""
        wanted = None if ids is None else frozenset(sorted(ids)[:WATCHED_MOST])
        told: dict[str, RunEvent] = {}
        trouble, clock = "", self._appliance.clock
        with self._watching(wanted or frozenset()) as number:
            last_s = clock.monotonic_s()
            while not stop.is_set():
                found = self._next(number, min(_STOP_S, quiet_s))
                number = found.number
                news: list[RunEvent | Trouble] = [Trouble(found.trouble)] if found.trouble != trouble else []
                trouble = found.trouble
                for id, event in found.events.items():
                    if told.get(id) != event and _is_told(id, event, told, wanted):
                        told[id] = event
                        if may_see is None or may_see(event.run):
                            news.append(event)
                if news:
                    yield from news
                    last_s = clock.monotonic_s()
                elif clock.monotonic_s() - last_s >= quiet_s:
                    yield None
                    last_s = clock.monotonic_s()
                if wanted is not None and all(id in told and told[id].run.state.ended for id in wanted):
                    return

    @contextmanager
    def _watching(self, ids: frozenset[str]) -> Iterator[int]:
        """Yields the number of the last round that may not have looked at these."""
        with self._changed:
            self._wanted.update(ids)
            self._watchers += 1
            number = self._round.number
            if not self._looking:
                self._looking = True
                threading.Thread(target=self._look_on, name="watcher", daemon=True).start()
        self._wake.set()
        try:
            yield number
        finally:
            with self._changed:
                self._wanted.subtract(ids)
                self._wanted = +self._wanted
                self._watchers -= 1
            self._wake.set()

    def _next(self, number: int, wait_s: float) -> _Round:
        """The newest round, once there is one after this."""
        with self._changed:
            self._changed.wait_for(lambda: self._round.number > number, wait_s)
            return self._round

    def _look_on(self) -> None:
        while True:
            self._wake.clear()  # who begins to watch from here on is looked at in this round or the next
            with self._changed:
                if not self._watchers:
                    self._looking = False
                    self._ended.clear()
                    return
                number, ids = self._round.number + 1, frozenset(self._wanted)
            found = self._look(number, ids)
            with self._changed:
                self._round = found
                self._changed.notify_all()
            self._wake.wait(self._every_s)

    def _look(self, number: int, ids: frozenset[str]) -> _Round:
        before = self._round
        running = {id for id, event in before.events.items() if not event.run.state.ended}
        try:
            runs = self._appliance.catalog.browsing.watched(ids | running)
        except CatalogError as err:
            return _Round(number, before.events, str(err))
        events = {run.id: self._event(run) for run in runs}
        for id, event in events.items():
            if event.run.state.ended and id in running:
                self._ended[id] = (event, number)
        self._ended = {id: each for id, each in self._ended.items() if number - each[1] < _KEPT_ROUNDS}
        return _Round(number, {id: event for id, (event, _) in self._ended.items()} | events)

    def _event(self, run: RunRecord) -> RunEvent:
        if run.state is not RunState.RUNNING or run.appliance != self._appliance.catalog.me:
            return RunEvent(run, None, None)
        alive = self._appliance.alive(f"run-{run.id}")
        return RunEvent(run, alive, how_far(self._appliance.settings, run.id) if alive else None)


def _is_told(id: str, event: RunEvent, told: Mapping[str, RunEvent], wanted: frozenset[str] | None) -> bool:
    if wanted is not None:
        return id in wanted
    return event.run.state is RunState.RUNNING or id in told
