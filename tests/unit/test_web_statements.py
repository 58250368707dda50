"""No page asks the database for each row: what there is three times as much of costs as many statements."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from appliance import home as homes
from appliance.bootstrap import Appliance
from appliance.identity import keep_id
from appliance.models import RecoveryRecord, RecoveryState, new_id
from appliance.services.access import SYSTEM, Role
from appliance.services.accounts.users import UserService
from appliance.settings import load
from tests.bench.fleet import ME, SMALL, Size, look_after, seed
from tests.bench.pages import ANSWERS, ELSEWHERE, client_of, counted, pages_of
from tests.bench.served import account

FEW = replace(SMALL, machines=20, points=160, runs=200, policies=3, recovered=100)
MANY = Size(
    machines=60, points=480, runs=600, hosts=9, unprotected=12, images=9, gone=6, running=6, queued=9, policies=9,
    recovered=300,
)  # fmt: skip
_BASE = "https://localhost"


def statements(home: Path, size: Size, times: int) -> dict[str, int]:
    """By page, asked for the second time."""
    settings = load({"STRONGROOM_HOME": str(home)})
    homes.prepare(settings)
    keep_id(settings, ME)
    now = datetime.now(UTC)
    with Appliance(settings) as appliance:
        seed(appliance.catalog, size, now_utc=now)
        look_after(appliance.catalog, 20 * times, 30 * times, now_utc=now)
        points = appliance.catalog.points.list()
        for number in range(times):
            UserService(appliance).add(SYSTEM, f"user-{number}", Role.VIEWER)  # which the audit tells too
            point = points[-1 - number]
            recovery = RecoveryRecord(
                new_id(), RecoveryState.RUNNING, point.id, point.manifest_name, point.name, "rack00",
                f"again-{number}", new_id(), "none", now, now, appliance=ME,
            )  # fmt: skip
            appliance.catalog.recoveries.add(recovery)
        client = client_of(appliance, account(appliance))
        urls = client.application.url_map
        every = {rule.endpoint for rule in urls.iter_rules() if "GET" in (rule.methods or ())}
        asked_for, found = set(ELSEWHERE), {}
        assert client.get("/report/file", base_url=_BASE).status_code == 200  # which waits until it is made
        for name, asked in pages_of(appliance).items():
            asked_for.add(str(urls.bind("localhost").match(asked.path.partition("?")[0])[0]))
            assert client.get(asked.path, base_url=_BASE, headers=asked.headers).status_code in ANSWERS, name
            with counted(appliance.catalog) as statements:
                client.get(asked.path, base_url=_BASE, headers=asked.headers)
            found[name] = len(statements)
        assert asked_for == {endpoint for endpoint in every if not endpoint.startswith("api_")}
    return found


def test_what_a_page_asks_of_the_database_hangs_on_no_number_of_rows(tmp_path: Path) -> None:
    few, many = statements(tmp_path / "few", FEW, 3), statements(tmp_path / "many", MANY, 9)
    assert many == few
    assert max(few.values()) < 30, few
