"""The simulated month of tests/unit/test_simulated_month.py, with the scheduler, the catalog and the queue themselves:
fifty machines and two images, an outage of two days, and what must come of it from the same tables.

Stood in for are the processes that execute runs alone (tests/integration/standing_in.py). What is kept is decided by
the rules that prune, of points as the catalog has them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from datetime import datetime

import pytest

from appliance.bootstrap import Appliance
from appliance.hypervisor.protocol import HostConfig, MachineState
from appliance.inventory import SeenMachine
from appliance.models import HostRecord, RunRecord, RunState
from appliance.policy.keeping import keep
from appliance.policy.retention import Candidate
from appliance.policy.selectors import Machine
from appliance.policy.stored import StoredPolicy
from appliance.services import repositories
from appliance.services.cleaning import CleaningService
from appliance.services.scheduling import Scheduler
from appliance.settings import load
from tests.integration.standing_in import Executors, SetClock, image_run, quick_folder, series_of
from tests.unit.test_simulated_month import (
    DOWN,
    END,
    LANES,
    MACHINES,
    MINUTE,
    POLICIES,
    START,
    UP,
    Begun,
    expected_of_all,
    expected_points,
    length,
    policies_of,
)

BY_KEY = {machine.key: machine for machine in MACHINES}


class Month:
    def __init__(self, appliance: Appliance, clock: SetClock) -> None:
        self.appliance, self.catalog, self.clock = appliance, appliance.catalog, clock
        self.executors = Executors(self.catalog, clock, lambda key, begins: length(BY_KEY[key], begins))
        self.most: Counter[str | None] = Counter()
        self.looks = 0

    def set_up(self) -> None:
        for host in sorted({machine.host for machine in MACHINES if machine.host is not None}):
            self.catalog.hosts.add(HostRecord(HostConfig(host), START))
            here = [_seen(machine) for machine in MACHINES if machine.host == host]
            self.catalog.inventory.answered(host, here, START, START)
        for machine in MACHINES:
            if machine.host is None:
                self.catalog.runs.save(image_run(machine, START))
        for policy in POLICIES.values():
            self.catalog.policies.add(StoredPolicy(policy.name, policy.to_json(), 1, START, START))

    def run(self) -> None:
        scheduler = Scheduler(self.appliance)
        while self.clock.now < END:
            if DOWN <= self.clock.now < UP:
                # All that ran died with it; the next start tells, by the locks that nobody holds.
                self.executors.under_way.clear()
                self.clock.now = UP
                assert CleaningService(self.appliance).tidy() == ()
                scheduler = Scheduler(self.appliance)
            for run in self.executors.end():
                self._prune(run)
            found = scheduler.turn()
            if found is not None:
                self.looks += 1
                next_utc = found.next_utc
                if found.requests:
                    self.executors.begin()
            self.most |= Counter(run.host for _, _, run in self.executors.under_way)
            moments = [next_utc, self.executors.next_end]
            self.clock.now = min(moment for moment in moments if moment is not None)

    def _prune(self, run: RunRecord) -> None:
        points = self.catalog.points.times(series_of(run.machine))
        candidates = [Candidate(each.id, each.generation, each.created_utc) for each in points]
        policies = [POLICIES[name] for name in policies_of(BY_KEY[run.machine])]
        for verdict in keep(policies, candidates):
            if not verdict.kept:
                self.catalog.points.remove(verdict.candidate.id)


def _seen(machine: Machine) -> SeenMachine:
    return SeenMachine(
        machine.host or "", machine.id, machine.name, MachineState.RUNNING, "", 1, 1, False, 1, (),
        tuple(sorted(machine.tags)), START,
    )  # fmt: skip


@pytest.fixture(scope="module")
def month() -> Iterator[Month]:
    with quick_folder() as folder:
        settings = load({
            "STRONGROOM_HOME": str(folder / "home"), "STRONGROOM_REPOSITORY_PATH": str(folder / "repository"),
            "STRONGROOM_QUEUE_ATTEMPTS": "1", "STRONGROOM_POLICIES_FOLLOW_AT": "",
        })  # fmt: skip
        repositories.init(settings, folder / "repository", "a passphrase for tests", lambda _: None)
        clock = SetClock(START)
        with Appliance(settings, clock=clock) as appliance:
            made = Month(appliance, clock)
            made.set_up()
            made.run()
            yield made


@pytest.fixture(scope="module")
def expected() -> tuple[list[Begun], dict[str, list[datetime]]]:
    return expected_of_all()


def test_the_runs_are_those_that_the_policies_say(
    month: Month, expected: tuple[list[Begun], dict[str, list[datetime]]]
) -> None:
    begun = sorted(
        Begun(
            run.started_utc,
            run.machine,
            tuple(due.policy for due in run.due),
            any(due.cause == "catch-up" for due in run.due),
        )
        for run in month.executors.begun
    )
    assert len(begun) > 1500
    ours, theirs = set(begun), set(expected[0])
    assert (sorted(ours - theirs)[:3], sorted(theirs - ours)[:3]) == ([], [])
    assert begun == expected[0]
    assert month.most == LANES, "each host was as busy as it may be, and no busier"


def test_the_points_are_those_that_the_policies_say(
    month: Month, expected: tuple[list[Begun], dict[str, list[datetime]]]
) -> None:
    kept = {machine.key: month.catalog.points.times(series_of(machine.key)) for machine in MACHINES}
    for machine in MACHINES:
        points = sorted(each.created_utc for each in kept[machine.key])
        assert points == expected_points(machine, expected[1].get(machine.key, [])), machine.name
    made = sum(run.state is RunState.SUCCEEDED for run in month.catalog.runs.list())
    assert made > 3 * sum(map(len, kept.values())), "most were pruned"


def test_what_was_down_is_told_and_caught_up_with_once(month: Month) -> None:
    died = month.catalog.runs.list(state=RunState.INTERRUPTED)
    assert {run.started_utc < DOWN for run in died} == {True}
    assert len(died) > 0
    runs = [run for run in month.executors.begun if UP <= run.started_utc < UP + 10 * MINUTE]
    assert len({run.machine for run in runs}) == len(runs) > 0
    assert not [run for run in month.executors.begun if DOWN <= run.started_utc < UP]
    mark = month.catalog.scheduling.mark()
    assert mark is not None
    assert mark.since_utc == UP


def test_what_the_policies_want_of_a_run_reaches_it(month: Month) -> None:
    limits = {
        tuple(due.policy for due in run.due): (run.limit_bytes_s, run.quiesce)
        for run in month.catalog.runs.list()
        if run.due
    }
    assert limits["berlin",] == (200_000_000, True)
    assert limits["berlin", "databases"] == (50_000_000, True)
    paths = {run.name: run.image_path for run in month.catalog.runs.list() if run.machine_kind == "image"}
    assert paths == {"firewall": "/srv/firewall.raw", "router": "/srv/router.raw"}
