"""What the scheduler is told of policies and machines at one moment. Pure values, and which of their times to believe.

The rule: a moment that is ahead of the clock by more than an hour was written under a wrong clock, and is not believed;
one that is ahead by less is, so that a clock that is set back a little makes nothing run twice.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Final

from appliance.policy.policies import Policy
from appliance.policy.selectors import Machine

AHEAD: Final = timedelta(hours=1)


class Busy(StrEnum):
    QUEUED = "queued"
    RUNNING = "running"


@dataclass(frozen=True, slots=True)
class PolicyState:
    """`since_utc`: when it was made, when its schedule was last changed, or when its pause ended: due times before that
    are nobody's."""

    policy: Policy
    since_utc: datetime
    paused: bool = False


@dataclass(frozen=True, slots=True)
class MachineState:
    """All that are known are told, selected or not, as their runs count for their hosts.

    `answers`: when its latest runs began, whatever came of them, and when those ended that were cancelled. Each answers
    what was due up to then. Those of a clock that was ahead need not be left out, but must not crowd out the newest
    believable one. `point_utc`: of its newest restore point.
    """

    machine: Machine
    known_utc: datetime
    answers: tuple[datetime, ...] = ()
    point_utc: datetime | None = None
    busy: Busy | None = None
    paused: bool = False


def newest(moments: Iterable[datetime | None], now_utc: datetime) -> datetime | None:
    """The newest that can be believed."""
    limit, found = now_utc + AHEAD, None
    for each in moments:
        if each is not None and each <= limit and (found is None or each > found):
            found = each
    return found
