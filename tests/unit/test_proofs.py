"""What verifications say of a point: that it was read, and never that it was if it was not."""

from __future__ import annotations

import random
from datetime import timedelta

from appliance.models import new_id
from appliance.proofs import Checked, Reading, Verification, checked, checking
from tests.unit.records import NOW

POINT = "a" * 32
HOUR = timedelta(hours=1)


def run(day: int, reading: Reading = Reading.DATA, every: int = 1, *affected: str) -> Verification:
    began = NOW + timedelta(days=day)
    return Verification(new_id(), began, began + HOUR, reading, every, 0, len(affected), affected)


def told(*runs: Verification, point: str = POINT) -> Checked:
    """`runs` come oldest first here; the point was made on day 0."""
    return checked(point, NOW, runs[::-1])


def test_only_what_began_after_the_point_was_made_counts() -> None:
    assert told() == Checked()
    assert told(run(-1)) == Checked()
    assert told(run(0)) == Checked(NOW + HOUR, Reading.DATA)
    assert told(run(-1), run(1, Reading.HASHES)) == Checked(NOW + timedelta(days=1) + HOUR, Reading.HASHES)


def test_a_look_that_reads_nothing_verifies_nothing() -> None:
    assert told(run(1, Reading.TABLES)) == Checked()
    assert told(run(1), run(2, Reading.TABLES)).verified_utc == NOW + timedelta(days=1) + HOUR


def test_shares_count_once_they_come_to_everything() -> None:
    shares = [run(day, Reading.DATA, 3) for day in range(-2, 5)]
    assert told(*shares[:4]) == Checked(), "two since it was made"
    assert told(*shares[:5]).verified_utc == NOW + timedelta(days=2) + HOUR
    assert told(*shares).verified_utc == NOW + timedelta(days=4) + HOUR
    assert told(run(1, Reading.DATA, 3), run(2, Reading.DATA, 4), run(3, Reading.DATA, 3)) == Checked()


def test_damage_is_told_until_everything_was_read_without_finding_it() -> None:
    found = run(1, Reading.DATA, 1, POINT)
    assert told(found).damaged
    assert told(found, run(2, Reading.TABLES)).damaged
    assert told(found, run(2, Reading.DATA, 2)).damaged
    assert not told(found, run(2, Reading.DATA, 2), run(3, Reading.DATA, 2)).damaged
    assert not told(found, run(2)).damaged
    assert told(found, run(2), run(3, Reading.TABLES, 1, POINT)).damaged
    assert not told(found, point="b" * 32).damaged


def test_many_points_are_told_what_each_would_be() -> None:
    """With rounds of several kinds, damage that comes and goes, and verifications that overlap."""
    draw, points, damaged = random.Random(5), [f"{number:032x}" for number in range(6)], 0
    for case in range(150):
        moments = sorted(draw.sample(range(40), draw.randrange(12)), reverse=case % 10 != 0)
        runs = [
            run(day, draw.choice(list(Reading)), draw.randrange(1, 4), *draw.sample(points, draw.choice((0, 0, 1))))
            for day in moments
        ]
        said = checking(runs)
        for point in points:
            created = NOW + timedelta(days=draw.randrange(-1, 41))
            assert said(point, created) == checked(point, created, runs)
            damaged += said(point, created).damaged
    assert damaged > 20
