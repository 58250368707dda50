"""What goes wrong behind a page is told by it, with the way out; and its repository's work outlives the page."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.bootstrap import Appliance
from appliance.models import RunKind, RunState
from appliance.services import repositories
from appliance.services.accounts.setting_up import SetUpService
from appliance.settings import load
from tests.unit.test_web_access import BASE, Signed, _set_up
from web.app import create_app
from web.sessions import COOKIE


@pytest.fixture
def appliance(tmp_path: Path) -> Iterator[Appliance]:
    environment = {"STRONGROOM_HOME": str(tmp_path / "home")}
    repositories.init(load(environment), tmp_path / "repository", "a passphrase for tests", lambda _: None)
    with Appliance(load(environment)) as appliance:
        yield appliance


@pytest.fixture
def admin(appliance: Appliance) -> Signed:
    return _set_up(create_app(appliance), appliance, SetUpService(appliance).first_link(), "admin")


@pytest.mark.parametrize("kind", [RunKind.VERIFY, RunKind.COLLECT])
def test_what_is_done_to_the_repository_is_a_run(admin: Signed, appliance: Appliance, kind: RunKind) -> None:
    answer = admin.send("POST", f"/repository/{kind}")
    (run,) = appliance.catalog.runs.list()
    assert (run.kind, run.state) == (kind, RunState.QUEUED)
    assert answer.headers["Location"] == f"/runs/{run.id}"
    listed = admin.send("GET", "/runs")
    assert f'<span class="sub">{kind}</span>' in listed.text
    assert admin.send("POST", f"/runs/{run.id}/cancel").status_code == 302
    assert appliance.catalog.runs.get(run.id).state is RunState.CANCELLED


def test_a_repository_that_is_away_is_told_and_not_a_mistake_of_ours(
    admin: Signed, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "repository").rename(tmp_path / "elsewhere")
    answer = admin.send("POST", "/repository/verify")
    assert answer.status_code in (500, 503)
    assert str(tmp_path / "repository") in answer.text
    assert "Something went wrong here" not in answer.text
    assert "Traceback" not in caplog.text


@pytest.mark.parametrize("path", ["/", "/api/v1/machines"])
def test_who_has_not_signed_in_is_told_no_name_of_what_is_within(
    appliance: Appliance, path: str, caplog: pytest.LogCaptureFixture
) -> None:
    client = create_app(appliance).test_client()
    client.set_cookie(COOKIE, "A" * 43, domain="localhost", secure=True)
    where = appliance.settings.catalog_file
    where.rename(where.with_name("moved"))
    where.mkdir()  # nothing that SQLite opens
    answer = client.get(path, headers={"Authorization": "Bearer strongroom_" + "A" * 43}, base_url=BASE)
    assert answer.status_code >= 500
    assert "Strongroom cannot work: " in answer.text
    assert str(where.parent) not in answer.text
    assert str(where) in caplog.text
