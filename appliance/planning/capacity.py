"""How large the repository will be, month by month. Pure.

Rules: points are made on as they are made now, and kept by the same decisions that prune them. What a point that goes
gives back cannot be known beforehand: all that it stored, if that was overwritten since, or nothing, if it was added.
So there are two cases, and fleets lie between them: `low` gives all of it back, `high` nothing. What full reads stored
stays in both, as later points need most of it. Between them, the repository goes on as it was seen to grow.
"""

from __future__ import annotations

import threading
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, ClassVar, Final, TypeVar

import numpy as np

from appliance.planning.habits import Habit, History
from appliance.planning.staying import Bools, Floats, Ints, Several, bounds_of
from appliance.policy.policies import Policy
from appliance.policy.retention import Rules

Answer = TypeVar("Answer")

MONTHS_MAX: Final = 120
_POINTS_A_MONTH: Final = 3000  # of one machine: more often than every quarter of an hour is reckoned as that
_MONTH: Final = timedelta(days=365.25 / 12)
_NEVER_S: Final = 1e15
_AT_ONCE: Final = 1_000_000  # points that are reckoned with together


@dataclass(frozen=True, slots=True)
class MonthSize:
    """At `end_utc`: between `low_bytes` and `high_bytes`; `trend_bytes`: as it was seen to grow, within these; None: it
    was not seen for long enough. `points`: restore points that are kept."""

    end_utc: datetime
    low_bytes: int
    high_bytes: int
    trend_bytes: int | None
    points: int


def project(
    histories: Sequence[History],
    habits: Sequence[Habit | None],
    used_bytes: int,
    day_bytes: int | None,
    now_utc: datetime,
    months: int,
    policies: Callable[[History], Sequence[Policy]] = lambda history: history.policies,
) -> tuple[MonthSize, ...]:
    """The next months, first `months` of 30.4 days each. `policies`: which keep a machine's points; none: all stay.
    A machine whose habit is None stays as it is."""
    ends = [now_utc + number * _MONTH for number in range(1, months + 1)]
    low, high, points = [used_bytes] * months, [used_bytes] * months, [0] * months
    machines = [_Machine(history, habit) for history, habit in zip(histories, habits, strict=True)]
    for group, keeping in _groups(machines, policies):
        for number, (kept, made, count) in enumerate(_grown(group, keeping, now_utc, ends)):
            low[number] += kept
            high[number] += made
            points[number] += count
    found = []
    for number, end in enumerate(ends):
        trend = None
        if day_bytes is not None:
            grown = used_bytes + round(day_bytes * ((end - now_utc) / timedelta(days=1)))
            trend = min(max(grown, low[number]), high[number])
        found.append(MonthSize(end, max(0, low[number]), high[number], trend, points[number]))
    return tuple(found)


def going(histories: Sequence[History], policy: Policy) -> int:
    """How many points stay by what holds now, and not by this policy."""
    machines = [_Machine(history, None) for history in histories]
    count = 0
    for group, keeping in _groups(machines, lambda history: history.policies):
        there = _There.of(group)
        gone = there.stay(keeping) & ~there.stay((policy,))
        count += _total(there.sums(gone.astype(np.int64)), [each.history.count for each in group])
    return count


class Reckoning:
    """`project` and `going`, which remembers what it was asked last: all that these hang on is in the question, so
    it is the same answer. Safe to use from threads."""

    _MOST: ClassVar[int] = 12

    def __init__(self) -> None:
        self._known: OrderedDict[Hashable, tuple[Sequence[History], Any]] = OrderedDict()
        self._lock = threading.Lock()

    def project(
        self,
        histories: Sequence[History],
        habits: Sequence[Habit | None],
        used_bytes: int,
        day_bytes: int | None,
        now_utc: datetime,
        months: int,
        policy: Policy | None,
    ) -> tuple[MonthSize, ...]:
        """`policy`: instead of those that each machine has."""

        def policies(history: History) -> Sequence[Policy]:
            return history.policies if policy is None else (policy,)

        return self._told(
            (used_bytes, day_bytes, now_utc, months, tuple(habits), *_facts(histories, policy)), histories,
            lambda: project(histories, habits, used_bytes, day_bytes, now_utc, months, policies),
        )  # fmt: skip

    def going(self, histories: Sequence[History], policy: Policy) -> int:
        return self._told(("going", *_facts(histories, policy)), histories, lambda: going(histories, policy))

    def _told(self, question: Hashable, histories: Sequence[History], reckon: Callable[[], Answer]) -> Answer:
        with self._lock:
            if question in self._known:
                self._known.move_to_end(question)
                answer: Answer = self._known[question][1]
                return answer
        answer = reckon()
        with self._lock:
            self._known[question] = (histories, answer)  # the points of which the question has the ids live on with it
            while len(self._known) > self._MOST:
                self._known.popitem(last=False)
        return answer


def _facts(histories: Sequence[History], policy: Policy | None) -> tuple[Hashable, ...]:
    """What capacity hangs on, of points that nobody adds to."""
    machines = tuple((id(each.points), each.count, _keeping(each.policies)) for each in histories)
    return machines, None if policy is None else _keeping((policy,))


def _keeping(policies: Sequence[Policy]) -> tuple[tuple[Rules, str], ...]:
    """What of policies says which points stay."""
    return tuple((policy.retention, policy.schedule.zone) for policy in policies)


