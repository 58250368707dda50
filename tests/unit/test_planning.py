"""Plans: against simulated machines whose every chunk is known, and from what is typed in."""

from __future__ import annotations

import itertools
import random
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, time, timedelta
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.bootstrap import Appliance
from appliance.planning.capacity import project
from appliance.planning.habits import Habit, History, MadePoint, Points, habits, reading_speed
from appliance.planning.load import loads, open_s
from appliance.planning.plans import Numbers, Plan, Room, plan, typed
from appliance.planning.staying import Several, bounds_of
from appliance.policy.keeping import keep
from appliance.policy.policies import Policy
from appliance.policy.retention import Candidate, Rules
from appliance.policy.schedules import Schedule
from appliance.policy.selectors import Clause, Selector
from appliance.policy.windows import Span, Window
from appliance.proofs import RepositorySize
from appliance.services.browsing.growth import growth
from appliance.services.made_points import MadePoints
from appliance.services.planning import PlanningService
from appliance.settings import load
from tests.bench.fleet import SMALL, seed
from tests.unit.cli_runner import CommandLine

BEGIN = datetime(2026, 1, 1, 22, tzinfo=UTC)
DAY = timedelta(days=1)
CHUNK = 64 << 10
BLOCKS, CHANGED = 8000, 40


def policy(rules: Rules, **changes: object) -> Policy:
    made = Policy("p", Selector((Clause(),)), Schedule("0 22 * * *", "UTC"), retention=rules)
    return replace(made, **changes)  # type: ignore[arg-type]


@dataclass
class Simulated:
    """A machine as a map from blocks to chunks, backed up every day and pruned by a policy: what the repository holds
    is counted, chunk by chunk."""

    overwrites: int  # blocks anywhere, each day
    hot: int  # always the same ones
    adds: int
    policy: Policy

    def __post_init__(self) -> None:
        self._draw = random.Random(7)
        self._new = itertools.count()
        self.disk = [next(self._new) for _ in range(BLOCKS)]
        self.contents: dict[str, frozenset[int]] = {}
        self.points: list[tuple[Candidate, MadePoint]] = []
        self.sizes: list[RepositorySize] = []
        self._run(0, BLOCKS)

    def live(self, days: int) -> None:
        for _ in range(days):
            for block in [*range(self.hot), *self._draw.sample(range(len(self.disk)), self.overwrites)]:
                self.disk[block] = next(self._new)
            self.disk += [next(self._new) for _ in range(self.adds)]
            number = self.candidates[-1].generation + 1
            self._run(number, self.hot + self.overwrites + self.adds)

    def _run(self, number: int, changed: int) -> None:
        at, stored = BEGIN + number * DAY, changed * CHUNK
        point = MadePoint(at, number == 0, len(self.disk) * CHUNK, stored, stored, 1000 * changed)
        self.points.append((Candidate(f"p{number}", number, at), point))
        self.contents[f"p{number}"] = frozenset(self.disk)
        kept = {each.candidate.id for each in keep((self.policy,), self.candidates) if each.kept}
        self.points = [each for each in self.points if each[0].id in kept]
        self.contents = {id: chunks for id, chunks in self.contents.items() if id in kept}
        self.sizes.append(RepositorySize("r", at.date(), at, self.used_bytes, None))

    @property
    def candidates(self) -> list[Candidate]:
        return [candidate for candidate, _ in self.points]

    @property
    def used_bytes(self) -> int:
        return len(frozenset().union(*self.contents.values())) * CHUNK

    @property
    def now(self) -> datetime:
        return BEGIN + self.candidates[-1].generation * DAY

    def history(self) -> History:
        return History("vm", "rack1", len(self.disk) * CHUNK, Points(point for _, point in self.points), (self.policy,))

    def plan(self, months: int) -> Plan:
        day_bytes = growth(self.sizes[-30:], ()).day_bytes
        return plan([self.history()], Room(self.used_bytes, None, day_bytes), self.now, months=months)


