"""Policies with a real daemon, real processes and a real repository: what is due is backed up, and says why."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from appliance.models import RunState
from appliance.policy.stored import StoredPolicy
from appliance.services import repositories
from appliance.settings import load
from tests.integration.queueing import Queueing, queueing

pytestmark = [pytest.mark.integration]


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Queueing]:
    environment = {"STRONGROOM_HOME": str(tmp_path / "home"), "STRONGROOM_WEB_PORT": "0"}
    repositories.init(load(environment), tmp_path / "repository", "a passphrase for tests", lambda _: None)
    with queueing(tmp_path, environment) as made:
        yield made


def test_an_image_that_is_due_is_backed_up_and_its_point_names_the_policy(site: Queueing) -> None:
    site.command("backup", *site.image("firewall"))
    hour_ago = datetime.now(UTC) - timedelta(hours=1)
    runs = site.appliance.catalog.runs
    (first,) = runs.list()
    # as if that had been an hour ago, and the policy as old
    with site.appliance.catalog.database.write() as connection:
        connection.exec_driver_sql("UPDATE runs SET started_utc = ?", (hour_ago.strftime("%Y-%m-%d %H:%M:%S.%f"),))
    document = {
        "version": 1, "name": "hourly", "select": {"include": [{"image": "fire*"}]}, "limit_bytes_s": 10_000_000,
        "schedule": {"cron": f"{(hour_ago + timedelta(minutes=30)).minute} * * * *"}, "spread_s": 0,
    }  # fmt: skip
    site.appliance.catalog.policies.add(StoredPolicy("hourly", document, 1, hour_ago, hour_ago))
    said = site.command("policy", "due", expect=3)
    assert "it begins now" in said.stdout
    assert "nobody looks when" in said.stderr
    with site.serving():
        site.until(lambda: [run for run in runs.list(state=RunState.SUCCEEDED) if run.due], lambda: "it is backed up")
        (run,) = (run for run in runs.list() if run.id != first.id)
        site.until(lambda: site.command("policy", "due", expect=None).returncode == 0, lambda: "nothing needs an eye")
        shown = site.command("run", "show", run.id).stdout
    made = site.assert_made(run.id)
    assert made.attempts == 1
    assert (made.limit_bytes_s, [(due.policy, due.cause) for due in made.due]) == (10_000_000, [("hourly", "schedule")])
    assert f"schedule of hourly, due {made.due[0].due_utc:%Y-%m-%d %H:%M:%S} UTC" in shown
    points = {point.id: point.manifest.policy for point in site.appliance.repository.points()}
    assert points == {first.point: None, made.point: "hourly"}
    (listed,) = json.loads(site.command("run", "list", "--json", "--last", "1").stdout)
    assert [each["policy"] for each in listed["due"]] == ["hourly"]
    site.assert_nothing_left()
