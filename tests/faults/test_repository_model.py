"""Random operations on a repository against a plain dict: what was committed and not deleted is there, bit-exact,
whatever else happened."""

from __future__ import annotations

import shutil
import tempfile
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from imaging.envelope import ObjectType
from imaging.errors import Fenced, PointHeld, SeriesBusy
from imaging.leases import lease_object
from imaging.repository import Repository, Run
from tests.faults.repositories import (
    ME,
    OTHER,
    ManualClock,
    back_up,
    content,
    draft,
    make,
    read_disk,
    reopen,
    write_disks,
)

NAMES = st.sampled_from(["web", "db"])
DISKS = st.builds(
    lambda pages, seed, tail: (
        b"".join(bytes(4096) if page == 0 else content(page, 4096) for page in pages) + content(seed, tail)
    ),
    st.lists(st.integers(0, 6), max_size=40),
    st.integers(0, 3),
    st.sampled_from([0, 1, 4096, 100_000]),
)
NOW = datetime(2026, 3, 1, tzinfo=UTC)


class RepositoryMachine(RuleBasedStateMachine):
    """What is drawn from is in the order in which it came, not by its random id: else an example does not repeat."""

    @initialize()
    def start(self) -> None:
        self.folder = Path(tempfile.mkdtemp())
        self.clock = ManualClock()
        self.mine = make(self.folder, self.clock)
        self.theirs = self._open("other")
        self.points: dict[str, bytes] = {}
        self.series: dict[str, list[str]] = {"web": [], "db": []}
        self.holds: dict[str, str] = {}
        self.running: dict[str, tuple[Repository, Run, bytes]] = {}
        self.late: dict[str, tuple[Repository, Run, bytes]] = {}
        self.beats = 0

    def _open(self, cache: str) -> Repository:
        return reopen(self.folder, cache, ME if cache == "cache" else OTHER, self.clock)

    def _committed(self, name: str, point_id: str, data: bytes) -> None:
        self.points[point_id] = data
        self.series[name].append(point_id)

    @rule(name=NAMES, data=DISKS, other=st.booleans())
    def backs_up(self, name: str, data: bytes, other: bool) -> None:
        repository = self.theirs if other else self.mine
        try:
            point = back_up(repository, name, {"disk": data})
        except SeriesBusy:
            assert name in self.running or name in self.late
            return
        assert point.manifest.predecessor is None or self.series[name]
        self._committed(name, point.id, data)

    @rule(name=NAMES, data=DISKS, other=st.booleans())
    def begins(self, name: str, data: bytes, other: bool) -> None:
        repository = self.theirs if other else self.mine
        if name in self.running or name in self.late:
            return
        run = repository.begin_run(repository.series_of("image", name))
        self.running[name] = (repository, run, data)

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def ends(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.running)))
        repository, run, disk = self.running.pop(name)
        point = run.commit(draft(name, write_disks(repository, run, {"disk": disk}), NOW))
        self._committed(name, point.id, disk)

    @precondition(lambda self: self.late)
    @rule(data=st.data())
    def comes_too_late(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.late)))
        repository, run, disk = self.late.pop(name)
        with pytest.raises(Fenced), run:
            run.commit(draft(name, write_disks(repository, run, {"disk": disk}), NOW))

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def is_taken_for_dead(self, data: st.DataObject) -> None:
        """The other appliance watches the lease stand still, and takes over."""
        name = data.draw(st.sampled_from(sorted(self.running)))
        if name in self.late:
            return
        self.late[name] = self.running.pop(name)
        owner = self.late[name][0]
        other = self.theirs if owner is self.mine else self.mine
        series = other.series_of("image", name)
        with pytest.raises(SeriesBusy):
            other.begin_run(series)
        self.clock.pass_s(901)
        self._others_beat()
        other.begin_run(series).abandon()

    def _others_beat(self) -> None:
        """Runs that live move their counters while time passes; somebody may have been watching them for long."""
        self.beats += 1
        for repository, run, _ in self.running.values():
            name = lease_object(run.lease_id, f"beat/{self.beats:010}")
            repository._objects.create_json(ObjectType.LEASE, name, {})

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def dies(self, data: st.DataObject) -> None:
        """As a process does: without a word, but for its lock."""
        name = data.draw(st.sampled_from(sorted(self.running)))
        repository, run, disk = self.running.pop(name)
        write_disks(repository, run, {"disk": disk})
        run._close()
        repository.begin_run(repository.series_of("image", name)).abandon()

    @precondition(lambda self: self.points)
    @rule(data=st.data(), other=st.booleans())
    def deletes(self, data: st.DataObject, other: bool) -> None:
        point_id = data.draw(st.sampled_from(list(self.points)))
        repository = self.theirs if other else self.mine
        point = repository.point(point_id)
        if point_id in self.holds.values():
            with pytest.raises(PointHeld):
                repository.delete_point(point, "admin")
            return
        repository.delete_point(point, "admin")
        del self.points[point_id]

    @precondition(lambda self: self.points)
    @rule(data=st.data())
    def holds_one(self, data: st.DataObject) -> None:
        point_id = data.draw(st.sampled_from(list(self.points)))
        held = self.mine.hold(self.mine.point(point_id), "mount", "somebody")
        self.holds[held.id] = point_id

    @precondition(lambda self: self.holds)
    @rule(data=st.data())
    def lets_go(self, data: st.DataObject) -> None:
        hold_id = data.draw(st.sampled_from(list(self.holds)))
        self.theirs.release(hold_id)
        del self.holds[hold_id]

    @precondition(lambda self: not self.running and not self.late)
    @rule(lose_cache=st.booleans())
    def reopens(self, lose_cache: bool) -> None:
        self.mine.close()
        if lose_cache:
            shutil.rmtree(self.folder / "cache")
        self.mine = self._open("cache")

    @invariant()
    def what_was_committed_is_there(self) -> None:
        for repository in (self.mine, self.theirs):
            points = repository.points()
            assert {point.id for point in points} == set(self.points)
            for name, ids in self.series.items():
                of_series = repository.points(repository.series_of("image", name))
                assert [point.id for point in of_series] == [each for each in ids if each in self.points]
            assert {hold.id: hold.point for hold in repository.holds()} == self.holds
            assert repository.damaged_points() == []
            for point in points[-3:]:
                assert read_disk(repository, point) == self.points[point.id]

    def teardown(self) -> None:
        if not hasattr(self, "folder"):
            return
        for _, run, _ in [*self.running.values(), *self.late.values()]:
            run.abandon()
        report = self.mine.verify(read_data=True)
        assert report.ok, report
        for point in self.mine.points():
            assert read_disk(self.mine, point) == self.points[point.id]
        self.mine.close()
        self.theirs.close()
        shutil.rmtree(self.folder)


TestRepositoryMachine = RepositoryMachine.TestCase
TestRepositoryMachine.settings = settings(
    max_examples=20, stateful_step_count=20, deadline=None, phases=(Phase.explicit, Phase.reuse, Phase.generate)
)
