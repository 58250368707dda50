"""Schedules: due times over changes of the clock, as the library has them, and what is said of wrong ones."""

from __future__ import annotations

import itertools
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.policy.errors import PolicyInvalid
from appliance.policy.schedules import Schedule, read_schedule, spelled


def utc(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def upcoming(cron: str, zone: str, after: str, count: int) -> list[str]:
    times = itertools.islice(Schedule(cron, zone).after(utc(after)), count)
    return [f"{each:%m-%d %H:%M}" for each in times]


def test_due_times_are_the_zones() -> None:
    assert upcoming("0 22 * * MON-FRI", "Europe/Berlin", "2026-06-05 12:00", 3) == [
        "06-05 20:00", "06-08 20:00", "06-09 20:00",
    ]  # fmt: skip
    assert upcoming("0 1 * * *", "America/New_York", "2026-01-01 00:00", 2) == ["01-01 06:00", "01-02 06:00"]


def test_in_the_hour_that_is_left_out_it_is_due_at_its_end() -> None:
    """29 March 2026, Berlin: 02:00 is 03:00."""
    assert upcoming("30 2 * * *", "Europe/Berlin", "2026-03-27 12:00", 3) == [
        "03-28 01:30", "03-29 01:00", "03-30 00:30",
    ]  # fmt: skip
    assert upcoming("*/30 * * * *", "Europe/Berlin", "2026-03-29 00:20", 3) == [
        "03-29 00:30", "03-29 01:00", "03-29 01:30",
    ], "what goes by the minute goes on as time does"  # fmt: skip


def test_in_the_hour_that_comes_twice_fixed_times_come_once_and_steps_twice() -> None:
    """25 October 2026, Berlin: 03:00 is 02:00."""
    assert upcoming("30 2 * * *", "Europe/Berlin", "2026-10-24 12:00", 2) == ["10-25 00:30", "10-26 01:30"]
    assert upcoming("*/30 2 * * *", "Europe/Berlin", "2026-10-24 12:00", 4) == [
        "10-25 00:00", "10-25 00:30", "10-25 01:00", "10-25 01:30",
    ]  # fmt: skip


def test_asked_within_the_second_of_a_doubled_hour_nothing_lies_before() -> None:
    assert upcoming("30 2 * * *", "Europe/Berlin", "2026-10-25 01:10", 1) == ["10-26 01:30"]
    around = Schedule("30 2 * * *", "Europe/Berlin").around(utc("2026-10-25 01:10"))
    assert around.latest_utc == utc("2026-10-25 00:30"), "the first of the two has passed"
    assert around.next_utc == utc("2026-10-26 01:30")


def test_where_midnight_is_left_out() -> None:
    """Cairo, 24 April 2026: 00:00 is 01:00."""
    assert upcoming("0 0 * * *", "Africa/Cairo", "2026-04-23 12:00", 2) == ["04-23 22:00", "04-24 21:00"]


def test_around() -> None:
    daily = Schedule("0 22 * * *").around(utc("2026-03-05 22:00"))
    assert (daily.previous_utc, daily.latest_utc) == (utc("2026-03-04 22:00"), utc("2026-03-05 22:00"))
    assert daily.next_utc == utc("2026-03-06 22:00")
    leap = Schedule("0 0 29 2 *").around(utc("2026-01-01"))
    assert (leap.previous_utc, leap.latest_utc, leap.next_utc) == (
        utc("2020-02-29"), utc("2024-02-29"), utc("2028-02-29"),
    )  # fmt: skip


CRONS = ("30 2 * * *", "*/7 * * * *", "0 */6 * * *", "15 1-3 * * SUN", "0 0 1 * *", "59 23 L * *", "5 2 25-29 3,10 *",
         "*/20 2 * * *", "0 0 29 2 *")  # fmt: skip
ZONES = ("UTC", "Europe/Berlin", "America/New_York", "Africa/Cairo", "Australia/Lord_Howe", "Asia/Kathmandu")
MOMENTS = st.datetimes(datetime(2026, 1, 1), datetime(2027, 12, 31))  # noqa: DTZ001 - given their zone below


@given(st.sampled_from(CRONS), st.sampled_from(ZONES), MOMENTS)
def test_around_is_what_walking_finds(cron: str, zone: str, naive: datetime) -> None:
    schedule, moment = Schedule(cron, zone), naive.replace(tzinfo=UTC)
    around = schedule.around(moment)
    assert around.latest_utc is not None
    assert around.previous_utc is not None
    assert around.previous_utc < around.latest_utc <= moment < around.next_utc
    walked = list(itertools.islice(schedule.after(around.previous_utc - timedelta(seconds=1)), 3))
    assert walked == [around.previous_utc, around.latest_utc, around.next_utc]
    assert schedule.next_after(moment) == around.next_utc


@given(st.sampled_from(ZONES), MOMENTS)
def test_once_a_day_is_once_on_every_day(zone: str, naive: datetime) -> None:
    begin = naive.replace(tzinfo=UTC)
    times = list(itertools.islice(Schedule("10 2 * * *", zone).after(begin), 40))
    days = [each.astimezone(ZoneInfo(zone)).date() for each in times]
    assert [(after - before).days for before, after in itertools.pairwise(days)] == [1] * 39


@pytest.mark.parametrize(
    ("cron", "words"),
    [
        ("0 22 * * MON-FRI", "At 22:00 on Monday through Friday"),
        ("*/30 * * * *", "Every 30th minute of every hour"),
        ("*/40 * * * *", "At minutes 0 and 40 of every hour"),
        ("*/90 * * * *", "At the start of every hour"),
        ("0 */5 * * *", "At minute 0 past hours 0, 5, 10, 15, and 20"),
        ("0 */24 * * *", "At 00:00 every day"),
        ("0 22 * */3 *", "At 22:00 every day in January, April, July, and October"),
        ("0 22 * * */2", "At 22:00 on Sunday, Tuesday, Thursday, and Saturday"),
        ("0 2 */2 * MON", "At 02:00 on every second day of month if it's on Monday"),
        ("0 2 1 * MON", "At 02:00 on the first day of month and on Monday"),
        ("0 2 LW * *", "At 02:00 on the last weekday of every month"),
    ],
)
def test_words(cron: str, words: str) -> None:
    assert Schedule(cron, "Europe/Berlin").words == words


STEPS = st.sampled_from(["*", "0", "5", "*/2", "*/5", "*/7", "*/25", "*/100"])


@given(
    STEPS,
    STEPS,
    st.sampled_from(["*", "1", "*/2"]),
    st.sampled_from(["*", "*/5", "3"]),
    st.sampled_from(["*", "1", "*/3"]),
)
def test_what_is_put_into_words_has_the_same_due_times(
    minute: str, hour: str, day: str, month: str, weekday: str
) -> None:
    cron = f"{minute} {hour} {day} {month} {weekday}"
    times = [list(itertools.islice(Schedule(each).after(utc("2026-01-01")), 50)) for each in (cron, spelled(cron))]
    assert times[0] == times[1]


@pytest.mark.parametrize(
    ("cron", "says"),
    [
        ("", "has not five fields"),
        ("0 22 * *", "has not five fields"),
        ("0 0 22 * * *", "has not five fields"),
        ("@daily", "has not five fields"),
        ("61 22 * * *", "bad minute"),
        ("0 24 * * *", "bad hour"),
        ("0 22 * * FUNDAY", "bad day-of-week"),
        ("0 22 30 2 *", "bad day-of-month"),
        ("0 22 */30 * MON#3", "never due"),
        ("*/0 * * * *", "bad minute"),
        ("² * * * *", "bad minute"),
        (f"{'9' * 150} * * * *", "bad minute"),
        (f"{'1,' * 200}1 * * * *", "has not five fields"),
    ],
)
def test_wrong_expressions_say_what_is_wrong(cron: str, says: str) -> None:
    with pytest.raises(PolicyInvalid, match=says) as caught:
        Schedule(cron)
    assert "0 22 * * MON-FRI" in caught.value.hint


@pytest.mark.parametrize(
    ("zone", "hint"),
    [
        ("europe/berlin", "Did you mean Europe/Berlin?"),
        ("Europe/Berln", "Did you mean Europe/Berlin?"),
        ("America", ""),
        ("../../etc/passwd", ""),
        ("/etc/localtime", ""),
        ("localtime", ""),
        ("Europe/Berlin\0", ""),
        ("a" * 5000, ""),
    ],
)
def test_wrong_zones_are_refused(zone: str, hint: str) -> None:
    with pytest.raises(PolicyInvalid, match="there is no time zone") as caught:
        Schedule("0 22 * * *", zone)
    assert hint in caught.value.hint
    assert caught.value.hint


@given(st.text("0123456789*/,-L#W MONSUN", max_size=24))
def test_whatever_is_typed_is_due_some_day_or_refused(cron: str) -> None:
    try:
        schedule = Schedule(cron)
    except PolicyInvalid:
        return
    assert schedule.next_after(utc("2026-01-01")) > utc("2026-01-01")
    assert read_schedule(schedule.to_json(), "schedule") == Schedule(" ".join(cron.split()))
