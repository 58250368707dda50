"""Debts are settled guests first, and nothing that fails keeps the rest from being tried."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from appliance.bootstrap import Appliance
from appliance.catalog.errors import CatalogError
from appliance.hypervisor.errors import HostUnreachable
from appliance.hypervisor.protocol import HostConfig, Hypervisor, ThawOutcome, ThawResult
from appliance.models import CleanupAction, CleanupRecord, HostRecord, RunRecord, RunState, new_id
from appliance.services import spawning
from appliance.services.upkeep import UpkeepService
from appliance.settings import load

NOW = datetime(2026, 11, 23, 14, 0, tzinfo=UTC)


@dataclass
class Host:
    """A hypervisor of which only what debts need is there. `done` says what was asked, in that order."""

    done: list[str] = field(default_factory=list)
    before_thaw: Callable[[str], None] = lambda _: None
    before_end: Callable[[], None] = lambda: None

    def connect(self, config: HostConfig) -> Hypervisor:
        if config.name == "away":
            raise HostUnreachable("away", "no route to it")
        return cast(Hypervisor, self)

    def __enter__(self) -> Host:
        return self

    def __exit__(self, *_: object) -> None: ...

    @property
    def agents(self) -> Any:
        def thaw(machine: str, timeout_s: int) -> ThawResult:
            self.done.append(f"thaw {machine}")
            self.before_thaw(machine)
            return ThawResult(ThawOutcome.THAWED, "")

        return SimpleNamespace(thaw=thaw)

    @property
    def backups(self) -> Any:
        def end(machine: str, socket: str, scratches: object) -> bool:
            self.done.append(f"end {socket}")
            self.before_end()
            return False

        return SimpleNamespace(end=end)


@pytest.fixture
def host() -> Host:
    return Host()


@pytest.fixture
def appliance(tmp_path: Path, host: Host) -> Iterator[Appliance]:
    """Its repository cannot be opened: there is none."""
    settings = load({"STRONGROOM_HOME": str(tmp_path), "STRONGROOM_AGENT_THAW_RETRY_S": "0.1"})
    with Appliance(settings, connector=host.connect) as made:
        for name in ("here", "away"):
            made.catalog.hosts.add(HostRecord(HostConfig(name), NOW))
        yield made


def owe_job(appliance: Appliance, name: str, owner: str = "run-dead", host: str = "here") -> CleanupRecord:
    record = CleanupRecord(new_id(), owner, CleanupAction.END_BACKUP_JOB, NOW, host, "u", "web", name, (f"/{name}",))
    appliance.catalog.cleanups.add(record)
    return record


def test_guests_first_whatever_else_is_away(appliance: Appliance, host: Host) -> None:
    catalog = appliance.catalog
    catalog.runs.save(RunRecord(new_id(), "web", "vm", "u", "here", RunState.RUNNING, NOW))
    owe_job(appliance, "job")
    owe_job(appliance, "unreachable", host="away")
    catalog.thaws.owe("unreachable", "away", "db", NOW)
    catalog.thaws.owe("u", "here", "web", NOW)
    problems = UpkeepService(appliance).once()
    assert host.done == ["thaw u", "end /job"]
    assert [debt.name for debt in catalog.thaws.list()] == ["db"]
    assert [record.subject for record in catalog.cleanups.list()] == ["unreachable"]
    thaw, job, run = problems
    assert "thaw of db" in thaw
    assert "end backup job unreachable" in job
    assert "how the run of web ended" in run
    assert "no repository yet" in run


@pytest.mark.parametrize("error", [OSError("no room"), CatalogError("it is locked"), HostUnreachable("here", "gone")])
def test_one_that_fails_does_not_keep_the_others(appliance: Appliance, host: Host, error: Exception) -> None:
    def fails(machine: str) -> None:
        if machine == "first":
            raise error

    host.before_thaw = fails
    for machine in ("first", "second"):
        appliance.catalog.thaws.owe(machine, "here", machine, NOW)
    owe_job(appliance, "job")
    (problem,) = UpkeepService(appliance).once()
    assert "thaw of first" in problem
    assert host.done == ["thaw first", "thaw second", "end /job"]


def test_rounds_go_on_until_no_guest_is_hurt_and_each_problem_is_told_once(appliance: Appliance, host: Host) -> None:
    def fails_twice(_: str) -> None:
        if host.done.count("thaw u") < 3:
            raise CatalogError("it is locked")

    host.before_thaw = fails_twice
    appliance.catalog.thaws.owe("u", "here", "web", NOW)
    told: list[str] = []
    assert UpkeepService(appliance).until_paid(threading.Event(), told.append) == ()
    assert host.done == ["thaw u"] * 3
    assert told == ["thaw of web: it is locked"]


@pytest.mark.parametrize("debt", ["thaw", "job", "nothing", "the job of a living run"])
def test_who_loses_patience_hands_over(appliance: Appliance, monkeypatch: pytest.MonkeyPatch, debt: str) -> None:
    handed: list[Appliance] = []
    monkeypatch.setattr(spawning, "ensure_supervisor", handed.append)
    if debt == "thaw":
        appliance.catalog.thaws.owe("u", "away", "web", NOW)
    elif debt == "job":
        owe_job(appliance, "job", host="away")
    with appliance.own("run-living", "a run"):
        if debt == "the job of a living run":
            owe_job(appliance, "job", owner="run-living")
        UpkeepService(appliance).until_paid(threading.Event(), lambda _: None, patience_s=0)
    assert handed == ([appliance] if debt in ("thaw", "job") else [])


def test_two_that_settle_do_nothing_twice(appliance: Appliance, host: Host) -> None:
    """A second one that were late could end the job of a run that began since."""
    record = owe_job(appliance, "job")
    second_came = threading.Event()

    def first_waits() -> None:
        if len(host.done) > 1:
            second_came.set()
        elif not second.is_alive():
            second.start()
            second_came.wait(1)

    host.before_end = first_waits
    second = threading.Thread(target=lambda: UpkeepService(appliance).once())
    UpkeepService(appliance).once()
    second.join(120)
    assert not second.is_alive()
    assert host.done == ["end /job"]
    assert record not in appliance.catalog.cleanups.list()
    assert not list(appliance.settings.run_directory.glob("settling-*"))


def test_what_concerns_this_machine_alone_asks_no_host(appliance: Appliance, host: Host) -> None:
    owe_job(appliance, "job")
    appliance.catalog.thaws.owe("u", "here", "web", NOW)
    assert UpkeepService(appliance).here() == ()
    assert host.done == []
