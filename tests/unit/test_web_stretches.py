"""However many restore points a machine has, each is reached: on its page, by its calendar, and in both wizards."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from appliance import home as homes
from appliance.bootstrap import Appliance
from appliance.identity import keep_id
from appliance.services.browsing import BrowsingService
from appliance.settings import load
from tests.bench.fleet import ME, SMALL, seed
from tests.bench.pages import client_of
from tests.bench.served import account

_BASE = "https://localhost"
_ONE = replace(
    SMALL, machines=1, points=150, runs=10, hosts=1, policies=1, unprotected=0, images=0, gone=0, running=0, queued=0
)


@pytest.mark.parametrize(
    ("path", "each"),
    [
        ("/vms/{key}", r'id="point-([0-9a-f]{12})"'),
        ("/recover?machine={key}", r'name="point" value="([0-9a-f]{12})'),
        ("/restore?machine={key}&what=whole", r'name="point" value="([0-9a-f]{12})'),
    ],
)
def test_every_restore_point_is_reached_by_going_on(tmp_path: Path, path: str, each: str) -> None:
    settings = load({"STRONGROOM_HOME": str(tmp_path / "home")})
    homes.prepare(settings)
    keep_id(settings, ME)
    with Appliance(settings) as appliance:
        seed(appliance.catalog, _ONE, now_utc=datetime.now(UTC))
        client = client_of(appliance, account(appliance))
        (row,) = BrowsingService(appliance).fleet(None).rows
        at: str | None = path.format(key=row.key)
        found: list[str] = []
        pages = 0
        while at is not None:
            text = client.get(at, base_url=_BASE).text
            found += re.findall(each, text)
            pages += 1
            older = re.search(r'href="([^"]*)" rel="next"', text)
            at = older[1].replace("&amp;", "&") if older else None
        points = [point.id[:12] for point in sorted(appliance.catalog.points.list(), key=lambda p: p.created_utc)]
        assert pages > 1
        assert found == points[::-1][: len(found)]
        days = re.findall(r'class="day [^"]*" href="([^"]*)"', client.get(f"/vms/{row.key}", base_url=_BASE).text)
        assert any(day.startswith("/vms") for day in days), "some are beyond the first stretch"
        for day in days:
            place, _, point = day.partition("#")
            assert f'id="{point}"' in client.get(place or f"/vms/{row.key}", base_url=_BASE).text
        assert len(found) == len(points)
