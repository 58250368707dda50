"""Settling debts while other processes are at work: it waits for nobody, and spoils nothing of theirs."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from appliance.bootstrap import Appliance
from appliance.models import CleanupAction, CleanupRecord, RunRecord, RunState, new_id
from appliance.services.cleaning import CleaningService
from imaging.images import SOCKET_FOLDER_PREFIX


@pytest.fixture
def appliance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Appliance]:
    monkeypatch.setenv("STRONGROOM_HOME", str(tmp_path))
    made = Appliance.from_environment()
    made.settings.run_directory.mkdir(parents=True, exist_ok=True)
    yield made
    made.close()


def server_folder(appliance: Appliance, name: str, age_s: float = 3600) -> Path:
    folder = appliance.settings.run_directory / f"{SOCKET_FOLDER_PREFIX}{name}"
    folder.mkdir()
    past = datetime.now(UTC).timestamp() - age_s
    os.utime(folder, (past, past))
    return folder


def test_a_server_that_takes_no_more_clients_is_alive_and_nobody_waits_for_it(appliance: Appliance) -> None:
    """As qemu-nbd when all its connections are in use: each look takes a place in its queue until the last is taken."""
    folder = server_folder(appliance, "busy")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(folder / "s"))
        listening.listen(1)
        os.utime(folder, (0, 0))

        def settle_often() -> None:
            for _ in range(6):
                CleaningService(appliance).settle()

        thread = threading.Thread(target=settle_often, daemon=True)
        thread.start()
        thread.join(60)
        assert not thread.is_alive(), "it waits for a server that is busy"
        assert folder.exists()
    CleaningService(appliance).settle()
    assert not folder.exists(), "a dead one's folder goes"


def test_a_folder_that_its_owner_removes_at_that_moment_is_no_error(appliance: Appliance) -> None:
    (appliance.settings.run_directory / f"{SOCKET_FOLDER_PREFIX}gone").symlink_to("nowhere")
    assert CleaningService(appliance).settle() == ()


def test_a_run_that_ends_while_it_is_looked_at_is_not_called_interrupted(
    appliance: Appliance, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunRecord(new_id(), "web", "vm", None, None, RunState.RUNNING, datetime.now(UTC))
    appliance.catalog.runs.save(run)
    really_alive = appliance.alive

    def ends_just_now(owner: str) -> bool:
        if owner == f"run-{run.id}":
            appliance.catalog.runs.save(replace(run, state=RunState.SUCCEEDED, point="1" * 32))
        return really_alive(owner)

    monkeypatch.setattr(appliance, "alive", ends_just_now)
    CleaningService(appliance).settle()
    assert appliance.catalog.runs.get(run.id).state is RunState.SUCCEEDED
    assert appliance.catalog.runs.get(run.id).point == "1" * 32


def test_what_a_restore_made_is_left_alone_when_it_ends_well_at_that_moment(
    appliance: Appliance, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its records were listed before it ended, and are gone now: the machine and the disks are wanted."""
    owner = "restore-1"
    for action in (CleanupAction.REMOVE_FILES, CleanupAction.UNDEFINE_MACHINE):
        appliance.catalog.cleanups.add(
            CleanupRecord(new_id(), owner, action, datetime.now(UTC), "a host", "1" * 32, "web", "", ("/d",), ())
        )
    really_alive = appliance.alive

    def ends_just_now(asked: str) -> bool:
        if asked == owner:
            appliance.catalog.cleanups.drop_owner(owner)
        return really_alive(asked)

    monkeypatch.setattr(appliance, "alive", ends_just_now)
    assert CleaningService(appliance).settle() == (), "the host, which nobody knows, is not even asked for"
    assert not appliance.catalog.cleanups.list()


def test_locks_and_connections_of_dead_processes_go_and_those_of_the_living_stay(appliance: Appliance) -> None:
    run_directory = appliance.settings.run_directory
    dead = [run_directory / "restore-1.lock", run_directory / "ssh-0badcafe.lock"]
    for path in dead:
        path.touch()
    (run_directory / "ssh-0badcafe").mkdir()
    with appliance.own("restore-2", "a restore"):
        assert CleaningService(appliance).settle() == ()
        assert not any(path.exists() for path in dead)
        assert not (run_directory / "ssh-0badcafe").exists()
        assert (run_directory / "restore-2.lock").exists()
