"""`strongroom policy`, as people and scripts see it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from appliance.bootstrap import Appliance
from appliance.catalog.errors import PolicyChanged
from appliance.policy.policies import read_policy
from appliance.policy.stored import StoredPolicy
from appliance.services.policies import PolicyService
from appliance.settings import load
from tests.unit.cli_runner import CommandLine
from tests.unit.records import NOW

ALL = ("--all", "--at", "0 22 * * *")


@pytest.fixture
def strongroom(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> CommandLine:
    line = CommandLine(tmp_path, capsys)
    line.init()
    return line


def document(strongroom: CommandLine, name: str) -> dict[str, Any]:
    found: dict[str, Any] = strongroom("policy", "show", name, "--json").json()["policy"]
    return found


def test_options_say_what_the_document_would(strongroom: CommandLine) -> None:
    done = strongroom(
        "policy", "add", "nightly", "--vm", "web-*", "--tag", "gold", "--except-host", "lab-?",
        "--at", "0 22 * * MON-FRI", "--zone", "Europe/Berlin",
        "--window", "mon-fri 22:00-06:00", "--window", "sat-mon 00:00-00:00", "--window",
        "05:00-07:00", "--limit", "50MB", "--per-host", "3", "--spread", "60", "--no-quiesce", "--rpo", "26h",
        "--verify-every", "7", "--copy-to", "vault", "--keep-daily", "14", "--keep-within", "2d",
    )  # fmt: skip
    assert done.code == 0, done.err
    assert "At 22:00 on Monday through Friday, Europe/Berlin; next:" in done.out
    assert "Policy nightly is added." in done.out
    assert "selects none of the machines" in done.err
    assert document(strongroom, "nightly") == {
        "version": 1,
        "name": "nightly",
        "select": {"include": [{"name": "web-*"}, {"tag": "gold"}], "exclude": [{"host": "lab-?"}]},
        "schedule": {"cron": "0 22 * * MON-FRI", "zone": "Europe/Berlin"},
        "window": [
            {"days": ["mon", "tue", "wed", "thu", "fri"], "from": "22:00", "to": "06:00"},
            {"days": ["mon", "sat", "sun"], "from": "00:00", "to": "00:00"},
            {"days": ["mon", "tue", "wed", "thu", "fri", "sat", "sun"], "from": "05:00", "to": "07:00"},
        ],
        "limit_bytes_s": 50_000_000,
        "per_host": 3,
        "spread_s": 60,
        "quiesce": False,
        "verify_every_days": 7,
        "copies": ["vault"],
        "rpo_minutes": 1560,
        "retention": {
            "last": 0, "hourly": 0, "daily": 14, "weekly": 0, "monthly": 0, "yearly": 0, "within_hours": 48,
        },
    }  # fmt: skip
    shown = strongroom("policy", "show", "nightly").out
    for words in (
        "name web-*; tag gold",
        "host lab-?",
        "Mon, Sat, Sun 00:00-00:00",
        "47.7 MiB/s",
        "14 daily, within 48 h",
    ):
        assert words in shown


def test_an_edit_changes_what_it_says_and_nothing_else(strongroom: CommandLine) -> None:
    assert strongroom("policy", "add", "n", *ALL, "--except-vm", "test", "--rpo", "2d", "--keep-daily", "5").code == 0
    before = strongroom("policy", "show", "n", "--json").json()
    assert (
        strongroom("policy", "edit", "n", "--keep-weekly", "3", "--zone", "UTC", "--vm", "web", "--clear", "rpo").code
        == 0
    )
    after = strongroom("policy", "show", "n", "--json").json()
    assert (after["version"], after["since_utc"]) == (2, before["since_utc"])
    assert after["policy"]["select"] == {"include": [{"name": "web"}], "exclude": [{"name": "test"}]}
    assert after["policy"]["retention"] == before["policy"]["retention"] | {"weekly": 3}
    assert after["policy"]["rpo_minutes"] is None
    assert strongroom("policy", "edit", "n", "--zone", "Asia/Tokyo", "--clear", "exclude").code == 0
    moved = strongroom("policy", "show", "n", "--json").json()
    assert moved["since_utc"] > before["since_utc"], "another schedule counts from now on"
    assert moved["policy"]["select"]["exclude"] == []
    stale = strongroom("policy", "edit", "n", "--rpo", "3d", "--if-version", "2")
    assert "it is version 3 now" in stale.error()
    assert strongroom("policy", "edit", "n", "--rpo", "3d", "--dry-run", "--json").json()["kept"] is None
    assert strongroom("policy", "show", "n", "--json").json() == moved


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("add", "x", "--all"), "policy.schedule.cron: it is missing"),
        (("add", "x", "--at", "0 22 * * *"), "select"),
        (("add", "../x", *ALL), "is no name"),
        (("add", "x", *ALL, "--zone", "Europe/Berln"), "Did you mean Europe/Berlin?"),
        (("add", "x", *ALL, "--window", "noon"), "is no span"),
        (("add", "x", *ALL, "--window", "funday 10:00-11:00"), "is no day of the week"),
        (("add", "x", *ALL, "--limit", "fast"), "a size is"),
        (("edit", "x", "--rpo", "2d"), "there is no policy x"),
        (("remove", "x", "--yes"), "there is no policy x"),
        (("pause", "x"), "there is no policy x"),
        (("pause",), "Give the name of a policy"),
        (("pause", "--vm", "nobody"), "there is no machine or image nobody"),
        (("preview",), "Give the name of a policy"),
        (("export", "x"), "there is no policy x"),
    ],
    ids=" ".join,
)
def test_what_is_wrong_is_said_and_nothing_is_kept(
    strongroom: CommandLine, arguments: tuple[str, ...], says: str
) -> None:
    done = strongroom("policy", *arguments)
    assert done.code in (1, 2)
    assert says in done.error()
    assert strongroom("policy", "list", "--json").json()["policies"] == []


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"{", "it is no JSON"),
        (b"\xff\xfe", "it is no JSON"),
        (b"[" * 100_000, "it is no JSON"),
        (b"[1]", "must be an object"),
        (b'{"version": 2, "schedule": {"cron": "0 1 * * *"}}', "it must be 1, not 2"),
        (b'{"schedule": {"cron": "0 1 * * *"}, "select": {"include": [{"all": true}]}, "per_hots": 1}', "per_host?"),
    ],
)
def test_files_are_not_trusted(strongroom: CommandLine, content: bytes, says: str) -> None:
    path = strongroom.folder / "policy.json"
    path.write_bytes(content)
    assert says in strongroom("policy", "add", "x", "--file", str(path)).error()
    assert strongroom("policy", "import", str(path)).code in (1, 2)
    assert strongroom("policy", "list", "--json").json()["policies"] == []


def test_points_do_not_go_unasked(strongroom: CommandLine) -> None:
    made = [strongroom.backup(os.urandom(4096), "fw")["id"] for _ in range(4)]
    assert strongroom("point", "protect", made[1]).code == 0
    add = ("policy", "add", "images", "--image", "*", "--at", "0 2 * * *", "--keep-last", "2")
    asked = strongroom(*add)
    assert (asked.code, "1 restore points of 1 machines go by this" in asked.error()) == (2, True)
    assert strongroom(*add, "--dry-run", "--json").json()["losing"] == [
        {"machine": "image:fw", "name": "fw", "points": [made[0]]}
    ]
    assert strongroom("policy", "list", "--json").json()["policies"] == []
    assert strongroom(*add, "--yes").code == 0
    strongroom("policy", "add", "more", "--image", "fw", "--at", "0 2 * * *", "--keep-last", "3")
    removed = strongroom("policy", "remove", "more")
    assert (removed.code, "Remove policy more?" in removed.error()) == (2, True), "nothing goes that would not anyway"
    assert strongroom("policy", "remove", "more", "--yes").code == 0
    assert (
        "1 restore points of fw would go"
        in strongroom("policy", "edit", "images", "--keep-last", "1", "--clear", "rpo").err
    )
    assert len(strongroom("point", "list", "--json").json()) == 4


def test_policies_and_machines_are_paused(strongroom: CommandLine) -> None:
    strongroom.backup(os.urandom(4096), "fw")
    strongroom("policy", "add", "n", "--image", "*", "--at", "0 2 * * *")
    assert strongroom("policy", "pause", "n").code == 0
    assert strongroom("policy", "pause", "--vm", "image:fw").code == 0
    listed = strongroom("policy", "list", "--json").json()
    assert listed["policies"][0]["paused_utc"] is not None
    assert [each["machine"] for each in listed["paused_machines"]] == ["image:fw"]
    assert "paused since" in strongroom("policy", "list").out
    assert strongroom("policy", "resume", "n").code == 0
    assert strongroom("policy", "resume", "--vm", "fw").out == "fw is active.\n"
    assert strongroom("policy", "resume", "--vm", "fw").out == "fw was not paused.\n"
    listed = strongroom("policy", "list", "--json").json()
    assert (listed["policies"][0]["paused_utc"], listed["paused_machines"]) == (None, [])


def test_machines_are_selected_as_they_were_last_seen(strongroom: CommandLine) -> None:
    assert strongroom("host", "add", "mock", "test:///default").code == 0
    strongroom("policy", "add", "n", "--host", "mo*", "--at", "0 2 * * *")
    (machine,) = strongroom("policy", "preview", "n", "--json").json()["selected"]
    assert (machine["name"], machine["host"], machine["clause"]) == ("test", "mock", {"host": "mo*"})
    assert strongroom("policy", "pause", "--vm", machine["id"]).code == 0
    assert strongroom("policy", "list", "--json").json()["paused_machines"][0]["machine"] == f"vm:{machine['id']}"


def test_what_is_exported_is_imported_elsewhere(strongroom: CommandLine) -> None:
    for name in ("a", "b"):
        strongroom("policy", "add", name, *ALL, "--keep-daily", "3")
    exported = strongroom("policy", "export")
    path = strongroom.folder / "policies.json"
    path.write_text(exported.out)
    assert [each["name"] for each in exported.json()["policies"]] == ["a", "b"]
    assert "there is a policy a, b already" in strongroom("policy", "import", str(path)).error()
    assert strongroom("policy", "import", str(path), "--replace").code == 0
    assert strongroom("policy", "show", "b", "--json").json()["version"] == 2
    strongroom("policy", "remove", "a", "--yes")
    strongroom("policy", "remove", "b", "--yes")
    assert strongroom("policy", "import", str(path), "--dry-run").code == 0
    assert strongroom("policy", "list", "--json").json()["policies"] == []
    assert strongroom("policy", "import", str(path)).code == 0
    assert strongroom("policy", "export").out == exported.out
    broken = exported.json()
    broken["policies"][1]["schedule"]["cron"] = "never"
    path.write_text(json.dumps(broken))
    assert "import.policies[1].schedule.cron" in strongroom("policy", "import", str(path), "--replace").error()


def test_a_policy_that_cannot_be_read_hinders_no_other(strongroom: CommandLine) -> None:
    strongroom("policy", "add", "good", *ALL)
    with Appliance(load(strongroom.environment)) as appliance:
        known = PolicyService(appliance).get("good")
        broken = {
            **known.policy.to_json(),
            "name": "broken",
            "schedule": {"cron": "0 1 * * *", "zone": "Atlantis/City"},
        }
        appliance.catalog.policies.add(StoredPolicy("broken", broken, 1, NOW, NOW))
        with pytest.raises(PolicyChanged):
            PolicyService(appliance).replace("good", read_policy(known.policy.to_json()), seen=7)
    listed = strongroom("policy", "list")
    assert (listed.code, "good" in listed.out, "no time zone 'Atlantis/City'" in listed.err) == (3, True, True)
    assert "cannot be used" in strongroom("policy", "show", "broken").error()
    assert strongroom("policy", "edit", "broken", "--zone", "UTC").code == 0
    assert strongroom("policy", "list").code == 0