@pytest.mark.parametrize("rules", [Rules(daily=14), Rules(daily=14, weekly=8, monthly=12)], ids=["daily", "all"])
@pytest.mark.parametrize(
    ("overwrites", "hot", "adds"), [(0, CHANGED, 0), (CHANGED, 0, 0), (0, 0, CHANGED), (16, 16, 8)],
    ids=["the same again", "anywhere", "added", "mixed"],
)  # fmt: skip
def test_the_truth_lies_between_the_two_cases(overwrites: int, hot: int, adds: int, rules: Rules) -> None:
    machine = Simulated(overwrites, hot, adds, policy(rules))
    machine.live(70)
    found = machine.plan(6)
    for month in found.months:
        machine.live(round((month.end_utc - machine.now) / DAY))
        truth = machine.used_bytes
        assert 0.97 * month.low_bytes <= truth <= 1.01 * month.high_bytes
        assert month.points == pytest.approx(len(machine.points), abs=1)
        assert month.trend_bytes is not None
        if hot == CHANGED:
            assert truth == pytest.approx(month.low_bytes, rel=0.02)
        if adds == CHANGED:
            assert truth == pytest.approx(month.high_bytes, rel=0.02)
        # Of points that are yet to be kept beside the others, a trend knows nothing: there it is low.
        least = 0.65 if rules.monthly else 0.95
        assert least * truth <= month.trend_bytes <= 1.05 * truth


def test_another_retention_keeps_as_many_points_as_it_says() -> None:
    machine = Simulated(16, 16, 8, policy(Rules(daily=30)))
    machine.live(60)
    rules = Rules(daily=7, weekly=4)
    found = plan([machine.history()], Room(machine.used_bytes), machine.now, months=3, rules=rules)
    assert found.change is not None
    stays = sum(verdict.kept for verdict in keep((policy(rules),), machine.candidates))
    assert found.change.going == len(machine.points) - stays > 0
    machine.policy = policy(rules)
    machine.live(round((found.change.months[-1].end_utc - machine.now) / DAY))
    assert found.change.months[-1].points == pytest.approx(len(machine.points), abs=1)
    assert 0.97 * found.change.months[-1].low_bytes <= machine.used_bytes <= found.change.months[-1].high_bytes
    assert found.change.months[-1].low_bytes < found.months[-1].low_bytes


ZONES = ("UTC", "Europe/Berlin", "Australia/Lord_Howe", "Asia/Kathmandu")
COUNTS = st.integers(0, 6)
RULES = st.builds(
    Rules, COUNTS, COUNTS, COUNTS, COUNTS, COUNTS, COUNTS,
    st.none() | st.timedeltas(timedelta(hours=1), timedelta(days=40)),
)  # fmt: skip


MOMENTS = st.lists(st.datetimes(datetime(2025, 9, 1), datetime(2027, 5, 1), timezones=st.just(UTC)), max_size=40)  # noqa: DTZ001


@settings(max_examples=80, deadline=None)
@given(
    st.lists(MOMENTS, max_size=3), st.lists(st.tuples(RULES, st.sampled_from(ZONES)), max_size=3), st.booleans(),
)  # fmt: skip
def test_a_plan_keeps_what_pruning_keeps(
    machines: list[list[datetime]], rules: list[tuple[Rules, str]], in_order: bool
) -> None:
    machines = [sorted(each) if in_order else each for each in machines]
    policies = [policy(each, schedule=Schedule("0 22 * * *", zone)) for each, zone in rules]
    bounds = bounds_of(np.array([len(each) for each in machines], np.int64))
    at_s = np.array([at.timestamp() for each in machines for at in each], np.float64)
    stay = Several(at_s, bounds).stay(policies)
    for number, moments in enumerate(machines):
        candidates = [Candidate(str(place), place, at) for place, at in enumerate(moments)]
        kept = {int(verdict.candidate.id) for verdict in keep(policies, candidates) if verdict.kept}
        assert set(np.flatnonzero(stay[bounds[number] : bounds[number + 1]]).tolist()) == kept


def test_habits_are_those_of_the_points_and_pruning_does_not_hide_them() -> None:
    machine = Simulated(0, CHANGED, 0, policy(Rules(daily=14, monthly=12)))
    machine.live(200)
    (habit,) = habits([machine.history()])
    assert habit == Habit(DAY, CHANGED * CHUNK, CHANGED * CHUNK, CHANGED, None)
    assert reading_speed([machine.history()]) is None  # the first full read was pruned
    fresh = Simulated(0, CHANGED, 0, policy(Rules(daily=14)))
    assert reading_speed([fresh.history()]) == pytest.approx(CHUNK)


