"""Short transactions on the index cache with the segments that it lists, and its closing.

Rules: no transaction outlives a call; nobody is let in once it is to be closed, and it is closed when the last one has
left, as LMDB would be torn away under their feet; whatever the cache's file system says is told as what it is: a cache
that cannot be used, and nothing lost.
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import lmdb

from imaging.errors import IndexUnavailable, NoSpace
from imaging.index_segments import Listed, Segment, SegmentBroken, SegmentFolder
from imaging.index_tables import COUNTER, SCHEMA, Met, Snapshot, Tables, changes, listed_segments

_FULL: Final = (errno.ENOSPC, errno.EDQUOT)


class Access:
    """Thread-safe. Owns `environment`, and must not be used in a forked child."""

    def __init__(self, folder: Path, environment: lmdb.Environment, segments: SegmentFolder) -> None:
        self.where = str(folder)
        self._environment = environment
        self._segments = segments
        try:
            self.tables = Tables(environment)
        except BaseException:
            environment.close()
            raise
        self._process = os.getpid()
        self._idle = threading.Condition()
        self._users = 0
        self._closed = False
        self._met = Met(-1, (), {})

    def belongs_to(self, repository_id: bytes) -> bool:
        """Whether these are tables of this version, of this repository, with all segments. Raises lmdb.Error, OSError,
        SegmentBroken."""
        meta = self.tables.meta
        with self._environment.begin() as transaction:
            stated = transaction.get(b"schema", db=meta), transaction.get(b"repository", db=meta)
        if stated != (SCHEMA, repository_id):
            return False
        with self._reading():
            return True

    def claim_for(self, repository_id: bytes) -> None:
        """Raises lmdb.Error."""
        with self._environment.begin(write=True) as transaction:
            transaction.put(b"schema", SCHEMA, db=self.tables.meta)
            transaction.put(b"repository", repository_id, db=self.tables.meta)

    @contextlib.contextmanager
    def reading(self) -> Iterator[Snapshot]:
        """A short read. What anybody, in any process, changed since the last one is noticed by a counter."""
        with self._inside(), translated(self.where), self._reading() as snapshot:
            yield snapshot

    @contextlib.contextmanager
    def _reading(self) -> Iterator[Snapshot]:
        missed: list[Listed] | None = None
        while True:
            with self._environment.begin() as transaction:
                met = self._met
                change = changes(transaction, self.tables)
                if met.change != change:
                    listed = listed_segments(transaction, self.tables)
                    try:
                        met = self._met = Met(change, self._opened(listed, met.segments), {})
                    except FileNotFoundError as error:
                        if listed == missed:
                            raise SegmentBroken(self.where, "a segment that it lists is gone") from error
                        missed = listed  # it was put together with others, and was listed no more, just now
                        continue
                yield Snapshot(self.where, self.tables, transaction, met)
                return

    def _opened(self, listed: Sequence[Listed], before: Sequence[Segment]) -> tuple[Segment, ...]:
        known = {segment.listed: segment for segment in before}
        return tuple(known.get(each) or self._segments.open(each) for each in listed)

    @contextlib.contextmanager
    def writing(self) -> Iterator[lmdb.Transaction]:
        with self._inside(), translated(self.where), self._environment.begin(write=True) as transaction:
            yield transaction
            change = COUNTER.pack(changes(transaction, self.tables) + 1)
            transaction.put(b"change", change, db=self.tables.meta)

    @contextlib.contextmanager
    def _inside(self) -> Iterator[None]:
        if os.getpid() != self._process:
            raise RuntimeError("an LMDB environment must not be used in a forked child; open the index there")
        with self._idle:
            if self._closed:
                raise IndexUnavailable(self.where, "it was closed")
            self._users += 1
        try:
            yield
        finally:
            with self._idle:
                self._users -= 1
                if not self._users:
                    self._idle.notify_all()

    def finish(self) -> None:
        """Nobody comes in any more; waits until everybody has left."""
        with self._idle:
            self._closed = True
            self._idle.wait_for(lambda: not self._users)

    def sync(self) -> bool:
        """Whether all that is listed is durable now, whoever wrote it. After finish()."""
        try:
            with self._environment.begin() as transaction:
                listed = listed_segments(transaction, self.tables)
            self._segments.sync(listed)
            self._environment.sync(True)
        except (lmdb.Error, OSError):
            return False
        return True

    def close(self) -> None:
        self.finish()
        self._met = Met(-1, (), {})
        self._environment.close()


@contextlib.contextmanager
def translated(where: str) -> Iterator[None]:
    """LMDB's errors and the file system's as NoSpace or IndexUnavailable."""
    try:
        yield
    except lmdb.Error as error:
        if os.strerror(errno.ENOSPC) in str(error):
            raise _full(where) from error
        raise IndexUnavailable(where, str(error)) from error
    except OSError as error:
        if error.errno in _FULL:
            raise _full(where) from error
        raise IndexUnavailable(where, error.strerror or str(error)) from error


def _full(where: str) -> NoSpace:
    error = NoSpace("write", f"the index cache in {where}", "no space is left there")
    error.hint = "free space there, or name another cache folder in the settings"
    return error
