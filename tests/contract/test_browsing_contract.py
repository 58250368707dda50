"""Lists, pages and the overview in every engine of the catalog, with a small fleet of the benchmark's: each page joins
the next whatever comes in between, tells what there is, and costs a number of statements that no size changes."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final
from zoneinfo import ZoneInfo

import pytest
from sqlalchemy import event

from appliance.bootstrap import Appliance
from appliance.catalog import Catalog
from appliance.catalog.proofs import Proofs
from appliance.models import (
    TELLING,
    OwedThaw,
    RecoveryRecord,
    RecoveryState,
    RunArguments,
    RunKind,
    RunRecord,
    RunState,
    new_id,
)
from appliance.paging import LIMIT_MAX, Page, PageRefused
from appliance.policy.policies import read_policy
from appliance.policy.selectors import Kind, Machine
from appliance.policy.stored import StoredPolicy
from appliance.proofs import Proof, ProofKind, Reading, RepositorySize, Verification
from appliance.services.access.subjects import Subjects
from appliance.services.browsing import (
    BrowsingService,
    MachineFilter,
    MachineRow,
    PointFilter,
    RunFilter,
    Sort,
    Standing,
    TimePoint,
)
from appliance.settings import load
from tests.bench.fleet import AWAY, ME, SMALL, seed
from tests.contract.catalogs import Place
from tests.lab.postgres_server import running

NOW: Final = datetime(2026, 11, 23, 14, 0, tzinfo=UTC)
FAILED: Final = frozenset({RunState.FAILED, RunState.INTERRUPTED})


@dataclass
class Still:
    """A clock that stands."""

    now: datetime = NOW

    def now_utc(self) -> datetime:
        return self.now

    def monotonic_s(self) -> float:
        return 0.0

    def sleep(self, seconds: float) -> None:
        raise AssertionError(seconds)


@dataclass
class Site:
    appliance: Appliance
    catalog: Catalog
    browsing: BrowsingService

    def runs(self) -> list[RunRecord]:
        return sorted(self.catalog.runs.list(), key=lambda run: (run.started_utc, run.id), reverse=True)


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def filled(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """What tests only read."""
    with _site(request.param, tmp_path_factory.mktemp("browsing")) as made:
        seed(made.catalog, SMALL, now_utc=NOW)
        yield made


@pytest.fixture(params=["sqlite", "postgresql"])
def site(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Site]:
    """What a test may change."""
    with _site(request.param, tmp_path) as made:
        seed(made.catalog, replace(SMALL, points=100, runs=200), now_utc=NOW)
        yield made


@contextmanager
def _site(engine: str, folder: Path) -> Iterator[Site]:
    where = str(folder / "catalog.sqlite") if engine == "sqlite" else running().fresh_catalog()
    with Place(where, folder / "lock").open(ME) as catalog:
        appliance = Appliance(load({"STRONGROOM_HOME": str(folder / "home")}), clock=Still())
        appliance.__dict__["catalog"] = catalog
        with appliance:
            yield Site(appliance, catalog, BrowsingService(appliance))


def every(page: Callable[[str | None], Page[Any]]) -> list[Any]:
    """Of all pages."""
    found: list[Any] = []
    after = None
    while True:
        here = page(after)
        found += here.items
        after = here.next
        if after is None:
            return found
        assert here.items, "a page that is not the last one has something"


@contextmanager
def counted(site: Site) -> Iterator[list[str]]:
    statements: list[str] = []

    def count(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        if statement != "BEGIN":
            statements.append(statement)

    event.listen(site.catalog.database.engine, "before_cursor_execute", count)
    try:
        yield statements
    finally:
        event.remove(site.catalog.database.engine, "before_cursor_execute", count)


CALLS: Final[dict[str, tuple[int, Callable[[Site], object]]]] = {
    "overview": (25, lambda site: site.browsing.overview()),
    "overview of some": (25, lambda site: site.browsing.overview(may_see=some)),
    "machines": (12, lambda site: site.browsing.machines(limit=500)),
    "machine": (20, lambda site: site.browsing.machine(protected(site).key)),
    "time line": (24, lambda site: site.browsing.time_line(protected(site).key, NOW - timedelta(days=900), NOW)),
    "points": (4, lambda site: site.browsing.points(limit=500)),
    "points of some": (16, lambda site: site.browsing.points(limit=500, may_see=some)),
    "runs": (3, lambda site: site.browsing.runs(limit=500)),
    "failed runs": (4, lambda site: site.browsing.runs(RunFilter(FAILED), limit=500)),
    "runs of some": (14, lambda site: site.browsing.runs(limit=500, may_see=some)),
    "recoveries": (2, lambda site: site.browsing.recoveries(limit=500)),
    "recoveries of some": (8, lambda site: site.browsing.recoveries(limit=500, may_see=some)),
    "search": (16, lambda site: site.browsing.search("a")),
    "growth": (4, lambda site: site.browsing.growth()),
}


def some(machine: Machine) -> bool:
    return machine.host == "rack01"


def protected(site: Site) -> MachineRow:
    return site.browsing.machines(MachineFilter(kind=Kind.VM, standings=frozenset({Standing.PROTECTED}))).items[0]


@pytest.mark.parametrize("what", CALLS)
def test_what_is_asked_of_the_database_hangs_on_no_number_of_rows(filled: Site, what: str) -> None:
    """Lists have 30 machines and hundreds of rows."""
    most, call = CALLS[what]
    with counted(filled) as statements:
        call(filled)
    assert 0 < len(statements) <= most, "\n".join(statements)


@pytest.mark.parametrize("limit", [1, 7, LIMIT_MAX])
@pytest.mark.parametrize("oldest_first", [False, True])
def test_pages_of_runs_join(filled: Site, limit: int, oldest_first: bool) -> None:
    if limit == 1:
        limit = 97  # one by one takes a second, and shows no more
    runs = filled.runs()[:: -1 if oldest_first else 1]
    assert every(lambda after: filled.browsing.runs(after=after, limit=limit, oldest_first=oldest_first)) == runs


@pytest.mark.parametrize(
    ("wanted", "fits"),
    [
        (RunFilter(FAILED), lambda run: run.state in FAILED),
        (RunFilter(frozenset({RunState.RUNNING})), lambda run: run.state is RunState.RUNNING),
        (RunFilter(host="rack01"), lambda run: run.host == "rack01"),
        (RunFilter(FAILED, host="rack01"), lambda run: run.state in FAILED and run.host == "rack01"),
        (RunFilter(since_utc=NOW - timedelta(days=3)), lambda run: run.started_utc >= NOW - timedelta(days=3)),
        (RunFilter(until_utc=NOW - timedelta(days=3)), lambda run: run.started_utc < NOW - timedelta(days=3)),
        (RunFilter(machines=frozenset()), lambda run: False),
        (RunFilter(host="nowhere"), lambda run: False),
        (RunFilter(frozenset(RunState)), lambda run: True),
        (RunFilter(kinds=frozenset({RunKind.BACKUP})), lambda run: True),
        (RunFilter(FAILED, frozenset(RunKind)), lambda run: run.state in FAILED),
        (RunFilter(kinds=frozenset({RunKind.VERIFY, RunKind.COPY})), lambda run: False),
    ],
)
def test_runs_are_chosen(filled: Site, wanted: RunFilter, fits: Callable[[RunRecord], bool]) -> None:
    runs = [run for run in filled.runs() if fits(run)]
    assert every(lambda after: filled.browsing.runs(wanted, after=after, limit=13)) == runs
    total = filled.browsing.runs(wanted).total
    assert total in (None, len(runs))
    stated = [wanted.states, wanted.kinds, wanted.host]
    assert (total is None) == (wanted.machines is not None or sum(map(bool, stated)) > 1)


def listed(site: Site, wanted: RunFilter) -> list[RunRecord]:
    return every(lambda after: site.browsing.runs(wanted, after=after, limit=29))


@pytest.mark.parametrize("count", [1, 3, 24])
def test_runs_of_some_machines_alone(filled: Site, count: int) -> None:
    """Few are read machine by machine, many as they come."""
    keys = sorted({run.machine for run in filled.runs()})[:count]
    runs = [run for run in filled.runs() if run.machine in keys]
    failed = [run for run in runs if run.state in FAILED]
    assert listed(filled, RunFilter(machines=frozenset(keys))) == runs
    assert listed(filled, RunFilter(FAILED, machines=frozenset(keys))) == failed
    assert listed(filled, RunFilter(machine=keys[0])) == [run for run in runs if run.machine == keys[0]]


def test_work_of_other_kinds_is_listed_and_told_to_whom_its_machine_is(site: Site) -> None:
    row = next(row for row in site.browsing.fleet(some).rows if row.machine.kind is Kind.VM and row.last_run)
    backup = next(run for run in site.runs() if run.machine == row.key)
    restore = replace(
        backup, id=new_id(), kind=RunKind.RESTORE, state=RunState.FAILED, started_utc=NOW + timedelta(hours=1),
        arguments=RunArguments(point="1" * 32, force=True),
    )  # fmt: skip
    verify = RunRecord(
        new_id(), "repository", "repository", None, None, RunState.FAILED, NOW + timedelta(hours=2), appliance=ME,
        kind=RunKind.VERIFY,
    )  # fmt: skip
    for run in (restore, verify):
        site.catalog.runs.save(run)
    assert site.browsing.runs(limit=2).items == (verify, restore)
    assert site.browsing.runs(RunFilter(kinds=frozenset({RunKind.VERIFY}))).items == (verify,)
    assert site.browsing.runs(RunFilter(kinds=frozenset({RunKind.VERIFY, RunKind.RESTORE}))).items == (verify, restore)
    assert site.browsing.runs(limit=1, may_see=some).items == (restore,)
    assert site.browsing.runs(RunFilter(machine=row.key), limit=1).items == (restore,)
    assert site.browsing.search(restore.id, may_see=some).runs == (restore,)
    assert not site.browsing.search(verify.id, may_see=some)
    whole, part = site.browsing.overview(), site.browsing.overview(may_see=some)
    assert (whole.jobs[RunKind.VERIFY].id, dict(part.jobs)) == (verify.id, {})
    assert "the last run of kind verify failed" in whole.concerns
    found = site.browsing.machine(row.key).row.last_run
    assert found is not None
    assert found.id == backup.id, "a restore tells nothing of how a machine is backed up"


def test_pages_of_recoveries_join_and_have_what_may_be_seen(site: Site) -> None:
    """Of machines that have points, by the machine of their point; of those that have none any more, by what they were
    called. Each part is read by an index in its order, and no more of it than the page has."""
    draw, points = random.Random(5), site.catalog.points.list()
    for number in range(60):
        point = draw.choice(points)
        gone = number % 5 == 0
        manifest = f"manifests/{'f' * 32}/0000000001-{new_id()}" if gone else point.manifest_name
        record = RecoveryRecord(
            new_id(), draw.choice(list(RecoveryState)), point.id, manifest, point.name, point.host or "rack01",
            f"again-{number}", new_id(), "none", NOW - timedelta(minutes=draw.randrange(9)), NOW,
        )  # fmt: skip
        site.catalog.recoveries.add(record)
    kept = sorted(site.catalog.recoveries.list(), key=lambda each: (each.started_utc, each.id), reverse=True)
    assert len(kept) == 60
    lost: dict[str, Machine] = {}
    for each in kept:
        machine = Subjects(site.appliance).recovery(each).machine
        assert machine is not None
        lost[each.id] = machine
    for may_see in (None, some, lambda machine: False):
        for ended in (None, True, False):
            fit = [
                each for each in kept
                if ended in (None, each.state.ended) and (may_see is None or may_see(lost[each.id]))
            ]  # fmt: skip
            told = every(lambda after, e=ended, m=may_see: site.browsing.recoveries(  # type: ignore[misc]
                ended=e, after=after, limit=7, may_see=m))  # fmt: skip
            assert told == fit, (ended, may_see)
            page = site.browsing.recoveries(ended=ended, limit=7, may_see=may_see)
            assert page.total == (len(fit) if may_see is None else None)
    assert 0 < len(every(lambda after: site.browsing.recoveries(after=after, may_see=some))) < 60
    with pytest.raises(PageRefused):
        site.browsing.recoveries(after=site.browsing.runs(limit=1).next)
    if site.catalog.database.is_shared:
        return  # it does as it likes with so few rows
    with counted(site) as statements:
        page = site.browsing.recoveries(limit=7)
        site.browsing.recoveries(ended=True, after=page.next, limit=7)
    with site.catalog.database.read() as connection:
        for statement in statements:
            values = tuple(7 for _ in range(statement.count("?")))
            steps = [row[3] for row in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", values)]
            assert any("USING INDEX ix_recoveries" in step or "USING COVERING INDEX" in step for step in steps), steps
            if "state" not in statement.partition("WHERE")[2]:  # parts that are put together are sorted, each short
                assert not any("TEMP B-TREE" in step for step in steps), steps


def test_a_page_goes_on_where_the_last_one_ended_whatever_comes_in_between(site: Site) -> None:
    runs = site.runs()
    first = site.browsing.runs(limit=10)
    assert list(first.items) == runs[:10]
    newer = replace(runs[0], id=new_id(), started_utc=NOW + timedelta(hours=1))
    site.catalog.runs.save(newer)
    site.catalog.runs.remove(runs[9].id)  # where the page ended
    site.catalog.runs.remove(runs[12].id)
    second = site.browsing.runs(after=first.next, limit=10)
    assert list(second.items) == [*runs[10:12], *runs[13:21]]


def test_runs_of_one_moment_are_told_apart(site: Site) -> None:
    at = NOW + timedelta(days=1)
    made = [replace(site.runs()[0], id=new_id(), started_utc=at) for _ in range(25)]
    for run in made:
        site.catalog.runs.save(run)
    found = every(lambda after: site.browsing.runs(RunFilter(since_utc=at), after=after, limit=4))
    assert found == sorted(made, key=lambda run: run.id, reverse=True)


def test_a_page_of_something_else_is_refused(filled: Site) -> None:
    runs = filled.browsing.runs(limit=1).next
    assert runs is not None
    for wrong in ("", "x", runs[:-3], "é", runs + "A", "A" * 10_000, "bnVsbA", "W10"):
        with pytest.raises(PageRefused):
            filled.browsing.runs(after=wrong)
    for other in (
        lambda: filled.browsing.points(after=runs),
        lambda: filled.browsing.runs(after=runs, oldest_first=True),
        lambda: filled.browsing.machines(after=runs),
    ):
        with pytest.raises(PageRefused):
            other()


def test_pages_of_points_join_and_are_chosen(filled: Site) -> None:
    points = sorted(filled.catalog.points.list(), key=lambda each: (each.created_utc, each.id), reverse=True)

    def listed(wanted: PointFilter, limit: int = 53, **options: Any) -> list[Any]:
        found = every(lambda after: filled.browsing.points(wanted, after=after, limit=limit, **options))
        assert all(isinstance(each, TimePoint) for each in found)
        return [each.point for each in found]

    assert listed(PointFilter()) == points
    assert listed(PointFilter(), oldest_first=True) == points[::-1]
    series = points[7].series
    assert listed(PointFilter(series)) == [each for each in points if each.series == series]
    assert listed(PointFilter(host="rack01")) == [each for each in points if each.host == "rack01"]
    begin, end = NOW - timedelta(days=9), NOW - timedelta(days=8)
    of_day = [each for each in points if begin <= each.created_utc < end]
    assert listed(PointFilter(since_utc=begin, until_utc=end)) == of_day
    assert listed(PointFilter(), may_see=some) == [each for each in points if each.host == "rack01"]
    assert filled.browsing.points().total == len(points)


def test_every_machine_has_one_row(filled: Site) -> None:
    rows = every(lambda after: filled.browsing.machines(after=after, limit=7))
    assert len({row.key for row in rows}) == len(rows) == SMALL.machines
    counts = {standing: sum(row.standing is standing for row in rows) for standing in Standing}
    assert counts == {
        Standing.PROTECTED: SMALL.machines - SMALL.unprotected - SMALL.gone,
        Standing.UNPROTECTED: SMALL.unprotected,
        Standing.GONE: SMALL.gone,
        Standing.WAITING: 0,
        Standing.RECOVERED: 0,
    }
    assert sum(row.machine.kind is Kind.IMAGE for row in rows) == SMALL.images
    newest = {run.machine: run for run in filled.runs()[::-1] if run.state in TELLING}
    for row in rows:
        assert (row.last_run.id if row.last_run else None) == (newest[row.key].id if row.key in newest else None)
        assert (row.state is None) == (row.standing is Standing.GONE or row.machine.kind is Kind.IMAGE)
    assert {row.machine.host for row in rows if row.away} == {"rack02"}
    states = [row.busy for row in rows if row.busy]
    assert (states.count(RunState.RUNNING), states.count(RunState.QUEUED)) == (SMALL.running, SMALL.queued)


@pytest.mark.parametrize("sort", Sort)
@pytest.mark.parametrize("falling", [False, True])
def test_machines_are_sorted_and_their_pages_join(filled: Site, sort: Sort, falling: bool) -> None:
    values: dict[Sort, Callable[[MachineRow], Any]] = {
        Sort.NAME: lambda row: row.machine.name.casefold(),
        Sort.HOST: lambda row: row.machine.host or "",
        Sort.SIZE: lambda row: row.size_bytes or 0,
        Sort.LAST_POINT: lambda row: row.last_point_utc or datetime.min.replace(tzinfo=UTC),
        Sort.LAST_RUN: lambda row: row.last_run.started_utc if row.last_run else datetime.min.replace(tzinfo=UTC),
    }
    rows = every(lambda after: filled.browsing.machines(MachineFilter(), sort, falling=falling, after=after, limit=4))
    assert len(rows) == SMALL.machines
    found = [values[sort](row) for row in rows]
    assert found == sorted(found, reverse=falling)


def test_machines_are_chosen(filled: Site) -> None:
    rows = filled.browsing.fleet().rows
    vm = next(row for row in rows if row.machine.kind is Kind.VM and row.state == "running")
    tag = sorted(vm.machine.tags)[0]
    chosen: list[tuple[MachineFilter, Callable[[MachineRow], bool]]] = [
        (MachineFilter(text=vm.machine.name[:6].upper()), lambda row: vm.machine.name[:6] in row.machine.name),
        (MachineFilter(text=vm.machine.id[:9]), lambda row: row.key == vm.key),
        (MachineFilter(host="rack00"), lambda row: row.machine.host == "rack00"),
        (MachineFilter(kind=Kind.IMAGE), lambda row: row.machine.kind is Kind.IMAGE),
        (MachineFilter(tag=tag), lambda row: tag in row.machine.tags),
        (MachineFilter(policy="none"), lambda row: False),
        (MachineFilter(failed=True), lambda row: row.failed),
        (MachineFilter(missed=True), lambda row: False),
        (MachineFilter(state=vm.state), lambda row: row.state == "running"),
        (MachineFilter(text="%"), lambda row: False),
    ]
    for wanted, fits in chosen:
        page = filled.browsing.machines(wanted, limit=LIMIT_MAX)
        assert {row.key for row in page.items} == {row.key for row in rows if fits(row)}, wanted
        assert page.total == len(page.items)


def test_policies_say_what_waits_and_what_missed_its_rpo(site: Site) -> None:
    document = {
        "version": 1, "name": "nightly", "select": {"include": [{"host": "rack0*"}]},
        "schedule": {"cron": "0 22 * * *", "zone": "UTC"}, "retention": {"last": 7}, "rpo_minutes": 60,
    }  # fmt: skip
    assert read_policy(document).name == "nightly"
    site.catalog.policies.add(StoredPolicy("nightly", document, 1, NOW, NOW))
    clock = site.appliance.clock
    assert isinstance(clock, Still)
    before = site.browsing.overview()
    assert before.standings[Standing.UNPROTECTED] == 0
    assert before.standings[Standing.WAITING] == SMALL.unprotected
    clock.now = NOW + timedelta(hours=30)
    after = site.browsing.overview()
    rows = site.browsing.machines(MachineFilter(missed=True), limit=500).items
    assert after.missed.count == len(rows) == sum(row.machine.kind is Kind.VM for row in site.browsing.fleet().rows)
    assert all(row.policies == ("nightly",) for row in rows)
    misses = [row.watched.misses_utc for row in after.missed.rows if row.watched is not None]
    assert misses == sorted(misses)
    assert not after.fine
    site.catalog.policies.remove("nightly", seen=None)
    assert site.browsing.overview().missed.count == 0, "what was remembered of it is forgotten"


def test_what_somebody_may_not_see_is_told_nowhere(site: Site) -> None:
    other = next(row for row in site.browsing.fleet().rows if row.machine.host == "rack00")
    site.catalog.thaws.owe(other.machine.id, "rack00", other.machine.name, NOW)
    site.catalog.recoveries.add(
        RecoveryRecord(
            new_id(), RecoveryState.RUNNING, "1" * 32, "m", other.machine.name, "rack00", "again", "u-9", "none", NOW,
            NOW,
        )
    )  # fmt: skip
    lost = next(point for point in site.catalog.points.list() if point.host == "rack00")
    site.catalog.recoveries.add(  # it runs on a host of theirs, and is of no machine of theirs
        RecoveryRecord(
            new_id(), RecoveryState.RUNNING, lost.id, lost.manifest_name, lost.name, "rack01", "elsewhere", "u-8",
            "none", NOW, NOW,
        )
    )  # fmt: skip
    whole, part = site.browsing.overview(), site.browsing.overview(may_see=some)
    assert (len(whole.debts.thaws), len(whole.recoveries)) == (1, 2)
    assert (part.debts.thaws, part.recoveries) == ((), ())
    assert [host.name for host in part.hosts] == ["rack01"]
    assert sum(part.standings.values()) == len(site.browsing.fleet(some).rows) < sum(whole.standings.values())
    assert {run.host for run in part.last_day.failed} <= {"rack01"}
    assert sum(part.last_day.states.values()) < sum(whole.last_day.states.values())
    for page in (site.browsing.runs(limit=500, may_see=some).items,):
        assert {run.host for run in page} == {"rack01"}
    (point,) = site.browsing.points(PointFilter(other.series), limit=1).items
    run = next(run for run in site.runs() if run.machine == other.key)
    for text in (other.machine.name, other.machine.id, point.point.id, run.id, "rack00"):
        assert site.browsing.search(text), text
        assert not site.browsing.search(text, may_see=some), text


def test_search_finds_by_any_beginning_and_costs_no_more_for_bad_ones(filled: Site) -> None:
    run, row = filled.runs()[5], filled.browsing.fleet().rows[3]
    assert filled.browsing.search(f"  {run.id[:8].upper()} ").runs == (run,)
    assert [each.key for each in filled.browsing.search(row.machine.name).machines] == [row.key]
    assert [host.name for host in filled.browsing.search("ACK0").hosts] == ["rack00", "rack01", "rack02"]
    assert filled.browsing.search("rack").more is False
    for nothing in ("", "   ", "%", "_", "\x00", "x" * 100_000, "'; DROP TABLE runs; --", "\ud800", "[a-z]*"):
        assert not filled.browsing.search(nothing), nothing[:20]
    many = filled.browsing.search("0")
    assert len(many.machines) == 10
    assert many.more


def test_the_last_day(filled: Site) -> None:
    told = filled.browsing.overview().last_day
    runs = [run for run in filled.runs() if run.started_utc >= NOW - timedelta(days=1)]
    assert dict(told.states) == {state: count for state in RunState if (count := sum(r.state is state for r in runs))}
    assert list(told.failed) == [run for run in runs if run.state in FAILED][:20]


def test_debts_and_hosts_are_concerns(site: Site) -> None:
    assert "1 host does not answer" in site.browsing.overview().concerns
    site.catalog.thaws.owe("u", "rack00", "web", NOW)
    overview = site.browsing.overview()
    assert overview.debts.thaws == (OwedThaw("u", "rack00", "web", NOW, appliance=ME),)
    assert overview.concerns[0] == "1 guest may be frozen"
    (away,) = overview.away
    assert (away.name, away.answered_utc, away.failing_since_utc) == (
        "rack02", NOW - AWAY, NOW - AWAY + timedelta(minutes=1),
    )  # fmt: skip
    assert "no route" in (away.error or "")


def test_points_of_a_machine_by_day_with_what_was_proven(site: Site) -> None:
    row = protected(site)
    points = sorted(site.catalog.points.list(row.series), key=lambda each: each.created_utc)
    began = points[1].created_utc + timedelta(seconds=1)
    site.catalog.proofs.verified(
        Verification(new_id(), began, began + timedelta(hours=1), Reading.DATA, 1, 5, 1, (points[1].id,))
    )
    zone = ZoneInfo("Asia/Tokyo")
    days = site.browsing.time_line(row.key, NOW - timedelta(days=900), NOW + timedelta(days=1), zone=zone)
    told = [each for day in days for each in day.points]
    assert [each.point for each in told] == points
    assert [day.day for day in days] == sorted({each.created_utc.astimezone(zone).date() for each in points})
    assert [each.checked.damaged for each in told] == [False, True] + [False] * (len(told) - 2)
    assert [each.checked.verified_utc for each in told[:3]] == [began + timedelta(hours=1)] * 2 + [None]
    assert site.browsing.time_line(row.key, NOW + timedelta(days=1), NOW + timedelta(days=2)) == ()
    assert row.series is not None
    for hours in (5, 1):
        proof = Proof(new_id(), row.series, points[0].id, ProofKind.RECOVERY, NOW - timedelta(hours=hours), 1900)
        site.catalog.proofs.proven(proof)
    page = site.browsing.machine(row.key)
    assert page.row.proof == proof == page.proofs[0]
    assert (page.points, page.stored_bytes) == (len(points), sum(each.stored_bytes for each in points))
    overview = site.browsing.overview()
    assert overview.proven.machines == 1
    assert row.key not in {each.key for each in overview.proven.longest[: overview.proven.of - 1]}


def test_a_machine_alone_is_as_among_all(filled: Site) -> None:
    rows = filled.browsing.fleet().rows
    assert {row.standing for row in rows} >= {Standing.PROTECTED, Standing.UNPROTECTED, Standing.GONE}
    assert any(row.busy for row in rows)
    assert any(row.last_run for row in rows)
    for row in rows:
        assert filled.browsing.machine(row.key).row == row


def test_growth_is_told_by_sizes_and_points(site: Site) -> None:
    before = site.browsing.growth()
    assert (before.used_bytes, before.full, len(before.stored)) == (None, None, 14)
    week = [point for point in site.catalog.points.list() if NOW - timedelta(days=7) < point.created_utc <= NOW]
    days = [0] * 7
    for point in week:
        days[-1 - (NOW - point.created_utc).days] += point.stored_bytes
    assert sum(before.stored[-7:]) == sum(point.stored_bytes for point in week)
    assert list(before.stored[-7:]) == days
    for number in range(10):
        at = NOW - timedelta(days=9 - number)
        site.catalog.proofs.took(RepositorySize("e" * 32, at.date(), at, 1000 + 10 * number, 45))
    site.catalog.proofs.took(RepositorySize("e" * 32, NOW.date(), NOW, 1090, 45))
    site.catalog.proofs.took(RepositorySize("f" * 32, NOW.date(), NOW, 1, None))
    found = site.browsing.growth()
    assert (found.used_bytes, found.free_bytes, found.day_bytes, found.full_in_days) == (1090, 45, 10, 4)
    assert "the repository is full in 4 days" in site.browsing.overview().concerns


def test_verifications_are_kept_for_a_while(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    draw = random.Random(1)
    monkeypatch.setattr(Proofs, "KEPT", 4)
    for number in range(9):
        ended = NOW + timedelta(days=number)
        record = Verification(draw.randbytes(16).hex(), ended, ended, Reading.HASHES, 1, 0, 0)
        site.catalog.proofs.verified(record)
    kept = site.catalog.proofs.verifications()
    assert len(kept) == 4
    assert kept[0] == record
