"""A survey takes several listings, and others commit and collect between any two of them: on an object store there is
time enough."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from imaging.collecting import Options
from imaging.points import Point
from imaging.storage.local import LocalStore
from tests.faults.faulty_store import FaultyStore
from tests.faults.repositories import OTHER, back_up, content, make, reopen
from tests.faults.schedules import Silent


def meanwhile(store: FaultyStore, method: str, prefix: str, act: Callable[[], object]) -> list[str]:
    """Before the first such call, `act` is done by another appliance; returns where that is noted."""
    noted: list[str] = []

    def before(called: str, name: str) -> None:
        if not noted and called == method and name.startswith(prefix):
            noted.append(name)
            act()

    store.before = before
    return noted


@pytest.mark.parametrize("prefix", ["tombstones/", "leases/"])
def test_what_is_committed_between_two_listings_is_not_lost(tmp_path: Path, prefix: str) -> None:
    store = FaultyStore(LocalStore.make(tmp_path / "store"))
    with make(tmp_path, store=store) as repository, reopen(tmp_path, "other", OTHER) as other:
        back_up(repository, "web", {"disk": content(1, 100_000)})
        noted = meanwhile(store, "list", prefix, lambda: back_up(other, "db", {"disk": content(2, 100_000)}))
        assert not repository.survey().damaged
        assert noted
        assert len(repository.points()) == 2
        repository.collect(Options(wait_s=0), Silent())


def test_what_is_committed_deleted_and_collected_meanwhile_is_not_lost(tmp_path: Path) -> None:
    store = FaultyStore(LocalStore.make(tmp_path / "store"))
    with make(tmp_path, store=store) as repository, reopen(tmp_path, "other", OTHER) as other:
        back_up(repository, "web", {"disk": content(1, 100_000)})
        made: list[Point] = []

        def remove() -> None:
            other.delete_point(made[0], by="test")
            assert other.collect(Options(wait_s=0), Silent()).removed_points == 1

        def commit() -> None:
            made.append(back_up(other, "db", {"disk": content(2, 100_000)}))
            meanwhile(store, "exists", "tombstones/", remove)

        meanwhile(store, "list", "leases/", commit)
        survey = repository.survey()
        assert made
        assert not survey.damaged
        assert len(survey.points) == 1
        assert not store.exists(made[0].name), "it was not collected meanwhile"


def test_a_manifest_that_nobody_deleted_is_lost(tmp_path: Path) -> None:
    with make(tmp_path) as repository:
        point = back_up(repository, "web", {"disk": content(1, 100_000)})
        repository.store.delete(point.name)
        assert [each.id for each in repository.survey().damaged] == [point.id]
