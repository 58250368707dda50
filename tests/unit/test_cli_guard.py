"""A guarded repository on the command line: nothing goes but by two persons and in time, through no command at all."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import click
import pytest

from appliance.bootstrap import Appliance
from appliance.services.guard import GuardService
from appliance.services.points import PointService
from appliance.settings import load
from imaging.clock import SystemClock
from imaging.guard.errors import PassphraseWrong
from tests.faults.repositories import back_up, content
from tests.unit.cli_runner import PROJECT, CommandLine, Ran
from tests.unit.test_cli_usage import commands

PAGE = 4096
PERSONS = ("alice", "bob", "carol")


def words(name: str) -> dict[str, str]:
    return {"STRONGROOM_PERSON_PASSPHRASE": f"only {name} knows"}


def later(monkeypatch: pytest.MonkeyPatch, *, hours: float, clock_hours: float | None = None) -> None:
    """From now on this machine has been up for so long, and its clock has moved by as much, or by another time."""
    moved = hours if clock_hours is None else clock_hours
    monkeypatch.setattr(SystemClock, "monotonic_s", lambda _self: 1e6 + hours * 3600)
    monkeypatch.setattr(SystemClock, "now_utc", lambda _self: datetime.now(UTC) + timedelta(hours=moved))


@pytest.fixture
def strongroom(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> CommandLine:
    """With three persons who are enrolled, and no guard."""
    line = CommandLine(tmp_path, capsys)
    line.init()
    for name in PERSONS:
        done = line("repository", "guard", "enrol", name, STRONGROOM_NEW_PASSPHRASE=f"only {name} knows")
        assert done.code == 0, done.err
    return line


def turn_on(line: CommandLine, *options: str) -> None:
    done = line("repository", "guard", "on", *PERSONS, *options, "--yes")
    assert done.code == 0, done.err


def asked(line: CommandLine, *command: str, by: str = "alice") -> str:
    """The id of the one request that this makes."""
    before = {each["id"] for each in line("request", "list", "--all", "--json").json()}
    done = line(*command, "--ask", by, **words(by))
    assert done.code in (0, 3), done.err
    (made,) = [each for each in line("request", "list", "--all", "--json").json() if each["id"] not in before]
    assert made["id"] in done.out + done.err
    id: str = made["id"]
    return id


def confirm(line: CommandLine, id: str, by: str = "bob") -> Ran:
    return line("request", "confirm", id, "--person", by, "--yes", **words(by))


def points(line: CommandLine) -> list[str]:
    return [each["id"] for each in line("point", "list", "--json").json()]


def test_the_whole_way_of_a_deletion(strongroom: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    later(monkeypatch, hours=0)
    point = strongroom.backup(os.urandom(PAGE), "web")["id"]
    turn_on(strongroom)
    refused = strongroom("point", "delete", point, "--yes")
    assert refused.code == 1
    assert "--ask PERSON" in refused.error()
    id = asked(strongroom, "point", "delete", point[:8])
    shown = strongroom("request", "show", id[:6], "--json").json()
    assert (shown["standing"], shown["asked_by"], shown["confirmed_by"]) == ("asked", "alice", [])
    assert "web" in shown["subjects"][0]
    for wrong in (
        confirm(strongroom, id, "alice"),
        strongroom("request", "confirm", id, "--person", "bob", "--yes", **words("carol")),
    ):
        assert wrong.code == 1
    done = confirm(strongroom, id)
    assert (done.code, "24 h 0 min of the delay are left" in done.out) == (0, True), done.out
    status = strongroom("status", "--json")
    assert status.code == 3
    assert [each["id"] for each in status.json()["requests"]] == [id]
    assert "of alice, to delete restore point" in status.err
    early = strongroom("request", "apply", id)
    assert early.code == 1
    assert "are left" in early.error()
    assert strongroom("request", "apply").code == 0
    later(monkeypatch, hours=1, clock_hours=30)
    assert "23 h 0 min are left" in strongroom("request", "apply", id).error(), (
        "a clock that was set forward shortens nothing"
    )
    later(monkeypatch, hours=25)
    applied = strongroom("request", "apply", "--json")
    assert (applied.code, applied.json()) == (0, [{"id": id, "problems": []}])
    assert points(strongroom) == []
    assert strongroom("request", "list", "--json").json() == []
    (over,) = strongroom("request", "list", "--all", "--json").json()
    assert (over["standing"], over["confirmed_by"]) == ("done", ["bob"])
    assert strongroom("request", "apply", id).code == 1
    assert strongroom("status").code == 0
    assert strongroom("repository", "collect").code == 0
    verified = strongroom("repository", "verify", "--read-data", "--json").json()
    assert (verified["ok"], verified["unknown_objects"]) == (True, [])


def test_protection_and_keys_take_a_request_too(strongroom: CommandLine) -> None:
    point = strongroom.backup(os.urandom(PAGE), "web")["id"]
    turn_on(strongroom, "--delay", "0h")
    assert strongroom("point", "protect", point).code == 0
    refused = strongroom("point", "protect", point, "--off")
    assert (refused.code, "somebody wanted it kept" in refused.error()) == (1, True)
    keys = strongroom("repository", "key", "list", "--json").json()
    key = next(each["id"] for each in keys if each["kind"] == "passphrase")
    assert strongroom("repository", "key", "remove", key, "--yes").code == 1
    deletion = asked(strongroom, "point", "delete", point)
    lift = asked(strongroom, "point", "protect", point, "--off", by="bob")
    removal = asked(strongroom, "repository", "key", "remove", key, by="carol")
    for id in (deletion, lift, removal):
        assert confirm(strongroom, id, "alice" if id != deletion else "bob").code == 0
    held = strongroom("request", "apply", deletion)
    assert (held.code, "protected" in held.err) == (3, True)
    assert points(strongroom) == [point]
    strongroom("request", "apply")  # in the order in which they were asked for: the point may be protected still
    assert strongroom("request", "apply").code == 0
    assert points(strongroom) == []
    assert key not in {each["id"] for each in strongroom("repository", "key", "list", "--json").json()}
    assert strongroom("point", "protect", point, "--off", "--ask", "alice", **words("alice")).code == 1


def test_a_hold_that_cannot_be_read_is_asked_for(strongroom: CommandLine) -> None:
    point = strongroom.backup(os.urandom(PAGE), "web")["id"]
    assert strongroom("point", "protect", point).code == 0
    (hold,) = [each["id"] for each in strongroom("repository", "hold", "list", "--json").json()]
    readable = strongroom("repository", "hold", "release", hold, "--ask", "alice", **words("alice"))
    assert (readable.code, "point protect" in readable.error()) == (1, True)
    path = strongroom.repository / "holds" / hold
    path.write_bytes(path.read_bytes()[:-1])
    turn_on(strongroom, "--delay", "0h")
    listed = strongroom("repository", "hold", "list")
    assert (listed.code, listed.out, f"hold {hold} cannot be read" in listed.err) == (3, "", True)
    status = strongroom("status")
    assert (status.code, f"hold {hold} cannot be read, so nothing is deleted" in status.err) == (3, True)
    refused = strongroom("repository", "hold", "release", hold[:8], "--yes")
    assert (refused.code, "may be a protection" in refused.error()) == (1, True)
    assert "--ask PERSON" in refused.error()
    id = asked(strongroom, "repository", "hold", "release", hold[:8])
    assert strongroom("request", "show", id, "--json").json()["act"] == {
        "kind": "lift-protection", "hold": hold, "manifest": None,
    }  # fmt: skip
    assert path.exists()
    assert confirm(strongroom, id).code == 0
    assert strongroom("request", "apply", id).code == 0
    assert not path.exists()
    assert strongroom("repository", "hold", "list").code == 0


def test_prune_stops_at_what_is_guaranteed_and_asks_for_the_rest(strongroom: CommandLine) -> None:
    with Appliance(load(strongroom.environment)) as appliance:
        made = [
            back_up(
                appliance.repository, "web", {"disk": content(day, PAGE)}, datetime(2026, 1, 1 + day, tzinfo=UTC)
            ).id
            for day in range(8)
        ]
    turn_on(strongroom, "--delay", "0h", "--keep-days", "3", "--keep-points", "2")
    dry = strongroom("prune", "--keep-last", "1", "--dry-run", "--json").json()
    reasons = {each["id"]: each["reasons"] for each in dry["points"]}
    assert [reasons[id] for id in made] == [[]] * 5 + [["guard"]] * 2 + [["newest", "last"]]
    id = asked(strongroom, "prune", "--keep-last", "1", "--yes")
    assert points(strongroom) == made[5:]
    again = strongroom("prune", "--keep-last", "1", "--yes")
    assert (again.code, "2 more would go, but for the repository's guard" in again.err) == (0, True)
    shown = strongroom("request", "show", id, "--json").json()
    assert [each["manifest"][-32:] for each in shown["act"]["points"]] == made[5:7]
    assert confirm(strongroom, id).code == 0
    assert strongroom("request", "apply", id).code == 0
    assert points(strongroom) == made[7:]


def test_what_was_deleted_before_a_passphrase_was_refused_is_in_the_audit(
    strongroom: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Appliance(load(strongroom.environment)) as appliance:
        made = [
            back_up(appliance.repository, "web", {"disk": content(day, PAGE)}, datetime(2026, 1, 1 + day, tzinfo=UTC))
            for day in range(4)
        ]
    turn_on(strongroom, "--keep-days", "3", "--keep-points", "2")

    def ends(*_: object, **__: object) -> str:
        raise click.Abort  # as Ctrl-C, or Ctrl-D, at the prompt

    monkeypatch.setattr("appliance.cli.passphrases.is_terminal", lambda _: True)
    monkeypatch.setattr("appliance.cli.passphrases.click.prompt", ends)
    assert strongroom("prune", "--keep-last", "1", "--yes", "--ask", "alice").code == 1
    assert points(strongroom) == [point.id for point in made[1:]]
    last = strongroom("audit", "list", "--limit", "1", "--json").json()[0]
    assert (last["act"], last["result"], last["details"]) == ("point.prune", "partly", {"points": [made[0].id]})


def test_what_is_asked_for_and_needs_no_asking_is_told(strongroom: CommandLine) -> None:
    point = strongroom.backup(os.urandom(PAGE), "web")["id"]
    done = strongroom("point", "delete", point, "--ask", "alice", **words("alice"))
    assert (done.code, "the repository has no guard" in done.error()) == (1, True)
    assert points(strongroom) == [point]
    assert strongroom("point", "protect", point, "--ask", "alice").code == 2
    assert strongroom("repository", "guard", "off", "--ask", "alice", **words("alice")).code == 1


def test_a_refusal_takes_no_passphrase_and_is_for_ever(strongroom: CommandLine) -> None:
    point = strongroom.backup(os.urandom(PAGE), "web")["id"]
    turn_on(strongroom, "--delay", "0h")
    id = asked(strongroom, "point", "delete", point)
    assert confirm(strongroom, id).code == 0
    assert strongroom("request", "refuse", id[:8], "--reason", "not mine\x1b[31m").code == 0
    listed = strongroom("request", "list", "--all")
    assert ("not mine" in listed.out, "\x1b" in listed.out) == (True, False)
    for attempt in (
        strongroom("request", "apply", id),
        confirm(strongroom, id, "carol"),
        strongroom("request", "refuse", id),
    ):
        assert (attempt.code, "refused" in attempt.error()) == (1, True)
    assert strongroom("request", "apply").code == 0
    assert points(strongroom) == [point]


def test_the_guard_is_changed_by_two_and_shown(strongroom: CommandLine) -> None:
    off = strongroom("repository", "guard", "show", "--json").json()
    assert (off["on"], [each["of_the_guard"] for each in off["persons"]]) == (False, [False] * 3)
    for wrong in (
        (),
        ("alice",),
        ("alice", "nobody"),
        ("alice", "bob", "--append-only"),
        ("alice", "bob", "--delay", "200d"),
        ("alice", "bob", "--keep-all", "--keep-days", "3"),
    ):
        assert strongroom("repository", "guard", "on", *wrong, "--yes").code in (1, 2), wrong
    assert strongroom("repository", "guard", "on", "alice", "bob").code == 2, "it asks, and there is no terminal"
    turn_on(strongroom, "--delay", "0h")
    assert strongroom("repository", "guard", "on", *PERSONS, "--yes").code == 1
    assert strongroom("repository", "guard", "enrol", "alice", STRONGROOM_NEW_PASSPHRASE="x" * 9).code == 1
    assert strongroom("repository", "guard", "enrol", "dora", STRONGROOM_NEW_PASSPHRASE="only dora knows").code == 0
    assert strongroom("repository", "guard", "change", "--keep-days", "30", "--ask", "alice").code == 2
    change = asked(strongroom, "repository", "guard", "change", "--keep-days", "60", "--add", "dora", "--remove", "bob")
    shown = strongroom("request", "show", change).out
    assert all(word in shown for word in ("30 days → 60 days", "dora", "bob"))
    assert confirm(strongroom, change, "dora").code == 1
    assert confirm(strongroom, change, "carol").code == 0
    assert strongroom("request", "apply").code == 0
    on = strongroom("repository", "guard", "show", "--json").json()
    assert (on["state"], on["keep_days"]) == (2, 60)
    assert {each["name"] for each in on["persons"] if each["of_the_guard"]} == {"alice", "carol", "dora"}
    assert "bob" in strongroom("repository", "guard", "show").out
    changed = strongroom(
        "repository", "guard", "passphrase", "dora", STRONGROOM_NEW_PASSPHRASE="dora's new one", **words("dora")
    )
    assert changed.code == 0, changed.err
    off_id = asked(strongroom, "repository", "guard", "off")
    assert confirm(strongroom, off_id, "dora").code == 1
    new = {"STRONGROOM_PERSON_PASSPHRASE": "dora's new one"}
    assert strongroom("request", "confirm", off_id, "--person", "dora", "--yes", **new).code == 0
    assert strongroom("request", "apply", off_id).code == 0
    assert strongroom("repository", "guard", "show", "--json").json()["on"] is False
    assert strongroom("repository", "verify").code == 0


def test_a_guard_without_persons_is_append_only(strongroom: CommandLine) -> None:
    point = strongroom.backup(os.urandom(PAGE), "web")["id"]
    done = strongroom("repository", "guard", "on", "--append-only", "--keep-days", "30", "--yes")
    assert (done.code, "nobody will ever" in done.err) == (0, True)
    assert strongroom("repository", "guard", "show", "--json").json()["append_only"] is True
    for attempt in (
        ("point", "delete", point, "--yes"),
        ("point", "delete", point, "--ask", "alice"),
        ("repository", "guard", "off", "--ask", "alice"),
        ("repository", "guard", "change", "--add", "bob", "--add", "alice", "--ask", "alice"),
    ):
        refused = strongroom(*attempt, **words("alice"))
        assert (refused.code, "append-only" in refused.error()) == (1, True), attempt


def test_a_guard_that_vanished_is_told_and_ends_only_by_hand(strongroom: CommandLine) -> None:
    point = strongroom.backup(os.urandom(PAGE), "web")["id"]
    turn_on(strongroom)
    assert strongroom("status").code == 0
    for folder in ("guard", "guard.copy"):
        shutil.rmtree(strongroom.repository / folder)
    status = strongroom("status")
    assert (status.code, "was seen in state 1, and the newest now is none" in status.err) == (3, True)
    for attempt in (("point", "delete", point, "--yes"), ("prune", "--keep-last", "1", "--yes"), ("request", "apply")):
        refused = strongroom(*attempt)
        assert (refused.code, "nothing is deleted" in refused.error()) == (1, True)
    (strongroom.home / "cache" / "guard").unlink()
    assert strongroom("point", "delete", point, "--yes").code == 0


def test_a_console_asks_and_confirms_through_the_service_alone(strongroom: CommandLine) -> None:
    """What the web console will do: plain values in, what happened out, nothing asked of a terminal."""
    point = strongroom.backup(os.urandom(PAGE), "web")["id"]
    with Appliance(load(strongroom.environment)) as appliance:
        service = GuardService(appliance)
        service.turn_on(service.plan_on(PERSONS, delay_s=0, keep_days=30, keep_points=7))
        act = service.deleting([PointService(appliance).resolve(point)])
        told = service.ask(act, "alice", "only alice knows", "from the console")
        with pytest.raises(PassphraseWrong):
            service.confirm(told.request.id, "bob", "guessed")
        assert service.confirm(told.request.id, "bob", "only bob knows").confirmed_by == ("bob",)
        ((open_one,), damaged) = service.requests()
        assert (open_one.request.id, damaged) == (told.request.id, ())
        (applied,) = service.apply()
        assert applied.problems == ()
    assert points(strongroom) == []


# Through every command

HARMLESS = {
    "init", "host add", "host list", "host test", "host remove", "host forget-checkpoints", "vm list", "recovery start",
    "recovery list", "recovery migrate", "recovery discard", "recovery resume", "export serve", "mount", "umount",
    "restore", "repository adopt", "repository copy", "serve", "appliance take-over",
    "run show", "run cancel", "run retry", "policy edit", "policy show", "policy preview", "policy pause", "policy due",
    "policy resume", "policy remove", "policy export", "policy import", "metrics", "notice test", "notice list",
    "notice targets", "report", "files list", "files get",
}  # fmt: skip
"""These need hosts, servers or a second home, and reach neither deletion, keys nor protections: they have no id of a
point or key as what is to go. Whatever else is in the command line is tried below."""

IN_BUCKETS = {"repository lock", "repository undo"}
"""A folder has no such thing, and they say so; where there is, tests/faults/test_locked_repository.py tries them."""

Attempts = dict[str, list[tuple[str, ...]]]


def attempts(point: str, key: str, hold: str, request: str) -> Attempts:
    return {
        "backup": [("--image", "IMAGE", "--format", "raw", "--name", "web", "--full")],
        "run list": [()],
        "point list": [()],
        "point show": [(point,)],
        "point diff": [(point, point)],
        "point delete": [(point, "--yes"), (point, "--yes", "--ask", "alice")],
        "point protect": [(point,), (point, "--off")],
        "policy list": [()],
        "policy add": [("mine", "--all", "--image", "*", "--at", "* * * * *", "--keep-last", "1", "--yes")],
        "prune": [
            ("--keep-last", "1", "--yes"),
            ("web", "--keep-hourly", "1", "--yes"),
            ("--keep-within", "1h", "--yes"),
        ],
        "repository info": [()],
        "repository verify": [("--read-data",)],
        "repository key list": [()],
        "repository key add": [("--label", "mine")],
        "repository key remove": [(key, "--yes"), (key, "--yes", "--ask", "alice")],
        "repository collect": [()],
        "repository forecast": [()],
        "repository repair": [()],
        "repository lock": [(), ("--ask-all",)],
        "repository undo": [(), ("--since", "2026-01-01 00:00", "--yes")],
        "repository hold list": [()],
        "repository hold release": [(hold, "--yes"), (hold, "--yes", "--ask", "alice")],
        "repository guard show": [()],
        "repository guard enrol": [("mallory",)],
        "repository guard passphrase": [("mallory",)],
        "repository guard on": [("mallory", "alice", "--yes"), ("--append-only", "--keep-days", "1", "--yes")],
        "repository guard change": [("--delay", "0h", "--keep-days", "1", "--ask", "mallory")],
        "repository guard off": [("--ask", "mallory")],
        "request list": [()],
        "request show": [(request,)],
        "request confirm": [(request, "--person", name, "--yes") for name in ("alice", "mallory")],
        "request apply": [(), (request,)],
        "request refuse": [(request,)],
        "appliance list": [()],
        "plan": [()],
        "audit list": [()],
        "audit verify": [()],
        "audit export": [()],
        "audit accept": [("--yes",)],
        "user list": [()],
        "user setup-link": [()],
        "user add": [("mallory", "--role", "admin")],
        "user edit": [("mallory", "--role", "viewer")],
        "user disable": [("mallory",)],
        "user reset": [("mallory",)],
        "user renew-key": [("--yes",)],
        "user remove": [("mallory", "--yes")],
        "token list": [()],
        "token add": [("mine", "--role", "admin", "--act", "point.delete")],
        "token revoke": [("0",)],
        "status": [("--json",)],
    }


def test_no_command_deletes_what_is_guarded(strongroom: CommandLine) -> None:
    """A stolen session with the passphrase of one person, or of somebody who is none, tries everything there is."""
    made = [strongroom.backup(os.urandom(PAGE), "web")["id"] for _ in range(3)]
    assert strongroom("point", "protect", made[0]).code == 0
    keys = {each["id"] for each in strongroom("repository", "key", "list", "--json").json()}
    (hold,) = strongroom("repository", "hold", "list", "--json").json()
    turn_on(strongroom, "--delay", "0h")
    key = next(
        each["id"] for each in strongroom("repository", "key", "list", "--json").json() if each["kind"] == "recovery"
    )
    request = asked(strongroom, "point", "delete", made[1])
    tried = attempts(made[1], key, hold["id"], request)
    assert {" ".join(command) for command in commands()} == set(tried) | HARMLESS
    image = strongroom.folder / "image.raw"
    for command, lines in tried.items():
        for arguments in lines:
            stolen = words("alice") | {"STRONGROOM_NEW_PASSPHRASE": "only alice knows"}
            given = [str(image) if each == "IMAGE" else each for each in arguments]
            done = strongroom(*command.split(), *given, **stolen)
            assert "mistake in strongroom itself" not in done.err
            if command in IN_BUCKETS:
                assert (done.code, "do not say that this repository is locked" in done.error()) == (1, True)
            with Appliance(load(strongroom.environment)) as appliance:
                repository = appliance.repository
                assert set(made) <= {point.id for point in repository.points()}, (command, arguments)
                assert keys <= {slot.id for slot in repository.slots()}, (command, arguments)
                assert hold["id"] in {each.id for each in repository.holds()}, (command, arguments)
                assert repository.guard.state().number == 1, (command, arguments)


# Killed in between

PLACES = [
    ("imaging.guard.requests:Requests.decide", "after"),
    ("imaging.points:Points.delete", "after"),
    ("imaging.guard.requests:Requests.done", "before"),
    ("imaging.guard.states:GuardStates.append", "before"),
    ("imaging.guard.states:GuardStates._put_back", "before"),
]
"""Where `request apply` dies: once it is released, with one of two points deleted, with all done and not noted; with
the guard not changed yet, and with the new state there only once."""


def killed_at(line: CommandLine, place: tuple[str, str], *arguments: str) -> int:
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults.crash", *place, "1", *arguments],
        cwd=PROJECT, env=line.environment, capture_output=True, timeout=120, check=False,
    )  # fmt: skip
    return done.returncode


@pytest.mark.faults
def test_whatever_is_killed_is_gone_on_with(strongroom: CommandLine) -> None:
    with Appliance(load(strongroom.environment)) as appliance:
        made = [back_up(appliance.repository, "web", {"disk": content(number, PAGE)}).id for number in range(8)]
    turn_on(strongroom, "--delay", "0h")
    for number, place in enumerate(PLACES):
        of_the_guard = "states" in place[0]
        if of_the_guard:
            id = asked(strongroom, "repository", "guard", "change", "--keep-points", str(10 + number))
        else:
            id = asked(strongroom, "prune", "--keep-last", str(6 - 2 * number), "--yes")
        assert confirm(strongroom, id).code == 0
        assert killed_at(strongroom, place, "request", "apply", id) == -9, place
        again = strongroom("request", "apply", "--json")
        assert (again.code, [each["problems"] for each in again.json() if each["problems"]]) == (0, []), place
        (over,) = [each for each in strongroom("request", "list", "--all", "--json").json() if each["id"] == id]
        assert over["standing"] == "done", place
        if of_the_guard:
            assert strongroom("repository", "guard", "show", "--json").json()["keep_points"] == 10 + number
        else:
            assert points(strongroom) == made[2 + 2 * number :]
        assert strongroom("repository", "verify").code == 0, "and both copies are there"
    assert {each["standing"] for each in strongroom("request", "list", "--all", "--json").json()} == {"done"}
