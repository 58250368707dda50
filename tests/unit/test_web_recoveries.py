"""The recovery wizard, by HTTP: what stands in the way is told on its form, before anything is begun."""

from __future__ import annotations

import html
import re
import threading
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlencode

from appliance.bootstrap import Appliance
from appliance.hypervisor.protocol import Transport
from appliance.models import HostConfig, HostRecord, RecoveryRecord, RecoveryState, new_id
from appliance.services.accounts.setting_up import SetUpService
from appliance.settings import load
from tests.unit.records import NOW, machine_record, point_record
from tests.unit.test_web_access import _set_up
from web.app import create_app
from web.current import parts_of


def test_what_stands_in_the_way_is_told_on_the_form_and_a_free_name_is_proposed(tmp_path: Path) -> None:
    """libvirt's test driver has one machine, "test"."""
    with Appliance(load({"STRONGROOM_HOME": str(tmp_path / "home")})) as appliance:
        appliance.catalog.hosts.add(HostRecord(HostConfig("tested", Transport.TEST), NOW))
        appliance.catalog.hosts.add(HostRecord(HostConfig("far", Transport.SSH, hostname="far.example"), NOW))
        record = replace(machine_record(), name="test", uuid="u", last_point_utc=NOW)
        point = point_record(name="test", uuid="u", created_utc=NOW)
        appliance.catalog.points.add(record, point)
        app = create_app(appliance)
        admin = _set_up(app, appliance, SetUpService(appliance).first_link(), "admin")

        def look(**answers: str) -> tuple[int, str]:
            words = urlencode({"machine": "vm:u", "point": point.id, **answers})
            answer = admin.send("GET", f"/recover?{words}")
            return answer.status_code, html.unescape(answer.text)

        def wrong(page: str) -> dict[str, str]:
            return dict(re.findall(r'class="wrong" id="(\w+)-\w+">([^<]+)<', page))

        status, page = look(step="review", host="tested", name="test")
        assert (status, wrong(page)) == (400, {"name": "host tested has a machine 'test' already"})
        assert 'name="name" type="text" value="test"' in page
        for host, why in (("far", "reached over SSH"), ("nobody", "nobody")):
            status, page = look(step="review", host=host, name="fresh")
            assert (status, list(wrong(page))) == (400, ["host"])
            assert why in wrong(page)["host"]
        status, page = look(step="review", host="tested", name="fresh")
        assert (status, "Start it now" in page) == (200, True)
        assert 'value="test-recovered"' in look()[1]
        appliance.catalog.points.add(
            replace(machine_record("6" * 32), name="test-recovered", uuid="v", last_point_utc=NOW),
            point_record("6" * 32, name="test-recovered", uuid="v", created_utc=NOW),
        )
        assert 'value="test-recovered-2"' in look()[1]
        assert "There is no host on which it could run" in look()[1], "neither host is this appliance's own libvirt"


def test_who_starts_one_follows_that_one_and_none_of_the_same_name(tmp_path: Path) -> None:
    over = threading.Event()
    with Appliance(load({"STRONGROOM_HOME": str(tmp_path / "home")})) as appliance:
        records = [
            RecoveryRecord(
                new_id(), state, new_id(), "shop.1", "shop", "tested", "again", new_id(), "none", NOW, NOW,
                appliance=appliance.catalog.me,
            )
            for state in (RecoveryState.RUNNING, RecoveryState.SERVING)
        ]  # fmt: skip
        for record in records:
            appliance.catalog.recoveries.add(record)
        app = create_app(appliance)
        admin = _set_up(app, appliance, SetUpService(appliance).first_link(), "admin")
        (user,) = appliance.catalog.users.list()
        job = parts_of(app).jobs.begin("again", user.id, "/recover", lambda *_: over.wait(60))
        try:
            steps = []
            for told in ({}, *({"recovery": record.id} for record in records)):
                job.told = told
                steps.append(admin.send("GET", f"/recoveries/starting/{job.id}").text.count("✓"))
            assert steps == [0, 2, 1]
        finally:
            over.set()
