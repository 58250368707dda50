"""`strongroom run`, and what is asked of the queue, as people and scripts see it."""

from __future__ import annotations

import os
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from appliance.bootstrap import Appliance
from appliance.models import RunState
from appliance.progress import SILENT
from appliance.services.backup.watching import HowFar, how_far, watched
from appliance.services.spawning import WORKERS
from appliance.settings import load
from tests.unit.cli_runner import CommandLine

IMAGE = ("--format", "raw", "--name", "web", "--queue")


@pytest.fixture
def strongroom(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> CommandLine:
    line = CommandLine(tmp_path, capsys)
    line.init()
    (tmp_path / "image").write_bytes(os.urandom(4096))
    return line


def queued(strongroom: CommandLine) -> str:
    done = strongroom("backup", "--image", str(strongroom.folder / "image"), *IMAGE, "--json")
    assert done.code == 0, done.err
    id: str = done.json()["id"]
    return id


def test_what_waits_is_told_in_words_and_in_json(strongroom: CommandLine) -> None:
    id = queued(strongroom)
    again = strongroom("backup", "--image", str(strongroom.folder / "image"), *IMAGE)
    assert f"Run {id[:12]} of web was queued already" in again.out
    assert "no worker lives" in again.err
    shown = strongroom("run", "show", id[:8])
    assert f"{strongroom.folder}/image (raw)" in shown.out
    assert "queued" in shown.out
    listed = strongroom("run", "list", "--state", "queued", "--json").json()
    told = strongroom("run", "show", id, "--json").json()
    assert told == listed[0] | {"alive": None, "progress": None}
    assert (told["state"], told["attempts"], told["started_utc"]) == ("queued", 0, None)
    status = strongroom("status", "--json")
    assert status.code == 3
    assert [run["id"] for run in status.json()["queued"]] == [id]
    with Appliance(load(strongroom.environment)) as appliance, appliance.own(WORKERS, "workers"):
        assert strongroom("status").code == 0, "somebody takes it"


def test_what_cannot_be_done_is_refused_at_once(strongroom: CommandLine) -> None:
    nothing = strongroom("backup", "--image", str(strongroom.folder / "nothing"), *IMAGE)
    assert "no such file" in nothing.error()
    assert "host" in strongroom("backup", "web-1", "--queue").error()
    assert "nowhere" in strongroom("backup", "web-1", "--host", "nowhere", "--queue").error()
    assert strongroom("run", "list", "--json").json() == []
    queued(strongroom)
    other = strongroom.folder / "other"
    other.write_bytes(bytes(4096))
    assert "of another image" in strongroom("backup", "--image", str(other), *IMAGE).error()
    for command in ("show", "cancel", "retry"):
        assert "there is no run ffff" in strongroom("run", command, "ffff").error()


def test_what_was_cancelled_can_be_queued_again(strongroom: CommandLine) -> None:
    id = queued(strongroom)
    assert strongroom("run", "cancel", id, "--json").json()["state"] == "cancelled"
    assert "is over: it is cancelled" in strongroom("run", "cancel", id).error()
    assert strongroom("status").code == 0
    again = strongroom("run", "retry", id, "--json").json()
    assert again["id"] != id
    assert (again["image"], again["state"]) == (str(strongroom.folder / "image"), "queued")


def test_a_run_that_waits_to_be_tried_again_is_a_concern(strongroom: CommandLine) -> None:
    id = queued(strongroom)
    with Appliance(load(strongroom.environment)) as appliance, appliance.own(WORKERS, "workers"):
        run = appliance.catalog.queue.claim(id, appliance.clock.now_utc())
        assert run is not None
        back = replace(run, state=RunState.QUEUED, error="the store is away", not_before_utc=run.started_utc)
        appliance.catalog.queue.settle(run, back, run.started_utc)
        status = strongroom("status")
    assert status.code == 3
    assert "the run of web waits to be tried again: the store is away" in status.err


def test_a_request_to_cancel_a_run_of_a_dead_process_is_seen(strongroom: CommandLine) -> None:
    id = queued(strongroom)
    with Appliance(load(strongroom.environment)) as appliance:
        assert appliance.catalog.queue.claim(id, appliance.clock.now_utc()) is not None
        shown = strongroom("run", "show", id)
        assert "its process is dead" in shown.out
        assert "is cancelled" in strongroom("run", "cancel", id).out


def test_how_far_a_run_is_can_be_seen_while_it_lives(strongroom: CommandLine) -> None:
    id = queued(strongroom)
    asked = threading.Event()
    with Appliance(load(strongroom.environment)) as appliance:
        assert appliance.catalog.queue.claim(id, appliance.clock.now_utc()) is not None
        with appliance.own(f"run-{id}", "it"), watched(appliance, id, asked.set, SILENT) as progress:
            progress.start("disk (full)", 4096)
            progress.advance(1024)
            for _ in range(2400):
                if how_far(appliance.settings, id) is not None:
                    break
                asked.wait(0.05)
            far = how_far(appliance.settings, id)
            assert far is not None
            assert replace(far, samples=()) == HowFar("disk (full)", 1024, 4096)
            assert far.samples[-1].done_bytes == 1024
            assert "disk (full): 1.0 KiB of 4.0 KiB (25 %)" in strongroom("run", "show", id).out
            assert strongroom("run", "show", id, "--json").json()["progress"]["done_bytes"] == 1024
            assert not asked.is_set()
            assert "is asked to end" in strongroom("run", "cancel", id).out
            assert asked.wait(60)
        assert how_far(appliance.settings, id) is None
