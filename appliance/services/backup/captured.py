"""A machine or image at one moment, ready to be read disk by disk: what a capture yields and storing takes."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime

from appliance.services.backup.planning import DiskPlan
from imaging.manifest import Skipped
from imaging.source import Source

CONSISTENCY_OFFLINE = "offline"


@dataclass(frozen=True, slots=True)
class CapturedDisk:
    """A disk to read. `open` connects to it; `dirty` of the source is meaningful if `plan.read` is incremental."""

    plan: DiskPlan
    checkpointed: bool
    open: Callable[[], AbstractContextManager[Source]]


def _nothing() -> None:
    """For captures that nothing can end from outside."""


@dataclass(frozen=True, slots=True)
class Capture:
    """A machine at one moment.

    `check` raises when the capture can no longer be read (scratch full, job lost); `explain`, called after a read
    failed, raises the reason behind that, if it is one of these.
    """

    created_utc: datetime
    consistency: str
    checkpoint: str | None
    disks: tuple[CapturedDisk, ...]
    skipped: tuple[Skipped, ...]
    notes: tuple[str, ...]
    check: Callable[[], None] = _nothing
    explain: Callable[[], None] = _nothing
