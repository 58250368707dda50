"""A short, seeded sample of what `make soak` does for long."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults import schedules

pytestmark = pytest.mark.faults


@pytest.mark.parametrize("appliances", [1, 2])
def test_a_random_schedule_with_kills_loses_nothing(tmp_path: Path, appliances: int) -> None:
    report = schedules.run(tmp_path, 12, 20260 + appliances, appliances=appliances)
    assert report.rounds == 12
    assert report.killed > 0, "no kill hit"
    assert report.collections > 0


@pytest.mark.parametrize(
    ("make_store", "appliances"), [(schedules.object_store, 1), (schedules.object_store, 2), (schedules.gcs_store, 2)]
)
def test_a_random_schedule_on_an_object_store_loses_nothing(
    tmp_path: Path, make_store: Callable[[], schedules.MakeStore], appliances: int
) -> None:
    report = schedules.run(tmp_path, 8, 20260 + appliances, make_store(), appliances=appliances)
    assert report.rounds == 8
    assert report.killed > 0, "no kill hit"
    assert report.collections > 0
