"""Room that is set aside in a file system, for what must be written when it is full.

Rule: what frees space (tombstones, the requests of a guarded repository, and all that a collection writes before it
removes anything) and what a restore needs comes through; the reserve is given back a little at a time, so that whoever
else writes does not eat it at once.
"""

from __future__ import annotations

import logging
import os
import re
from pathlib import Path
from typing import Final

_log = logging.getLogger(__name__)

_BYTES_MAX: Final = 16 << 20
"""A collection writes some 200 KiB of leases and claims, and a roll call and an epoch of up to a few MiB each."""
_STEP_BYTES: Final = 64 << 10
_FOR: Final = re.compile(r"(?:tombstones|epochs|rollcalls|leases|claims|holds|requests|guard|guard\.copy)/.*")


class Reserve:
    """A file of nothing. Every process of the store may draw on it and fill it again."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._drawn = False

    @staticmethod
    def is_for(name: str) -> bool:
        return _FOR.fullmatch(name) is not None

    def draw(self, wanted_bytes: int) -> bool:
        """Gives back room for one object; False when nothing is left."""
        try:
            held = os.stat(self._path).st_size
            left = held - 2 * wanted_bytes - _STEP_BYTES
            if left > 0:
                os.truncate(self._path, left)
            else:
                os.unlink(self._path)
        except OSError:
            return False
        self._drawn = True
        return True

    def fill_again(self) -> None:
        """After space was freed: as fill(), if this process has drawn on it."""
        if self._drawn:
            self.fill()

    def fill(self) -> None:
        """Sets aside up to 16 MiB, never more than a hundredth of the file system, where there is room for twice
        that."""
        try:
            status = os.statvfs(self._path.parent)
            wanted = max(1, min(_BYTES_MAX, status.f_blocks * status.f_frsize // 100))
            held = os.stat(self._path).st_size if self._path.exists() else 0
            if held >= wanted or status.f_bavail * status.f_frsize < 2 * (wanted - held):
                return
            descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            try:
                os.posix_fallocate(descriptor, 0, wanted)
            except OSError:
                os.ftruncate(descriptor, held)
                raise
            finally:
                os.close(descriptor)
            self._drawn = False
        except OSError as error:
            _log.info("no reserve in %s: %s", self._path.parent, error)  # nothing but the reserve is lost by that
