"""`strongroom audit`: what was done is listed, checked and exported."""

from __future__ import annotations

import json
import re
import sqlite3
from pathlib import Path

import pytest

from appliance.audit import Result
from appliance.bootstrap import Appliance
from appliance.policy.selectors import Kind, Machine
from appliance.services.access import SYSTEM, Access, Act, Actor, ActorKind, Role, Subject, Via
from appliance.settings import load
from tests.unit.cli_runner import CommandLine

ALICE = Actor(ActorKind.USER, "1" * 32, "alice", Role.ADMIN, address="192.0.2.7", via=Via.CONSOLE)
WEB = Subject.of_machine(Machine(Kind.VM, "u-web", "web\x1b[31m", "here"))


@pytest.fixture
def strongroom(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> CommandLine:
    """With three entries."""
    line = CommandLine(tmp_path, capsys)
    with Appliance(load(line.environment)) as appliance:
        access = Access(appliance)
        access.record(ALICE, Act.RUN_START, WEB, {"full": True})
        access.record(SYSTEM, Act.RUN_START, WEB, result=Result.FAILED, error="no room\n<1>forged")
        access.record(ALICE, Act.POLICY_SAVE, Subject("policy", "nightly", "nightly"))
    return line


def change(line: CommandLine, statement: str) -> None:
    with sqlite3.connect(line.home / "catalog.sqlite") as connection:
        assert connection.execute(statement).rowcount


def test_what_was_done_is_listed_newest_first(strongroom: CommandLine) -> None:
    done = strongroom("audit", "list", "--json")
    assert [(entry["number"], entry["act"], entry["actor_name"]) for entry in done.json()] == [
        (3, "policy.save", "alice"), (2, "run.start", "system"), (1, "run.start", "alice"),
    ]  # fmt: skip
    assert done.json()[2]["details"] == {"full": True}
    shown = strongroom("audit", "list", "--act", "run.", "--machine", "vm:u-web", "--result", "failed").out
    assert ("failed: no room" in shown, "policy.save" in shown, "\x1b" in shown) == (True, False, False)
    assert [
        each["number"] for each in strongroom("audit", "list", "--limit", "1", "--before", "3", "--json").json()
    ] == [2]
    nothing = strongroom("audit", "list", "--actor", "mallory")
    assert (nothing.code, nothing.out) == (0, "")


def test_a_whole_chain_tells_its_head(strongroom: CommandLine) -> None:
    checked = strongroom("audit", "verify", "--json").json()
    assert (checked["good"], checked["entries"], checked["flaws"]) == (True, 3, [])
    assert checked["head"] in strongroom("audit", "verify").out
    assert strongroom("audit", "verify", "--head", checked["head"]).code == 0
    assert strongroom("audit", "verify", "--head", "3:" + "0" * 64).code == 1
    assert strongroom("audit", "verify", "--head", "x").code == 2


def test_a_changed_chain_is_an_error(strongroom: CommandLine) -> None:
    change(strongroom, "UPDATE audit SET actor_name = 'bob' WHERE number = 1")
    done = strongroom("audit", "verify")
    assert (done.code, "entry 1 is not the one" in done.err) == (1, True)
    assert "not what was written" in done.error()
    assert strongroom("audit", "verify", "--json").json()["flaws"][0]["number"] == 1


def test_an_end_that_was_cut_off_is_an_error_until_it_is_accepted(strongroom: CommandLine) -> None:
    change(strongroom, "DELETE FROM audit WHERE number > 1")
    done = strongroom("audit", "verify")
    assert (done.code, "entries 2 to 3 are missing" in done.err) == (1, True)
    assert strongroom("audit", "accept").code == 2, "it asks, and there is no terminal"
    assert strongroom("audit", "accept", "--yes").code == 0
    assert strongroom("audit", "verify").code == 0


def test_a_catalog_that_was_lost_shows(strongroom: CommandLine) -> None:
    for file in strongroom.home.glob("catalog.sqlite*"):
        file.unlink()
    assert "entries 1 to 3 are missing" in strongroom("audit", "verify").err
    assert strongroom("audit", "accept", "--yes").code == 1, "there is nothing to go by"


def test_exports_are_lines_that_no_name_can_forge(strongroom: CommandLine) -> None:
    syslog = strongroom("audit", "export", "--format", "syslog").out.splitlines()
    lines = strongroom("audit", "export").out.splitlines()
    assert [json.loads(line)["number"] for line in lines] == [1, 2, 3, 4], "an export is an act too"
    rest = strongroom("audit", "export", "--after", "4").out.splitlines()
    assert [json.loads(line)["act"] for line in rest] == ["audit.export"]
    assert len(syslog) == 3
    form = re.compile(r"<(108|109)>1 \d{4}-\d\d-\d\dT[\d:.]+Z \S+ strongroom - audit - (\{.*\})")
    matches = [form.fullmatch(line) for line in syslog]
    assert [match[1] if match else None for match in matches] == ["109", "108", "109"]
    assert all(line.isascii() and line.isprintable() for line in syslog)
    assert [json.loads(match[2]) for match in matches if match] == [json.loads(line) for line in lines[:3]]
