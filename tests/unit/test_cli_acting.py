"""Every command is an act or says that it is none, and what was done is in the audit as it was done."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
import pytest

from appliance.acts import TRAITS, Act
from appliance.bootstrap import Appliance
from appliance.catalog.errors import CatalogBusy
from appliance.catalog.once import Once
from appliance.cli import acting, entry
from appliance.models import RunRecord, RunState
from appliance.services.queue.service import QueueService
from appliance.settings import load
from tests.faults.repositories import back_up
from tests.unit.cli_runner import PROJECT, CommandLine
from tests.unit.records import NOW
from tests.unit.test_cli_usage import commands


@pytest.fixture
def strongroom(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> CommandLine:
    line = CommandLine(tmp_path, capsys)
    line.init()
    return line


def audit(line: CommandLine, number: int = 1000) -> list[dict[str, Any]]:
    """Oldest first, without how the home was made."""
    found: list[dict[str, Any]] = line("audit", "list", "--limit", str(number), "--json").json()
    return [entry for entry in reversed(found) if entry["act"] != "repository.initialise"]


def hidden(group: click.Group = entry.strongroom, prefix: tuple[str, ...] = ()) -> set[str]:
    found = set()
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if isinstance(command, click.Group):
            found |= hidden(command, (*prefix, name))
        elif command is not None and command.hidden:
            found.add(" ".join((*prefix, name)))
    return found


def test_every_command_states_its_act_or_is_harmless() -> None:
    assert acting.stated() == {" ".join(command) for command in commands()} | hidden()


def test_what_a_command_can_be_is_an_act_that_is_audited() -> None:
    options = ("ask", "off", "machine", "force", "dismiss")
    for command in acting.ACTS:
        for given in ({}, *({option: "x"} for option in options)):
            act = acting.act_of(command, dict.fromkeys(options) | given)
            assert act is not None
            assert TRAITS[Act(act)].audited, command
        assert acting.act_of(command, {"dry_run": True}) is None
    assert acting.act_of("repository undo", {"since": None}) is None, "it only tells what happened"
    assert acting.act_of("repository undo", {"since": "2026-11-25 14:00"}) == "repository.undo"
    assert acting.act_of("repository undo", {"since": "2026-11-25 14:00", "dry_run": True}) is None


def test_what_policies_had_queued_when_the_catalog_went_away_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Appliance(load({"STRONGROOM_HOME": str(tmp_path / "home")})) as appliance:
        queue, put = appliance.catalog.queue, appliance.catalog.queue.put
        wanted = [
            RunRecord(name * 32, name, "image", None, None, RunState.QUEUED, NOW, asked_utc=NOW,
                      appliance=appliance.catalog.me, image_path=f"/{name}", image_format="raw")
            for name in "abc"
        ]  # fmt: skip

        def fails(run: RunRecord, key: Once | None = None) -> RunRecord:
            if run.name == "b":
                raise CatalogBusy("it is away")
            return put(run, key)

        monkeypatch.setattr(queue, "put", fails)
        with pytest.raises(CatalogBusy):
            QueueService(appliance).ask_due(wanted)
        told = [(entry.act, entry.subject_name) for entry in appliance.catalog.audit.entries()]
    assert told == [("run.start", "a")]


def test_a_command_that_states_nothing_does_not_run(strongroom: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    strongroom.backup(os.urandom(4096), "web")
    monkeypatch.delitem(acting.ACTS, "prune")
    done = strongroom("prune", "--keep-last", "1", "--yes")
    assert (done.code, "states no act" in done.err) == (1, True)


def test_what_is_done_is_told_by_whom_and_on_what(strongroom: CommandLine) -> None:
    points = [strongroom.backup(os.urandom(4096), "web")["id"] for _ in range(3)]
    for arguments in (
        ("point", "protect", points[0]),
        ("point", "protect", points[0], "--off"),
        ("point", "delete", points[0], "--yes"),
        ("prune", "--keep-last", "1", "--yes"),
        ("restore", "web", "--point", "latest", "--to", str(strongroom.folder / "out.raw"), "--format", "raw"),
        ("host", "add", "mock", "test:///default"),
        ("policy", "add", "nightly", "--all", "--at", "0 22 * * *", "--keep-daily", "3"),
        ("host", "remove", "mock", "--yes"),
        ("repository", "verify"),
        ("repository", "collect"),
    ):
        done = strongroom(*arguments)
        assert done.code == 0, (arguments, done.err)
    found = audit(strongroom)
    assert [(entry["act"], entry["subject_kind"], entry["subject_name"]) for entry in found] == [
        ("run.start", "machine", "web"), ("run.start", "machine", "web"), ("run.start", "machine", "web"),
        ("point.protect", "point", "web"), ("point.unprotect", "point", "web"), ("point.delete", "point", "web"),
        ("point.prune", "repository", ""), ("restore.start", "machine", "web"), ("host.add", "host", "mock"),
        ("policy.save", "policy", "nightly"), ("host.remove", "host", "mock"),
        ("repository.verify", "repository", "repository"), ("repository.collect", "repository", "repository"),
    ]  # fmt: skip
    assert {(entry["result"], entry["actor_kind"], entry["via"]) for entry in found} == {("ok", "local", "cli")}
    assert {entry["actor_name"] for entry in found} == {found[0]["actor_name"]} != {""}
    assert found[5]["subject_id"] == points[0]
    assert found[6]["details"] == {"points": [points[1]]}
    assert (found[7]["details"]["point"], found[7]["machine"]) == (points[2], "image:web")
    assert found[9]["details"]["policy"]["retention"]["daily"] == 3
    assert strongroom("audit", "verify").code == 0


def test_what_fails_is_told_and_what_is_not_begun_is_not(strongroom: CommandLine) -> None:
    point = strongroom.backup(os.urandom(4096), "web")["id"]
    before = len(audit(strongroom))
    for arguments in (
        ("point", "delete", point),  # there is no terminal to confirm it on
        ("point", "delete"),
        ("backup", "vm", "--image", "x"),
        ("prune", "--keep-last", "1", "--dry-run"),
        ("point", "list"),
        ("status",),
        ("repository", "info"),
    ):
        strongroom(*arguments)
    assert len(audit(strongroom)) == before
    assert strongroom("point", "delete", "0" * 32, "--yes").code == 1
    assert strongroom("backup", "nosuch").code == 1
    wrong, unknown = audit(strongroom)[before:]
    assert (wrong["act"], wrong["result"]) == ("point.delete", "failed")
    assert "0" * 32 in wrong["error"]
    assert (unknown["act"], unknown["result"], unknown["error"][:2]) == ("run.start", "failed", "no")


def test_what_ends_with_an_exit_code_alone_is_told_so(strongroom: CommandLine) -> None:
    strongroom.backup(os.urandom(4096), "web")
    for pack in (strongroom.repository / "packs").rglob("*"):
        if pack.is_file():
            pack.write_bytes(pack.read_bytes()[:-1])
    assert strongroom("repository", "verify").code == 1
    assert (audit(strongroom)[-1]["result"], audit(strongroom)[-1]["error"]) == ("failed", "it ended with exit code 1")


def test_what_was_done_in_part_is_told_so(strongroom: CommandLine) -> None:
    strongroom.backup(os.urandom(4096), "web")
    with Appliance(load(strongroom.environment)) as appliance:  # of a machine whose clock is wrong
        for day in (1, 2):
            back_up(appliance.repository, "db", {"disk": os.urandom(4096)}, datetime(2099, 1, day, tzinfo=UTC))
    assert strongroom("prune", "--keep-last", "1", "--yes").code == 3
    assert (audit(strongroom)[-1]["act"], audit(strongroom)[-1]["result"]) == ("point.prune", "partly")


def test_the_guard_s_acts_are_told(strongroom: CommandLine) -> None:
    assert strongroom("repository", "guard", "enrol", "alice", STRONGROOM_NEW_PASSPHRASE="only alice knows").code == 0
    (enrolled,) = audit(strongroom)
    assert (enrolled["act"], enrolled["subject_name"]) == ("guard.enrol", "alice")
    assert "only alice" not in str(enrolled)


@pytest.mark.faults
def test_a_command_that_is_killed_is_told_by_the_next(strongroom: CommandLine) -> None:
    point = strongroom.backup(os.urandom(4096), "web")["id"]
    killed = subprocess.run(
        [sys.executable, "-m", "tests.faults.crash", "imaging.points:Points.delete", "before", "1",
         "point", "delete", point, "--yes"],
        cwd=PROJECT, env=strongroom.environment, capture_output=True, timeout=120, check=False,
    )  # fmt: skip
    assert killed.returncode == -signal.SIGKILL
    last = audit(strongroom)[-1]
    assert (last["act"], last["result"], last["ended_utc"]) == ("point.delete", "interrupted", None)
