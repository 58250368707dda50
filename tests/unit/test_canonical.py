from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imaging import canonical
from imaging.canonical import Fields
from imaging.errors import Damaged

TEXT = st.text(st.characters(codec="utf-8"), max_size=20)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=20,
)


@given(VALUES)
def test_any_value_comes_back_and_has_one_encoding(value: object) -> None:
    data = canonical.encode(value)
    assert canonical.decode(data, "x") == value
    assert canonical.encode(canonical.decode(data, "x")) == data


def test_the_encoding_is_the_one_that_the_format_states() -> None:
    assert canonical.encode({"b": [1, None, True], "a": "ü\n"}) == '{"a":"ü\\n","b":[1,null,true]}'.encode()


@pytest.mark.parametrize("value", [1.5, {"a": 1.0}, {1: 2}, [b"x"], {"a": {1, 2}}])
def test_what_has_no_canonical_form_is_refused(value: object) -> None:
    with pytest.raises(TypeError):
        canonical.encode(value)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"1.5",
        b"NaN",
        b"Infinity",
        b'{"a":1,"a":2}',
        b"\xff",
        b"1e5",
        b"9" * 21,
        b"[" * 100_000,
        b'{"a":' * 9_000,
        b"[1] x",
    ],
)
def test_hostile_json_is_damage(data: bytes) -> None:
    with pytest.raises(Damaged) as caught:
        canonical.decode(data, "manifests/x/y")
    assert caught.value.name == "manifests/x/y"


def test_brackets_inside_texts_do_not_nest() -> None:
    value = ["[{" * 1000, 'quote " and \\ backslash [[[' * 100]
    assert canonical.decode(canonical.encode(value), "x") == value


def test_times() -> None:
    moment = datetime(2026, 3, 1, 13, 5, 9, 123456, timezone(timedelta(hours=2)))
    assert canonical.utc_text(moment) == "2026-03-01T11:05:09Z"
    assert Fields("x", {"t": "2026-03-01T11:05:09Z"}).utc("t") == datetime(2026, 3, 1, 11, 5, 9, tzinfo=UTC)
    with pytest.raises(ValueError, match="zone"):
        canonical.utc_text(datetime(2026, 3, 1, tzinfo=UTC).replace(tzinfo=None))


@pytest.mark.parametrize(
    "read",
    [
        lambda f: f.text("number"),
        lambda f: f.text("absent"),
        lambda f: f.text("text", max_characters=2),
        lambda f: f.integer("text"),
        lambda f: f.integer("truth"),
        lambda f: f.integer("number", maximum=6),
        lambda f: f.integer("negative"),
        lambda f: f.boolean("number"),
        lambda f: f.hex("text", 2),
        lambda f: f.hex("hex", 3),
        lambda f: f.hex("upper", 2),
        lambda f: f.utc("text"),
        lambda f: f.utc("month13"),
        lambda f: f.record("list"),
        lambda f: f.items("text"),
        lambda f: f.items("list", max_items=1),
        lambda f: list(f.records("list")),
        lambda f: f.texts("list"),
        lambda f: f.one_of("text", ("a", "b")),
        lambda f: f.one_of("list", ("a", "b")),
        lambda f: f.optional_text("number"),
        lambda f: f.optional_hex("text", 4),
        lambda f: Fields.of([1], "x"),
        lambda f: Fields.parse(b"null", "x"),
    ],
)
def test_a_field_that_is_not_as_stated_is_damage(read) -> None:  # type: ignore[no-untyped-def]
    fields = Fields(
        "x",
        {
            "number": 7,
            "negative": -1,
            "truth": True,
            "text": "text",
            "hex": "00ff",
            "upper": "00FF",
            "list": [1, 2],
            "month13": "2026-13-01T00:00:00Z",
        },
    )
    with pytest.raises(Damaged):
        read(fields)
