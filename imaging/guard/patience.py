"""How long ago something was first seen, by a clock that nobody can set.

Rules: counted is the time that this machine was up and running since, by its monotonic clock, so that a wall clock that
was set forward by a year shortens no delay. What was counted is noted, so that a series of short commands counts
together; over a reboot, what lies between the last look and the shutdown is lost, and so is everything with the note:
a delay gets longer by it. It gets shorter only for who moves the home to a machine that has been up for long.
"""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path

from imaging.clock import Clock
from imaging.index_files import boot_id

_log = logging.getLogger(__name__)


class Patience:
    """Notes in `folder`, which need not exist; where that cannot be written, only this process counts."""

    def __init__(self, folder: Path, clock: Clock, boot: str | None = None) -> None:
        self._folder = folder
        self._clock = clock
        self._boot = boot or boot_id()
        self._memory: dict[str, tuple[str, float, float]] = {}

    def counted_s(self, key: str) -> float:
        """Seconds since this was first asked for `key` (hex digits). 0.0 the first time."""
        now_s = self._clock.monotonic_s()
        note = self._memory.get(key) or self._load(key)
        counted_s = 0.0
        if note is not None:
            boot, last_s, before_s = note
            same = boot == self._boot and last_s <= now_s
            counted_s = before_s + (now_s - last_s if same else now_s)  # after a reboot: all of it came after the note
        self._memory[key] = (self._boot, now_s, counted_s)
        self._store(key, self._memory[key])
        return counted_s

    def forget(self, key: str) -> None:
        self._memory.pop(key, None)
        try:
            (self._folder / key).unlink(missing_ok=True)
        except OSError as error:
            _log.warning("a note of what is over cannot be removed: %s", error)

    def _load(self, key: str) -> tuple[str, float, float] | None:
        try:
            found = json.loads((self._folder / key).read_text("utf-8"))
            return str(found["boot"]), float(found["at_s"]), float(found["counted_s"])
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            _log.warning("how long a request has waited is counted anew, as the note cannot be read: %s", error)
            return None

    def _store(self, key: str, note: tuple[str, float, float]) -> None:
        boot, at_s, counted_s = note
        temporary = self._folder / f".{key}"
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            temporary.write_text(json.dumps({"at_s": at_s, "boot": boot, "counted_s": counted_s}), "utf-8")
            os.replace(temporary, self._folder / key)
        except OSError as error:
            _log.warning("how long a request has waited cannot be noted in %s: %s", self._folder, error)
