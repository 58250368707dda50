"""Reading a share at each verification: all is read in time, whatever is missed, added or lost meanwhile."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imaging.readlog import ReadLog
from imaging.throttle import Throttle


def pack(number: int) -> bytes:
    return number.to_bytes(32, "big")


@given(
    sizes=st.lists(st.integers(1, 100), min_size=1, max_size=60),
    every=st.integers(2, 12),
    skipped=st.sets(st.integers(0, 40), max_size=10),
)
@settings(max_examples=100, deadline=None)
def test_everything_is_read_in_so_many_runs(sizes: list[int], every: int, skipped: set[int]) -> None:
    packs = {pack(number): size for number, size in enumerate(sizes)}
    log = ReadLog(None)
    read: dict[bytes, int] = {}
    runs = 0
    for day in range(60):
        if day in skipped:
            continue
        due = log.due(packs, every, day)
        if runs == day:  # what a missed run leaves is made up for, however much that is
            assert sum(packs[each] for each in due if each not in read) <= -(-sum(sizes) // every) + max(sizes)
        for each in due:
            read[each] = day
            log.note(each, day)
        runs += 1
        if runs >= every:
            assert read.keys() == packs.keys()
            assert all(day - read[each] < every for each in packs), "nothing is overdue after a run"


def test_nothing_waits_longer_however_much_is_new() -> None:
    """Each day brings more than a share."""
    log = ReadLog(None)
    packs: dict[bytes, int] = {}
    seen: dict[bytes, int] = {}
    read: dict[bytes, int] = {}
    rng = random.Random(1)
    for day in range(100, 160):
        for _ in range(10):
            packs[rng.randbytes(32)] = 10
        for each in packs:
            seen.setdefault(each, day)
        for each in log.due(packs, 7, day):
            read[each] = day
            log.note(each, day)
        assert all(day - read.get(each, seen[each]) < 7 for each in packs)


def test_what_came_is_read_first_and_what_went_is_forgotten(tmp_path: Path) -> None:
    path = tmp_path / "read"
    log = ReadLog(path)
    old = {pack(number): 10 for number in range(10)}
    for each in old:
        log.note(each, 100)
    log.save()
    again = ReadLog(path)
    assert again.due(old | {pack(99): 10}, 11, 101) == {pack(99)}
    again.keep_only({pack(3): 10})
    again.save()
    assert ReadLog(path).due(old, 5, 101) == {pack(0), pack(1)}, "what was forgotten counts as never read"
    assert [each.name for each in tmp_path.iterdir()] == ["read"]


@pytest.mark.parametrize("data", [b"", b"x" * 50, b"\0" * 36])
def test_a_log_that_is_cut_short_is_read_as_far_as_it_goes(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "read"
    path.write_bytes(data)
    assert ReadLog(path).due({pack(1): 1}, 3, 5) == {pack(1)}
    path.unlink()
    path.mkdir()
    log = ReadLog(path)
    log.note(pack(1), 1)
    log.save()  # what cannot be written is read again some day


def test_a_throttle_lets_through_what_it_should() -> None:
    class Clock:
        now = 100.0

        def now_utc(self):  # type: ignore[no-untyped-def]
            raise AssertionError

        def monotonic_s(self) -> float:
            return self.now

    clock = Clock()
    slept: list[float] = []

    def wait(seconds: float) -> bool:
        slept.append(seconds)
        clock.now += seconds
        return False

    throttle = Throttle(10, clock, wait)
    for _ in range(5):
        throttle.take(20)
    assert (slept, clock.now) == ([2.0] * 4, 108.0), "the first is not waited for"
    clock.now += 60
    throttle.take(20)
    assert len(slept) == 4, "rest is not saved up, and costs nothing"
    throttle.take(1)
    assert slept[4:] == [2.0]
    with pytest.raises(ValueError, match="a rate of 0"):
        Throttle(0, clock, wait)