def test_a_machine_without_a_history_is_as_the_others() -> None:
    machine = Simulated(0, CHANGED, 0, policy(Rules(daily=14)))
    machine.live(20)
    young = Simulated(0, CHANGED, 0, policy(Rules(daily=14))).history()
    old, assumed = habits([machine.history(), replace(young, size_bytes=2 * young.size_bytes)])
    assert old is not None
    assert assumed is not None
    assert (assumed.stored_bytes, assumed.assumed, assumed.interval) == (2 * old.stored_bytes, True, DAY)
    assert habits([young]) == (None,)
    (month,) = project([young], [None], 5, None, BEGIN, 1)
    assert (month.low_bytes, month.high_bytes, month.trend_bytes, month.points) == (5, 5, None, 1)


def test_hosts_have_to_read_in_their_window_what_their_machines_change() -> None:
    habit = Habit(DAY / 2, 3600 << 20, 100, 1800.0, 2e6)
    window = Window((Span(frozenset({0, 1, 2, 3, 4}), time(22), time(6)), Span(frozenset({5, 6}), time(20), time(8))))
    assert open_s(window) == 8 * 3600
    mine = policy(Rules(), window=window, per_host=2)
    histories = [History(name, host, 1, policies=(mine,)) for name, host in (("a", "r1"), ("b", "r1"), ("c", None))]
    image, rack = loads(histories, [habit] * 3)
    assert (image.host, rack.host, rack.machines) == (None, "r1", 2)
    assert rack.read_bytes == 4 * (3600 << 20)
    assert rack.needed_bytes_s == rack.read_bytes / (8 * 3600)
    assert rack.busy_s == 4 * 1800 / 2
    assert rack.fits
    short = loads(histories, [habit] * 3, window_s=1800)
    assert not short[1].fits
    assert loads(histories, [None] * 3) == ()
    assert open_s(Window((Span(frozenset({0}), time(0), time(0)),))) == 86_400


def test_recovery_is_told_as_measured_or_as_of_the_others() -> None:
    histories = [
        History("a", "r", 100 << 30, instant_ms=3000),
        History("b", "r", 200 << 30),
        History("c", "r", 5, instant_ms=5000),
    ]
    found = plan(histories, Room(0), BEGIN, months=1, restore_bytes_s=float(1 << 30))
    assert [(each.name, each.instant_s, each.own, each.restore_s) for each in found.recoveries[:2]] == [
        ("b", 4.0, False, 200.0), ("a", 3.0, True, 100.0),
    ]  # fmt: skip
    unknown = plan([History("b", "r", 200 << 30)], Room(0), BEGIN, months=1)
    assert (unknown.recoveries[0].instant_s, unknown.recoveries[0].restore_s) == (None, None)
    assert any("--restore-speed" in sentence for sentence in unknown.how)


def test_what_is_typed_in_is_reckoned_with() -> None:
    numbers = Numbers(10, 100 << 30, 2.0, 2.0, 1.0, 100e6)
    histories, found, room = typed(numbers, Rules(daily=14), BEGIN)
    assert room.used_bytes == 500 << 30
    made = plan(histories, room, BEGIN, months=12, found=found)
    assert made.machines == 10
    assert made.months[-1].points == 140
    assert made.months[-1].low_bytes == (500 << 30) + 140 * (1 << 30)
    assert made.months[-1].high_bytes == (500 << 30) + 365 * 10 * (1 << 30)
    (host,) = made.hosts
    assert host.read_bytes == 20 << 30


def test_the_month_in_which_it_is_full_is_told() -> None:
    machine = Simulated(0, 0, CHANGED, policy(Rules(daily=14)))
    machine.live(30)
    day = CHANGED * CHUNK
    made = plan([machine.history()], Room(machine.used_bytes, 100 * day, day), machine.now, months=6)
    assert made.full_utc == made.months[3].end_utc  # 100 days, and months of 30.4
    assert plan([machine.history()], Room(machine.used_bytes, 900 * day, day), machine.now, months=6).full_utc is None


# From the catalog


@pytest.fixture
def appliance(tmp_path: Path) -> Iterator[Appliance]:
    with Appliance(load({"STRONGROOM_HOME": str(tmp_path)})) as made:
        yield made


