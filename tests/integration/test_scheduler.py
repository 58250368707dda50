"""The scheduler with the real catalog and queue, under a clock that tests set; only the processes that execute runs are
stood in for. What happens to it, to the clock, to runs and to its catalog."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from appliance.bootstrap import Appliance
from appliance.catalog import Catalog
from appliance.catalog.errors import CatalogError
from appliance.hypervisor.protocol import HostConfig, MachineState, Transport
from appliance.inventory import SeenMachine
from appliance.models import HostRecord, RecoveryRecord, RecoveryState, RunDue, RunRecord, RunState, new_id
from appliance.policy.due import Look, Why
from appliance.policy.selectors import Kind, Machine
from appliance.policy.stored import MachinePause, StoredPolicy
from appliance.services.queue.service import QueueService
from appliance.services.scheduling import Scheduler, SchedulingService
from appliance.settings import load
from tests.integration.standing_in import Executors, SetClock, image_run, machine_record, quick_folder

START = datetime(2026, 3, 2, 12, tzinfo=UTC)
TEN = START.replace(hour=22)
MINUTE, HOUR, DAY = timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)


class Site:
    """Hosts with machines, as `host/name`."""

    def __init__(self, home: Path) -> None:
        self.clock = SetClock(START)
        self.appliance = Appliance(load({"STRONGROOM_HOME": str(home)}), clock=self.clock)
        self.catalog = self.appliance.catalog
        self.executors = Executors(self.catalog, self.clock, lambda _key, _begins: 20 * MINUTE)
        self.scheduler = Scheduler(self.appliance)

    def machines(self, *places: str, tags: tuple[str, ...] = ()) -> None:
        hosts: dict[str, list[SeenMachine]] = {}
        for place in places:
            host, _, name = place.partition("/")
            hosts.setdefault(host, []).append(seen(host, name, tags))
        for host, machines in hosts.items():
            if host not in {each.name for each in self.catalog.hosts.list()}:
                self.catalog.hosts.add(HostRecord(HostConfig(host), START))
            self.catalog.inventory.answered(host, machines, START, START)

    def policy(self, name: str = "nightly", *, since: datetime = START, **more: Any) -> None:
        document = {
            "version": 1, "name": name, "select": {"include": [{"all": True}]}, "schedule": {"cron": "0 22 * * *"},
            "spread_s": 0, **more,
        }  # fmt: skip
        self.catalog.policies.add(StoredPolicy(name, document, 1, since, since))

    def turn(self) -> Look:
        found = self.scheduler.turn()
        assert found is not None
        return found

    def look_for(self, span: timedelta) -> None:
        """As long as that, at least every ten minutes."""
        ends = self.clock.now + span
        while self.clock.now < ends:
            self.clock.now = min(self.clock.now + 10 * MINUTE, ends)
            self.scheduler.turn()

    def queued(self) -> list[str]:
        return [run.name for run in self.catalog.queue.waiting()]

    def begun(self) -> list[str]:
        """The names of those that begin now, sorted."""
        before = len(self.executors.begun)
        self.executors.begin()
        return sorted(run.name for run in self.executors.begun[before:])


def seen(host: str, name: str, tags: tuple[str, ...] = ()) -> SeenMachine:
    return SeenMachine(host, f"u-{name}", name, MachineState.RUNNING, "", 1, 1, False, 1, (), tags, START)


@pytest.fixture
def site() -> Iterator[Site]:
    with quick_folder() as folder:
        made = Site(folder)
        with made.appliance:
            yield made


def test_five_hundred_policies_that_are_due_at_once_are_drained_within_the_limits(site: Site) -> None:
    hosts = [f"kvm-{number:02}" for number in range(25)]
    site.machines(*(f"{host}/vm-{number:02}-{host}" for host in hosts for number in range(20)))
    for host in hosts:
        for number in range(20):
            name = f"vm-{number:02}-{host}"
            per_host = 3 if host == "kvm-00" else 2
            site.policy(f"p-{name}", select={"include": [{"name": name}]}, per_host=per_host)
    assert site.turn().requests == ()
    site.clock.now = TEN
    most: Counter[str | None] = Counter()
    looks = 0
    while len(site.executors.begun) < 500 or site.executors.under_way:
        found = site.turn()
        looks += 1
        site.executors.begin(at_most=16)
        running = Counter(run.host for _, _, run in site.executors.under_way)
        waiting = Counter(run.host for run in site.catalog.queue.waiting())
        most |= running + waiting
        assert {each.why for each in found.waiting} <= {Why.HOST, Why.QUEUED, Why.RUNNING}
        assert site.executors.next_end is not None
        site.clock.now = site.executors.next_end
        site.executors.end()
    assert most == {host: 3 if host == "kvm-00" else 2 for host in hosts}
    assert Counter(run.name for run in site.executors.begun).most_common(1)[0][1] == 1
    for run in site.executors.begun:
        assert run.due == (RunDue(f"p-{run.name}", TEN, "schedule"),)
    assert site.clock.now < TEN + DAY, "the next night finds nothing undone"
    assert len({run.host for run in site.executors.begun[:16]}) == 16, "hosts take turns"
    last = site.turn()
    assert (last.requests, last.waiting) == ((), ())
    assert looks < 200


def test_what_policies_want_is_on_the_run_and_stays_through_the_queue(site: Site) -> None:
    site.machines("kvm/web")
    site.policy("a", limit_bytes_s=5000, quiesce=False)
    site.policy("b", limit_bytes_s=4000, quiesce=False, schedule={"cron": "0 21 * * *"}, window=[
        {"from": "22:00", "to": "23:00"}])  # fmt: skip
    site.clock.now = TEN + 3 * MINUTE
    site.turn()
    (run,) = site.catalog.queue.waiting()
    assert (run.limit_bytes_s, run.quiesce, run.uuid, run.host) == (4000, False, "u-web", "kvm")
    assert run.due == (RunDue("a", TEN, "schedule"), RunDue("b", TEN - HOUR, "schedule"))
    # a person asks for the same: what he says holds, and the policies' due times are answered by it
    by_hand = replace(run, id=new_id(), due=(), limit_bytes_s=None, quiesce=True, full_read=True)
    asked = site.catalog.queue.put(by_hand)
    assert (asked.id, asked.due, asked.limit_bytes_s, asked.quiesce, asked.full_read) == (
        run.id,
        run.due,
        None,
        True,
        True,
    )
    assert site.begun() == ["web"]
    assert site.executors.begun[0].due == run.due


def test_cancelled_is_cancelled_and_the_next_due_time_counts_again(site: Site) -> None:
    site.machines("kvm/web", "kvm/db")
    site.policy(schedule={"cron": "0 * * * *"})
    site.clock.now = TEN
    site.turn()
    waits = {run.name: run for run in site.catalog.queue.waiting()}
    site.clock.now = TEN + HOUR + 10 * MINUTE  # the next due time comes while they wait
    service = QueueService(site.appliance)
    service.cancel(waits["web"].id)
    assert (site.turn().requests, site.queued()) == ((), ["db"])
    site.clock.now = TEN + 2 * HOUR
    site.turn()
    assert site.queued() == ["db", "web"]
    assert service.run(site.catalog.queue.waiting()[1].id).run.due[0].cause == "schedule"


def test_who_is_paused_recovered_busy_or_another_s_gets_no_run(site: Site) -> None:
    shared = HostConfig("theirs", Transport.SSH, "kvm9.example")  # another appliance has had it for longer
    Catalog(site.catalog.database, "f" * 32).hosts.add(HostRecord(shared, START - DAY))
    site.catalog.hosts.add(HostRecord(shared, START))
    site.machines("kvm/web", "kvm/paused", "kvm/recovered", "kvm/begun-at-once", "kvm/by-name", "theirs/db", "gone/old")
    site.policy(per_host=10)
    site.catalog.policies.pause_machine(MachinePause("vm:u-paused", "paused", START))
    site.catalog.recoveries.add(RecoveryRecord(
        new_id(), RecoveryState.RUNNING, "1" * 32, "m", "web", "kvm", "recovered", "u-recovered", "none", START, START,
        appliance=site.catalog.me,
    ))  # fmt: skip
    running = RunRecord(new_id(), "begun-at-once", "vm", "u-begun-at-once", "kvm", RunState.RUNNING, START)
    site.catalog.runs.save(running)
    by_name = RunRecord(new_id(), "by-name", "vm", None, "kvm", RunState.QUEUED, START, asked_utc=START)
    site.catalog.queue.put(by_name)
    site.catalog.hosts.remove("gone")
    site.clock.now = TEN
    found = site.turn()
    assert [each.machine.name for each in found.requests] == ["web"]
    assert {each.machine.name: each.why for each in found.waiting} == {
        "paused": Why.PAUSED, "begun-at-once": Why.RUNNING, "by-name": Why.QUEUED,
    }  # fmt: skip


def test_images_are_found_where_their_last_run_was(site: Site) -> None:
    site.policy("images", select={"include": [{"image": "*"}]})
    known = Machine(Kind.IMAGE, "firewall", "firewall")
    site.catalog.runs.save(image_run(known, START - DAY))
    site.catalog.runs.save(replace(image_run(known, START), image_path="/srv/moved.raw"))
    site.catalog.runs.save(replace(image_run(known, START + HOUR), image_path=None))  # of a program of before
    site.catalog.runs.save(replace(image_run(Machine(Kind.IMAGE, "theirs", "theirs"), START), appliance="f" * 32))
    unknown = replace(image_run(Machine(Kind.IMAGE, "unknown", "unknown"), START), image_path=None, image_format=None)
    site.catalog.runs.save(unknown)
    site.clock.now = TEN
    site.turn()
    assert [(run.name, run.image_path, run.image_format) for run in site.catalog.queue.waiting()] == [
        ("firewall", "/srv/moved.raw", "raw")
    ]


def test_a_change_is_looked_at_and_nothing_else_costs_a_look(site: Site) -> None:
    site.machines("kvm/web")
    site.policy()
    assert site.turn().next_utc == START + 15 * MINUTE
    for _ in range(3):
        site.clock.now += MINUTE
        assert site.scheduler.turn() is None
    site.policy("now", schedule={"cron": "1 12 * * *"})
    assert [each.machine.name for each in site.turn().requests] == ["web"]
    assert site.scheduler.turn() is not None, "what was asked for is looked at once more"
    assert site.scheduler.turn() is None
    assert site.begun() == ["web"]
    assert site.turn().requests == ()
    site.catalog.policies.pause_machine(MachinePause("vm:u-web", "web", START))
    site.turn()
    site.clock.now += 20 * MINUTE
    site.executors.end()
    assert site.turn().requests == ()
    assert site.scheduler.turn() is None


def test_a_clock_that_is_set_is_noticed_and_hurts_nobody(site: Site) -> None:
    site.machines("kvm/web", "kvm/db")
    site.policy(spread_s=3600)
    site.turn()
    site.clock.now = TEN + 400 * DAY  # ahead
    assert site.turn().requests == (), "machines begin one after another from when it came to look"
    site.look_for(HOUR)
    assert site.begun() == ["db", "web"]
    site.clock.now += 20 * MINUTE
    site.executors.end()
    site.clock.now = TEN - MINUTE  # right again
    assert site.turn().requests == ()
    assert site.scheduler.turn() is None
    site.look_for(HOUR + MINUTE)
    assert site.begun() == ["db", "web"], "what was recorded in between holds nothing back"


def test_a_restart_is_no_gap_and_an_outage_is_one(site: Site) -> None:
    site.machines("kvm/web")
    site.policy(spread_s=3600)
    site.turn()
    site.clock.now = TEN - MINUTE
    site.turn()
    for _ in range(5):  # it restarts again and again, and the turn in the spread comes all the same
        site.clock.now += 2 * MINUTE
        site.scheduler = Scheduler(site.appliance)
        site.turn()
    mark = site.catalog.scheduling.mark()
    assert mark is not None
    assert mark.since_utc == TEN - MINUTE
    site.clock.now = TEN + 30 * HOUR
    site.scheduler = Scheduler(site.appliance)
    assert site.turn().requests == ()
    mark = site.catalog.scheduling.mark()
    assert mark is not None
    assert mark.since_utc == TEN + 30 * HOUR
    site.look_for(HOUR)
    (run,) = site.catalog.queue.waiting()
    assert run.due == (RunDue("nightly", TEN + DAY, "catch-up"),)


def test_a_catalog_that_is_away_is_told_once_and_nothing_is_missed(
    site: Site, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    site.machines("kvm/web", "kvm/db")
    site.policy(per_host=5)
    site.turn()
    site.clock.now = TEN
    put = site.catalog.queue.put
    failures: list[RunRecord] = []

    def away(run: RunRecord, key: None = None) -> RunRecord:
        if run.name == "web" and not failures:
            failures.append(run)
            raise CatalogError("the catalog is away")
        return put(run)

    monkeypatch.setattr(site.catalog.queue, "put", away)
    with pytest.raises(CatalogError):
        site.turn()
    assert len(failures) == 1
    assert len(site.queued()) < 2
    site.turn()
    assert sorted(site.queued()) == ["db", "web"], "what was queued is not queued twice"

    stop = _Turns(4)
    turns = iter([CatalogError("gone"), CatalogError("gone"), None, CatalogError("gone")])

    def turn() -> None:
        if (error := next(turns)) is not None:
            raise error
        site.scheduler._tell(set())

    monkeypatch.setattr(site.scheduler, "turn", turn)
    with caplog.at_level(logging.WARNING):
        site.scheduler.run(stop)  # type: ignore[arg-type]
    assert [record.message for record in caplog.records] == ["policies: gone"] * 2


class _Turns:
    """A stop that comes after so many turns."""

    def __init__(self, count: int) -> None:
        self._left = count

    def is_set(self) -> bool:
        return self._left == 0

    def wait(self, seconds: float) -> bool:
        self._left -= 1
        return self.is_set()


def test_how_things_stand_is_told_to_whoever_asks(site: Site) -> None:
    site.machines("kvm/web", "kvm/db")
    site.policy(rpo_minutes=60, per_host=1)
    site.catalog.policies.add(StoredPolicy("broken", {"version": 7}, 1, START, START))
    site.clock.now = TEN + MINUTE
    service = SchedulingService(site.appliance)
    standing = service.standing()
    assert (standing.selected, standing.alive, standing.unserved, standing.looked_utc) == (2, False, True, None)
    assert len(standing.look.requests) == 1
    assert [each.why for each in standing.look.waiting] == [Why.HOST]
    assert sorted(each.machine.name for each in standing.missed) == ["db", "web"]
    assert site.queued() == [], "asking changes nothing"
    assert "policy broken cannot be used" in standing.problems[0]
    point = machine_record(RunRecord(new_id(), "web", "vm", "u-web", "kvm", RunState.SUCCEEDED, TEN), None)
    site.catalog.points.replace([replace(point, last_point="1" * 32, last_point_utc=TEN)], [])
    with site.appliance.own("scheduler", "a test"):
        standing = service.standing()
    assert ([each.machine.name for each in standing.missed], standing.unserved) == (["db"], False)
