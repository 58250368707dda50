"""Runs, recoveries and screens in the console: what is done once more is as grave as what is done; nobody reaches a
machine by the name of another; a screen ends with the right to it."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime, timedelta

import pytest
from flask import Flask
from sqlalchemy import update

from appliance.acts import Act, Role
from appliance.bootstrap import Appliance
from appliance.catalog import tables
from appliance.models import (
    RecoveryRecord,
    RecoveryState,
    RunArguments,
    RunKind,
    RunRecord,
    RunState,
    new_id,
)
from appliance.policy.selectors import Clause, Selector
from appliance.services.access import SYSTEM
from appliance.services.access.repeats import act_to_repeat
from appliance.services.access.subjects import Subjects
from appliance.services.accounts.setting_up import SetUpService
from appliance.services.accounts.users import UserService
from appliance.services.status import StatusService
from appliance.settings import load
from tests.unit.records import NOW, machine_record, point_record
from tests.unit.test_web_access import Signed, _set_up
from web.app import create_app
from web.views import screens

A_LOT = b"x" * (1 << 20)


@pytest.fixture(scope="module")
def appliance(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Appliance]:
    with Appliance(load({"STRONGROOM_HOME": str(tmp_path_factory.mktemp("web") / "home")})) as appliance:
        yield appliance


@pytest.fixture(scope="module")
def app(appliance: Appliance) -> Flask:
    return create_app(appliance)


@pytest.fixture(scope="module")
def admin(app: Flask, appliance: Appliance) -> Signed:
    return _set_up(app, appliance, SetUpService(appliance).first_link(), "admin")


@pytest.fixture(scope="module")
def operator(app: Flask, appliance: Appliance, admin: Signed) -> Signed:
    return _set_up(app, appliance, UserService(appliance).add(SYSTEM, "operator", Role.OPERATOR).link, "operator")


def run(appliance: Appliance, kind: RunKind, arguments: RunArguments | None = None, **changes: object) -> RunRecord:
    whole = kind not in (RunKind.BACKUP, RunKind.RESTORE)
    made = RunRecord(
        new_id(), "repository" if whole else "web-1", "repository" if whole else "vm", None if whole else "a-uuid",
        None if whole else "here", RunState.FAILED, NOW, ended_utc=NOW, error="it failed", asked_utc=NOW,
        appliance=appliance.catalog.me, kind=kind, arguments=arguments,
    )  # fmt: skip
    latest = max((each.started_utc for each in appliance.catalog.runs.list()), default=NOW)
    made = replace(made, started_utc=latest + timedelta(seconds=1), **changes)  # type: ignore[arg-type]
    appliance.catalog.runs.save(made)
    return made


@pytest.mark.parametrize("kind", list(RunKind))
def test_a_run_of_every_kind_has_a_page(appliance: Appliance, admin: Signed, kind: RunKind) -> None:
    made = run(appliance, kind, RunArguments(), result="it did something")
    answer = admin.send("GET", f"/runs/{made.id}")
    assert answer.status_code == 200
    assert kind.value in answer.text
    assert "it did something" in answer.text
    assert ("The machine" in answer.text) is (kind in (RunKind.BACKUP, RunKind.RESTORE))


def test_what_is_done_once_more_is_as_grave_as_what_is_done(
    appliance: Appliance, operator: Signed, admin: Signed
) -> None:
    """Or an operator would collect, and whoever found a session open would write over a machine."""
    collect = run(appliance, RunKind.COLLECT, RunArguments())
    answer = operator.send("POST", f"/runs/{collect.id}/retry")
    assert answer.status_code == 403
    assert "repository.collect" in answer.text
    assert "Run again" not in operator.send("GET", f"/runs/{collect.id}").text
    restore = run(appliance, RunKind.RESTORE, RunArguments("p", force=True))
    assert act_to_repeat(restore) is Act.RESTORE_OVERWRITE
    with proven_long_ago(appliance):
        answer = operator.send("POST", f"/runs/{restore.id}/retry")
    assert answer.status_code == 403
    assert "Prove that it is you" in answer.text
    to_file = run(appliance, RunKind.RESTORE, RunArguments("p", disk="vda", target="/root/disk.raw"))
    answer = operator.send("POST", f"/runs/{to_file.id}/retry")
    assert (answer.status_code, "writes to /root/disk.raw" in answer.text) == (403, True)
    assert "Run again" not in operator.send("GET", f"/runs/{to_file.id}").text
    assert "Run again" in admin.send("GET", f"/runs/{to_file.id}").text
    answer = operator.send("POST", f"/runs/{run(appliance, RunKind.VERIFY, RunArguments()).id}/retry")
    assert answer.status_code == 503
    assert "repository" in answer.text, "that one they may; there is none here"


@contextmanager
def proven_long_ago(appliance: Appliance) -> Iterator[None]:
    """All sessions."""
    sessions = {each.id: each.authenticated_utc for each in appliance.catalog.sessions.list()}

    def prove(moments: dict[str, datetime]) -> None:
        with appliance.catalog.database.write() as connection:
            for id, moment in moments.items():
                there = update(tables.sessions).where(tables.sessions.c.id == id)
                connection.execute(there.values(authenticated_utc=moment))

    prove({id: moment - timedelta(hours=1) for id, moment in sessions.items()})
    yield
    prove(sessions)


def test_one_failure_is_dismissed_and_no_other_with_it(appliance: Appliance, admin: Signed) -> None:
    """Damage that a verification found is not out of sight because a collection is."""
    verify, collect = (run(appliance, kind, RunArguments()) for kind in (RunKind.VERIFY, RunKind.COLLECT))
    backup, restore = (run(appliance, kind) for kind in (RunKind.BACKUP, RunKind.RESTORE))
    for made in (collect, restore):
        assert admin.send("POST", f"/runs/{made.id}/dismiss").status_code == 302
        assert appliance.catalog.runs.get(made.id).dismissed_utc is not None
    for made in (verify, backup):
        assert appliance.catalog.runs.get(made.id).dismissed_utc is None
    assert verify.id in {each.id for each in StatusService(appliance).dismiss("repository:repository")}


def test_a_recovery_is_of_the_machine_of_its_point_and_of_none_that_is_called_the_same(
    app: Flask, appliance: Appliance, admin: Signed
) -> None:
    """Two tenants have a web-1 each, on a host of their own."""
    for series, uuid, host in (("5" * 32, "a-uuid", "here"), ("6" * 32, "b-uuid", "there")):
        machine = replace(machine_record(series), uuid=uuid, host=host)
        point = replace(point_record(series), uuid=uuid, host=host)
        appliance.catalog.points.add(machine, point)
        assert appliance.catalog.points.machine(series) is not None
    theirs = RecoveryRecord(
        new_id(), RecoveryState.RUNNING, "7" * 32, f"manifests/{'6' * 32}/0000000009-{new_id()}", "web-1", "there",
        "web-1-recovered", new_id(), "none", NOW, NOW, appliance=appliance.catalog.me,
    )  # fmt: skip
    appliance.catalog.recoveries.add(theirs)
    grants = (Selector((Clause(host="here"),)),)
    made = UserService(appliance).add(SYSTEM, "tenant", Role.OPERATOR, grants)
    tenant = _set_up(app, appliance, made.link, "tenant")
    subject = Subjects(appliance).recovery(theirs)
    assert subject.machine is not None
    assert (subject.machine.id, subject.machine.host) == ("b-uuid", "there")
    assert "web-1-recovered" not in tenant.send("GET", "/recoveries").text
    for method, path in (("GET", ""), ("GET", "/console"), ("POST", "/discard"), ("POST", "/migrate")):
        assert tenant.send(method, f"/recoveries/{theirs.id}{path}").status_code == 404, path
    assert "web-1-recovered" in admin.send("GET", "/recoveries").text


class Browser:
    """That sends without end."""

    def __init__(self) -> None:
        self.closed = threading.Event()

    def receive(self, timeout: float) -> bytes:
        return A_LOT

    def send(self, data: bytes) -> None:
        raise AssertionError("nothing comes")

    def close(self) -> None:
        self.closed.set()


def test_a_screen_ends_although_the_machine_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both when it is told to, and when who looks may not look any more."""
    monkeypatch.setattr(screens, "_ASK_S", 0.0)
    for may_still, over in ((lambda: True, True), (lambda: False, False)):
        ours, machines = socket.socketpair()  # whose other end takes nothing
        ending, browser = threading.Event(), Browser()
        if over:
            ending.set()
        with ours, machines:
            carried = threading.Thread(target=screens._carry, args=(browser, ours, ending, may_still), daemon=True)
            carried.start()
            carried.join(120)
            assert not carried.is_alive()
        assert browser.closed.is_set()
