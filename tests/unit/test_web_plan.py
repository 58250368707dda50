"""The planner's page: what it tells, to whom, and what it makes of what is typed."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from flask import Flask

from appliance.acts import Role
from appliance.bootstrap import Appliance
from appliance.policy.selectors import Clause, Selector
from appliance.proofs import RepositorySize
from appliance.services.access import SYSTEM
from appliance.services.accounts.setting_up import SetUpService
from appliance.services.accounts.users import UserService
from appliance.services.planning import PlanningService
from appliance.settings import load
from tests.bench.fleet import SMALL, seed
from tests.unit.test_web_access import BASE, Signed, _set_up
from web.app import create_app


@pytest.fixture(scope="module")
def appliance(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Appliance]:
    with Appliance(load({"STRONGROOM_HOME": str(tmp_path_factory.mktemp("plan") / "home")})) as made:
        now = datetime.now(UTC)
        seed(made.catalog, SMALL, now_utc=now)
        made.catalog.proofs.took(RepositorySize("e" * 32, now.date(), now, 10**15, 10**12))
        yield made


@pytest.fixture(scope="module")
def app(appliance: Appliance) -> Flask:
    return create_app(appliance)


@pytest.fixture(scope="module")
def admin(app: Flask, appliance: Appliance) -> Signed:
    return _set_up(app, appliance, SetUpService(appliance).first_link(), "admin")


def answer(person: Signed, query: str = "") -> str:
    """As the page asks for it."""
    headers = {"HX-Request": "true", "HX-Target": "answer"}
    return person.client.get(f"/plan{query}", base_url=BASE, headers=headers).text


def drawn(text: str) -> dict[str, Any]:
    found = re.search(r'data-room="([^"]+)"', text)
    assert found is not None
    value = json.loads(html.unescape(found[1]))
    assert isinstance(value, dict)
    return value


def test_the_page_comes_at_once_and_its_answer_is_what_the_planner_says(admin: Signed, appliance: Appliance) -> None:
    page = admin.client.get("/plan", base_url=BASE).text
    assert 'hx-trigger="load"' in page
    assert "data-room" not in page
    told = answer(admin)
    assert "<html" not in told
    made = PlanningService(appliance).plan(months=12)
    plot = drawn(told)
    assert plot["low"] == pytest.approx([10**15, *(month.low_bytes for month in made.months)], rel=0.01)
    assert plot["high"] == pytest.approx([10**15, *(month.high_bytes for month in made.months)], rel=0.01)
    assert plot["holds"] == 10**15 + 10**12
    for host in ("rack00", "rack01", "rack02"):
        assert f"<td>{host}</td>" in told
    other = drawn(answer(admin, "?months=3&last=1"))
    assert len(other["then_low"]) == len(other["low"]) == 4
    assert other["then_low"][-1] < other["low"][-1]


def test_a_fleet_is_typed_in_and_what_is_wrong_is_told_beside_it(admin: Signed) -> None:
    told = answer(admin, "?machines=200&size=100&change=2.5&daily=14&window=0.1&read_speed=10")
    assert drawn(told)["low"][0] == 200 * 50 * 10**9
    assert "All of it is from numbers that were typed in." in told
    assert "bad" in told  # the runs do not fit
    for query, field in (("?machines=5", "size"), ("?window=nan", "window"), ("?months=x", "months")):
        page = admin.client.get(f"/plan{query}", base_url=BASE)
        assert page.status_code == 200
        assert re.search(rf'name="{field}"[^>]*aria-invalid="true"', page.text), query
        assert 'role="alert"' in answer(admin, query)


def test_who_has_some_machines_is_told_of_those(app: Flask, appliance: Appliance) -> None:
    grants = (Selector((Clause(host="rack01"),)),)
    made = UserService(appliance).add(SYSTEM, "tenant", Role.VIEWER, grants)
    told = answer(_set_up(app, appliance, made.link, "tenant"))
    assert "rack01" in told
    for secret in ("rack00", "rack02", "this one (images)", "1.00 PB"):
        assert secret not in told, secret
    assert "holds" not in drawn(told)
    assert "trend" not in drawn(told)
