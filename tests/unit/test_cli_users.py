"""`strongroom user` and `strongroom token`: accounts from the appliance's own machine."""

from __future__ import annotations

from pathlib import Path

import pyotp
import pytest

from appliance.bootstrap import Appliance
from appliance.services.accounts.errors import TokenRefused
from appliance.services.accounts.setting_up import SetUpService
from appliance.services.accounts.tokens import TokenService
from appliance.settings import load
from tests.unit.accounts import CHEAP, ORIGIN, PASSWORD
from tests.unit.cli_runner import CommandLine


@pytest.fixture
def strongroom(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> CommandLine:
    return CommandLine(tmp_path, capsys)


def use(line: CommandLine, url: str, name: str | None = None) -> None:
    secret = url.rpartition("/set-up/")[2]
    with Appliance(load(line.environment)) as appliance:
        service = SetUpService(appliance, passwords=CHEAP)
        code = pyotp.TOTP(service.offer(secret).secret).now()
        service.complete(secret, name, PASSWORD, code, ORIGIN)


def test_the_first_admin_and_those_after(strongroom: CommandLine) -> None:
    none = strongroom("user", "list")
    assert (none.code, "setup-link" in none.err) == (0, True)
    url = strongroom("user", "setup-link").out.strip()
    assert url.startswith("https://127.0.0.1:8443/set-up/")
    use(strongroom, url, "alice")
    assert "users already" in strongroom("user", "setup-link").error()
    added = strongroom(
        "user", "add", "Rita", "--role", "restorer", "--vm", "web-*", "--tag", "team=web", "--json"
    ).json()
    assert (added["name"], added["role"], added["set_up"]) == ("rita", "restorer", False)
    assert added["grants"] == [{"include": [{"name": "web-*"}, {"tag": "team=web"}], "exclude": []}]
    assert "has not used their link" in strongroom("user", "list").out
    use(strongroom, added["link"]["url"])
    assert [each["set_up"] for each in strongroom("user", "list", "--json").json()] == [True, True]
    for arguments, code in (
        (("add", "rita", "--role", "viewer"), 1),
        (("add", "bob", "--role", "restorer"), 2),
        (("add", "b ob", "--role", "viewer"), 2),
        (("add", "bob", "--role", "king"), 2),
        (("edit", "rita"), 2),
        (("edit", "rita", "--all", "--no-grants"), 2),
        (("edit", "rita", "--no-grants"), 2),
        (("edit", "nobody", "--role", "viewer"), 1),
        (("remove", "alice", "--yes"), 1),
        (("remove", "rita"), 2),
        (("disable", "alice"), 1),
    ):
        done = strongroom("user", *arguments)
        assert done.code == code, (arguments, done.err)
    assert strongroom("user", "edit", "rita", "--role", "viewer", "--no-grants").out == (
        "User rita is viewer, with every machine.\n"
    )
    assert strongroom("user", "edit", "rita", "--all", "--json").json()["grants"] == [
        {"include": [{"all": True}], "exclude": []}
    ]
    assert strongroom("user", "disable", "rita", "--json").json()["disabled_utc"] is not None
    assert strongroom("user", "disable", "rita", "--off").out == "User rita may sign in again.\n"
    again = strongroom("user", "reset", "rita", "--json").json()["url"]
    assert "/set-up/" in again
    use(strongroom, strongroom("user", "setup-link", "rita").out.strip())
    assert strongroom("user", "remove", "rita", "--yes").code == 0
    told = strongroom("audit", "list", "--act", "user.", "--limit", "100", "--json").json()
    assert {entry["actor_kind"] for entry in told} == {"local"}
    assert [entry["act"] for entry in told if entry["result"] == "ok"] == [
        "user.remove", "user.reset", "user.reset", "user.enable", "user.disable", "user.save", "user.save", "user.save",
        "user.reset",
    ]  # fmt: skip


def test_tokens(strongroom: CommandLine) -> None:
    assert strongroom("token", "list", "--json").json() == []
    made = strongroom(
        "token",
        "add",
        "ci",
        "--role",
        "admin",
        "--act",
        "run.start",
        "--act",
        "point.delete",
        "--vm",
        "web-*",
        "--json",
    ).json()
    shown = strongroom("token", "list")
    assert (made["token"] in shown.out, "point.delete run.start" in shown.out) == (False, True)
    for arguments in (
        ("--role", "viewer", "--act", "run.start"),
        ("--role", "admin", "--act", "x"),
        ("--role", "restorer"),
    ):
        assert strongroom("token", "add", "x", *arguments).code == 2
    with Appliance(load(strongroom.environment)) as appliance:
        service = TokenService(appliance)
        assert service.actor_of(made["token"], ORIGIN).name == "ci"
        assert strongroom("token", "revoke", made["id"][:6]).code == 0
        with pytest.raises(TokenRefused):
            service.actor_of(made["token"], ORIGIN)
    (left,) = strongroom("token", "list", "--json").json()
    assert (left["id"], left["revoked_utc"] is None, left["owner"]) == (made["id"], False, None)
    plain = strongroom("token", "add", "metrics", "--role", "viewer")
    assert plain.out.startswith("strongroom_")
    assert plain.out.strip() not in plain.err
    assert strongroom("token", "revoke", "zz").code == 1
