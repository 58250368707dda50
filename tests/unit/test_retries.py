"""What becomes of an attempt that made no point: a table of decisions."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from appliance.models import RunKind, RunRecord, RunState, new_id
from appliance.policy.retries import Ending, after, delay_s
from appliance.setting_sections import QueueSettings
from tests.unit.records import NOW

RULES = QueueSettings(attempts=3, retry_s=10)
AT_ONCE = RunRecord(new_id(), "web", "vm", "u", "here", RunState.RUNNING, NOW)
QUEUED = replace(AT_ONCE, asked_utc=NOW, attempts=1)


@pytest.mark.parametrize(
    ("ending", "attempts", "state", "kept", "waits_s"),
    [
        (Ending.BUSY, 1, RunState.QUEUED, 0, 10),
        (Ending.BUSY, 3, RunState.QUEUED, 2, 10),  # however often: nobody failed
        (Ending.MADE_WAY, 3, RunState.QUEUED, 2, None),
        (Ending.FAILED_FOR_NOW, 1, RunState.QUEUED, 1, 10),
        (Ending.FAILED_FOR_NOW, 2, RunState.QUEUED, 2, 20),
        (Ending.FAILED_FOR_NOW, 3, RunState.FAILED, 3, None),
        (Ending.DIED, 2, RunState.QUEUED, 2, 20),
        (Ending.DIED, 3, RunState.INTERRUPTED, 3, None),
        (Ending.FAILED, 1, RunState.FAILED, 1, None),
    ],
)
def test_what_was_queued(ending: Ending, attempts: int, state: RunState, kept: int, waits_s: int | None) -> None:
    run = after(replace(QUEUED, attempts=attempts), ending, "words", NOW, RULES)
    assert (run.state, run.attempts, run.error) == (state, kept, "words")
    assert run.not_before_utc == (None if waits_s is None else NOW + timedelta(seconds=waits_s))
    assert run.ended_utc == (NOW if state.ended else None)


@pytest.mark.parametrize("ending", [Ending.FAILED_FOR_NOW, Ending.DIED, Ending.FAILED])
def test_a_restore_is_tried_again_by_whoever_asked_for_it(ending: Ending) -> None:
    run = after(replace(QUEUED, kind=RunKind.RESTORE), ending, "words", NOW, RULES)
    assert run.state is (RunState.INTERRUPTED if ending is Ending.DIED else RunState.FAILED)
    made_way = after(replace(QUEUED, kind=RunKind.RESTORE), Ending.MADE_WAY, "words", NOW, RULES)
    assert made_way.state is RunState.QUEUED


@pytest.mark.parametrize("ending", [each for each in Ending if each is not Ending.BUSY])
def test_what_was_begun_at_once_is_never_begun_again(ending: Ending) -> None:
    run = after(AT_ONCE, ending, "words", NOW, RULES)
    assert run.state is (RunState.INTERRUPTED if ending is Ending.DIED else RunState.FAILED)


def test_delays_grow_to_an_hour() -> None:
    assert [delay_s(attempts, 60) for attempts in (1, 2, 3, 7, 1000)] == [60, 120, 240, 3600, 3600]
    assert delay_s(9, 7200) == 7200
