"""What follows by policy, as runs of the queue in a real repository: pruning by the joined rules, and copies."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from appliance.bootstrap import Appliance
from appliance.catalog import Catalog
from appliance.models import RunArguments, RunKind, RunState
from appliance.policy.policies import read_policy
from appliance.policy.stored import StoredPolicy
from appliance.services.guard import GuardService
from appliance.services.maintenance import MaintenanceService
from appliance.services.points import PointService
from appliance.services.policies import PolicyService
from appliance.services.policies.service import PolicyUnreadable
from appliance.services.queue.executing import Executor
from appliance.services.queue.service import QueueService
from appliance.services.scheduling import Scheduler
from appliance.settings import load
from tests.faults.repositories import back_up, content
from tests.unit.cli_runner import CommandLine
from tests.unit.records import NOW

PAGE = 4096


@pytest.fixture
def line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> CommandLine:
    made = CommandLine(tmp_path, capsys)
    made.init()
    return made


@pytest.fixture
def appliance(line: CommandLine) -> Iterator[Appliance]:
    with Appliance(load(line.environment | {"STRONGROOM_POLICIES_COPIES": f"vault={line.folder}/vault/home"})) as made:
        yield made


def back_up_days(appliance: Appliance, name: str, days: int) -> list[str]:
    """One a day, the last one yesterday."""
    first = datetime.now(UTC) - timedelta(days=days)
    made = [
        back_up(appliance.repository, name, {"disk": content(day, PAGE)}, first + timedelta(days=day)).id
        for day in range(days)
    ]
    PointService(appliance).refresh()
    return made


def add(appliance: Appliance, name: str, select: dict[str, Any], **more: Any) -> None:
    document = {"version": 1, "name": name, "select": select, "schedule": {"cron": "0 22 * * *"}, **more}
    PolicyService(appliance).add(read_policy(document))


def execute(appliance: Appliance, id: str) -> RunState | None:
    return Executor(appliance, lambda: None).execute(id)


def kept(appliance: Appliance) -> set[str]:
    return {point.id for point in appliance.repository.points()}


def test_what_no_policy_keeps_goes_and_all_else_stays(appliance: Appliance) -> None:
    web, db, left = (back_up_days(appliance, name, 5) for name in ("web", "db", "left"))
    PointService(appliance).protect(db[0])
    add(appliance, "all", {"include": [{"image": "*b"}]}, retention={"last": 2})
    add(appliance, "web", {"include": [{"image": "web"}]}, retention={"last": 3})
    PolicyService(appliance).pause("web")  # it begins nothing, and keeps what it keeps
    run = QueueService(appliance).ask_prune().run
    assert (run.kind, run.machine) == (RunKind.PRUNE, "prune:repository:repository")
    assert execute(appliance, run.id) is RunState.SUCCEEDED
    assert kept(appliance) == {*web[2:], db[0], *db[3:], *left}
    assert appliance.catalog.runs.get(run.id).result == "4 restore points of 2 machines are deleted"
    assert execute(appliance, QueueService(appliance).ask_prune().run.id) is RunState.SUCCEEDED
    assert len(kept(appliance)) == 11
    (entry,) = (each for each in appliance.catalog.audit.entries() if each.act == "point.prune")
    assert (entry.actor_kind, entry.details["run"], entry.result.value) == ("system", run.id, "ok")
    points = entry.details["points"]
    assert isinstance(points, list)
    assert sorted(points) == sorted([*web[:2], *db[1:3]])


def test_with_a_policy_that_cannot_be_read_nothing_goes(appliance: Appliance) -> None:
    made = back_up_days(appliance, "web", 4)
    add(appliance, "web", {"include": [{"image": "*"}]}, retention={"last": 1})
    appliance.catalog.policies.add(StoredPolicy("broken", {"version": 9}, 1, NOW, NOW))
    run = QueueService(appliance).ask_prune().run
    with pytest.raises(PolicyUnreadable, match="policy broken cannot be used"):
        execute(appliance, run.id)
    failed = appliance.catalog.runs.get(run.id)
    assert (failed.state, "broken" in (failed.error or "")) == (RunState.FAILED, True)
    assert kept(appliance) == set(made)


@pytest.mark.parametrize("append_only", [False, True])
def test_what_is_guarded_stays_whatever_policies_say(
    appliance: Appliance, line: CommandLine, append_only: bool
) -> None:
    made = back_up_days(appliance, "web", 8)
    persons = [] if append_only else ["alice", "bob"]
    for name in persons:
        words = {"STRONGROOM_NEW_PASSPHRASE": f"only {name} knows"}
        assert line("repository", "guard", "enrol", name, **words).code == 0
    options = ["--append-only"] if append_only else [*persons, "--delay", "0h"]
    assert line("repository", "guard", "on", *options, "--keep-days", "3", "--keep-points", "2", "--yes").code == 0
    add(appliance, "web", {"include": [{"image": "*"}]}, retention={"last": 1})
    run = QueueService(appliance).ask_prune().run
    assert execute(appliance, run.id) is RunState.SUCCEEDED
    assert kept(appliance) == set(made[5:])
    assert appliance.catalog.runs.get(run.id).result == (
        "5 restore points of 1 machines are deleted; 2 more stay, as the repository's guard keeps them"
    )
    assert GuardService(appliance).requests() == ((), ()), "nobody is asked by a machine"


def test_points_whose_times_are_doubtful_stay_and_that_is_told(appliance: Appliance) -> None:
    made = back_up_days(appliance, "web", 3)
    ahead = back_up(appliance.repository, "web", {"disk": content(9, PAGE)}, datetime.now(UTC) + timedelta(days=90))
    PointService(appliance).refresh()
    add(appliance, "web", {"include": [{"image": "*"}]}, retention={"last": 1})
    run = QueueService(appliance).ask_prune().run
    assert execute(appliance, run.id) is RunState.PARTIAL
    assert kept(appliance) == {*made, ahead.id}
    assert "no restore point of web is pruned" in appliance.catalog.runs.get(run.id).notes[0]


def test_the_scheduler_asks_for_all_of_it_once_a_day(
    appliance: Appliance, line: CommandLine, capsys: pytest.CaptureFixture[str]
) -> None:
    vault = CommandLine.new(line.folder / "vault", capsys)
    line.backup(content(1, PAGE), "web")
    line.backup(content(2, PAGE), "other")
    select = {"include": [{"image": "web"}]}
    add(appliance, "web", select, retention={"last": 1}, verify_every_days=7, copies=["vault", "nowhere"])
    assert Scheduler(appliance).turn() is not None
    assert appliance.catalog.queue.waiting() == (), "it was made just now"
    made = appliance.catalog.policies.get("web")
    with appliance.catalog.database.write() as connection:
        connection.exec_driver_sql("UPDATE policies SET since_utc = ?", ("2026-01-01 00:00:00.000000",))
        connection.exec_driver_sql("UPDATE runs SET started_utc = ?", (f"{made.since_utc:%Y-%m-%d %H:%M:%S.%f}",))
    scheduler = Scheduler(appliance)
    scheduler.turn()
    waiting = [run for run in appliance.catalog.queue.waiting() if run.kind is not RunKind.BACKUP]
    assert [run.kind.value for run in waiting] == ["prune", "collect", "verify", "copy"]
    assert {tuple(due.policy for due in run.due) for run in waiting} == {("web",)}
    assert waiting[2].arguments == RunArguments(read_data=True, every_days=7)
    assert [execute(appliance, run.id) for run in waiting] == [RunState.SUCCEEDED] * 4
    copied = vault("point", "list", "--json").json()
    assert [each["name"] for each in copied] == ["web"]
    scheduler.turn()
    assert [run for run in appliance.catalog.queue.waiting() if run.kind is not RunKind.BACKUP] == []
    told = line("policy", "due")
    assert "no repository of that name is set in policies.copies" in told.err


def test_of_several_appliances_one_asks_for_what_concerns_the_whole_repository(appliance: Appliance) -> None:
    long_ago = datetime(2026, 1, 1, tzinfo=UTC)
    document = {
        "version": 1, "name": "all", "select": {"include": [{"all": True}]}, "schedule": {"cron": "0 22 * * *"},
        "retention": {"last": 1},
    }  # fmt: skip
    appliance.attach()
    appliance.catalog.policies.add(StoredPolicy("all", document, 1, long_ago, long_ago))
    now = datetime.now(UTC)
    other = Catalog(appliance.catalog.database, "0" * 32)
    other.scheduling.keep_mark(now, now)
    Scheduler(appliance).turn()
    assert appliance.catalog.queue.waiting() == ()
    other.scheduling.keep_mark(now, now - timedelta(minutes=21))  # it is away
    Scheduler(appliance).turn()
    assert [run.kind.value for run in appliance.catalog.queue.waiting()] == ["prune", "collect"]


def test_a_point_that_somebody_deletes_meanwhile_is_no_failure(appliance: Appliance) -> None:
    made = back_up_days(appliance, "web", 4)
    add(appliance, "web", {"include": [{"image": "*"}]}, retention={"last": 1})
    service = MaintenanceService(appliance)
    plan = service.plan_policies()
    PointService(appliance).delete(made[1])
    assert service.prune(plan) == ()
    assert kept(appliance) == {made[3]}


def test_homes_of_copies_are_checked_when_they_are_read(line: CommandLine) -> None:
    for wrong, says in (
        ("vault=relative", "begins with /"), ("a b=/x", "must be a path"), ("v=/x v=/y", "more than once"),
        ("=/x", "no name of a repository"),
    ):  # fmt: skip
        assert says in line("status", STRONGROOM_POLICIES_COPIES=wrong).error()
    assert line("status", STRONGROOM_POLICIES_FOLLOW_AT="25:00").code != 0
    (line.home / "strongroom.toml").write_text('[policies]\nfollow_at = ""\n[policies.copies]\nvault = "/srv/v"\n')
    assert load(line.environment).policies.copies == (("vault", Path("/srv/v")),)
