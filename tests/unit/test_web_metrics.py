"""Metrics over HTTP: for whoever shows a token that may see them, and nobody else."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from flask.testing import FlaskClient
from prometheus_client.parser import text_string_to_metric_families

from appliance.acts import TRAITS, Act, Role
from appliance.bootstrap import Appliance
from appliance.policy.selectors import Clause, Selector
from appliance.services.access import SYSTEM
from appliance.services.accounts.tokens import TokenService
from appliance.settings import load
from tests.unit.records import NOW, machine_record, point_record
from web.app import create_app

BASE = "https://localhost"


@pytest.fixture
def appliance(tmp_path: Path) -> Iterator[Appliance]:
    with Appliance(load({"STRONGROOM_HOME": str(tmp_path / "home")})) as made:
        made.catalog.points.add(machine_record(), point_record())
        yield made


@pytest.fixture
def client(appliance: Appliance) -> FlaskClient:
    return create_app(appliance).test_client()


def token(appliance: Appliance, role: Role, acts: list[Act] | None = None, grants: tuple[Selector, ...] = ()) -> str:
    made = TokenService(appliance).add(
        SYSTEM, f"{role}-monitoring", role, acts=acts, grants=grants, good_for=timedelta(days=1)
    )  # fmt: skip
    return made.secret


def bearer(secret: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {secret}"}


@pytest.mark.parametrize("headers", [{}, bearer("x"), bearer(""), {"Authorization": "Basic eDp5"}])
def test_without_a_token_there_are_none(client: FlaskClient, headers: dict[str, str]) -> None:
    answer = client.get("/metrics", base_url=BASE, headers=headers)
    assert answer.status_code == 401
    assert answer.headers["WWW-Authenticate"].lower().startswith("bearer")
    assert "strongroom_machines" not in answer.text


@pytest.mark.parametrize("role", list(Role))
def test_a_token_sees_them_if_its_role_does(client: FlaskClient, appliance: Appliance, role: Role) -> None:
    grants = (Selector((Clause(),)),) if role is Role.RESTORER else ()
    answer = client.get("/metrics", base_url=BASE, headers=bearer(token(appliance, role, grants=grants)))
    assert (answer.status_code == 200) is (role in TRAITS[Act.METRICS_SEE].roles)
    if answer.status_code == 200:
        assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
        families = {family.name for family in text_string_to_metric_families(answer.text)}
        assert "strongroom_machine_last_point_timestamp_seconds" in families
    else:
        assert answer.status_code == 403
        assert "strongroom_machines" not in answer.text


def test_a_token_for_something_else_does_not(client: FlaskClient, appliance: Appliance) -> None:
    secret = token(appliance, Role.ADMIN, [Act.RUN_START])
    assert client.get("/metrics", base_url=BASE, headers=bearer(secret)).status_code == 403


def test_one_of_some_machines_does_not_see_the_whole_fleet(client: FlaskClient, appliance: Appliance) -> None:
    secret = token(appliance, Role.VIEWER, grants=(Selector((Clause(name="web-*"),)),))
    assert client.get("/metrics", base_url=BASE, headers=bearer(secret)).status_code == 403


def test_many_scrapes_are_one_look(client: FlaskClient, appliance: Appliance) -> None:
    headers = bearer(token(appliance, Role.VIEWER))
    first = client.get("/metrics", base_url=BASE, headers=headers).text
    other = replace(machine_record("6" * 32), name="db-1", uuid="b", last_point_utc=NOW)
    appliance.catalog.points.add(other, point_record("6" * 32, uuid="b"))
    assert client.get("/metrics", base_url=BASE, headers=headers).text == first
