"""Object Lock as an admin has it: settings, nightly sweeps, an intruder with its credentials, and undoing."""

from __future__ import annotations

import os
import secrets
import shutil
from pathlib import Path

import pytest

from tests.faults.guarded import PERSONS
from tests.lab.s3_server import LOCKED_BUCKET, S3Server, running
from tests.unit.cli_runner import CommandLine

pytestmark = pytest.mark.faults


@pytest.fixture(scope="module")
def server() -> S3Server:
    server = running()
    server.locked_bucket()
    return server


@pytest.fixture
def strongroom(server: S3Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> CommandLine:
    line = CommandLine(tmp_path, capsys)
    line.environment |= {
        "STRONGROOM_S3_ENDPOINT": server.url,
        "STRONGROOM_S3_BUCKET": LOCKED_BUCKET,
        "STRONGROOM_S3_PREFIX": f"home-{secrets.token_hex(4)}/",
        "STRONGROOM_S3_ACCESS_KEY": server.appliance.access_key,
        "STRONGROOM_S3_SECRET_KEY": server.appliance.secret_key,
        "STRONGROOM_S3_LOCK_MODE": "compliance",
        "STRONGROOM_S3_LOCK_DAYS": "20",
        "STRONGROOM_S3_LOCK_EXTRA_DAYS": "5",
    }
    return line


def test_an_intruder_deletes_everything_and_the_admin_undoes_it(strongroom: CommandLine, server: S3Server) -> None:
    key = ("--recovery-key-file", str(strongroom.key_file))
    assert strongroom("init", *key).code == 0
    content = os.urandom(1 << 20)
    point = strongroom.backup(content, "img")["id"]
    assert "no sweep has told" in strongroom("status").err
    told = strongroom("repository", "lock", "--dry-run", "--json").json()
    assert (told["locked_days"], told["due"], told["problems"]) == (24, 0, [])
    swept = strongroom("repository", "lock")
    assert swept.code == 0, swept.err
    assert "Every restore point is locked until" in swept.out
    shown = strongroom("point", "show", point, "--json").json()
    assert shown["locked_days"] == 24
    status = strongroom("status", "--json")
    assert status.code == 0, status.err
    lock = status.json()["repository"]["lock"]
    assert (lock["mode"], lock["days"], lock["until_utc"]) == ("compliance", 20, told["locked_until_utc"])
    longer = strongroom("status", STRONGROOM_S3_LOCK_DAYS="30")
    assert longer.code == 3
    assert "for 24 days more, and should be for 30" in longer.err

    since = server.next_second()
    intruder = server.client(server.appliance)
    prefix = strongroom.environment["STRONGROOM_S3_PREFIX"]
    for page in intruder.get_paginator("list_objects_v2").paginate(Bucket=LOCKED_BUCKET, Prefix=prefix):
        for entry in page["Contents"]:
            intruder.delete_object(Bucket=LOCKED_BUCKET, Key=entry["Key"])
    assert "is not a repository" in strongroom("point", "list").error()
    shutil.rmtree(strongroom.home)
    assert strongroom("repository", "adopt", *key).code == 1

    hours = strongroom("repository", "undo", "--json").json()
    assert sum(hour["deleted"] for hour in hours) > 8
    command = ("repository", "undo", "--since", f"{since:%Y-%m-%dT%H:%M:%SZ}", *key)
    plan = strongroom(*command, "--dry-run", "--json").json()
    assert (plan["points"], plan["returned"]) == ([point], 0)
    done = strongroom(*command, "--yes")
    assert done.code == 0, done.err
    assert f"{len(plan['returning'])} objects are back" in done.out
    assert "key slots come back" in done.err
    again = strongroom(*command, "--yes", "--json").json()
    assert (again["returning"], again["removing"], again["returned"]) == ([], [], 0)
    assert strongroom("repository", "adopt", *key).code == 0
    assert strongroom("repository", "verify", "--read-data", "--json").json()["ok"]
    back = strongroom.folder / "back.raw"
    assert strongroom("restore", "img", "--point", "latest", "--to", str(back), "--format", "raw").code == 0
    assert back.read_bytes() == content
    assert strongroom("repository", "lock", "--json").json()["problems"] == []


def test_neither_locks_nor_undoing_go_past_the_guard(strongroom: CommandLine, server: S3Server) -> None:
    """Also not an undo of the time before there was a guard: it gives back, and takes nothing that is guarded."""
    assert strongroom("init", "--recovery-key-file", str(strongroom.key_file)).code == 0
    points = [strongroom.backup(os.urandom(4096), "img")["id"]]
    before_guard = server.next_second()
    points.append(strongroom.backup(os.urandom(4096), "img")["id"])
    assert strongroom("point", "protect", points[1]).code == 0
    for name in PERSONS:
        enrolled = strongroom("repository", "guard", "enrol", name, STRONGROOM_NEW_PASSPHRASE=f"only {name} knows")
        assert enrolled.code == 0, enrolled.err
    assert strongroom("repository", "guard", "on", *PERSONS, "--delay", "0h", "--yes").code == 0
    alice = {"STRONGROOM_PERSON_PASSPHRASE": "only alice knows"}
    assert strongroom("point", "delete", points[0], "--ask", "alice", **alice).code == 0

    def guarded() -> dict[str, object]:
        lists = (("point", "list"), ("repository", "key", "list"), ("repository", "hold", "list"), ("request", "list"))
        found: dict[str, object] = {" ".join(each): strongroom(*each, "--json").json() for each in lists}
        return found | {"guard": strongroom("repository", "guard", "show", "--json").json()}

    there = guarded()
    with_guard = server.next_second()
    for command in (
        ("lock",),
        ("lock", "--ask-all"),
        ("undo",),
        *(("undo", "--since", f"{since:%Y-%m-%dT%H:%M:%SZ}", "--yes") for since in (before_guard, with_guard)),
    ):
        done = strongroom("repository", *command)
        assert done.code == 0, (command, done.err)
        assert guarded() == there, command
    refused = strongroom("point", "delete", points[0], "--yes")
    assert (refused.code, "--ask PERSON" in refused.error()) == (1, True)


def test_an_overwritten_object_is_told_by_the_sweep(strongroom: CommandLine, server: S3Server) -> None:
    assert strongroom("init", "--recovery-key-file", str(strongroom.key_file)).code == 0
    key = strongroom.environment["STRONGROOM_S3_PREFIX"] + "config.copy"
    server.client(server.appliance).put_object(Bucket=LOCKED_BUCKET, Key=key, Body=b"evil")
    swept = strongroom("repository", "lock")
    assert swept.code == 3
    assert "config.copy was written over" in swept.err
    assert "repository undo" in swept.err


def test_a_bucket_without_locks_is_refused_and_the_home_stays_free(strongroom: CommandLine, server: S3Server) -> None:
    for command in (("init",), ("repository", "adopt")):
        done = strongroom(*command, STRONGROOM_S3_BUCKET=server.bucket().name)
        assert done.code == 1
        assert "no Object Lock" in done.error()
        assert "make a bucket with Object Lock" in done.error()
        assert not (strongroom.home / "keys" / "machine.key").exists()


def test_rights_to_destroy_are_refused(strongroom: CommandLine, server: S3Server) -> None:
    """An administrator's credentials could end a lock in governance mode."""
    done = strongroom(
        "init",
        STRONGROOM_S3_LOCK_MODE="governance",
        STRONGROOM_S3_ACCESS_KEY=server.credentials.access_key,
        STRONGROOM_S3_SECRET_KEY=server.credentials.secret_key,
    )
    assert done.code == 1
    assert "these credentials can destroy a locked object" in done.error()
    assert "BypassGovernanceRetention" in done.error()


def test_without_a_lock_in_the_settings_the_commands_say_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    strongroom = CommandLine(tmp_path, capsys)
    strongroom.init()
    for command in (("lock",), ("undo",), ("undo", "--since", "2026-11-25 14:00")):
        done = strongroom("repository", *command)
        assert done.code == 1
        assert "only in a bucket of S3 that has Object Lock" in done.error()
        done = strongroom(
            "repository", *command, STRONGROOM_S3_BUCKET="backups", STRONGROOM_S3_ENDPOINT="https://s3.example.com"
        )
        assert done.code == 1
        assert "s3.lock_mode" in done.error()
    assert strongroom("repository", "undo", "--since", "2026-11-25").code == 2
    assert strongroom("repository", "lock", STRONGROOM_S3_LOCK_MODE="forever").code == 1
    assert strongroom("status", "--json").json()["repository"]["lock"] is None
