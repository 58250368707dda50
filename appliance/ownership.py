"""Who is at work on something, told by a lock that the kernel releases when its holder dies.

The rule: no process id is ever trusted (they are reused); a lock file in the home's `run` folder is held with flock for
as long as the work lasts, so that a SIGKILL frees it at once and the next start knows that nobody is there. Only an
owner has it for himself: who looks, and who removes what nobody owns, shares it, so that neither is ever taken for one.
"""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from appliance.errors import StrongroomError

_LOOKS = 5
_LOOK_S = 0.02
_SHARED_LOOKS = 500
"""How often an owner-to-be looks again while others only look: on a busy machine one may be stopped while it does.
Counted, and not timed: who was stopped himself has waited for nobody meanwhile."""


class InUse(StrongroomError):
    """Another process of this home is at work on the same thing."""

    retryable = True

    def __init__(self, what: str) -> None:
        super().__init__(
            f"{what} is in use by another strongroom process",
            hint="Wait until that process has ended, then try again.",
            what=what,
        )


def _open(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)


@contextmanager
def own(path: Path, what: str, *, wait: bool = False) -> Iterator[None]:
    """Hold the lock file at `path`; `InUse` names `what` when another process has it and `wait` is false.

    The descriptor is closed on exec, so a child that outlives us does not keep the lock. The file stays, until somebody
    removes it by `remove_unowned`.
    """
    descriptor = _locked(path, what, wait)
    try:
        yield
    finally:
        os.close(descriptor)


def _locked(path: Path, what: str, wait: bool) -> int:
    looks = shared = 0
    while True:
        descriptor = _open(path)
        try:
            if _lock(descriptor, fcntl.LOCK_EX, wait):
                if _is_still(path, descriptor):
                    return descriptor
                os.close(descriptor)  # removed between opening and locking: nobody else would find this one
                continue
            owned = not _lock(descriptor, fcntl.LOCK_SH)
        except OSError:
            os.close(descriptor)
            raise
        os.close(descriptor)
        # A child of an owner that has died has the lock until it runs its program: that is looked at a few times.
        looks, shared = looks + owned, shared + (not owned)
        if looks > _LOOKS or shared > _SHARED_LOOKS:
            raise InUse(what)
        time.sleep(_LOOK_S)


def _lock(descriptor: int, kind: int, wait: bool = False) -> bool:
    """Whether it was to be had. OSError."""
    try:
        fcntl.flock(descriptor, kind | (0 if wait else fcntl.LOCK_NB))
    except OSError as err:
        if err.errno in (errno.EWOULDBLOCK, errno.EACCES):
            return False
        raise
    return True


def _is_still(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.stat(path, follow_symlinks=False), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def remove_unowned(path: Path) -> bool:
    """Remove a lock file that no living process holds; False if one does. Not there: fine."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return True
    try:
        with _one_remover(path.parent):
            if not _lock(descriptor, fcntl.LOCK_SH):
                return False
            # Nobody becomes its owner now: whoever opened it before will find that it is gone, and make a new one.
            if _is_still(path, descriptor):
                path.unlink()
    finally:
        os.close(descriptor)
    return True


@contextmanager
def _one_remover(folder: Path) -> Iterator[None]:
    """Two that share a lock might remove it one after the other, and the second what a new owner has made since."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def is_owned(path: Path) -> bool:
    """Whether a living process holds the lock file (this one included, when through another descriptor)."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return False
    try:
        return not _lock(descriptor, fcntl.LOCK_SH)
    finally:
        os.close(descriptor)
