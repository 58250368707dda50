"""Attacks on pages, by HTTP: script in every name that is shown, and acts that need a proof without one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from pathlib import Path

import pytest

from appliance.bootstrap import Appliance
from appliance.clock import SystemClock
from appliance.hypervisor.protocol import HostConfig, MachineState
from appliance.inventory import SeenDisk, SeenMachine
from appliance.models import (
    HostRecord,
    MachineRecord,
    PointDisk,
    PointRecord,
    ReadKind,
    RecoveryRecord,
    RecoveryState,
    RepositoryRecord,
    RunDisk,
    RunRecord,
    RunState,
    new_id,
)
from appliance.services.access.audits import AuditService
from appliance.services.accounts.setting_up import SetUpService
from appliance.settings import load
from tests.unit.test_web_access import BASE, PASSWORD, Signed, _set_up, token_in
from web.app import create_app

MARK = "strongroom-attack"
EVIL = f"<img src=x onerror=alert('{MARK}')>\"'><script>{MARK}</script>{{{{7*7191}}}}"
NOW = datetime(2026, 11, 20, 3, 0, tzinfo=UTC)


class Shifted:
    """The system's clock, further on by so much."""

    def __init__(self) -> None:
        self.ahead = timedelta()
        self._clock = SystemClock()

    def now_utc(self) -> datetime:
        return self._clock.now_utc() + self.ahead

    def monotonic_s(self) -> float:
        return self._clock.monotonic_s()

    def sleep(self, seconds: float) -> None:
        self._clock.sleep(seconds)


@pytest.fixture
def clock() -> Shifted:
    return Shifted()


@pytest.fixture
def appliance(tmp_path: Path, clock: Shifted) -> Iterator[Appliance]:
    with Appliance(load({"STRONGROOM_HOME": str(tmp_path / "home")}), clock=clock) as appliance:
        yield appliance


@pytest.fixture
def admin(appliance: Appliance) -> Signed:
    return _set_up(create_app(appliance), appliance, SetUpService(appliance).first_link(), "admin")


