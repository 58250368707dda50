"""How fast a repository grows, and when it is full: by what really happened, and never by guessing."""

from __future__ import annotations

from datetime import date, timedelta

from hypothesis import given
from hypothesis import strategies as st

from appliance.proofs import RepositorySize
from appliance.services.browsing.growth import Basis, growth
from tests.unit.records import NOW

TODAY = date(2026, 11, 23)


def sizes(*used: int | None, free: int | None = 1000) -> list[RepositorySize]:
    """One a day up to today; None: nobody has looked on that day."""
    days = [TODAY - timedelta(days=len(used) - number - 1) for number in range(len(used))]
    return [
        RepositorySize("r", day, NOW, count, free) for day, count in zip(days, used, strict=True) if count is not None
    ]


def test_it_goes_on_as_it_went() -> None:
    found = growth(sizes(*range(0, 300, 10)), [99] * 30)
    assert (found.day_bytes, found.basis, found.used_bytes, found.free_bytes) == (10, Basis.SIZES, 290, 1000)
    assert (found.full, found.full_in_days) == (TODAY + timedelta(days=100), 100)


def test_one_night_of_full_reads_or_a_large_collection_does_not_lead_it_astray() -> None:
    steady = list(range(1000, 1300, 10))
    jumped = [each + (5000 if number >= 15 else 0) for number, each in enumerate(steady)]
    assert growth(sizes(*steady[:12], *(each - 900 for each in steady[12:])), ()).day_bytes in range(-30, 11)
    spike = steady.copy()
    spike[20] += 100_000
    assert growth(sizes(*spike), ()).day_bytes == 10
    found = growth(sizes(*jumped), ()).day_bytes
    assert found is not None
    assert found > 10, "half of the days say that it is larger for good"


def test_days_on_which_nobody_looked_are_no_days_without_growth() -> None:
    assert growth(sizes(0, None, None, 30, None, 50, None, None, 80), ()).day_bytes == 10


def test_until_there_are_days_enough_what_points_stored_is_told_for_it() -> None:
    found = growth(sizes(100, 200, 300), [0, 0, 900, 10, 20, 30])
    assert (found.day_bytes, found.basis) == (20, Basis.POINTS), "the first backups are no measure"
    assert found.full_in_days == 50
    assert growth([], [7] * 30).day_bytes == 7, "what is older than these days"
    assert (growth([], []).day_bytes, growth([], [0, 0]).basis, growth([], [0, 5]).day_bytes) == (None, None, None)


def test_what_shrinks_or_has_no_end_is_never_full() -> None:
    shrinks = growth(sizes(*range(300, 0, -10)), ())
    assert (shrinks.day_bytes, shrinks.full, shrinks.endless) == (-10, None, False)
    endless = growth(sizes(*range(0, 300, 10), free=None), ())
    assert (endless.day_bytes, endless.full, endless.endless) == (10, None, True)
    far = growth(sizes(*range(30), free=1 << 60), ())
    assert (far.day_bytes, far.full) == (1, None), "in ten years is never"
    unknown = growth([], [5] * 30)
    assert (unknown.full, unknown.endless, unknown.used_bytes) == (None, False, None)


def test_what_is_full_is_full_today() -> None:
    assert growth(sizes(*range(0, 300, 10), free=9), ()).full_in_days == 0


@given(
    st.lists(st.none() | st.integers(0, 1 << 60), max_size=31),
    st.lists(st.integers(0, 1 << 60), max_size=30),
    st.none() | st.integers(0, 1 << 60),
)
def test_whatever_was_seen_it_tells_a_day_that_is_to_come_or_none(
    used: list[int | None], stored: list[int], free: int | None
) -> None:
    found = growth(sizes(*used, free=free), stored)
    if found.full is not None:
        assert found.sizes
        assert found.full >= found.sizes[-1].day
        assert found.day_bytes is not None
        assert found.day_bytes > 0
