"""The folder of the index cache, and whether what it holds can be believed.

Rule: all is written without fsync, which survives the death of any process but not that of the machine. So a folder is
marked with the machine's boot id while anybody writes to it; a mark of another boot means that the machine went down
in between: thrown away.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

_MARK: Final = "open"
_GUARD: Final = "guard"
_WRITER: Final = "writer"
_TEMPORARY: Final = "sorting-*"
_DISCARDED: Final = "discarded-"


def boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()


class IndexFolder:
    """One user's hold on the folder. Any number of processes may hold it at once."""

    def __init__(self, folder: Path, boot: str | None = None) -> None:
        self.folder = folder
        self._boot = boot or boot_id()
        self._mark: int | None = None

    @property
    def database(self) -> Path:
        return self.folder / "lmdb"

    def enter(self) -> None:
        """Makes the folder, and empties it unless its content can be believed. Raises OSError."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with self._locked(_GUARD):
            mark = os.open(self.folder / _MARK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(mark, fcntl.LOCK_SH)
                written = os.pread(mark, 100, 0).decode("ascii", "replace").strip()
                if written not in ("", self._boot):
                    self._discard()
                if written != self._boot:
                    os.ftruncate(mark, 0)
                    os.pwrite(mark, self._boot.encode(), 0)
                    os.fsync(mark)
            except BaseException:
                os.close(mark)
                raise
            self._mark = mark
            self.database.mkdir(mode=0o700, exist_ok=True)

    def discard(self) -> None:
        """Throws the content away. Others that have it open keep reading the files that are now nameless."""
        with self._locked(_GUARD):
            self._discard()
            self.database.mkdir(mode=0o700, exist_ok=True)

    def _discard(self) -> None:
        """At once, so that nobody who still has it open adds to what is being removed."""
        aside = self.folder / f"{_DISCARDED}{secrets.token_hex(8)}"
        with contextlib.suppress(FileNotFoundError):
            self.database.rename(aside)
            shutil.rmtree(aside)

    def leave(self, sync: Callable[[], bool] = lambda: False) -> None:
        """Gives up the hold; the last one to leave takes the mark away, once `sync` has made what is there durable (and
        says so). Nobody comes in between the two: what was written by a process that was killed, only the mark tells.
        """
        if self._mark is None:
            return
        mark, self._mark = self._mark, None
        try:
            with self._locked(_GUARD):
                fcntl.flock(mark, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if sync():
                    os.ftruncate(mark, 0)
        except OSError:
            pass  # others still hold it, or the folder is gone: the mark stays, which is always safe
        finally:
            os.close(mark)

    def made(self) -> tuple[int, int] | None:
        """Which database is there: it is another one after somebody threw it away. Raises OSError."""
        try:
            found = (self.database / "data.mdb").stat()
        except FileNotFoundError:
            return None
        return found.st_dev, found.st_ino

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """For one writer at a time, of all processes and threads that hold the folder. Raises OSError."""
        with self._locked(_WRITER):
            yield

    def clear_temporary(self) -> None:
        """Removes what a writer that died left; under writing()."""
        for pattern in (_TEMPORARY, f"{_DISCARDED}*"):
            for folder in self.folder.glob(pattern):
                shutil.rmtree(folder, ignore_errors=True)

    @contextlib.contextmanager
    def _locked(self, name: str) -> Iterator[None]:
        descriptor = os.open(self.folder / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)