@dataclass(frozen=True, slots=True)
class _Machine:
    history: History
    habit: Habit | None

    @property
    def interval_s(self) -> float:
        """Between two points that will be made."""
        return _NEVER_S if self.habit is None else max(self.habit.interval, _MONTH / _POINTS_A_MONTH).total_seconds()


def _groups(
    machines: Sequence[_Machine], policies: Callable[[History], Sequence[Policy]]
) -> Iterator[tuple[list[_Machine], Sequence[Policy]]]:
    """Those whose points are kept alike, so many that memory does not grow with the fleet."""
    alike: dict[tuple[tuple[Rules, str], ...], list[_Machine]] = defaultdict(list)
    keeping: dict[tuple[tuple[Rules, str], ...], Sequence[Policy]] = {}
    for machine in machines:
        mine = policies(machine.history)
        key = _keeping(mine)
        alike[key].append(machine)
        keeping[key] = mine
    for key, group in alike.items():
        some, size = list[_Machine](), 0
        for machine in group:
            size += len(machine.history.points) + round(_MONTH.total_seconds() / machine.interval_s)
            if some and size > _AT_ONCE:
                yield some, keeping[key]
                some, size = [], 0
            some.append(machine)
        yield some, keeping[key]


def _grown(
    machines: Sequence[_Machine], policies: Sequence[Policy], now_utc: datetime, ends: Sequence[datetime]
) -> Iterator[tuple[int, int, int]]:
    """At each end: how much more the kept points stored than those of now, how much was stored at all, how many points
    are kept."""
    now_s = now_utc.timestamp()
    last_s = np.array([max(each.history.points.last_s, now_s) for each in machines], np.float64)
    interval_s = np.array([each.interval_s for each in machines], np.float64)
    stores = np.array([0 if each.habit is None else each.habit.stored_bytes for each in machines], np.int64)
    counts = [each.history.count for each in machines]
    made = np.zeros(len(machines), np.int64)
    points = np.array([len(each.history.points) for each in machines], np.int64)
    pruned = bool(policies) and not any(policy.retention.empty for policy in policies)
    there = _There.of(machines) if pruned else None
    before = np.zeros(len(machines), np.int64) if there is None else there.sums(there.stored)
    gone = np.zeros(len(machines), np.int64)  # what full reads stored whose points are pruned: it stays
    for end in ends:
        new = np.maximum((end.timestamp() - last_s) / interval_s, 0).astype(np.int64)
        made += new * stores
        kept = made
        if there is None:
            points = points + new
        else:
            there = there.with_new(new, last_s, interval_s, stores)
            stay = there.stay(policies)
            gone += there.sums(np.where(there.full & ~stay, there.stored, 0))
            there = there.only(stay)
            kept, points = there.sums(there.stored) + gone - before, np.diff(there.bounds)
        last_s = last_s + new * interval_s
        yield _total(kept, counts), _total(made, counts), _total(points, counts)


def _total(amounts: Ints, counts: Sequence[int]) -> int:
    """Of machines that are so many each: more than a number of the processor may hold."""
    return sum(amount * count for amount, count in zip(amounts.tolist(), counts, strict=True))


@dataclass(frozen=True, slots=True)
class _There:
    """The points of several machines at some moment, one machine after the other, as `Several` has them. `full`: those
    of full reads."""

    at_s: Floats
    bounds: Ints
    stored: Ints
    full: Bools

    @classmethod
    def of(cls, machines: Sequence[_Machine]) -> _There:
        columns = [machine.history.points for machine in machines]
        return cls(
            np.concatenate([np.asarray(each.at_s, np.float64) for each in columns]),
            bounds_of(np.array([len(each) for each in columns], np.int64)),
            np.concatenate([np.asarray(each.stored_bytes, np.int64) for each in columns]),
            np.concatenate([np.asarray(each.full, np.bool_) for each in columns]),
        )

    def stay(self, policies: Sequence[Policy]) -> Bools:
        return Several(self.at_s, self.bounds).stay(policies)

    def sums(self, values: Ints) -> Ints:
        """By machine."""
        total = bounds_of(values)
        return np.asarray(total[self.bounds[1:]] - total[self.bounds[:-1]], np.int64)

    def with_new(self, new: Ints, last_s: Floats, interval_s: Floats, stores: Ints) -> _There:
        """So many more of each machine, after `last_s`."""
        counts = np.diff(self.bounds)
        bounds = bounds_of(counts + new)
        total = int(bounds[-1])
        before = np.arange(len(self.at_s)) + np.repeat(bounds[:-1] - self.bounds[:-1], counts)
        nth = np.arange(int(new.sum())) - np.repeat(np.cumsum(new) - new, new)
        after = nth + np.repeat(bounds[:-1] + counts, new)
        at_s, stored, full = np.empty(total), np.empty(total, np.int64), np.zeros(total, np.bool_)
        at_s[before], stored[before], full[before] = self.at_s, self.stored, self.full
        at_s[after] = np.repeat(last_s, new) + (nth + 1) * np.repeat(interval_s, new)
        stored[after] = np.repeat(stores, new)
        return _There(at_s, bounds, stored, full)

    def only(self, stay: Bools) -> _There:
        return _There(self.at_s[stay], bounds_of(self.sums(stay.astype(np.int64))), self.stored[stay], self.full[stay])
