"""What is told, when and in which words: decisions without a clock, a catalog or a network."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, time, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.models import RunState
from appliance.notices import daily, grouping, retrying, wording
from appliance.notices.daily import Day, Space
from appliance.notices.records import Concern, Delivery, DeliveryState, Kind, Urgency
from appliance.notices.targets import NoticeTarget
from appliance.notices.unusual import ClockSeen, PointCount, clock_jump, count_points, many_gone, usual_bytes
from appliance.services.notices.sending import without_secrets
from tests.unit.records import NOW

BERLIN = ZoneInfo("Europe/Berlin")
GIB = 1 << 30
EVIL = (
    "web\r\nBcc: x@evil.example\r\n\r\n<script>alert(1)</script> @everyone http://evil.example [a](b) {{t}}\u202e\x00"
)


def s(seconds: float) -> timedelta:
    return timedelta(seconds=seconds)


def concern(key: str = "k", kind: Kind = Kind.FAILED, *, lasting: bool = False, seen: datetime = NOW) -> Concern:
    return Concern(key.ljust(32, "0"), kind, key, f"subject {key}", "it went wrong", lasting, seen)


def nobody(_: Concern) -> bool:
    return False


# Grouping


def test_the_first_waits_for_others_and_all_of_a_kind_are_one_message() -> None:
    many = [concern(f"r{number}", seen=NOW + s(number / 100)) for number in range(500)]
    assert grouping.ripe(many, {}, NOW + s(29), wait_s=30, interval_s=300) == ()
    ((kind, told),) = grouping.ripe(many, {}, NOW + s(30), wait_s=30, interval_s=300)
    assert (kind, len(told), told[0].key) == (Kind.FAILED, 500, "r0")
    notice = wording.notice(kind, told, "box", NOW)
    assert notice.title == "Strongroom box: 500 backups failed"
    assert "subject r0, subject r1" in notice.body
    assert "and 490 more: it went wrong" in notice.body


def test_the_next_message_of_a_kind_waits_longer_and_other_kinds_do_not() -> None:
    late, thaw = concern("late", seen=NOW + s(10)), concern("thaw", Kind.THAW, lasting=True, seen=NOW + s(10))
    told = {Kind.FAILED: NOW}
    due = grouping.ripe([late, thaw], told, NOW + s(60), wait_s=30, interval_s=300)
    assert [kind for kind, _ in due] == [Kind.THAW]
    due = grouping.ripe([late], told, NOW + s(300), wait_s=30, interval_s=300)
    assert [kind for kind, _ in due] == [Kind.FAILED]


def test_times_of_a_clock_that_was_ahead_hold_nothing_back() -> None:
    year = timedelta(days=365)
    assert grouping.ripe([concern(seen=NOW + year)], {Kind.FAILED: NOW + year}, NOW, wait_s=30, interval_s=300)


def test_what_lasts_is_told_once_and_its_end_once() -> None:
    thaw = concern("t", Kind.THAW, lasting=True)
    assert grouping.changes([], [thaw], nobody, NOW).new == (thaw,)
    told = replace(thaw, told_utc=NOW)
    again = grouping.changes([told], [replace(thaw, id="9" * 32, detail="since longer")], nobody, NOW)
    assert (again.new, again.gone) == ((), frozenset())
    over = grouping.changes([told], [], nobody, NOW + s(60))
    assert over.gone == {thaw.id}
    (end,) = over.new
    assert (end.kind, end.subject, end.lasting, end.seen_utc) == (Kind.OVER, thaw.subject, False, NOW + s(60))


def test_of_what_nobody_was_told_no_end_is_told() -> None:
    thaw = concern("t", Kind.THAW, lasting=True)
    over = grouping.changes([thaw], [], nobody, NOW)
    assert over == grouping.Changes((), frozenset({thaw.id}))


def test_what_cannot_be_seen_now_is_not_over() -> None:
    away = replace(concern("repository", Kind.AWAY, lasting=True), told_utc=NOW)
    assert grouping.changes([away], [], lambda _: True, NOW) == grouping.Changes((), frozenset())


# Words


def test_hostile_names_are_neutral_text() -> None:
    evil = replace(concern(), subject=EVIL, detail=f"cannot read {EVIL}")
    notice = wording.notice(Kind.FAILED, [evil], EVIL, NOW)
    for text in (notice.title, *notice.body.split("\n")):
        assert text.isprintable()
        assert not set("<>`{}") & set(text)
        assert "://" not in text
        assert "](" not in text
        assert " @everyone" not in text
    assert "\n" not in notice.title
    assert r"\u202e" in notice.body


@given(st.text(max_size=400), st.integers(1, 60))
def test_neutral_text_is_one_bounded_line(text: str, characters: int) -> None:
    found = wording.neutral(text, characters)
    assert len(found) <= characters
    assert found.isprintable()
    found.encode("utf-8")


def test_a_message_is_bounded_however_much_there_is_to_tell() -> None:
    many = [
        replace(concern(str(number)), subject="n" * 5000, detail=f"{number} " + "d" * 5000) for number in range(300)
    ]
    notice = wording.notice(Kind.FAILED, many, "n" * 5000, NOW)
    assert len(notice.title) <= wording.TITLE_CHARACTERS_MAX
    assert len(notice.body) <= wording.BODY_CHARACTERS_MAX
    assert "… and 288 more for other reasons" in notice.body


@pytest.mark.parametrize("kind", [kind for kind in Kind if kind not in (Kind.DIGEST, Kind.TEST)])
def test_every_kind_has_words_for_one_and_for_many(kind: Kind) -> None:
    assert "subject k" in wording.notice(kind, [concern()], "box", NOW).title
    assert "2 " in wording.notice(kind, [concern("a"), concern("b")], "box", NOW).title


def test_braces_in_a_name_are_no_place_for_anything() -> None:
    assert "() ()" in wording.notice(Kind.FAILED, [replace(concern(), subject="{} {}")], "box", NOW).title


def test_errors_show_nothing_of_a_url() -> None:
    target = NoticeTarget(
        "ops", "mailtos://Robot:p%40ssword@mail.example.org:465/?to=admin@example.org&token=abc%2Fdef"
    )
    said = "robot could not sign in with p@ssword (p%40ssword) at mail.example.org as admin@example.org: abc/def"
    shown = without_secrets(said, target)
    for secret in ("robot", "p@ssword", "p%40ssword", "mail.example.org", "admin", "abc/def"):
        assert secret not in shown
    assert "could not sign in" in shown
    assert "ssword" not in repr(target)


# The digest


@pytest.mark.parametrize(
    ("now", "due"),
    [
        (datetime(2026, 11, 23, 5, 59, tzinfo=UTC), datetime(2026, 11, 22, 6, 0, tzinfo=UTC)),
        (datetime(2026, 11, 23, 6, 0, tzinfo=UTC), datetime(2026, 11, 23, 6, 0, tzinfo=UTC)),
        (datetime(2026, 7, 1, 23, 30, tzinfo=UTC), datetime(2026, 7, 1, 5, 0, tzinfo=UTC)),
    ],
)
def test_the_digest_is_due_at_its_time_in_its_zone(now: datetime, due: datetime) -> None:
    assert daily.latest_due(now, time(7, 0), BERLIN) == due


def test_one_digest_a_day_over_both_changes_of_the_clock() -> None:
    for begin in (datetime(2026, 3, 27, tzinfo=UTC), datetime(2026, 10, 23, tzinfo=UTC)):
        last, told = begin, []
        for minute in range(0, 5 * 24 * 60, 10):
            now = begin + timedelta(minutes=minute)
            if daily.due_since(last, now, time(2, 30), BERLIN) is not None:
                told.append(now.astimezone(BERLIN).date())
                last = now
        assert len(told) == len(set(told)) == 5


def test_one_digest_makes_up_for_those_that_were_missed() -> None:
    now = NOW + timedelta(days=3)
    assert daily.due_since(NOW, now, time(7, 0), UTC) == NOW
    assert daily.due_since(now, now, time(7, 0), UTC) is None
    assert daily.due_since(NOW, NOW + timedelta(days=90), time(7, 0), UTC) == NOW + timedelta(days=83)


def test_a_digest_of_a_clock_that_was_ahead_stops_none() -> None:
    assert daily.due_since(NOW + timedelta(days=400), NOW, time(7, 0), UTC) == NOW - timedelta(days=1)


def test_the_digest_tells_the_day() -> None:
    day = Day(
        since_utc=NOW - timedelta(days=1), until_utc=NOW, runs={RunState.SUCCEEDED: 48, RunState.FAILED: 2},
        failed=["db\n<b>", "web-1"], partial=["old"], points=49, read_bytes=3 * GIB, stored_bytes=GIB, machines=50,
        unprotected=[f"vm-{number}" for number in range(30)], verified=1, damaged=0,
        space=Space(10 * GIB, 100 * GIB, 9.6), concerns=[concern("t", Kind.THAW, lasting=True)], lost=["ops"],
    )  # fmt: skip
    told = daily.digest(day, "box", NOW)
    assert told.title == "Strongroom box: 2 backups failed, 1 thing to look at"
    assert told.urgency is Urgency.WARNING
    for words in (
        "Runs: 48 succeeded, 2 failed.", "Restore points made: 49; read 3.0 GiB, stored 1.0 GiB.",
        "Failed: db ‹b›, web-1.", "vm-19 and 10 more",
        "Free for the repository: 10.0 GiB (10 %), full in about 10 days.",
        "Notices did not reach: ops.", "- subject t: it went wrong",
    ):  # fmt: skip
        assert words in told.body
    calm = replace(day, runs={}, concerns=(), space=None)
    assert daily.digest(calm, "box", NOW).title == "Strongroom box: all well, 49 restore points made"


# What is unusual


def test_a_backup_is_large_beside_those_before_it() -> None:
    assert usual_bytes(6 * GIB, [GIB] * 5, 5, GIB) == GIB
    assert usual_bytes(5 * GIB, [GIB] * 5, 5, GIB) is None
    assert usual_bytes(50 * GIB, [GIB] * 4, 5, GIB) is None  # too few to tell
    assert usual_bytes(GIB // 2, [1] * 9, 5, GIB) is None
    assert usual_bytes(GIB, [0] * 9, 5, GIB) == 0


def test_a_clock_that_was_set_is_seen_and_one_that_goes_is_not() -> None:
    before = ClockSeen(NOW, 100.0)
    assert clock_jump(before, ClockSeen(NOW + s(60), 160.0)) is None
    assert clock_jump(before, ClockSeen(NOW + s(3660), 160.0)) == s(3600)
    assert clock_jump(before, ClockSeen(NOW - s(3600), 160.0)) == s(-3660)
    other = ClockSeen(NOW, None)
    assert clock_jump(other, ClockSeen(NOW + timedelta(days=9), 5.0)) is None
    assert clock_jump(other, ClockSeen(NOW - timedelta(days=9), 5.0)) == timedelta(days=-9)


def test_points_that_are_missing_beside_those_that_were_made_are_gone() -> None:
    count = count_points(None, 100, 0, NOW)
    count = count_points(count, 105, 5, NOW + s(60))
    assert count.gone_in_a_day == 0
    count = count_points(count, 95, 2, NOW + s(120))
    assert count.gone_in_a_day == 12
    assert not many_gone(count, 20, 20)
    count = count_points(count, 80, 0, NOW + s(180))
    assert many_gone(count, 20, 20)
    assert not many_gone(count, 20, 30)  # 27 of 107
    later = count_points(count, 80, 0, NOW + timedelta(days=2))
    assert later == PointCount(80)
    assert count_points(later, 90, 0, NOW).gone_in_a_day == 0  # copied from elsewhere


# Deliveries


def test_it_is_tried_again_ever_later_and_given_up_after_three_days() -> None:
    delivery = Delivery("1" * 32, "ops", DeliveryState.WAITING, 0, NOW)
    now, waits = NOW, []
    while delivery.state is DeliveryState.WAITING:
        assert retrying.is_due(delivery, now)
        delivery = retrying.attempted(delivery, "away", NOW, now)
        waits.append(delivery.next_utc - now)
        now = delivery.next_utc
    assert waits[:4] == [s(30), s(60), s(120), s(240)]
    assert max(waits) == timedelta(hours=1)
    assert (delivery.state, delivery.error) == (DeliveryState.GIVEN_UP, "away")
    assert timedelta(days=3) <= now - NOW < timedelta(days=3, hours=1)


def test_what_arrived_is_sent() -> None:
    done = retrying.attempted(Delivery("1" * 32, "ops", DeliveryState.WAITING, 3, NOW, "away"), None, NOW, NOW + s(9))
    assert done == Delivery("1" * 32, "ops", DeliveryState.SENT, 4, NOW + s(9))


def test_a_clock_that_was_ahead_puts_nothing_off_for_ever() -> None:
    delivery = Delivery("1" * 32, "ops", DeliveryState.WAITING, 1, NOW + timedelta(days=400))
    assert retrying.is_due(delivery, NOW)
    assert not retrying.is_due(replace(delivery, next_utc=NOW + s(30)), NOW)
