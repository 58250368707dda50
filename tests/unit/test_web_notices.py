"""In the console: who is told, whether a target works, and the monthly report."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from flask import Flask

from appliance.acts import Act, Role
from appliance.audit import Result
from appliance.bootstrap import Appliance
from appliance.policy.selectors import Clause, Selector
from appliance.services.access import SYSTEM
from appliance.services.access.audits import AuditService
from appliance.services.accounts.setting_up import SetUpService
from appliance.services.accounts.users import UserService
from appliance.settings import load
from tests.lab.receivers import Webhook, web_server
from tests.unit.records import machine_record, point_record
from tests.unit.test_web_access import BASE, Signed, _set_up
from web.app import create_app


@pytest.fixture
def hook() -> Iterator[Webhook]:
    with web_server() as made:
        yield made


@pytest.fixture
def appliance(tmp_path: Path, hook: Webhook) -> Iterator[Appliance]:
    environment = {"STRONGROOM_HOME": str(tmp_path / "home"), "STRONGROOM_NOTICES_TARGETS": f"ops={hook.url}"}
    with Appliance(load(environment)) as made:
        made.catalog.points.add(replace(machine_record(), name="<b>web-1</b>"), point_record(name="<b>web-1</b>"))
        yield made


@pytest.fixture
def admin(appliance: Appliance) -> Signed:
    app: Flask = create_app(appliance)
    return _set_up(app, appliance, SetUpService(appliance).first_link(), "admin")


def test_a_target_is_tested_by_a_button_and_its_secret_is_not_shown(
    admin: Signed, appliance: Appliance, hook: Webhook
) -> None:
    page = admin.send("GET", "/settings")
    assert "Send a test" in page.text
    assert admin.send("POST", "/settings/notices/ops/test").status_code == 302
    assert "a test" in hook.posts[0]["title"]
    assert "ops took the message." in admin.send("GET", "/settings").text
    hook.status = 500
    admin.send("POST", "/settings/notices/ops/test")
    failed = admin.send("GET", "/settings").text
    assert "ops did not take the message" in failed
    for text in (page.text, failed):
        assert "hushhush" not in text
        assert "T0kenOfThisHook" not in text
    told = AuditService(appliance).newest(limit=2)
    assert [(each.act, each.subject_name, each.actor_role) for each in told] == [
        (Act.NOTICE_TEST, "ops", Role.ADMIN)
    ] * 2
    assert [each.result for each in told] == [Result.FAILED, Result.OK]
    assert admin.send("POST", "/settings/notices/nosuch/test").status_code < 500


def test_the_report_is_a_page_of_a_month_and_a_file(admin: Signed) -> None:
    get = admin.client.get
    answer = get("/report/file?month=2026-11", base_url=BASE)
    assert answer.status_code == 200
    assert answer.headers["Content-Disposition"] == 'attachment; filename="strongroom-2026-11.html"'
    assert get("/report/file?month=2019-01", base_url=BASE).status_code == 200  # which waits until it is made
    page = get("/report?month=2019-01", base_url=BASE)
    for text in (answer.text, page.text):
        assert "<b>web" not in text
        assert "&lt;b&gt;web-1" in text
    assert "Backups in 2026-11" in answer.text
    assert "Backups in 2019-01" in page.text
    assert '<option value="2019-01" selected>January 2019</option>' in page.text
    assert get("/report", base_url=BASE).status_code == 200
    for wrong in ("2026-13", "x", "../../etc/passwd"):
        assert 400 <= get("/report", query_string={"month": wrong}, base_url=BASE).status_code < 500


def test_who_has_some_machines_has_a_report_of_those(admin: Signed, appliance: Appliance) -> None:
    app = admin.client.application
    for name, shown in (("*web-1*", True), ("other", False)):
        made = UserService(appliance).add(SYSTEM, f"tenant-{shown}", Role.VIEWER, (Selector((Clause(name=name),)),))
        tenant = _set_up(app, appliance, made.link, f"tenant-{shown}")
        for path in ("/report/file", "/report"):  # the first one waits until it is made
            text = tenant.client.get(path, base_url=BASE).text
            assert ("&lt;b&gt;web-1" in text) is shown
            assert "tells nothing of others" in text
    tenant = _set_up(
        app,
        appliance,
        UserService(appliance).add(SYSTEM, "moving", Role.VIEWER, (Selector((Clause(name="*web-1*"),)),)).link,
        "moving",
    )
    assert "&lt;b&gt;web-1" in tenant.client.get("/report/file", base_url=BASE).text
    renamed = "theirs-now"
    appliance.catalog.points.add(
        replace(machine_record(), name=renamed), replace(point_record(id="9" * 32), name=renamed)
    )
    for path in ("/report/file", "/report"):
        text = tenant.client.get(path, base_url=BASE).text
        assert renamed not in text
        assert "&lt;b&gt;web-1" not in text
