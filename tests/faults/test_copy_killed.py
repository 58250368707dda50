"""A copy that is killed at every step that matters: the next goes on, and nothing is wrong or held in either home."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from appliance.progress import SILENT
from appliance.services.backup import BackupService
from appliance.services.holds import HoldService
from appliance.services.points import PointService
from imaging.collecting import Options
from tests.integration.backing_up import MIB, Rig, rig
from tests.integration.recovering import strongroom

pytestmark = pytest.mark.faults

# Where the process dies, how many points count in the other home after that, and how many are still held in the first.
STEPS = [
    (("imaging.packing:PackWriter._put", "after"), 0, 1),  # packs are there, and nothing refers to them
    (("appliance.services.copying:read_back", "before"), 0, 1),
    (("imaging.running:Run.commit", "before"), 0, 1),
    (("appliance.services.points:PointService.record", "before"), 1, 0),  # it counts, and its home does not know yet
    (("imaging.running:Run._end", "before"), 1, 1),  # the manifest is there, and its run is not over
    (("imaging.running:Run._end", "after"), 2, 1),
]


def test_killed_at_every_step_and_gone_on_with() -> None:
    with rig() as first, rig() as second:
        states = backed_up(first)
        for place, count, held in STEPS:
            first.killed_at(place, "repository", "copy", str(second.home))
            assert len(second.points()) == count, place
            assert [hold.purpose for hold in first.appliance.repository.holds()] == ["restore"] * held, place
            assert HoldService(first.appliance).list() == ((), ()), place
            contents_are(second, states[:count])
        done = strongroom(first, "repository", "copy", second.home, "--json").json()["points"]
        assert len(done) == len(states) - STEPS[-1][1]
        contents_are(second, states)
        PointService(second.appliance).refresh()  # as every list does
        known = second.appliance.catalog.points.list()
        assert len(known) == len(states), "its home knows of all, also of the one whose copy died"
        for home in (first, second):
            well(home)
            assert home.appliance.repository.holds() == []
        for _ in range(2):  # what killed runs left goes with the second that finds it
            second.appliance.repository.collect(Options(), SILENT)
        left = {path.name for path in (second.home / "repository" / "packs").glob("*/*")}
        assert left == {pack.hex() for pack in packs_of(second)}, "packs of killed copies are left"
        contents_are(second, states)
        well(second)


def backed_up(home: Rig) -> list[bytes]:
    image = home.home / "disk.raw"
    content = bytearray(random.Random(7).randbytes(3 * MIB))
    states = []
    for seed in range(4):
        content[seed * 100_000 : seed * 100_000 + 5000] = random.Random(seed).randbytes(5000)
        states.append(bytes(content))
        image.write_bytes(content)
        BackupService(home.appliance).run_image(image, "raw", "img")
    return states


def contents_are(home: Rig, states: list[bytes]) -> None:
    home.appliance.repository.refresh_index()
    assert [home.content(point, "disk") for point in home.points()] == states


def packs_of(home: Rig) -> set[bytes]:
    home.appliance.repository.refresh_index()
    return set(home.appliance.repository.index.packs())


def well(home: Rig) -> None:
    found = home.appliance.repository.verify(read_data=True)
    assert found.ok, found.problems
    assert list(Path(home.settings.cache_directory).glob("pending-*")) == []
