"""Policies in the console's form: what no field shows outlives a change of what one does."""

from __future__ import annotations

from dataclasses import replace
from datetime import time, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from werkzeug.datastructures import MultiDict

from appliance.bootstrap import Appliance
from appliance.policy.policies import Policy, read_policy
from appliance.policy.retention import Rules
from appliance.policy.windows import Span, Window
from appliance.services.accounts.setting_up import SetUpService
from appliance.services.policies import PolicyService
from appliance.settings import load
from tests.unit.cli_runner import CommandLine
from tests.unit.test_policies import POLICIES, SMALL
from tests.unit.test_web_access import _set_up
from web.app import create_app
from web.policy_form import fields_of, read_form, unshown

RICH = replace(
    read_policy(SMALL),
    copies=("vault", "s3 paris"),
    window=Window((Span(frozenset({0, 1}), time(1), time(5)), Span(frozenset({5}), time(12), time(20)))),
    retention=Rules(daily=7, within=timedelta(hours=36)),
    rpo=timedelta(minutes=90),
    limit_bytes_s=1_500_000,
    spread_s=17,
)


@given(POLICIES)
def test_a_form_that_is_sent_back_as_it_is_changes_nothing(policy: Policy) -> None:
    fields = {name: value.replace("\n", "\r\n") for name, value in fields_of(policy).items()}
    assert read_form(MultiDict(fields), policy) == policy


@pytest.mark.parametrize(
    ("fields", "parts"),
    [
        ({"cron": "5 1 * * *"}, {"schedule": {"cron": "5 1 * * *", "zone": "UTC"}}),
        ({"rpo": "4"}, {"rpo_minutes": 240}),
        ({"limit": ""}, {"limit_bytes_s": None}),
        ({"copies": "vault"}, {"copies": ["vault"]}),
        ({"copies": ""}, {"copies": []}),
        ({"daily": "", "weekly": "3"}, {"retention": {**dict.fromkeys(
            ("last", "hourly", "daily", "monthly", "yearly"), 0), "weekly": 3, "within_hours": 36}}),
        ({"window_from": "02:00", "window_to": "03:00"}, {"window": [{"from": "02:00", "to": "03:00"}]}),
        ({"what": "some", "include": "tag gold"}, {"select": {"include": [{"tag": "gold"}], "exclude": []}}),
    ],
)  # fmt: skip
def test_a_changed_field_changes_its_part_alone(fields: dict[str, str], parts: dict[str, Any]) -> None:
    changed = read_form(MultiDict(fields_of(RICH) | fields), RICH)
    assert changed == read_policy(RICH.to_json() | parts) != RICH


def test_the_days_of_a_window_outlive_other_times() -> None:
    weekdays = replace(RICH, window=Window((Span(frozenset({0, 1}), time(1), time(5)),)))
    changed = read_form(MultiDict(fields_of(weekdays) | {"window_from": "02:00"}), weekdays)
    assert changed.window == Window((Span(frozenset({0, 1}), time(2), time(5)),))


def test_what_no_field_shows_is_told() -> None:
    assert unshown(read_policy(SMALL)) == []
    assert unshown(RICH) == [
        "2 windows", "every restore point of the last 36 hours", "an RPO of 90 minutes", "begins spread over 17 s",
    ]  # fmt: skip


def test_the_console_keeps_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = CommandLine.new(tmp_path / "site", capsys)
    with Appliance(load(line.environment)) as appliance:
        admin = _set_up(create_app(appliance), appliance, SetUpService(appliance).first_link(), "admin")
        service = PolicyService(appliance)
        service.add(RICH)
        page = admin.send("GET", "/policies/nightly/edit").text
        assert 'value="vault, s3 paris"' in page
        assert "2 windows" in page
        known = service.get("nightly")
        fields = fields_of(known.policy) | {"former": "nightly", "version": str(known.version), "per_host": "3"}
        assert admin.send("POST", "/policies", **fields).status_code == 302
        assert service.get("nightly").policy == replace(RICH, per_host=3)