class Elements(HTMLParser):
    """What a browser would make of a page: elements, and the attributes that act."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.scripts: list[str] = []
        self.handlers: list[str] = []
        self.images = 0
        self.told = 0
        self._within = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._within = tag
        self.images += tag == "img"
        self.handlers += [name for name, _ in attrs if name.startswith("on")]
        self.handlers += [value or "" for _, value in attrs if (value or "").strip().lower().startswith("javascript:")]
        self.told += sum(MARK in (value or "") for _, value in attrs)

    def handle_endtag(self, tag: str) -> None:
        self._within = ""

    def handle_data(self, data: str) -> None:
        if self._within == "script":
            self.scripts.append(data)
        self.told += MARK in data


def fill(appliance: Appliance) -> dict[str, str]:
    """Every name and text that somebody else chooses, as an attack; returns the pages that show them."""
    catalog, uuid, series = appliance.catalog, "12345678-1234-4234-8234-123456789abc", "5" * 32
    catalog.attach_repository(RepositoryRecord("e" * 32, "/srv/repository", NOW))
    catalog.hosts.add(HostRecord(HostConfig("rack1", hostname=""), NOW))
    disk = SeenDisk("vda", "disk", EVIL, "qcow2", 1 << 30, True, EVIL)
    seen = SeenMachine(
        "rack1", uuid, EVIL, MachineState.RUNNING, EVIL, 1 << 30, 1, True, 1 << 30, (disk,), (EVIL,), NOW
    )
    catalog.inventory.answered("rack1", [seen], NOW, NOW)
    catalog.inventory.failed("rack1", EVIL, EVIL, NOW)
    machine = MachineRecord(series, "vm", EVIL, uuid, "rack1", "1" * 32, NOW)
    point = PointRecord(
        "1" * 32, f"{series}/1-{'1' * 32}", "0" * 64, series, 1, "vm", EVIL, uuid, "rack1", NOW, ReadKind.FULL, EVIL,
        1 << 30, 1 << 20, 1 << 19, 1000, None, (PointDisk("vda", 1 << 30, "raw", ReadKind.FULL, EVIL),), (EVIL,),
        (EVIL,),
    )  # fmt: skip
    catalog.points.add(machine, point)
    run = RunRecord(
        new_id(), EVIL, "vm", uuid, "rack1", RunState.FAILED, NOW, NOW, None, EVIL,
        (RunDisk("vda", ReadKind.FULL, EVIL),), (EVIL,),
    )  # fmt: skip
    catalog.runs.save(run)
    recovery = RecoveryRecord(
        new_id(), RecoveryState.FAILED, "1" * 32, point.manifest_name, EVIL, "rack1", EVIL, uuid, EVIL, NOW, NOW,
        error=EVIL, notes=(EVIL,),
    )  # fmt: skip
    catalog.recoveries.add(replace(recovery, appliance=""))
    catalog.thaws.owe(uuid, "rack1", EVIL, NOW)
    return {
        "overview": "/", "vms": "/vms", "vm": f"/vms/vm:{uuid}", "runs": "/runs", "run": f"/runs/{run.id}",
        "recoveries": "/recoveries", "recovery": f"/recoveries/{recovery.id}", "recover": "/recover",
        "recover when": f"/recover?machine=vm:{uuid}",
        "recover review": f"/recover?machine=vm:{uuid}&point={'1' * 32}&step=review&host={EVIL}&name={EVIL}",
        "console": f"/recoveries/{recovery.id}/console", "hosts": "/hosts", "search": f"/search?q={MARK}",
        "search of it": f"/search?q={EVIL}", "vms by text": f"/vms?text={EVIL}",
        "audit by name": f"/audit?actor={EVIL}", "policy": f"/policy/new?vm={EVIL}",
        "preview": f"/policy/preview?name={EVIL}&cron={EVIL}&include={EVIL}&what=some",
        "missing": f"/policies/{EVIL}", "sign in": f"/sign-in?next={EVIL}",
    }  # fmt: skip


def test_script_in_every_name_is_shown_and_does_nothing(appliance: Appliance, admin: Signed) -> None:
    told = 0
    for name, path in fill(appliance).items():
        for headers in ({}, {"HX-Request": "true"}):
            answer = admin.client.get(path, base_url=BASE, headers=headers)
            assert answer.status_code in (200, 302, 400, 404), (name, answer.status_code, answer.text[-500:])
            found = Elements()
            found.feed(answer.text)
            assert found.images == 0, name
            assert found.handlers == [], name
            assert not any(MARK in each and "{" not in each[:1] for each in found.scripts), name
            assert "50337" not in answer.text, name  # what the template would make of it
            told += found.told
    assert told > 40  # they were shown


@pytest.mark.parametrize(
    ("path", "form"),
    [
        ("/hosts", {"name": EVIL, "where": "local"}),
        ("/users", {"name": EVIL, "role": "viewer"}),
        ("/policies", {"name": EVIL, "cron": EVIL, "zone": EVIL}),
        ("/recoveries", {"machine": EVIL, "point": EVIL, "host": EVIL, "name": EVIL}),
    ],
)
def test_script_in_every_field_comes_back_as_text(admin: Signed, path: str, form: dict[str, str]) -> None:
    answer = admin.send("POST", path, **form)
    assert answer.status_code in (200, 400, 404, 409), answer.text[-500:]
    found = Elements()
    found.feed(answer.text)
    assert (found.images, found.handlers) == (0, [])
    assert not any(MARK in each for each in found.scripts)


@pytest.mark.parametrize("text", ["\x00", "a\x00b", "\ud800", "x" * 5000, "😀" * 300, "\r\nSet-Cookie: a=b"])
def test_odd_text_in_fields_is_told_and_fails_nothing(admin: Signed, text: str) -> None:
    raw = text.encode("utf-8", "surrogatepass").decode("latin-1")
    for path in ("/users", "/hosts", "/policies"):
        answer = admin.send("POST", path, name=raw, role="viewer", cron=raw)
        assert answer.status_code in (200, 400, 409), (path, answer.status_code)
        assert "Set-Cookie: a=b" not in str(answer.headers)
    for path in ("/vms", "/search", "/runs", "/audit"):
        given = dict.fromkeys(("text", "q", "after", "before", "host", "tag", "actor"), raw)
        answer = admin.client.get(path, base_url=BASE, query_string=given)
        assert answer.status_code in (200, 400), (path, answer.status_code)


def test_what_cannot_be_undone_asks_for_a_proof_within_the_form(
    appliance: Appliance, admin: Signed, clock: Shifted
) -> None:
    """Six minutes after signing in, nothing is done until password and code came with the form; then it is."""
    clock.ahead = timedelta(minutes=6)
    asked = admin.send("POST", "/users", name="bob", role="viewer")
    assert asked.status_code == 403
    assert 'name="name" value="bob"' in asked.text  # it is asked again with all that was typed
    assert [user.name for user in appliance.catalog.users.list()] == ["admin"]
    before = admin.client.get_cookie("__Host-strongroom", domain="localhost")
    wrong = admin.send("POST", "/users", name="bob", role="viewer", proof_password="wrong", proof_code="000000")
    assert wrong.status_code == 403
    assert [user.name for user in appliance.catalog.users.list()] == ["admin"]
    clock.ahead += timedelta(minutes=2)  # whoever is wrong waits
    proof = {"proof_password": PASSWORD, "proof_code": admin.codes.pop()}
    done = admin.send("POST", "/users", name="bob", role="viewer", **proof)
    assert done.status_code == 200, done.text
    assert {user.name for user in appliance.catalog.users.list()} == {"admin", "bob"}
    after = admin.client.get_cookie("__Host-strongroom", domain="localhost")
    assert before is not None
    assert after is not None
    assert before.value != after.value  # another token from now on
    newest = [(each.act, each.result) for each in AuditService(appliance).newest(limit=6)]
    assert newest[0] == ("user.save", "ok")
    assert ("account.reauthenticate", "refused") in newest
    assert ("user.save", "refused") in newest


def test_a_new_password_is_not_sent_back(admin: Signed, clock: Shifted) -> None:
    clock.ahead = timedelta(minutes=6)
    fresh = "another four words or five"
    asked = admin.send("POST", "/account/password", password=fresh, again=fresh)
    assert asked.status_code == 403
    assert fresh not in asked.text


def test_a_session_that_was_ended_by_an_admin_is_over(appliance: Appliance, admin: Signed) -> None:
    sessions = appliance.catalog.sessions.list(None)
    assert len(sessions) == 1
    other = Signed(admin.client.application.test_client(), "admin", admin.codes)
    token = token_in(other.client.get("/sign-in", base_url=BASE))
    headers = {"Origin": BASE, "Referer": f"{BASE}/"}
    form = {"csrf_token": token, "name": "admin", "password": PASSWORD, "code": admin.codes.pop()}
    assert other.client.post("/sign-in", base_url=BASE, headers=headers, data=form).status_code == 302
    assert other.send("POST", f"/account/sessions/{sessions[0].id}/end").status_code == 302
    assert admin.client.get("/runs", base_url=BASE).status_code == 302


@pytest.mark.parametrize("origin", [None, "https://evil.example"])
def test_no_other_site_opens_a_screen(admin: Signed, origin: str | None) -> None:
    headers = {"Connection": "Upgrade", "Upgrade": "websocket"} | ({"Origin": origin} if origin else {})
    answer = admin.client.get(f"/recoveries/{'0' * 32}/screen", base_url=BASE, headers=headers)
    assert answer.status_code == 403
    assert "may open a screen" in answer.text
