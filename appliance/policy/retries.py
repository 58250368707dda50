"""What becomes of a run when an attempt at it has ended without a restore point.

The rule: only what was queued is tried again, and only if the error says that trying again can help, or if nobody
failed: another run was at work on the machine, or this one was told to make way. Those are no attempts; a process that
died is one, so that a run that kills its process is not begun for ever. A restore that failed is not tried again by
itself: whoever asked for it decides what to do next.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta
from enum import Enum, auto

from appliance.models import RunKind, RunRecord, RunState
from appliance.setting_sections import QueueSettings

_LONGEST_S = 3600.0


class Ending(Enum):
    BUSY = auto()  # another run was at work on the same machine
    MADE_WAY = auto()  # it was told to end, by a signal
    FAILED_FOR_NOW = auto()  # the error is declared retryable
    FAILED = auto()
    DIED = auto()  # its process did


def after(run: RunRecord, ending: Ending, words: str, now_utc: datetime, rules: QueueSettings) -> RunRecord:
    """The run as it is from now on: queued again, or ended."""
    run = replace(run, error=words)
    if run.from_queue and ending in (Ending.BUSY, Ending.MADE_WAY):
        run = replace(run, attempts=run.attempts - 1)
        return _again(run, now_utc, rules.retry_s if ending is Ending.BUSY else 0.0)
    may_pass = ending in (Ending.FAILED_FOR_NOW, Ending.DIED) and run.kind is not RunKind.RESTORE
    if run.from_queue and may_pass and run.attempts < rules.attempts:
        return _again(run, now_utc, delay_s(run.attempts, rules.retry_s))
    state = RunState.INTERRUPTED if ending is Ending.DIED else RunState.FAILED
    return replace(run, state=state, ended_utc=now_utc)


def delay_s(attempts: int, first_s: float) -> float:
    """Before the next one, after so many that failed: twice as long each time, an hour at most (or `first_s`)."""
    return min(first_s * 2.0 ** min(attempts - 1, 32), max(_LONGEST_S, first_s))


def _again(run: RunRecord, now_utc: datetime, after_s: float) -> RunRecord:
    not_before = now_utc + timedelta(seconds=after_s) if after_s else None
    return replace(run, state=RunState.QUEUED, not_before_utc=not_before)