def test_the_fleets_history_is_what_the_catalog_has(appliance: Appliance) -> None:
    seed(appliance.catalog, SMALL, now_utc=datetime.now(UTC))
    service = PlanningService(appliance)
    histories = service.histories()
    points = appliance.catalog.points.list()
    gone = SMALL.gone
    assert len(histories) == SMALL.machines - SMALL.unprotected - gone
    there = {(point.name, point.created_utc, point.read_bytes, point.stored_bytes) for point in points}
    for history in histories:
        made_utc = [point.created_utc for point in history.points]
        assert made_utc == sorted(made_utc)
        assert {
            (history.name, each.created_utc, each.read_bytes, each.stored_bytes) for each in history.points
        } <= there
    made = service.plan(months=3, rules=Rules(daily=3))
    assert made.change is not None
    assert service.plan(months=3, rules=Rules(daily=2)).change != made.change  # nothing else is taken for the same
    again = service.plan(months=3, rules=Rules(daily=3), window_s=60.0)
    assert (again.months, again.change) == (made.months, made.change)
    assert made.change.going > 0
    assert made.room.used_bytes == sum(point.stored_bytes for point in points)
    assert {each.host for each in made.hosts} == {history.host for history in histories}


def test_points_are_read_again_when_they_changed_and_not_else(
    appliance: Appliance, monkeypatch: pytest.MonkeyPatch
) -> None:
    catalog, read = appliance.catalog, []
    seed(catalog, SMALL, now_utc=datetime.now(UTC))
    made_points = catalog.history.made_points

    def reading(serieses: Collection[str] | None = None) -> Mapping[str, Points]:
        read.append(serieses)
        return made_points(serieses)

    monkeypatch.setattr(catalog.history, "made_points", reading)
    points = MadePoints(appliance)
    before = points.all()
    assert points.all() == before
    assert read == [None]
    machine = catalog.points.machines()[0]
    newest = catalog.points.list(machine.series)[-1]
    added = replace(newest, id="f" * 32, manifest_name="manifests/new", generation=newest.generation + 1)
    catalog.points.add(machine, added)
    assert len(points.all()[machine.series]) == len(before[machine.series]) + 1
    catalog.points.remove(added.id)
    catalog.points.remove(newest.id)
    after = points.all()
    assert list(after[machine.series].at_s) == list(before[machine.series].at_s)[:-1]
    assert all(after[series] is before[series] for series in before if series != machine.series)
    assert read == [None, {machine.series}, {machine.series}]


def test_who_may_see_some_machines_has_a_plan_of_those(appliance: Appliance) -> None:
    now = datetime.now(UTC)
    seed(appliance.catalog, SMALL, now_utc=now)
    appliance.catalog.proofs.took(RepositorySize("e" * 32, now.date(), now, 10**15, 10**12))
    service = PlanningService(appliance)
    made = service.plan(months=2, may_see=lambda machine: machine.host == "rack01")
    assert {each.host for each in made.hosts} == {each.host for each in made.recoveries} == {"rack01"}
    points = [
        point for point in appliance.catalog.points.list() if point.name in {each.name for each in made.recoveries}
    ]
    assert made.room == Room(sum(point.stored_bytes for point in points), shared=True)
    assert (made.full_utc, made.months[0].trend_bytes) == (None, None)
    assert any("of these machines alone" in sentence for sentence in made.how)
    assert service.plan(months=1).room.used_bytes == 10**15


def test_the_command_plans_and_asks_the_repository(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = CommandLine.new(tmp_path / "site", capsys)
    for number in range(3):
        line.backup(bytes([number]) * 200_000 + random.Random(number).randbytes(300_000))
    done = line("plan", "--keep-last", "1", "--exact", "--months", "2", "--json")
    assert done.code == 0, done.err
    told = done.json()
    assert told["change"]["going"] == 2
    assert told["change"]["freed_bytes"] > 500_000
    assert len(told["months"]) == 2
    # Points that go by the policy of now, at the next pruning: nothing more goes, but what is freed is of both.
    assert line("policy", "add", "one", "--image", "*", "--at", "0 22 * * *", "--keep-last", "1", "--yes").code == 0
    assert line("plan", "--keep-last", "1", "--json").json()["change"]["going"] == 0
    assert line("plan", "--keep-last", "1", "--exact", "--months", "2", "--json").json()["change"] | {"months": []} == (
        told["change"] | {"months": []}
    )
    shown = line("plan", "--machines", "200", "--size", "100GiB", "--keep-daily", "14", "--window", "8")
    assert shown.code == 0
    assert "typed in" in shown.out
    assert "All of it is from numbers that were typed in." in shown.err
    for words in (["--machines", "5"], ["--exact"], ["--size", "5 apples", "--machines", "5"], ["--months", "0"]):
        assert line("plan", *words).code == 2, words
