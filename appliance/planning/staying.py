"""Which points stay, asked again and again of points that are mostly the same: for plans. Pure.

The rule: it says what `policy.keeping` says, without the reasons, and a test holds the two together. It goes by numbers
instead of moments, and the periods of a moment are looked up once for all machines: a plan of 1,000 machines asks ten
thousand times.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, tzinfo
from typing import Final

from appliance.policy.policies import Policy
from appliance.policy.retention import Rules

_QUARTER_S: Final = 900  # zones differ by whole quarters of hours, and change at such

_Periods = tuple[int, int, int, int, int]


class Staying:
    """Worth keeping for as long as a plan is made: it remembers periods."""

    def __init__(self) -> None:
        self._known: dict[tzinfo, dict[int, _Periods]] = {}

    def numbers(self, policies: Sequence[Policy], at_s: Sequence[float]) -> set[int]:
        """Of points made at `at_s` (seconds since 1970, in the order of their generations), those that any of the
        policies keeps; of none: all."""
        every = range(len(at_s))
        if not policies or any(policy.retention.empty for policy in policies):
            return set(every)
        stay = {every[-1]} if every else set()
        for policy in policies:
            stay.update(self._by(policy.retention, policy.schedule.tzinfo, at_s))
        return stay

    def _by(self, rules: Rules, zone: tzinfo, at_s: Sequence[float]) -> set[int]:
        count = len(at_s)
        stay = set(range(max(0, count - rules.last), count))
        if rules.within is not None and count:
            since = max(at_s) - rules.within.total_seconds()
            stay.update(number for number in range(count) if at_s[number] >= since)
        wanted = (rules.hourly, rules.daily, rules.weekly, rules.monthly, rules.yearly)
        if not any(wanted):
            return stay
        known = self._known.setdefault(zone, {})
        periods = []
        for at in at_s:
            quarter = int(at // _QUARTER_S)
            found = known.get(quarter)
            if found is None:
                found = known[quarter] = _periods(quarter, zone)
            periods.append(found)
        for kind, most in enumerate(wanted):
            if not most:
                continue
            seen: set[int] = set()
            for number in range(count - 1, -1, -1):
                period = periods[number][kind]
                if period not in seen:
                    if len(seen) == most:
                        break
                    seen.add(period)
                    stay.add(number)
        return stay


def _periods(quarter: int, zone: tzinfo) -> _Periods:
    """Hour, day, week (from Monday), month and year, as numbers that tell them from others."""
    local = datetime.fromtimestamp(quarter * _QUARTER_S, zone)
    day = local.toordinal()
    return day * 24 + local.hour, day, (day - 1) // 7, local.year * 12 + local.month, local.year
