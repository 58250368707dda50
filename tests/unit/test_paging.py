"""Where the next page begins comes back from anywhere, and so is checked."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.paging import LIMIT_MAX, PageRefused, checked_limit, page_of, read_key, write_key

texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=300)
moments = st.datetimes(timezones=st.just(UTC))
integers = st.integers(-(1 << 63), (1 << 63) - 1)


@given(moments, texts, integers)
def test_a_key_comes_back_as_it_went(moment: datetime, text: str, number: int) -> None:
    written = write_key("runs-", (moment, text, number))
    assert read_key("runs-", written, (datetime, str, int)) == (moment, text, number)
    for order, kinds in (("runs+", (datetime, str, int)), ("runs-", (datetime, str)), ("runs-", (str, str, int))):
        with pytest.raises(PageRefused):
            read_key(order, written, kinds)


@given(st.text(max_size=200))
def test_what_is_none_is_refused(text: str) -> None:
    with pytest.raises(PageRefused):
        read_key("runs-", text, (datetime, str))


@pytest.mark.parametrize(
    "key",
    [
        ("2026-01-01", "x"),
        (True, "x"),
        (1 << 70, "x"),
        ({"t": "2026-01-01"}, "x"),
        ({"t": "9999-99-99T00:00:00Z"}, "x"),
        ({"t": 5}, "x"),
        ([[[]]], "x"),
        (None, "x"),
    ],
)
def test_a_forged_key_is_refused(key: tuple[object, ...]) -> None:
    with pytest.raises(PageRefused):
        read_key("runs-", write_key("runs-", key), (datetime, str))  # type: ignore[arg-type]
    for text in ("a\0b", "\ud800"):
        with pytest.raises(PageRefused):
            read_key("names", write_key("names", (text,)), (str,))


@given(st.sets(st.integers(0, 1000), max_size=60), st.integers(1, 20), st.booleans())
def test_pages_of_a_list_in_memory_join(items: set[int], limit: int, falling: bool) -> None:
    found: list[int] = []
    after = None
    while True:
        page = page_of(list(items), lambda item: (item,), "n", (int,), after, limit, falling=falling)
        assert page.total == len(items)
        found += page.items
        after = page.next
        if after is None:
            break
        assert len(page.items) == limit
    assert found == sorted(items, reverse=falling)


def test_no_page_is_larger_than_any_may_be() -> None:
    assert [checked_limit(limit) for limit in (-5, 0, 7, 10**9)] == [1, 1, 7, LIMIT_MAX]
