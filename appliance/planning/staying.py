"""Which points stay, asked again and again of points that are mostly the same: for plans. Pure.

The rule: it says what `policy.keeping` says, without the reasons, and a test holds the two together. It goes by columns
of numbers, of many machines at once, one machine after the other: a plan of 1,000 machines asks of all of them twelve
times, which took 0.6 s point by point.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, tzinfo
from functools import lru_cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

from appliance.policy.policies import Policy
from appliance.policy.retention import Rules

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

_QUARTER_S: Final = 900  # zones differ by whole quarters of hours, and change at such
_HOUR_S: Final = 3600
_DAY_S: Final = 86_400
_QUARTERS: Final = _DAY_S // _QUARTER_S
_WEEK_BEGAN: Final = 3  # days before 1970-01-01, on a Monday
_DAYS_AT_ONCE: Final = 1024
_HOUR, _DAY, _WEEK, _MONTH, _YEAR = range(5)


class Several:
    """Points of several machines, one machine after the other, each machine's in the order of their generations.
    `at_s`: when they were made, in seconds since 1970; `bounds`: where each machine's begin, and where the last ones
    end."""

    __slots__ = ("_at_s", "_behind", "_lasts", "_quarters")

    def __init__(self, at_s: Floats, bounds: Ints) -> None:
        self._at_s = at_s
        counts = np.diff(bounds)
        self._lasts = bounds[1:][counts > 0] - 1
        self._behind = np.repeat(bounds[1:], counts) - 1 - np.arange(len(at_s))  # how many of its machine follow each
        self._quarters = (at_s // _QUARTER_S).astype(np.int64)

    def stay(self, policies: Sequence[Policy]) -> Bools:
        """Those that any of the policies keeps; of no policy: all."""
        if not policies or any(policy.retention.empty for policy in policies):
            return np.ones(len(self._at_s), np.bool_)
        stay = np.zeros(len(self._at_s), np.bool_)
        stay[self._lasts] = True
        if len(stay):
            for policy in policies:
                self._mark(stay, policy.retention, policy.schedule.tzinfo)
        return stay

    def _mark(self, stay: Bools, rules: Rules, zone: tzinfo) -> None:
        if rules.last:
            stay |= self._behind < rules.last
        if rules.within is not None:
            newest = np.maximum.reduceat(self._at_s, np.concatenate((np.zeros(1, np.int64), self._lasts[:-1] + 1)))
            counts = np.diff(np.concatenate((np.full(1, -1), self._lasts)))
            stay |= self._at_s >= np.repeat(newest - rules.within.total_seconds(), counts)
        wanted = (rules.hourly, rules.daily, rules.weekly, rules.monthly, rules.yearly)
        if not any(wanted):
            return
        local_s = self._quarters * _QUARTER_S + _offsets(self._quarters, zone)
        for kind, most in enumerate(wanted):
            if most:
                stay[self._newest(_periods(local_s, kind), most)] = True

    def _newest(self, periods: Ints, most: int) -> Ints:
        """The newest point of each period, in so many of the newest periods of its machine."""
        last = np.zeros(len(periods), np.bool_)
        last[self._lasts] = True
        if bool(((periods[1:] < periods[:-1]) & ~last[:-1]).any()):  # made in another order than that of generations
            found = _newest_of_each(periods, self._lasts)
        else:
            differs = last
            differs[:-1] |= periods[1:] != periods[:-1]
            found = np.flatnonzero(differs)
        # Of each found one, how many found ones of its machine are newer.
        upto = np.searchsorted(found, self._lasts, side="right")
        machine = np.searchsorted(self._lasts, found)
        newer = upto[machine] - 1 - np.arange(len(found))
        return np.asarray(found[newer < most], np.int64)


def bounds_of(counts: Ints) -> Ints:
    """Where each of several begin that are so many, and where the last ones end."""
    return np.concatenate((np.zeros(1, np.int64), np.cumsum(counts)))


def _newest_of_each(periods: Ints, lasts: Ints) -> Ints:
    machine = np.searchsorted(lasts, np.arange(len(periods)))
    width = int(periods.max()) - int(periods.min()) + 1
    key = machine * width + (periods - periods.min())
    _, first = np.unique(key[::-1], return_index=True)
    return np.sort(len(periods) - 1 - first)


def _periods(local_s: Ints, kind: int) -> Ints:
    """Hour, day, week (from Monday), month or year, as numbers that tell them from others."""
    if kind == _HOUR:
        return local_s // _HOUR_S
    days = local_s // _DAY_S
    if kind == _DAY:
        return days
    if kind == _WEEK:
        return (days + _WEEK_BEGAN) // 7
    return days.astype("datetime64[D]").astype("datetime64[M]" if kind == _MONTH else "datetime64[Y]").astype(np.int64)


def _offsets(quarters: Ints, zone: tzinfo) -> Ints:
    """How far the zone is before UTC in each of these quarters of an hour, in seconds."""
    days = quarters // _QUARTERS
    first = int(days.min()) // _DAYS_AT_ONCE * _DAYS_AT_ONCE
    begin = np.concatenate(
        [_offsets_of_days(start, zone) for start in range(first, int(days.max()) + 2, _DAYS_AT_ONCE)]
    )
    found = begin[days - first]
    for number in np.flatnonzero(begin[1:] != begin[:-1]).tolist():  # days on which it changes
        within = np.flatnonzero(days == first + number)
        if len(within):
            found[within] = [_offset(quarter * _QUARTER_S, zone) for quarter in quarters[within].tolist()]
    return found


@lru_cache(maxsize=256)
def _offsets_of_days(first: int, zone: tzinfo) -> Ints:
    """At the beginnings of so many days of UTC."""
    return np.array([_offset(day * _DAY_S, zone) for day in range(first, first + _DAYS_AT_ONCE)], np.int64)


def _offset(at_s: int, zone: tzinfo) -> int:
    offset = datetime.fromtimestamp(at_s, zone).utcoffset()
    assert offset is not None
    return round(offset.total_seconds())
