"""A few rounds of what `python -m tests.soak` does two hundred times."""

from __future__ import annotations

import pytest

from tests.faults.killing import rounds

pytestmark = [pytest.mark.integration, pytest.mark.faults]


def test_kills_at_random_moments_leave_nothing_and_damage_nothing() -> None:
    report = rounds(6, seed=20261123, say=print)
    print(report)
    assert report.killed == 6
