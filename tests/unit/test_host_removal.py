"""A host is forgotten only when nothing is owed to it, or when an admin gives that up, knowing what it is."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path

import pytest

from appliance.bootstrap import Appliance
from appliance.models import (
    CleanupAction,
    CleanupRecord,
    HostConfig,
    HostRecord,
    RecoveryRecord,
    RecoveryState,
    new_id,
)
from appliance.services.recovery import Supervisor
from appliance.settings import load
from tests.unit.cli_runner import CommandLine

NOW = datetime(2026, 11, 23, 14, 0, tzinfo=UTC)
RECOVERY = RecoveryRecord(
    new_id(), RecoveryState.RUNNING, "a" * 32, "m", "web-1", "gone", "web-1-r", "uuid-2", "none", NOW, NOW,
    folder="/overlays/of-web-1",
)  # fmt: skip
OWNER = "run-dead"


@pytest.fixture
def strongroom(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> CommandLine:
    """With a host that does not answer, and everything that can be owed to one."""
    line = CommandLine(tmp_path, capsys)
    line.init()
    line.backup(os.urandom(4096), "web")
    with Appliance(load(line.environment)) as appliance:
        catalog = appliance.catalog
        for name in ("gone", "other"):
            catalog.hosts.add(HostRecord(HostConfig(name, socket="/nowhere", timeout_s=1), NOW))
            catalog.thaws.owe("uuid-1", name, "db-1", NOW)
        catalog.recoveries.add(RECOVERY)
        for number, action in enumerate((CleanupAction.END_BACKUP_JOB, CleanupAction.DELETE_CHECKPOINT)):
            record = CleanupRecord(new_id(), OWNER, action, NOW, "gone", "uuid-1", "db-1", f"subject-{number}", ("/s",))
            catalog.cleanups.add(record)
        (point,) = appliance.repository.points()
        appliance.repository.hold(point, "recovery", f"recovery-{RECOVERY.id}")
    return line


def test_it_is_refused_and_the_way_out_named(strongroom: CommandLine) -> None:
    done = strongroom("host", "remove", "gone", "--yes")
    assert done.code == 1
    told = done.error()
    assert all(word in told for word in ("recovery", "web-1-r", "thaw of db-1", "subject-0", "subject-1"))
    assert "strongroom host remove gone --force" in told


def test_forced_it_names_what_is_given_up_and_gives_it_up(strongroom: CommandLine) -> None:
    asked = strongroom("host", "remove", "gone", "--force")
    assert asked.code == 2, "nothing is given up unasked"
    assert all(word in asked.err for word in ("web-1-r", "thaw of db-1", "subject-0", "subject-1", "--yes"))
    done = strongroom("host", "remove", "gone", "--force", "--yes")
    assert done.code == 0, done.err
    with Appliance(load(strongroom.environment)) as appliance:
        assert [host.name for host in appliance.catalog.hosts.list()] == ["other"]
        assert appliance.repository.holds() == []
        assert appliance.catalog.cleanups.list() == ()
        assert [debt.host for debt in appliance.catalog.thaws.list()] == ["other"], "of another host nothing is dropped"
        (recovery,) = appliance.catalog.recoveries.list()
        assert recovery.state is RecoveryState.DISCARDED
        assert RECOVERY.folder in (recovery.error or "")
    assert "/overlays/of-web-1" in strongroom("recovery", "list").out
    (left,) = strongroom("status", "--json").json()["owed_thaws"]
    assert left["host"] == "other"


def test_not_while_a_command_is_at_work_on_it(strongroom: CommandLine) -> None:
    with Appliance(load(strongroom.environment)) as appliance, appliance.own(OWNER, "a run"):
        done = strongroom("host", "remove", "gone", "--force", "--yes")
        assert done.code == 1
        assert OWNER in done.error()
        assert len(appliance.catalog.cleanups.list()) == 2
        assert appliance.catalog.recoveries.get(RECOVERY.id).state is RecoveryState.RUNNING


def test_a_host_that_does_not_answer_is_told_in_the_list(strongroom: CommandLine) -> None:
    assert "does not answer" not in strongroom("recovery", "list").out
    refused = strongroom("recovery", "discard", RECOVERY.id, "--yes")
    assert refused.code == 1
    assert "strongroom host remove gone --force" in refused.error()
    assert "host gone does not answer" in strongroom("recovery", "list").out
    assert strongroom("recovery", "list", "--json").json()[0]["state"] == "running"


def test_the_supervisor_tells_it_too(strongroom: CommandLine) -> None:
    with Appliance(load(strongroom.environment)) as appliance:
        Supervisor(appliance, for_ever=False).look()
    assert "host gone does not answer" in strongroom("recovery", "list").out
    assert any("host gone does not answer" in line for line in strongroom("status").err.splitlines())
