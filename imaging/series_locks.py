"""Which series a process of this appliance is writing, told by locks that the kernel gives up when the process dies.

Rule: whoever holds the lock of a series knows that any open lease of this appliance on it is of a dead process, at
once and without waiting for a counter to stand still. Without a folder that all processes of the appliance share,
nothing is known.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from pathlib import Path


class SeriesLock:
    """Held until close()."""

    def __init__(self, descriptor: int | None) -> None:
        self._descriptor = descriptor

    @property
    def proves(self) -> bool:
        """Whether holding it says that no other process of this appliance is at work on the series."""
        return self._descriptor is not None

    def close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


class SeriesLocks:
    def __init__(self, folder: Path | None) -> None:
        self._folder = folder

    def take(self, series: str) -> SeriesLock | None:
        """The lock; None while another process (or another run of this one) holds it."""
        if self._folder is None:
            return SeriesLock(None)
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor = os.open(self._folder / series, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError:
            return SeriesLock(None)
        with contextlib.ExitStack() as stack:
            stack.callback(os.close, descriptor)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return None
            except OSError:
                return SeriesLock(None)  # a file system without locks
            stack.pop_all()
        return SeriesLock(descriptor)
