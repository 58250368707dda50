"""What a run said, and how fast it went, in a file of its own: `logs/runs/ID.log`, a JSON object a line.

The rule: it is for people, and nothing hangs on it: that it cannot be written ends no run. It is bounded: 256 KiB a
run, and what the newest 20,000 runs said. Only the home whose run it was has it.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from appliance.clock import format_utc, parse_utc
from appliance.settings import Settings
from appliance.throughput import Sample

LOG_BYTES_MAX: Final = 256 << 10
_LINE_CHARACTERS_MAX: Final = 4000
_FILES_MOST: Final = 20_000
_FILES_LEFT: Final = 18_000
_ID: Final = re.compile(r"[0-9a-f]{32}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Line:
    """`level`: "info", "warning" or "error"."""

    at_utc: datetime
    level: str
    text: str


@dataclass(frozen=True, slots=True)
class RunLog:
    """`lines` of all attempts, oldest first; `samples` of the last attempt that told how fast it went."""

    lines: tuple[Line, ...] = ()
    samples: tuple[Sample, ...] = ()


class RunLogWriter:
    """May be used by several threads, and by several processes at once. `now`: wall time."""

    def __init__(self, settings: Settings, id: str, now: Callable[[], datetime]) -> None:
        self._path = _path(settings, id)
        self._now = now
        self._full = False

    def say(self, text: str, level: str = "info") -> None:
        if self._full:
            return
        if self._size() >= LOG_BYTES_MAX:
            self._full = True
            text, level = "more was said than is kept", "warning"
        self._append({"at": format_utc(self._now()), "level": level, "text": text[:_LINE_CHARACTERS_MAX]})

    def samples(self, samples: Sequence[Sample]) -> None:
        """How fast this attempt went."""
        self._append({"samples": [[each.at_s, each.done_bytes] for each in samples]})

    def _size(self) -> int:
        try:
            return self._path.stat().st_size
        except OSError:
            return 0

    def _append(self, value: dict[str, Any]) -> None:
        line = json.dumps(value, ensure_ascii=True, separators=(",", ":")) + "\n"
        with contextlib.suppress(OSError):  # see the rule
            self._path.parent.mkdir(mode=0o700, exist_ok=True)
            descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                os.write(descriptor, line.encode())
            finally:
                os.close(descriptor)


@contextlib.contextmanager
def warnings_to(log: RunLogWriter) -> Iterator[None]:
    """Warnings of this process are said in the run's log too, if they go to a log at all: a command on a terminal shows
    them there."""
    root = logging.getLogger()
    if not root.handlers:
        yield
        return
    handler = _Handler(log)
    root.addHandler(handler)
    try:
        yield
    finally:
        root.removeHandler(handler)


class _Handler(logging.Handler):
    def __init__(self, log: RunLogWriter) -> None:
        super().__init__(logging.WARNING)
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        try:
            text = record.getMessage()
        except (TypeError, ValueError):
            self.handleError(record)
            return
        self._log.say(text, "error" if record.levelno >= logging.ERROR else "warning")


def read_run_log(settings: Settings, id: str) -> RunLog:
    """What there is: nothing of a run of another home, or of one that said nothing. What is no line is left out."""
    try:
        with _path(settings, id).open("rb") as file:
            data = file.read(2 * LOG_BYTES_MAX)
    except OSError:
        return RunLog()
    lines: list[Line] = []
    samples: tuple[Sample, ...] = ()
    for text in data.splitlines():
        with contextlib.suppress(ValueError, TypeError, KeyError, RecursionError):
            value = json.loads(text)
            if "samples" in value:
                samples = tuple(Sample(float(at_s), int(done)) for at_s, done in value["samples"])
            else:
                lines.append(Line(parse_utc(value["at"]), str(value["level"]), str(value["text"])))
    return RunLog(tuple(lines), samples)


def sweep(settings: Settings) -> int:
    """Remove the oldest, if there are too many; returns how many."""
    folder = _folder(settings)
    try:
        names = os.listdir(folder)
        if len(names) <= _FILES_MOST:
            return 0
        by_age = sorted(names, key=lambda name: (folder / name).stat().st_mtime)
        gone = by_age[: len(names) - _FILES_LEFT]
        for name in gone:
            (folder / name).unlink(missing_ok=True)
    except OSError:
        return 0  # the next one tries again
    return len(gone)


def _folder(settings: Settings) -> Path:
    return settings.log_directory / "runs"


def _path(settings: Settings, id: str) -> Path:
    if _ID.fullmatch(id) is None:
        raise ValueError(f"{id!r} is no id of a run")
    return _folder(settings) / f"{id}.log"
