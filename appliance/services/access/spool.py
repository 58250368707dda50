"""What is being done, in the home, until the audit's chain has it: so that nothing is done unseen by who kills the
process in the midst of it, or by a database that is away.

The rule: a file for each act, made before it begins and locked while its process lives. Whoever comes next and finds
one that nobody holds puts it into the chain: with its result, if it has one, or as interrupted. The file goes after
that; its id keeps it from being there twice.
"""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from appliance.audit import Draft, Result, clean
from appliance.clock import parse_utc

_log = logging.getLogger(__name__)
SOME = 100  # at a time: each is an open file
_SUFFIX = ".json"
_MOMENTS = ("at_utc", "ended_utc")


@dataclass(slots=True)
class Held:
    """A file that this process holds; None: there was no room for it, and the act goes on without."""

    path: Path
    descriptor: int | None

    def write(self, draft: Draft) -> None:
        """Replace what it says, durably. Without room for that it goes on saying that the act was interrupted: what was
        done is done, and is no error because of that."""
        if self.descriptor is None:
            return
        try:
            fresh = _made(self.path, _encode(draft))
        except OSError as err:
            _log.warning("%s cannot be written: %s", self.path, err.strerror)
            return
        os.close(self.descriptor)
        self.descriptor = fresh

    def remove(self) -> None:
        if self.descriptor is not None:
            remove([self.path])

    def close(self) -> None:
        if self.descriptor is not None:
            os.close(self.descriptor)
            self.descriptor = None


class Spool:
    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def begin(self, draft: Draft) -> Held:
        """A home that is full or read-only keeps nobody from giving back space: that is logged, and no more."""
        path = self._folder / f"{draft.id}{_SUFFIX}"
        try:
            self._folder.mkdir(mode=0o700, exist_ok=True)
            return Held(path, _made(path, _encode(draft)))
        except OSError as err:
            _log.warning("%s cannot be written, so a kill would leave no trace of this: %s", path, err.strerror)
            return Held(path, None)

    @contextmanager
    def left(self) -> Iterator[tuple[list[Draft], list[Path]]]:
        """What nobody holds, oldest first, at most SOME; held by us until the end of the `with`. What cannot be read
        is left there."""
        with ExitStack() as held:
            drafts: list[Draft] = []
            paths: list[Path] = []
            for path in sorted(self._folder.glob(f"*{_SUFFIX}"), key=_written):
                if len(paths) == SOME:
                    break
                descriptor = _taken(path)
                if descriptor is None:
                    continue
                draft = _read(path, descriptor)
                if draft is None:
                    os.close(descriptor)
                    continue
                held.callback(os.close, descriptor)
                drafts.append(draft)
                paths.append(path)
            yield sorted(drafts, key=lambda draft: draft.at_utc), paths


def remove(paths: Iterable[Path]) -> bool:
    """Whether they are gone. What cannot be removed is in the chain all the same, and is not put there twice."""
    gone = True
    for path in paths:
        try:
            path.unlink(missing_ok=True)
        except OSError as err:
            _log.warning("%s: %s", path, err.strerror)
            gone = False
    return gone


def _made(path: Path, data: bytes) -> int:
    """In place of what was there; the descriptor has it locked. OSError."""
    temporary = path.with_suffix(".new")
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.write(descriptor, data) != len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.fsync(descriptor)
        temporary.rename(path)  # only now others see it: locked and whole
    except BaseException:
        os.close(descriptor)
        temporary.unlink(missing_ok=True)
        raise
    return descriptor


def _written(path: Path) -> int:
    try:
        return path.lstat().st_mtime_ns
    except OSError:
        return 0  # somebody else has put it into the chain


def _taken(path: Path) -> int | None:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError as err:
        if not isinstance(err, FileNotFoundError):
            _log.warning("%s: %s", path, err.strerror)
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(descriptor).st_nlink:
            return descriptor
    except BlockingIOError:
        pass  # whoever is at it lives
    os.close(descriptor)
    return None


def _read(path: Path, descriptor: int) -> Draft | None:
    data = os.pread(descriptor, os.fstat(descriptor).st_size, 0)
    try:
        return _decode(data)
    except (ValueError, KeyError, TypeError, AttributeError) as err:
        _log.warning("%s is no act that can be read, and stays: %s", path, err)
        return None


def _encode(draft: Draft) -> bytes:
    document: dict[str, Any] = {item.name: clean(getattr(draft, item.name)) for item in fields(draft)}
    return json.dumps(document, ensure_ascii=True).encode()


def _decode(data: bytes) -> Draft:
    document = json.loads(data)
    moments = {name: None if document[name] is None else parse_utc(document[name]) for name in _MOMENTS}
    return Draft(**document | moments | {"result": Result(document["result"])})
