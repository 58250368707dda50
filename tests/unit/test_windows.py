"""Backup windows: over midnight, over changes of the clock, one after the other."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.policy.documents import Document
from appliance.policy.errors import PolicyInvalid
from appliance.policy.windows import DAYS, Opening, Window, read_window

BERLIN = ZoneInfo("Europe/Berlin")


def window(*spans: dict[str, object]) -> Window:
    found = read_window(Document({"window": list(spans)}, "policy"), "window")
    assert found is not None
    return found


def utc(text: str) -> datetime:
    return datetime.fromisoformat(f"2026-{text}").replace(tzinfo=UTC)


def at(opening: Window, text: str) -> Opening:
    return opening.at(utc(text), BERLIN)


def opened(since: str, closes: str) -> Opening:
    return Opening(opened_utc=utc(since), closes_utc=utc(closes))


def test_nights_of_working_days() -> None:
    nights = window({"days": ["mon", "tue", "wed", "thu", "fri"], "from": "22:00", "to": "06:00"})
    assert at(nights, "06-04 19:59") == Opening(opens_utc=utc("06-04 20:00"))
    assert at(nights, "06-04 20:00") == opened("06-04 20:00", "06-05 04:00")
    assert at(nights, "06-06 03:59") == opened("06-05 20:00", "06-06 04:00"), "Saturday morning is Friday's night"
    assert at(nights, "06-06 04:00") == Opening(opens_utc=utc("06-08 20:00")), "it ends before its end"


def test_spans_that_touch_are_one() -> None:
    free = window(
        {"days": ["mon", "tue", "wed", "thu", "fri"], "from": "22:00", "to": "06:00"},
        {"days": ["sat", "sun"], "from": "00:00", "to": "00:00"},
    )
    assert at(free, "06-07 12:00") == opened("06-05 20:00", "06-07 22:00")
    assert at(free, "06-05 21:00") == opened("06-05 20:00", "06-07 22:00")


def test_always_open() -> None:
    found = at(window({"from": "08:00", "to": "08:00"}), "06-03 12:00")
    assert found.open
    assert found.closes_utc is None


def test_a_time_that_is_left_out_is_the_end_of_the_gap() -> None:
    assert at(window({"from": "02:30", "to": "04:00"}), "03-29 00:00") == Opening(opens_utc=utc("03-29 01:00"))
    assert at(window({"from": "01:00", "to": "02:30"}), "03-29 00:30") == opened("03-29 00:00", "03-29 01:00")
    assert at(window({"from": "02:10", "to": "02:50"}), "03-28 12:00") == Opening(opens_utc=utc("03-30 00:10"))


def test_of_a_time_that_comes_twice_the_window_has_both() -> None:
    assert at(window({"from": "02:30", "to": "02:45"}), "10-25 01:00") == opened("10-25 00:30", "10-25 01:45")


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("22-06", "window: it must be a list"),
        ([], "1 to 50 spans"),
        ([{"from": "22:00"}], r"window\[0\].to: '' is no time"),
        ([{"from": "24:00", "to": "06:00"}], "'24:00' is no time"),
        ([{"from": "9:00", "to": "06:00"}], "'9:00' is no time"),
        ([{"from": "٢٢:00", "to": "06:00"}], "is no time"),
        ([{"days": ["someday"], "from": "22:00", "to": "06:00"}], r"days\[0\]: 'someday' is no day"),
        ([{"days": [1], "from": "22:00", "to": "06:00"}], "1 is no day"),
        ([{"from": "22:00", "till": "06:00", "to": "06:00"}], "no field 'till'"),
    ],
)
def test_what_is_no_window_is_refused(value: object, says: str) -> None:
    with pytest.raises(PolicyInvalid, match=says):
        read_window(Document({"window": value}, "policy"), "window")


_CLOCK = st.builds(lambda h, m: f"{h:02}:{m:02}", st.integers(0, 23), st.sampled_from([0, 10, 30]))
_SPAN = st.fixed_dictionaries({"days": st.lists(st.sampled_from(DAYS), max_size=4), "from": _CLOCK, "to": _CLOCK})


@given(
    st.lists(_SPAN, min_size=1, max_size=3),
    st.sampled_from(["UTC", "Europe/Berlin", "America/New_York", "Africa/Cairo", "Australia/Lord_Howe"]),
    st.integers(0, 366 * 24 * 6),
)
def test_what_it_says_of_a_moment_fits_what_it_says_of_others(
    spans: list[dict[str, object]], name: str, tens: int
) -> None:
    """And away from changes of the clock, each minute is open or not as the clock on the wall has it."""
    found, zone, moment = window(*spans), ZoneInfo(name), utc("01-01 00:05") + timedelta(minutes=10 * tens)
    here = found.at(moment, zone)
    local = moment.astimezone(zone)
    if local.utcoffset() == (local + timedelta(days=2)).utcoffset() == (local - timedelta(days=2)).utcoffset():
        assert here.open == any(_reads_open(span, local) for span in spans)
    if here.opens_utc is not None:
        assert found.at(here.opens_utc, zone).opened_utc == here.opens_utc > moment
        assert not found.at(here.opens_utc - timedelta(seconds=1), zone).open
    else:
        assert here.opened_utc is not None
        assert here.opened_utc <= moment
        if here.closes_utc is not None:
            assert moment < here.closes_utc
            assert not found.at(here.closes_utc, zone).open
            assert found.at(here.closes_utc - timedelta(seconds=1), zone).opened_utc == here.opened_utc
    assert window(*found.to_json()) == found  # type: ignore[arg-type]


def _reads_open(span: dict[str, object], local: datetime) -> bool:
    days, begins, ends = span["days"] or DAYS, str(span["from"]), str(span["to"])
    assert isinstance(days, list | tuple)
    clock, today = f"{local:%H:%M}", DAYS[local.weekday()] in days
    if begins < ends:
        return today and begins <= clock < ends
    return (today and clock >= begins) or (DAYS[local.weekday() - 1] in days and clock < ends)
