"""Moments as admins write them."""

from __future__ import annotations

from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import pytest

from appliance.services.moments import MomentNotUnderstood, looks_like_moment, parse_moment

AFTERNOON = datetime(2026, 11, 23, 14, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2026-11-23 14:00", AFTERNOON),
        ("2026-11-23T14:00:00Z", AFTERNOON),
        ("2026-11-23t14:00:00z", AFTERNOON),
        (" 2026-11-23  14:00:00 UTC ", AFTERNOON),
        ("2026-11-23T15:00+01:00", AFTERNOON),
        ("2026-11-23 09:00:00 -0500", AFTERNOON),
        ("23.11.2026 15:00 Europe/Berlin", AFTERNOON),
        ("23.11.2026 14:00", AFTERNOON),
        ("2026-11-23 23:00 local", AFTERNOON),
        ("2026-11-23T14:00:00.5Z", AFTERNOON.replace(microsecond=500_000)),
        ("2026-11-23", datetime(2026, 11, 23, 23, 59, 59, 999_999, tzinfo=UTC)),
        ("3.1.2026", datetime(2026, 1, 3, 23, 59, 59, 999_999, tzinfo=UTC)),
        ("2026-07-01 12:00 Europe/Berlin", datetime(2026, 7, 1, 10, 0, tzinfo=UTC)),
    ],
)
def test_forms(text: str, expected: datetime) -> None:
    assert looks_like_moment(text)
    found = parse_moment(text, local=ZoneInfo("Asia/Tokyo"))
    assert found == expected
    assert found.tzinfo is UTC


@pytest.mark.parametrize(
    "text",
    [
        "2026-13-01",
        "2026-02-30",
        "2026-11-23 25:00",
        "2026-11-23 14:00 Mars/Olympus",
        "2026-11-23 14:00 ../../etc/passwd",
        "11/23/2026",
        "9999-12-31 23:00 -1200",
        "2026-11-23 14",
        "yesterday",
        "",
        "2026-11-23\x1b[31m",
    ],
)
def test_what_is_not_understood_shows_forms_that_are(text: str) -> None:
    with pytest.raises(MomentNotUnderstood) as caught:
        parse_moment(text)
    assert "2026-11-23T14:00:00Z" in caught.value.hint
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("text", ["3f9a", "2026", "20261123", "latest", "f" * 32])
def test_ids_are_not_taken_for_moments(text: str) -> None:
    assert not looks_like_moment(text)
