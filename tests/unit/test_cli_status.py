"""Status tells every debt, and says by its exit code that there is one."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from appliance.bootstrap import Appliance
from appliance.models import (
    CleanupAction,
    CleanupRecord,
    ExportKind,
    ExportRecord,
    HostConfig,
    HostRecord,
    RecoveryRecord,
    RecoveryState,
    RunRecord,
    RunState,
    new_id,
)
from appliance.settings import load
from tests.unit.cli_runner import PROJECT, CommandLine

NOW = datetime(2026, 11, 23, 14, 0, tzinfo=UTC)
RUN = RunRecord(new_id(), "web-1", "vm", "uuid-1", "here", RunState.RUNNING, NOW)
RECOVERY = RecoveryRecord(
    new_id(), RecoveryState.RUNNING, "a" * 32, "m", "web-1", "here", "web-1-r", "uuid-2", "none", NOW, NOW,
    error="its export died",
)  # fmt: skip


@pytest.fixture
def strongroom(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> CommandLine:
    line = CommandLine(tmp_path, capsys)
    line.init()
    return line


def dead_run(appliance: Appliance) -> None:
    appliance.catalog.runs.save(RUN)


def owed_thaw(appliance: Appliance) -> None:
    appliance.catalog.thaws.owe("uuid-1", "here", "web-1", NOW)


def cleanup(appliance: Appliance) -> None:
    record = CleanupRecord(new_id(), "run-x", CleanupAction.DELETE_CHECKPOINT, NOW, "here", "uuid-1", "web-1", "cp-1")
    appliance.catalog.cleanups.add(record)


def troubled_recovery(appliance: Appliance) -> None:
    appliance.catalog.recoveries.add(RECOVERY)


def dead_export(appliance: Appliance) -> None:
    record = ExportRecord(new_id(), ExportKind.EXPORT, "a" * 32, "m", "web-1", ("vda",), NOW, address="nbd+unix://x")
    appliance.catalog.exports.save(record)


def half_restored(appliance: Appliance) -> None:
    folder = appliance.settings.machines_directory
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "here-uuid-1.before-restore.xml").write_text("<domain/>")


@pytest.mark.parametrize(
    ("debt", "key", "says"),
    [
        (half_restored, "problems", "here-uuid-1.before-restore.xml"),
        (dead_run, "runs", "web-1 died"),
        (owed_thaw, "owed_thaws", "thaw of web-1"),
        (cleanup, "cleanups", "delete checkpoint cp-1 of web-1"),
        (troubled_recovery, "recoveries", "its export died"),
        (dead_export, "exports", "no longer served"),
    ],
)
def test_every_debt_is_told(strongroom: CommandLine, debt: Callable[[Appliance], None], key: str, says: str) -> None:
    assert strongroom("status").code == 0
    with Appliance(load(strongroom.environment)) as appliance:
        debt(appliance)
    for arguments in (("status",), ("status", "--json")):
        done = strongroom(*arguments)
        assert done.code == 3
        assert says in done.err
    assert len(done.json()[key]) == 1


def test_what_a_living_process_does_is_no_debt(strongroom: CommandLine) -> None:
    with Appliance(load(strongroom.environment)) as appliance:
        dead_run(appliance)
        record = CleanupRecord(new_id(), f"run-{RUN.id}", CleanupAction.REMOVE_FILES, NOW, paths=("/x",))
        appliance.catalog.cleanups.add(record)
        with appliance.own(f"run-{RUN.id}", "the run"):
            alive = strongroom("status", "--json")
            assert alive.code == 0, alive.err
            assert alive.json()["runs"][0]["alive"] is True
            assert alive.json()["cleanups"] == []
        dead = strongroom("status", "--json")
        assert dead.code == 3
        assert dead.json()["runs"][0]["alive"] is False
        assert len(dead.json()["cleanups"]) == 1


def test_a_killed_process_owns_nothing_any_more(strongroom: CommandLine) -> None:
    code = (
        "import sys\nfrom appliance.bootstrap import Appliance\n"
        "with Appliance.from_environment() as a, a.own('run-killed', 'it'):\n"
        " print('owned', flush=True); sys.stdin.read()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=PROJECT,
        env=strongroom.environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stdin is not None
    with process.stdin, process.stdout, Appliance(load(strongroom.environment)) as appliance:
        assert process.stdout.readline() == b"owned\n"
        assert appliance.alive("run-killed")
        process.kill()
        process.wait(120)
        assert not appliance.alive("run-killed")


def repeat_run(appliance: Appliance, name: str, count: int) -> None:
    """So many more runs like that one, of other machines, in one transaction: to save each is to wait for a disk."""
    with contextlib.closing(sqlite3.connect(appliance.settings.catalog_file)) as catalog, catalog:
        columns = [row[1] for row in catalog.execute("pragma table_info(runs)")]
        made = {"id": "printf('%032x', number)", "name": "name || '-' || number", "uuid": "uuid || '-' || number"}
        catalog.execute(
            f"with recursive numbers(number) as (select 1 union all select number + 1 from numbers where number < ?)"
            f" insert into runs ({', '.join(columns)})"
            f" select {', '.join(made.get(column, column) for column in columns)} from runs, numbers where name = ?",
            (count, name),
        )


@pytest.mark.parametrize("state", [RunState.FAILED, RunState.INTERRUPTED])
def test_a_last_run_that_made_no_point_is_told_until_the_next_one_does(
    strongroom: CommandLine, state: RunState
) -> None:
    last = replace(RUN, state=state, ended_utc=NOW, error="it went wrong")
    with Appliance(load(strongroom.environment)) as appliance:
        runs = appliance.catalog.runs
        runs.save(last)
        runs.save(replace(RUN, id=new_id(), name="vm", uuid="u", state=RunState.SUCCEEDED,
                          started_utc=NOW + timedelta(seconds=1)))  # fmt: skip
        repeat_run(appliance, "vm", 1000)  # of others, since
        assert len(runs.list()) == 1002
        done = strongroom("status")
        assert done.code == 3
        assert "the last backup of web-1" in done.err
        assert "it went wrong" in done.err
        assert "--dismiss NAME" in done.err
        runs.save(replace(RUN, id=new_id(), state=RunState.SUCCEEDED, started_utc=NOW + timedelta(hours=1)))
        assert strongroom("status").code == 0


def test_a_failed_run_of_what_is_gone_can_be_dismissed(strongroom: CommandLine) -> None:
    def fail() -> None:
        with Appliance(load(strongroom.environment)) as appliance:
            now = appliance.clock.now_utc()
            failed = RunRecord(new_id(), "gone", "image", None, None, RunState.FAILED, now, now, error="no such file")
            appliance.catalog.runs.save(failed)

    fail()
    assert strongroom("status").code == 3
    assert "nobody" in strongroom("status", "--dismiss", "nobody").error()
    dismissed = strongroom("status", "--dismiss", "gone", "--json")
    assert dismissed.code == 0
    assert dismissed.json()[0]["dismissed_utc"] is not None
    after = strongroom("status", "--json")
    assert after.code == 0
    assert after.json()["last_runs"][0]["state"] == "failed", "what happened stays known"
    assert strongroom("status", "--dismiss", "image:gone").code == 1, "there is nothing left to dismiss"
    fail()
    assert strongroom("status").code == 3, "the next one that fails is told again"
    assert strongroom("status", "--dismiss", "image:gone").code == 0


def test_a_start_that_a_living_run_refuses_is_no_failed_run(strongroom: CommandLine) -> None:
    point = strongroom.backup(os.urandom(4096), "web")
    with Appliance(load(strongroom.environment)) as appliance:
        repository = appliance.repository
        with repository.begin_run(repository.series_of("image", "web")):
            image = str(strongroom.folder / "image.raw")
            refused = strongroom("backup", "--image", image, "--format", "raw", "--name", "web")
        assert refused.code == 1
        assert "being backed up already" in refused.error()
        (run,) = appliance.catalog.runs.list()
        assert run.point == point["id"]
    assert strongroom("status").code == 0


def test_a_damaged_configuration_is_told_although_its_copy_serves(strongroom: CommandLine) -> None:
    assert strongroom("status").code == 0
    config = strongroom.repository / "config"
    data = bytearray(config.read_bytes())
    data[-1] ^= 1
    config.chmod(0o600)
    config.write_bytes(data)
    done = strongroom("status")
    assert done.code == 3
    assert "warning: the repository: config" in done.err


def test_only_what_is_there_is_asked_for(strongroom: CommandLine) -> None:
    """Status opens no connection to a host: with one that never answers it is as quick as without."""
    strongroom.backup(os.urandom(4096), "web")
    with Appliance(load(strongroom.environment)) as appliance:
        appliance.catalog.hosts.add(HostRecord(HostConfig("dead", socket="/nowhere"), NOW))
    done = strongroom("status", "--json")
    assert done.code == 0
    assert done.json()["hosts"] == ["dead"]
