"""What a guard guarantees, and how it counts time: the pure parts."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imaging.canonical import Fields
from imaging.errors import Damaged
from imaging.guard.acts import (
    Act,
    ChangeGuard,
    DeletePoints,
    Doomed,
    LiftProtection,
    RemoveKey,
    decode_act,
    encode_act,
)
from imaging.guard.errors import RulesRefused
from imaging.guard.patience import Patience
from imaging.guard.rules import Person, Rules, may_go, person_id
from tests.faults.repositories import ManualClock

BEGAN = datetime(2026, 1, 1, tzinfo=UTC)
MANIFEST = f"manifests/{'a' * 32}/0000000001-{'b' * 32}"


@dataclass(frozen=True)
class Dated:
    generation: int
    created_utc: datetime


def person(number: int) -> Person:
    key = bytes([number]) * 32
    return Person(person_id(key), f"person {number}", key)


RULES = Rules(True, 3600, 3, 2, (person(1), person(2)))


@given(st.lists(st.integers(-400, 400), max_size=30), st.integers(1, 6), st.integers(1, 6))
def test_what_may_go_leaves_what_is_guaranteed(days: list[int], keep_days: int, keep_points: int) -> None:
    """Whatever the clocks said and in whatever order points go freely, until none may any more."""
    rules = replace(RULES, keep_days=keep_days, keep_points=keep_points)
    series = [Dated(number, BEGAN + timedelta(days=day)) for number, day in enumerate(days)]
    left = list(series)
    while going := [point for point in left if may_go(point, left, rules)]:
        left.remove(going[-1])
    assert left[-keep_points:] == series[-keep_points:]
    newest_days = list(dict.fromkeys(point.created_utc.date() for point in reversed(series)))[:keep_days]
    assert {point.created_utc.date() for point in left} >= set(newest_days)
    # Points of the newest days are all there, back to the first point of another day.
    for point in reversed(series):
        if point.created_utc.date() not in newest_days:
            break
        assert point in left


def test_with_no_days_stated_nothing_may_go() -> None:
    series = [Dated(number, BEGAN + timedelta(days=number)) for number in range(100)]
    assert not any(may_go(point, series, replace(RULES, keep_days=None)) for point in series)


@pytest.mark.parametrize(
    "wrong",
    [
        replace(RULES, persons=(person(1),)),
        replace(RULES, persons=(person(1), person(1))),
        replace(RULES, persons=(person(1), replace(person(2), name="person 1"))),
        replace(RULES, persons=(person(1), replace(person(2), name=" x"))),
        replace(RULES, persons=(person(1), replace(person(2), name="a\nb"))),
        replace(RULES, persons=(person(1), replace(person(2), name="u\u0308"))),
        replace(RULES, persons=(person(1), replace(person(2), public_key=person(1).public_key))),
        replace(RULES, persons=(person(1), replace(person(2), id="00" * 16))),
        replace(RULES, delay_s=-1),
        replace(RULES, delay_s=91 * 86_400),
        replace(RULES, keep_days=0),
        replace(RULES, keep_points=0),
    ],
)
def test_rules_that_make_no_sense(wrong: Rules) -> None:
    with pytest.raises(RulesRefused):
        wrong.check()
    with pytest.raises(Damaged):
        Rules.of(Fields.of(wrong.as_json(), "guard/0000000001"))


def test_a_name_that_is_anothers_id_signs_for_nobody() -> None:
    posing = replace(RULES, persons=(replace(person(3), name=person(2).id), person(1), person(2)))
    assert posing.person(person(2).id) == posing.signer(person(2).id) == person(2)
    assert posing.signer("person 1") is None


@pytest.mark.parametrize(
    "act",
    [
        DeletePoints((Doomed(MANIFEST, b"h" * 32), Doomed(MANIFEST[:-1] + "c", None))),
        RemoveKey("ab" * 16),
        LiftProtection("cd" * 16, MANIFEST),
        LiftProtection("cd" * 16, None),
        ChangeGuard(7, RULES),
        ChangeGuard(8, Rules(False)),
    ],
)
def test_an_act_is_read_as_it_was_written_and_covers_itself_alone(act: Act) -> None:
    assert decode_act(Fields.of(encode_act(act), "requests/x/asked")) == act
    assert act.covers(act)
    assert act.describe()
    others: list[Act] = [
        DeletePoints((Doomed(MANIFEST, b"x" * 32),)),
        RemoveKey("00" * 16),
        ChangeGuard(7, Rules(False)),
    ]
    assert not any(act.covers(other) for other in others if other != act)


def test_a_deletion_of_many_covers_each_and_no_other() -> None:
    one, other = Doomed(MANIFEST, b"h" * 32), Doomed(MANIFEST[:-1] + "c", b"i" * 32)
    both = DeletePoints((one, other))
    assert both.covers(DeletePoints((one,)))
    assert not DeletePoints((one,)).covers(both)
    assert not both.covers(DeletePoints((replace(one, hash=None),)))


# Patience


def test_time_is_counted_across_processes_whatever_the_clock_says(tmp_path: Path) -> None:
    clock = ManualClock()
    assert Patience(tmp_path / "notes", clock, "boot 1").counted_s("aa") == 0
    clock.seconds += 100
    clock.now += timedelta(days=365)
    assert Patience(tmp_path / "notes", clock, "boot 1").counted_s("aa") == 100
    assert Patience(tmp_path / "notes", clock, "boot 1").counted_s("bb") == 0


def test_a_reboot_loses_what_lay_between_and_adds_nothing(tmp_path: Path) -> None:
    clock = ManualClock()
    Patience(tmp_path, clock, "boot 1").counted_s("aa")
    clock.seconds += 100
    assert Patience(tmp_path, clock, "boot 1").counted_s("aa") == 100
    clock.seconds = 7.0  # since it is up again
    again = Patience(tmp_path, clock, "boot 2")
    assert again.counted_s("aa") == 107
    clock.seconds += 3
    assert again.counted_s("aa") == 110
    clock.seconds = 2.0  # a monotonic clock that went back, which is not that of the same boot
    assert Patience(tmp_path, clock, "boot 2").counted_s("aa") == 112


@pytest.mark.parametrize("note", [b"", b"{}", b"\xff", b'{"boot": "boot 1", "at_s": "x", "counted_s": 0}'])
def test_a_note_that_cannot_be_read_begins_anew(tmp_path: Path, note: bytes, caplog: pytest.LogCaptureFixture) -> None:
    clock = ManualClock()
    Patience(tmp_path, clock, "boot 1").counted_s("aa")
    clock.seconds += 100
    (tmp_path / "aa").write_bytes(note)
    assert Patience(tmp_path, clock, "boot 1").counted_s("aa") == 0
    assert "counted anew" in caplog.text


def test_where_nothing_can_be_noted_only_this_process_counts(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    blocked = tmp_path / "file"
    blocked.write_bytes(b"")
    clock = ManualClock()
    patience = Patience(blocked, clock, "boot 1")
    patience.counted_s("aa")
    clock.seconds += 100
    assert patience.counted_s("aa") == 100
    assert "cannot be noted" in caplog.text
