"""The page of hosts, by HTTP: how each stands, as it was looked at last."""

from __future__ import annotations

import html
import re
from pathlib import Path

import pytest
from flask import render_template_string
from jinja2 import UndefinedError

from appliance.bootstrap import Appliance
from appliance.hypervisor.protocol import Transport
from appliance.models import HostConfig, HostRecord
from appliance.services.accounts.setting_up import SetUpService
from appliance.settings import load
from tests.unit.records import NOW
from tests.unit.test_web_access import _set_up
from web.app import create_app


def test_each_host_is_told_with_what_came_of_looking_at_it(tmp_path: Path) -> None:
    with Appliance(load({"STRONGROOM_HOME": str(tmp_path / "home")})) as appliance:
        catalog = appliance.catalog
        for name in ("away", "gone", "new", "up"):
            catalog.hosts.add(HostRecord(HostConfig(name, Transport.TEST), NOW))
        catalog.inventory.answered("up", (), NOW, NOW)
        catalog.inventory.failed("away", "no route to it", "", NOW)
        catalog.inventory.answered("gone", (), NOW, NOW)
        catalog.inventory.failed("gone", "it is off", "", NOW)
        admin = _set_up(create_app(appliance), appliance, SetUpService(appliance).first_link(), "admin")

        page = html.unescape(admin.send("GET", "/hosts").text)
        rows = dict(re.findall(r'host=\w+">(\w+)</a>(.*?)</tr>', page, re.DOTALL))
        states = {name: re.findall(r'class="badge[^"]*">([^<]+)<', row) for name, row in rows.items()}
        assert states == {
            "away": ["does not answer"], "gone": ["does not answer"], "new": ["not asked yet"], "up": ["answers"],
        }  # fmt: skip
        assert "no route to it" in rows["away"]
        assert "it is off" in rows["gone"]


def test_a_field_that_is_none_is_a_mistake_and_a_name_that_was_not_given_is_not(tmp_path: Path) -> None:
    home = load({"STRONGROOM_HOME": str(tmp_path / "home")})
    with Appliance(home) as appliance, create_app(appliance).test_request_context("/"):
        assert render_template_string("{% if wrong %}!{% endif %}{{ {}.nothing }}") == ""
        with pytest.raises(UndefinedError, match="HostConfig has no 'nowhere'"):
            render_template_string("{% if it.nowhere %}!{% endif %}", it=HostConfig("h", Transport.TEST))
