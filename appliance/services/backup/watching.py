"""What others ask of a run while it is under way, and what they see of it.

The rule: nobody signals a process by its id, which may be another's by now; the run itself looks once a second whether
the catalog says that it is to be cancelled, and so it can be from any process, on any appliance. How far it is goes to
a file beside its lock, at most once a second; what it says, and how fast it went, is kept in its log.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from appliance.amounts import size
from appliance.catalog.errors import CatalogError
from appliance.clock import Clock
from appliance.ownership import remove_unowned
from appliance.progress import Progress
from appliance.services.runlogs import RunLogWriter, sweep, warnings_to
from appliance.settings import Settings
from appliance.throughput import Sample, Throughput, bytes_s

if TYPE_CHECKING:
    from appliance.bootstrap import Appliance

_EVERY_S = 1.0


@dataclass(frozen=True, slots=True)
class HowFar:
    """Of the disk that is being read; `samples` of all until now."""

    label: str
    done_bytes: int
    total_bytes: int | None
    samples: tuple[Sample, ...] = ()

    @property
    def bytes_s(self) -> float | None:
        """How fast it is now."""
        speeds = bytes_s(self.samples[-2:])
        return speeds[-1][1] if speeds else None


def how_far(settings: Settings, id: str) -> HowFar | None:
    """Of a run of this home that is alive; None: nothing is known yet."""
    try:
        told = json.loads(_file(settings, id).read_bytes())
        samples = tuple(Sample(float(at_s), int(done)) for at_s, done in told["samples"])
        return HowFar(str(told["label"]), int(told["done_bytes"]), told["total_bytes"], samples)
    except (OSError, ValueError, KeyError, TypeError):
        return None


@contextmanager
def living(appliance: Appliance, id: str) -> Iterator[None]:
    """The lock that tells others that the run lives. InUse."""
    try:
        with appliance.own(f"run-{id}", f"run {id}"):
            yield
    finally:
        remove_unowned(appliance.settings.run_directory / f"run-{id}.lock")


@contextmanager
def watched(appliance: Appliance, id: str, interrupt: Callable[[], None], progress: Progress) -> Iterator[Progress]:
    """In the body the run is watched; what is told to the progress yielded is passed on."""
    log = RunLogWriter(appliance.settings, id, appliance.clock.now_utc)
    telling = _Telling(progress, _file(appliance.settings, id), log, appliance.clock)
    over = threading.Event()

    def watch() -> None:
        while not over.wait(_EVERY_S):
            telling.write()
            try:
                if appliance.catalog.queue.cancel_asked(id):
                    interrupt()
                    return
            except CatalogError:
                continue  # the run goes on without the catalog, and is asked again

    thread = threading.Thread(target=watch, name="watch", daemon=True)
    thread.start()
    log.say("it begins")
    try:
        with warnings_to(log):
            yield telling
        log.say("it is done")
    except BaseException as err:
        log.say(str(err) or type(err).__name__, "error")
        raise
    finally:
        over.set()
        thread.join()
        telling.end()
        sweep(appliance.settings)


class _Telling:
    """Progress that is passed on, and written down."""

    def __init__(self, inner: Progress, file: Path, log: RunLogWriter, clock: Clock) -> None:
        self._inner = inner
        self._file = file
        self._log = log
        self._clock = clock
        self._began_s = clock.monotonic_s()
        self._throughput = Throughput(_EVERY_S)
        self._all_bytes = 0
        self._lock = threading.Lock()
        self._label: str | None = None
        self._done_bytes = 0
        self._total_bytes: int | None = None

    def start(self, label: str, total_bytes: int | None) -> None:
        with self._lock:
            self._label, self._done_bytes, self._total_bytes = label, 0, total_bytes
        self._log.say(label if total_bytes is None else f"{label}: {size(total_bytes)}")
        self._inner.start(label, total_bytes)

    def advance(self, count_bytes: int) -> None:
        with self._lock:
            self._done_bytes += count_bytes
            self._all_bytes += count_bytes
        self._inner.advance(count_bytes)

    def note(self, text: str) -> None:
        self._log.say(text)
        self._inner.note(text)

    def finish(self) -> None:
        self._inner.finish()

    def write(self) -> None:
        with self._lock:
            self._throughput.add(self._clock.monotonic_s() - self._began_s, self._all_bytes)
            told = {"label": self._label, "done_bytes": self._done_bytes, "total_bytes": self._total_bytes,
                    "samples": [[each.at_s, each.done_bytes] for each in self._throughput.samples]}  # fmt: skip
        if self._label is not None:
            new = self._file.with_suffix(".new")
            with suppress(OSError):  # a full disk must not end the run that is to be seen
                new.write_text(json.dumps(told))
                new.replace(self._file)

    def end(self) -> None:
        with self._lock:
            self._throughput.add(self._clock.monotonic_s() - self._began_s, self._all_bytes)
        self._log.samples(self._throughput.samples)
        for file in (self._file, self._file.with_suffix(".new")):
            with suppress(OSError):
                file.unlink(missing_ok=True)


def _file(settings: Settings, id: str) -> Path:
    return settings.run_directory / f"run-{id}.progress"
