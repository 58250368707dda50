"""Two appliances, each with its home and key, with one catalog in PostgreSQL and one repository."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from appliance import home
from appliance.bootstrap import Appliance
from appliance.hypervisor.protocol import HostConfig
from appliance.models import (
    CleanupAction,
    CleanupRecord,
    HostRecord,
    RecoveryDisk,
    RecoveryRecord,
    RecoveryState,
    RunRecord,
    RunState,
    new_id,
)
from appliance.services import repositories
from appliance.services.backup import BackupService
from appliance.services.cleaning import CleaningService
from appliance.services.points import PointService
from appliance.services.recovery import Supervisor
from appliance.settings import load
from imaging.errors import SeriesBusy
from imaging.reader import DiskReader
from imaging.repository import Repository
from imaging.slots import MachineKey, Passphrase
from imaging.storage.local import LocalStore
from tests.faults.repositories import ManualClock
from tests.lab.postgres_server import running
from tests.unit.cli_runner import PASSPHRASE, PROJECT, CommandLine

pytestmark = pytest.mark.faults
NOW = datetime(2026, 11, 23, 14, 0, tzinfo=UTC)
DEAD_AFTER_S = 15 * 60


@pytest.fixture(scope="module")
def founded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository, and two homes that have taken it on: copied for each test, as keys take a second to make."""
    folder = tmp_path_factory.mktemp("fleet")
    first, second = (load({"STRONGROOM_HOME": str(folder / name)}) for name in "ab")
    repositories.init(first, folder / "repository", PASSPHRASE, lambda _: None)
    repositories.adopt(second, folder / "repository", Passphrase(PASSPHRASE))
    for home_folder in (first.home, second.home):
        for left in (home_folder / "appliance.id", *home_folder.glob("catalog.sqlite*")):
            left.unlink()
    return folder


