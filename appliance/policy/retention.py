"""Which restore points of a machine are kept, and by which rule. Pure.

Rules: the newest point is always kept, and so is one that is protected or in use; a calendar rule keeps the newest
point of each period, for the newest so many periods that have one, so that a machine which was off loses nothing by it;
"within" counts from the newest point, never from today. A clock that may be wrong expires nothing.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Final

from appliance.errors import StrongroomError

NEWEST: Final = "newest"
_AHEAD: Final = timedelta(hours=24)
_GAP: Final = timedelta(days=60)
_MANY: Final = 5


@dataclass(frozen=True, slots=True)
class Rules:
    """How many to keep of each kind; 0 or None: that rule keeps nothing."""

    last: int = 0
    hourly: int = 0
    daily: int = 0
    weekly: int = 0
    monthly: int = 0
    yearly: int = 0
    within: timedelta | None = None

    @property
    def empty(self) -> bool:
        return not any(getattr(self, each.name) for each in fields(self))


@dataclass(frozen=True, slots=True)
class Candidate:
    """A restore point. `uses` are the purposes of the holds on it: "protected", "mount" and so on."""

    id: str
    generation: int
    created_utc: datetime
    uses: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Verdict:
    """`reasons` name the rules that keep the point; none: it may go."""

    candidate: Candidate
    reasons: tuple[str, ...]

    @property
    def kept(self) -> bool:
        return bool(self.reasons)


class NoRules(StrongroomError):
    exit_code = 2

    def __init__(self) -> None:
        super().__init__(
            "no rule says which restore points to keep, so all but the newest would go",
            hint="Give at least one, as --keep-daily 14.",
        )


class ClockDoubtful(StrongroomError):
    """The points' times, or this machine's, make no sense: expiring by them could drop years."""

    def __init__(self, name: str, detail: str) -> None:
        super().__init__(
            f"no restore point of {name} is pruned: {detail}",
            hint="Set the clock right; if it is, delete the points that are meant with 'strongroom point delete'.",
            name=name,
        )


def decide(candidates: Iterable[Candidate], rules: Rules, *, zone: tzinfo = UTC) -> tuple[Verdict, ...]:
    """A verdict on every point of one machine, oldest first. `zone` is where days begin. NoRules."""
    if rules.empty:
        raise NoRules
    ordered = sorted(candidates, key=lambda each: each.generation)
    reasons: dict[str, list[str]] = {each.id: [] for each in ordered}
    newest_first = ordered[::-1]
    for each in newest_first[:1]:
        reasons[each.id].append(NEWEST)
    for each in newest_first[: rules.last]:
        reasons[each.id].append("last")
    for name, period in _PERIODS:
        for each in _newest_of_periods(newest_first, getattr(rules, name), period, zone):
            reasons[each.id].append(name)
    if rules.within is not None and newest_first:
        latest = max(each.created_utc for each in ordered)
        for each in ordered:
            if each.created_utc >= latest - rules.within:
                reasons[each.id].append("within")
    for each in ordered:
        reasons[each.id] += sorted(each.uses)
    return tuple(Verdict(each, tuple(reasons[each.id])) for each in ordered)


def check_clock(name: str, candidates: Sequence[Candidate], verdicts: Sequence[Verdict], now_utc: datetime) -> None:
    """Before points are dropped by their times. ClockDoubtful."""
    going = sum(not verdict.kept for verdict in verdicts)
    if not going:
        return
    ordered = sorted(candidates, key=lambda each: each.generation)
    ahead = [each for each in ordered if each.created_utc > now_utc + _AHEAD]
    if ahead:
        raise ClockDoubtful(
            name,
            f"point {ahead[0].id[:12]} is of {ahead[0].created_utc:%Y-%m-%d}, and this machine says {now_utc:%Y-%m-%d}",
        )
    for before, after in itertools.pairwise(ordered):
        if after.created_utc < before.created_utc - _AHEAD:
            raise ClockDoubtful(name, f"point {after.id[:12]} came after {before.id[:12]}, and its time is before it")
    if going > _MANY and 2 * going > len(ordered):
        gap = ordered[-1].created_utc - ordered[-2].created_utc
        if gap > _GAP:
            detail = f"{going} of {len(ordered)} would go at once, and {gap.days} days lie between the last two"
            raise ClockDoubtful(name, detail)


def _hour(moment: datetime) -> tuple[int, ...]:
    return (moment.year, moment.month, moment.day, moment.hour)


def _day(moment: datetime) -> tuple[int, ...]:
    return (moment.year, moment.month, moment.day)


def _week(moment: datetime) -> tuple[int, ...]:
    return tuple(moment.isocalendar()[:2])


def _month(moment: datetime) -> tuple[int, ...]:
    return (moment.year, moment.month)


def _year(moment: datetime) -> tuple[int, ...]:
    return (moment.year,)


_Period = Callable[[datetime], tuple[int, ...]]
_PERIODS: Final[tuple[tuple[str, _Period], ...]] = (
    ("hourly", _hour),
    ("daily", _day),
    ("weekly", _week),
    ("monthly", _month),
    ("yearly", _year),
)


def _newest_of_periods(
    newest_first: Sequence[Candidate], count: int, period: _Period, zone: tzinfo
) -> Iterable[Candidate]:
    seen: set[tuple[int, ...]] = set()
    for each in newest_first:
        key = period(each.created_utc.astimezone(zone))
        if key in seen:
            continue
        if len(seen) == count:
            return
        seen.add(key)
        yield each
