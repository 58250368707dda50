"""The page of a run, by HTTP: what it said, how fast it went, and how it goes on, live."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from dataclasses import replace

import pyotp
import pytest
from flask import Flask

from appliance.bootstrap import Appliance
from appliance.models import RunRecord, RunState, new_id
from appliance.progress import SILENT
from appliance.services.accounts.setting_up import SetUpService
from appliance.services.accounts.signing_in import Origin
from appliance.services.backup.watching import living, watched
from appliance.services.runlogs import RunLogWriter
from appliance.settings import load
from appliance.throughput import Sample
from tests.unit.test_web_access import BASE, PASSWORD, Signed, sign_in
from web.app import create_app

HOSTILE = "<script>alert(1)</script>\x1b[31m"


@pytest.fixture(scope="module")
def appliance(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Appliance]:
    with Appliance(load({"STRONGROOM_HOME": str(tmp_path_factory.mktemp("web") / "home")})) as made:
        yield made


@pytest.fixture(scope="module")
def app(appliance: Appliance) -> Flask:
    return create_app(appliance)


@pytest.fixture(scope="module")
def admin(app: Flask, appliance: Appliance) -> Signed:
    service = SetUpService(appliance)
    link = service.first_link()
    code = pyotp.TOTP(service.offer(link.secret).secret).at(appliance.clock.now_utc())
    done = service.complete(link.secret, "admin", PASSWORD, code, Origin("127.0.0.1"))
    person = Signed(app.test_client(), done.user.name, list(done.recovery_codes))
    sign_in(person)
    return person


def run(appliance: Appliance, state: RunState) -> RunRecord:
    now = appliance.clock.now_utc()
    made = RunRecord(
        new_id(), "web", "vm", "u", "here", state, now, ended_utc=now if state.ended else None,
        appliance=appliance.catalog.me,
    )  # fmt: skip
    appliance.catalog.runs.save(made)
    return made


def test_what_a_run_said_and_how_fast_it_went_is_shown_and_hurts_nobody(appliance: Appliance, admin: Signed) -> None:
    made = run(appliance, RunState.FAILED)
    log = RunLogWriter(appliance.settings, made.id, appliance.clock.now_utc)
    log.say("it begins")
    log.say(HOSTILE, "error")
    log.samples([Sample(0.0, 0), Sample(1.0, 10), Sample(2.0, 40)])
    page = admin.send("GET", f"/runs/{made.id}").text
    assert "it begins" in page
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert(1)" in page
    found = re.search(r'data-rates="([^"]+)"', page)
    assert found is not None
    assert json.loads(found[1].replace("&#34;", '"')) == [[0.5, 10.0], [1.5, 30.0]]
    other = admin.send("GET", f"/runs/{run(appliance, RunState.SUCCEEDED).id}").text
    assert "data-rates" not in other
    assert "no longer kept" in other


def test_a_run_is_told_until_it_has_ended(appliance: Appliance, admin: Signed) -> None:
    made, over = run(appliance, RunState.RUNNING), threading.Event()
    with living(appliance, made.id):
        with watched(appliance, made.id, over.set, SILENT) as progress:
            progress.start("vda", 100)
            progress.advance(40)
            stream = admin.client.get(f"/runs/{made.id}/events", base_url=BASE, buffered=False)
            assert stream.mimetype == "text/event-stream"
            events = stream.iter_encoded()
            told = next(each for each in events if b'"done"' in each).decode()
            kind, data, *_ = told.splitlines()
            far = json.loads(data.removeprefix("data: "))
            assert kind == "event: far"
            assert (far["state"], far["label"], far["done"], far["total"]) == ("running", "vda", 40, 100)
        appliance.catalog.runs.save(replace(made, state=RunState.SUCCEEDED, ended_utc=appliance.clock.now_utc()))
    assert list(events)[-1] == b"event: over\ndata: {}\n\n"
    stream.close()
