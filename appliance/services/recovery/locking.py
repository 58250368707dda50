"""Who may work on a recovery, and who waits for whom.

The rule: one process at a time touches a recovery. Commands do not wait for each other (a migration may take hours):
the second one is told. The supervisor only ever holds a recovery for one look at it, so commands wait for that; the
supervisor waits for nobody. Whoever got in reads the record anew: what it knew before may be over.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from appliance.ownership import own

if TYPE_CHECKING:
    from appliance.bootstrap import Appliance


@contextmanager
def commanding(appliance: Appliance, id: str) -> Iterator[None]:
    """Be the command that works on a recovery. InUse when another command does."""
    with own(_command_lock(appliance, id), _label(id)), own(_look_lock(appliance, id), _label(id), wait=True):
        yield


@contextmanager
def looking(appliance: Appliance, id: str) -> Iterator[None]:
    """Be the supervisor that looks at it. InUse when anybody is at work on it."""
    with own(_look_lock(appliance, id), _label(id)):
        yield


def forget(appliance: Appliance, id: str) -> None:
    """Remove the lock files of a recovery that has ended; the caller holds them.

    That two processes may then hold two files of one name does no harm: all they find is a recovery that has ended.
    """
    for path in (_command_lock(appliance, id), _look_lock(appliance, id)):
        path.unlink(missing_ok=True)


def _command_lock(appliance: Appliance, id: str) -> Path:
    return appliance.settings.run_directory / f"recovery-{id}.lock"


def _look_lock(appliance: Appliance, id: str) -> Path:
    return appliance.settings.run_directory / f"tending-{id}.lock"


def _label(id: str) -> str:
    return f"recovery {id[:12]}"