@pytest.fixture
def fleet(founded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> tuple[CommandLine, CommandLine]:
    """Two command lines, which join a new catalog with their first commands."""
    url = running().fresh_catalog()
    shutil.copytree(founded / "repository", tmp_path / "a" / "repository")
    lines = CommandLine(tmp_path / "a", capsys), CommandLine(tmp_path / "b", capsys)
    for line in lines:
        shutil.copytree(founded / line.folder.name, line.home)
        line.environment["STRONGROOM_CATALOG_URL"] = url
        line.environment["STRONGROOM_REPOSITORY_PATH"] = str(lines[0].repository)
        assert line("status").code == 0
    return lines


@contextmanager
def opened(line: CommandLine) -> Iterator[Appliance]:
    with Appliance(load(line.environment)) as appliance:
        yield appliance


def image(line: CommandLine, name: str, data: bytes) -> list[str]:
    """The words of a backup of a raw image with this content."""
    path = line.folder / f"{name}.raw"
    path.write_bytes(data)
    return ["backup", "--image", str(path), "--format", "raw", "--name", name, "--json"]


def start(line: CommandLine, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", *arguments], cwd=PROJECT, env=line.environment, text=True, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def end(process: subprocess.Popen[str]) -> Any:
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    return json.loads(out)


def restored(line: CommandLine, point: str) -> bytes:
    with opened(line) as appliance:
        entry = appliance.repository.point(point).manifest.disks[0]
        return DiskReader(appliance.repository.blobs, entry.root, entry.size_bytes).pread(0, entry.size_bytes)


def test_two_back_up_at_once_and_one_collects(fleet: tuple[CommandLine, CommandLine]) -> None:
    first, second = fleet
    shared = os.urandom(1 << 20)
    data = {"web": shared + os.urandom(1 << 20), "db": shared + os.urandom(1 << 20)}
    doomed = first.backup(os.urandom(1 << 20), "old")
    assert second("point", "delete", doomed["id"], "--yes").code == 0
    backups = [
        start(first, "appliance.cli", *image(first, "web", data["web"])),
        start(second, "appliance.cli", *image(second, "db", data["db"])),
    ]
    collection = start(second, "appliance.cli", "repository", "collect", "--json")
    points = [end(process) for process in backups]
    end(collection)
    assert first("repository", "collect").code == 0
    assert [point["name"] for point in points] == ["web", "db"]
    for line in fleet:
        for point in points:
            assert restored(line, point["id"]) == data[point["name"]]
        status = line("status", "--json")
        assert status.code == 0, status.err
        ids = {each["id"] for each in status.json()["appliances"]}
        assert len(ids) == 2
        runs = {run["name"]: run["appliance"] for run in status.json()["last_runs"]}
        assert {runs["web"], runs["db"]} == ids
        assert {point["id"] for point in line("point", "list", "--json").json()} == {point["id"] for point in points}
    assert first("repository", "verify", "--read-data").code == 0


def test_what_another_has_under_way_is_shown_and_left_alone(fleet: tuple[CommandLine, CommandLine]) -> None:
    """None of the other's processes is seen here, so all of it would look dead."""
    first, second = fleet
    held = first.backup(os.urandom(4096), "held")
    run = RunRecord(new_id(), "web-1", "vm", "uuid-1", "here", RunState.RUNNING, NOW)
    recovery = RecoveryRecord(
        new_id(), RecoveryState.RUNNING, held["id"], "m", "web-1", "here", "web-1-r", "uuid-2", "none", NOW, NOW,
        disks=(RecoveryDisk("vda", 4096, "/nowhere/r.0", "/nowhere/r.0", "/nowhere/vda.qcow2"),), folder="/nowhere",
    )  # fmt: skip
    with opened(first) as appliance:
        catalog = appliance.catalog
        catalog.hosts.add(HostRecord(HostConfig("here", socket="/nowhere"), NOW))
        catalog.runs.save(run)
        catalog.cleanups.add(CleanupRecord(new_id(), f"run-{run.id}", CleanupAction.END_BACKUP_JOB, NOW, "here",
                                           "uuid-1", "web-1", paths=("/s",)))  # fmt: skip
        catalog.thaws.owe("uuid-1", "here", "web-1", NOW)
        recovery = catalog.recoveries.add(recovery)
        point = appliance.repository.point(held["id"])
        hold = appliance.repository.hold(point, "recovery", f"recovery-{recovery.id}")
        before = (catalog.runs.list(), catalog.cleanups.list(), catalog.thaws.list(), catalog.recoveries.list())

    assert second.backup(os.urandom(4096), "db")["name"] == "db"  # it settles what its own dead processes left
    with opened(second) as appliance:
        assert CleaningService(appliance).settle() == ()
        assert not CleaningService(appliance).hurts_guests()
        Supervisor(appliance, for_ever=False).look()
    resumed = second("recovery", "resume")
    assert resumed.code == 0
    assert "No machine runs out of the repository" in resumed.err
    status = second("status")
    assert status.code == 0, status.err
    assert f"{recovery.state} on here by appliance" in status.out
    (shown,) = second("status", "--json").json()["runs"]
    assert (shown["name"], shown["alive"]) == ("web-1", None)
    for command in (("recovery", "discard", recovery.id, "--yes"), ("recovery", "migrate", recovery.id[:12])):
        assert "is of another appliance" in second(*command).error()
    refused = second("repository", "hold", "release", hold.id, "--yes").error()
    assert "runs out of it" in refused
    assert "by appliance" in refused
    assert "There: " in refused
    with opened(first) as appliance:
        catalog = appliance.catalog
        now = (catalog.runs.list(), catalog.cleanups.list(), catalog.thaws.list(), catalog.recoveries.list())
        assert [each for each in now[0] if each.appliance == catalog.me] == list(before[0])
        assert now[1:] == before[1:]

    died = first("status")
    assert died.code == 3, "its own it knows to be dead"
    assert "web-1 died" in died.err
    listed = {each["own"]: each for each in second("appliance", "list", "--json").json()}
    assert listed[False]["under_way"] == {"runs": 1, "recoveries": 1, "exports": 0, "clean-ups": 1, "owed thaws": 1}
    assert "is this one" in second("appliance", "take-over", listed[True]["id"], "--yes").error()
    taken = second("appliance", "take-over", listed[False]["id"][:8], "--yes")
    assert taken.code == 0, taken.err
    assert "here" in taken.out
    status = second("status")
    assert status.code == 3
    assert "web-1 died" in status.err
    assert "a thaw of web-1 on here is owed since" in status.err
    given_up = second("host", "remove", "here", "--force", "--yes")  # its host is gone with it
    assert given_up.code == 0, given_up.err
    assert second("supervise", "--once").code == 0
    assert second("repository", "hold", "list", "--json").json() == []
    done = second("status")
    assert done.code == 3
    assert done.err.count("warning:") == 1
    assert "the last backup of web-1 was interrupted" in done.err


def test_one_that_was_suspended_wakes_after_its_lease_was_taken_and_is_refused(
    fleet: tuple[CommandLine, CommandLine],
) -> None:
    """At the last moment: its manifest is written, and the end of its lease is not."""
    first, second = fleet
    earlier, late, taken = (os.urandom(1 << 20) for _ in range(3))
    kept = first.backup(earlier, "web")
    process = start(
        first, "tests.faults.crash", "imaging.running:Run._end", "before-SIGSTOP", "1", *image(first, "web", late)
    )
    try:
        _, status = os.waitpid(process.pid, os.WUNTRACED)
        assert os.WIFSTOPPED(status), "it was not suspended"
        clock = ManualClock()
        with opened(second) as appliance:
            settings, other = appliance.settings, appliance.id
            with Repository.open(
                LocalStore(first.repository), MachineKey(home.read_machine_key(settings)),
                cache=settings.cache_directory, appliance=appliance.identity, clock=clock,
            ) as repository:  # fmt: skip
                appliance.use_repository(repository)
                image(second, "web", taken)
                path = second.folder / "web.raw"
                with pytest.raises(SeriesBusy):
                    BackupService(appliance).run_image(path, "raw", "web")
                (living,) = [run for run in appliance.catalog.runs.list() if run.state is RunState.RUNNING]
                clock.pass_s(DEAD_AFTER_S + 1)
                result = BackupService(appliance).run_image(path, "raw", "web")
        assert second("repository", "collect").code == 0, "it is gone on with, whatever still sleeps"
    finally:
        process.send_signal(signal.SIGCONT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1, err
    assert f"was ended by appliance {other}, so its restore point does not count" in err

    with opened(first) as appliance:
        refused = appliance.catalog.runs.get(living.id)
        assert refused.state is RunState.FAILED
        assert refused.appliance == appliance.id
        assert appliance.catalog.runs.get(result.run.id).state is RunState.SUCCEEDED
    for line in fleet:
        points = [point["id"] for point in line("point", "list", "--json").json()]
        assert points == [kept["id"], result.point.id]
        assert restored(line, kept["id"]) == earlier
        assert restored(line, result.point.id) == taken
    assert first("repository", "verify", "--read-data").code == 0
    assert first.backup(late, "web")["id"], "and it goes on"


def test_both_rebuild_a_lost_catalog_at_the_same_moment(fleet: tuple[CommandLine, CommandLine]) -> None:
    first, _ = fleet
    points = {first.backup(os.urandom(4096), name)["id"] for name in ("web", "db")}
    url = running().fresh_catalog()
    for line in fleet:
        line.environment["STRONGROOM_CATALOG_URL"] = url
    for process in [start(line, "appliance.cli", "point", "list", "--json") for line in fleet]:
        assert {point["id"] for point in end(process)} == points
    with opened(first) as appliance:
        assert len(appliance.catalog.appliances.list()) == 2
        assert {point.id for point in appliance.catalog.points.list()} == points


def test_a_point_that_another_commits_meanwhile_stays_in_the_catalog(fleet: tuple[CommandLine, CommandLine]) -> None:
    """One looks at the repository, then the other makes a point and notes it, then the one writes what it saw."""
    first, second = fleet
    first.backup(os.urandom(4096), "web")
    with opened(second) as theirs, opened(first) as mine:
        mine.catalog.points.replace([], [])  # lost
        survey = mine.repository.survey
        looks: list[Any] = []

        def interrupted() -> Any:
            looks.append(survey())
            if len(looks) == 1:
                image(second, "db", os.urandom(4096))
                BackupService(theirs).run_image(second.folder / "db.raw", "raw", "db")
            return looks[-1]

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(mine.repository, "survey", interrupted)
            PointService(mine).refresh()
        assert len(looks) == 2
        assert {point.name for point in mine.catalog.points.list()} == {"web", "db"}


def test_a_copy_of_a_home_is_told_from_it(fleet: tuple[CommandLine, CommandLine], tmp_path: Path) -> None:
    first, second = fleet
    first.backup(os.urandom(4096), "web")
    copy = replace(first, folder=tmp_path / "c")
    copy.environment |= {name: value for name, value in first.environment.items() if name != "STRONGROOM_HOME"}
    shutil.copytree(first.home, copy.home)
    refused = copy("status").error()
    assert "this is a copy of it, or was moved" in refused
    identity = copy.home / "appliance.id"
    assert str(identity) in refused
    identity.unlink()
    done = copy("status", "--json")
    assert done.code == 0, done.err
    assert len(done.json()["appliances"]) == 3
    assert first("status").code == second("status").code == 0


def test_what_a_home_left_in_its_own_catalog_is_told(fleet: tuple[CommandLine, CommandLine]) -> None:
    """As in an emergency without the database, or from before the switch."""
    first, _ = fleet
    alone = {"STRONGROOM_CATALOG_URL": ""}
    first.backup(os.urandom(4096), "web")
    assert first("status", **alone).code == 0
    assert first("status").code == 0, "points are in every catalog"
    with Appliance(load(first.environment | alone)) as appliance:
        appliance.catalog.thaws.owe("uuid-1", "here", "web-1", NOW)
        own = appliance.id
    told = first("status")
    assert told.code == 3
    assert "has something under way (owed thaws 1)" in told.err
    assert "a thaw of web-1" in first("status", **alone).err
    with opened(first) as appliance:
        assert appliance.id == own, "who it is, is kept in the home"


def test_a_catalog_serves_one_repository(fleet: tuple[CommandLine, CommandLine], tmp_path: Path) -> None:
    first, _ = fleet
    first.backup(os.urandom(4096), "web")
    stranger = CommandLine(tmp_path / "stranger", first.capsys)
    stranger.folder.mkdir()
    shared = {"STRONGROOM_CATALOG_URL": first.environment["STRONGROOM_CATALOG_URL"]}
    words = ("init", "--repository", str(stranger.repository), "--recovery-key-file", str(stranger.key_file))
    assert "belongs to repository" in stranger(*words, **shared).error()
    assert not stranger.repository.exists()
    stranger.init()
    for command in (("point", "list"), image(stranger, "web", os.urandom(4096))):
        assert "belongs to repository" in stranger(*command, **shared).error()
    assert len(first("point", "list", "--json").json()) == 1
    assert stranger("point", "list", "--json").json() == [], "nothing was backed up"
