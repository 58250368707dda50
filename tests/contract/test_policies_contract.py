"""Policies in every engine of the catalog: nobody overwrites what he has not seen, and all appliances have the same."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta

import pytest

from appliance.catalog import Catalog
from appliance.catalog.errors import PolicyChanged, RecordExists, RecordMissing
from appliance.policy.stored import MachinePause, StoredPolicy
from tests.contract.catalogs import OTHER, Place
from tests.unit.records import NOW

LATER = NOW + timedelta(hours=1)
DOCUMENT = {"version": 1, "name": "ö", "select": {"include": [{"all": True}]}, "rpo_minutes": None, "x": [1, 2]}


def stored(name: str = "nightly") -> StoredPolicy:
    return StoredPolicy(name, DOCUMENT, 1, NOW, NOW)


def test_they_come_back_as_they_went_in_to_every_appliance(place: Place, catalog: Catalog) -> None:
    for name in ("b", "a", "B"):
        catalog.policies.add(stored(name))
    with pytest.raises(RecordExists, match="policy a already"):
        catalog.policies.add(stored("a"))
    with place.open(OTHER) as other:
        assert other.policies.list() == (stored("B"), stored("a"), stored("b"))
        assert other.policies.get("a") == stored("a")
        other.policies.remove("a", seen=1)
    for attempt in (
        lambda: catalog.policies.get("a"),
        lambda: catalog.policies.remove("a", seen=None),
        lambda: catalog.policies.change(stored("a"), seen=None),
        lambda: catalog.policies.set_paused("a", NOW, NOW),
    ):
        with pytest.raises(RecordMissing, match="no policy a"):
            attempt()


def test_a_change_on_what_is_not_there_any_more_is_refused(catalog: Catalog) -> None:
    catalog.policies.add(stored())
    changed = catalog.policies.change(replace(stored(), changed_utc=LATER), seen=1)
    assert (changed.version, changed.changed_utc) == (2, LATER)
    assert catalog.policies.get("nightly") == changed
    for attempt in (
        lambda: catalog.policies.change(stored(), seen=1),
        lambda: catalog.policies.remove("nightly", seen=1),
    ):
        with pytest.raises(PolicyChanged, match="it is version 2 now"):
            attempt()
    assert catalog.policies.change(stored(), seen=None).version == 3
    catalog.policies.remove("nightly", seen=3)
    assert catalog.policies.list() == ()


def test_of_many_that_change_one_at_once_one_does(place: Place, catalog: Catalog) -> None:
    catalog.policies.add(stored())

    def change(number: int) -> bool:
        with place.open() as mine:
            try:
                mine.policies.change(replace(stored(), document={"number": number}), seen=1)
            except PolicyChanged:
                return False
            return True

    with ThreadPoolExecutor(4) as pool:
        done = list(pool.map(change, range(8)))
    assert sum(done) == 1
    assert catalog.policies.get("nightly").document == {"number": done.index(True)}


def test_a_pause_keeps_its_beginning_and_its_end_counts_from_then(catalog: Catalog) -> None:
    catalog.policies.add(stored())
    paused = catalog.policies.set_paused("nightly", NOW, NOW)
    assert (paused.paused_utc, paused.since_utc, paused.version) == (NOW, NOW, 2)
    assert catalog.policies.set_paused("nightly", LATER, LATER) == paused
    resumed = catalog.policies.set_paused("nightly", None, LATER)
    assert (resumed.paused_utc, resumed.since_utc, resumed.version) == (None, LATER, 3)
    assert catalog.policies.set_paused("nightly", None, LATER + timedelta(hours=1)) == resumed


def test_machines_are_paused_once(catalog: Catalog) -> None:
    first = MachinePause("vm:u1", "web", NOW)
    catalog.policies.pause_machine(first)
    catalog.policies.pause_machine(replace(first, name="renamed", paused_utc=LATER))
    catalog.policies.pause_machine(MachinePause("image:fw", "fw", LATER))
    assert catalog.policies.pauses() == (first, MachinePause("image:fw", "fw", LATER))
    assert catalog.policies.resume_machine("vm:u1") is True
    assert catalog.policies.resume_machine("vm:u1") is False
    assert [each.name for each in catalog.policies.pauses()] == ["fw"]
