"""The tests of access would tell if one route lost its check: shown for each check of each route.

How each of them is told: `python -m tests.soak --what permissions`.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.unit.api_site import site
from tests.unit.unchecked import Check, Rig


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    with site(tmp_path_factory.mktemp("unchecked")) as made:
        yield Rig.on(made)


@pytest.mark.parametrize("check", list(Check))
def test_a_check_that_is_gone_is_told(rig: Rig, check: Check) -> None:
    removals = [each for each in rig.removals() if each.check is check]
    assert len(removals) > 40
    assert rig.told_by_the_table() == ""
    for removal in removals:
        assert rig.told(removal.route) == "", "with its check there is nothing to tell"
        with rig.without(removal):
            assert rig.told(removal.route) or rig.told_by_the_table(), f"nobody tells of {removal}"
