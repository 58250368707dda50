"""Retention: what is kept, why, and when a clock is not believed."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.policy.retention import Candidate, ClockDoubtful, NoRules, Rules, check_clock, decide

START = datetime(2026, 1, 1, 1, 30, tzinfo=UTC)


def nightly(days: int, first: datetime = START) -> list[Candidate]:
    return [Candidate(f"p{day}", day + 1, first + timedelta(days=day)) for day in range(days)]


def kept(points: list[Candidate], rules: Rules, zone: str = "UTC") -> set[str]:
    return {verdict.candidate.id for verdict in decide(points, rules, zone=ZoneInfo(zone)) if verdict.kept}


def test_each_rule_keeps_the_newest_of_its_periods_and_says_so() -> None:
    points = nightly(400)
    verdicts = {v.candidate.id: v.reasons for v in decide(points, Rules(last=2, daily=3, monthly=2, yearly=5))}
    assert verdicts["p399"] == ("newest", "last", "daily", "monthly", "yearly")
    assert verdicts["p398"] == ("last", "daily")
    assert verdicts["p397"] == ("daily",)
    assert verdicts["p395"] == ("monthly",), "31 January 2027"
    assert verdicts["p364"] == ("yearly",), "31 December 2026"
    assert sum(map(bool, verdicts.values())) == 5


def test_weeks_begin_on_monday_across_the_turn_of_the_year() -> None:
    points = nightly(14, datetime(2026, 12, 27, 12, tzinfo=UTC))  # a Sunday
    assert kept(points, Rules(weekly=3)) == {"p0", "p7", "p13"}


def test_periods_without_a_point_do_not_count() -> None:
    points = [*nightly(3), Candidate("late", 9, START + timedelta(days=200))]
    assert kept(points, Rules(daily=2)) == {"late", "p2"}


def test_days_begin_where_the_zone_says() -> None:
    evening = [
        Candidate("a", 1, datetime(2026, 6, 1, 21, tzinfo=UTC)),
        Candidate("b", 2, datetime(2026, 6, 1, 23, tzinfo=UTC)),  # 2 June in Berlin
    ]
    assert kept(evening, Rules(daily=2)) == {"b"}
    assert kept(evening, Rules(daily=2), "Europe/Berlin") == {"a", "b"}


def test_within_counts_from_the_newest_point() -> None:
    assert kept(nightly(10), Rules(within=timedelta(days=2))) == {"p9", "p8", "p7"}


def test_what_is_protected_or_in_use_stays() -> None:
    points = [Candidate("a", 1, START, frozenset({"protected", "mount"})), *nightly(5)[1:]]
    verdicts = decide(points, Rules(last=1))
    assert verdicts[0].reasons == ("mount", "protected")


def test_without_a_rule_nothing_is_decided() -> None:
    with pytest.raises(NoRules):
        decide(nightly(3), Rules())


@given(
    st.lists(st.integers(0, 3000), max_size=60),
    st.builds(Rules, *(st.integers(0, 4) for _ in range(6)), st.none() | st.timedeltas(timedelta(0), timedelta(90))),
    st.integers(0, 3),
)
def test_the_newest_stays_and_more_rules_never_keep_less(hours: list[int], rules: Rules, more: int) -> None:
    points = [Candidate(f"p{n}", n, START + timedelta(hours=hour)) for n, hour in enumerate(sorted(hours))]
    if rules.empty:
        return
    keeps = kept(points, rules)
    if points:
        assert points[-1].id in keeps
    assert keeps <= kept(points, Rules(rules.last, rules.hourly, rules.daily + more, rules.weekly, 9, 9, rules.within))
    for count, period in ((rules.daily, "%Y-%m-%d"), (rules.monthly, "%Y-%m")):
        periods = sorted({point.created_utc.strftime(period) for point in points}, reverse=True)[:count]
        assert {point.created_utc.strftime(period) for point in points if point.id in keeps} >= set(periods)


def test_pruning_twice_is_pruning_once() -> None:
    points, rules = nightly(900), Rules(daily=7, weekly=5, monthly=12, yearly=3)
    once = kept(points, rules)
    assert kept([point for point in points if point.id in once], rules) == once


def doubtful(points: list[Candidate], now: datetime, rules: Rules | None = None) -> None:
    check_clock("web", points, decide(points, rules or Rules(daily=3)), now)


def test_a_clock_that_went_back_expires_nothing() -> None:
    points = nightly(30)
    doubtful(points, points[-1].created_utc)
    with pytest.raises(ClockDoubtful, match="this machine says 2025"):
        doubtful(points, START - timedelta(days=365))


def test_a_point_from_a_clock_a_year_ahead_expires_nothing() -> None:
    ahead = nightly(29)[-1].created_utc + timedelta(days=365)
    points = [*nightly(29), Candidate("ahead", 30, ahead)]
    with pytest.raises(ClockDoubtful, match="days lie between"):
        doubtful(points, ahead, Rules(within=timedelta(days=30)))
    with pytest.raises(ClockDoubtful, match="came after"):
        doubtful([*points, Candidate("right", 31, START + timedelta(days=29))], ahead)


def test_nothing_goes_nothing_is_doubted() -> None:
    points, long_ago = nightly(3), START - timedelta(days=900)
    assert kept(points, Rules(daily=3)) == {point.id for point in points}
    doubtful(points, long_ago, Rules(daily=3))
    with pytest.raises(ClockDoubtful):
        doubtful(points, long_ago, Rules(daily=2))
