"""What is new, what is over, and what is told now. Pure.

Rules: a concern that lasts is told once, and once more when it is over. The first of a kind waits a little for others
of it, and the next message of that kind waits longer, so that 500 failures are one message. A time ahead of the clock
was written under another clock, and makes nothing wait.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from appliance.models import new_id
from appliance.notices.records import Concern, Kind

_TOLD_WHEN_OVER = frozenset({Kind.THAW, Kind.RPO, Kind.FILLING, Kind.AWAY})


@dataclass(frozen=True, slots=True)
class Changes:
    """`gone`: ids of lasting concerns that are over."""

    new: tuple[Concern, ...]
    gone: frozenset[str]


def changes(
    known: Iterable[Concern], seen: Iterable[Concern], is_unknown: Callable[[Concern], bool], now_utc: datetime
) -> Changes:
    """`known`: lasting concerns as kept; `seen`: all that there are now. `is_unknown`: of this one nothing can be said
    now, so that it is not over."""
    before = {(each.kind, each.key): each for each in known}
    there = {(each.kind, each.key): each for each in seen}
    over = [each for at, each in before.items() if at not in there and not is_unknown(each)]
    told = (each for each in over if each.told_utc is not None and each.kind in _TOLD_WHEN_OVER)
    ended = tuple(
        replace(each, id=new_id(), kind=Kind.OVER, key=each.id, lasting=False, seen_utc=now_utc, told_utc=None)
        for each in told
    )
    new = tuple(each for at, each in there.items() if at not in before)
    return Changes(new + ended, frozenset(each.id for each in over))


def ripe(
    untold: Sequence[Concern],
    last_told: Mapping[Kind, datetime],
    now_utc: datetime,
    *,
    wait_s: float,
    interval_s: float,
) -> tuple[tuple[Kind, tuple[Concern, ...]], ...]:
    """The kinds of which a message is due, each with all of its concerns, oldest first."""
    kinds: dict[Kind, list[Concern]] = defaultdict(list)
    for each in sorted(untold, key=lambda each: (each.seen_utc, each.key)):
        kinds[each.kind].append(each)
    due = []
    for kind in Kind:
        if not (found := kinds.get(kind)):
            continue
        last = last_told.get(kind)
        rested = last is None or _over(last, interval_s, now_utc)
        if rested and _over(found[0].seen_utc, wait_s, now_utc):
            due.append((kind, tuple(found)))
    return tuple(due)


def _over(since_utc: datetime, seconds: float, now_utc: datetime) -> bool:
    return since_utc > now_utc or since_utc + timedelta(seconds=seconds) <= now_utc
