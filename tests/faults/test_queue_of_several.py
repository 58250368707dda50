"""Two appliances with one catalog in PostgreSQL: each takes its own runs, and those of one that is gone after that."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from appliance.hypervisor.protocol import HostConfig
from appliance.models import HostRecord, RunState
from appliance.services import repositories
from appliance.settings import load
from imaging.slots import Passphrase
from tests.integration.queueing import Queueing, queueing
from tests.lab.postgres_server import PostgresServer

pytestmark = [pytest.mark.integration, pytest.mark.faults]
PASSPHRASE = "correct horse battery staple"


@pytest.fixture
def server() -> Iterator[PostgresServer]:
    with PostgresServer() as server:
        yield server


@pytest.fixture
def fleet(tmp_path: Path, server: PostgresServer) -> Iterator[tuple[Queueing, Queueing]]:
    url = server.fresh_catalog()
    with ExitStack() as stack:
        made = []
        for name in "ab":
            environment = {
                "STRONGROOM_HOME": str(tmp_path / name / "home"), "STRONGROOM_CATALOG_URL": url,
                "STRONGROOM_REPOSITORY_PATH": str(tmp_path / "repository"), "STRONGROOM_QUEUE_RETRY_S": "0.2",
                "STRONGROOM_QUEUE_ATTEMPTS": "2",
            }  # fmt: skip
            if name == "a":
                repositories.init(load(environment), tmp_path / "repository", PASSPHRASE, lambda _: None)
            else:
                repositories.adopt(load(environment), tmp_path / "repository", Passphrase(PASSPHRASE))
            made.append(stack.enter_context(queueing(tmp_path / name, environment)))
        yield made[0], made[1]


def test_each_takes_its_own_runs_and_those_of_one_that_is_gone(
    fleet: tuple[Queueing, Queueing], server: PostgresServer
) -> None:
    first, second = fleet
    with first.serving(workers="1"), second.serving(workers="1"):
        for line, id in [(line, line.put(line.folder.name)) for line in fleet]:
            assert line.assert_made(id).appliance == line.appliance.id
        # one asks the other to end what it has under way, and sees it end
        held = second.put("held", held=True)
        second.wait_held(held)
        assert "is asked to end" in first.command("run", "cancel", held).stdout
        assert first.wait(held, RunState.CANCELLED).appliance == second.appliance.id
        second.release("held")
        # a database that goes away costs nothing but time
        server.stop()
        server.start()
        second.assert_made(second.put("after"))

    second.appliance.catalog.hosts.add(HostRecord(HostConfig("rack2", socket="/nowhere"), first.run(held).started_utc))
    theirs = json.loads(first.command("backup", "web-1", "--host", "rack2", "--queue", "--json").stdout)
    assert theirs["appliance"] == second.appliance.id
    left = second.put("left-behind")
    target = second.folder / "restored.raw"
    words = ["restore", second.folder.name, "--point", "latest", "--to", str(target), "--format", "raw"]
    nowhere = json.loads(second.command(*words, "--queue", "--json").stdout)["id"]
    server.stop()
    said = len(first.said_by_serve())
    with first.serving(workers="1"):
        first.until(lambda: "cannot be reached" in first.said_by_serve()[said:], lambda: "it waits for the database")
        server.start()
        first.assert_made(first.put("another"))
        for id in (theirs["id"], left):
            assert first.run(id).state is RunState.QUEUED, "only that one reaches it"
        shutil.move(second.folder / "left-behind.raw", first.folder / "left-behind.raw")
        (second.folder / "left-behind.raw").symlink_to(first.folder / "left-behind.raw")
        first.content["left-behind"] = second.content["left-behind"]
        taken = first.command("appliance", "take-over", second.appliance.id, "--yes", "--json")
        assert json.loads(taken.stdout)["taken"]["runs"] == 3
        assert "which is gone for good" in (first.run(nowhere).error or "")
        assert not target.exists()
        assert first.assert_made(left).appliance == first.appliance.id
        away = first.wait(theirs["id"], RunState.FAILED)
        assert "rack2" in (away.error or "")
        assert away.attempts == first.appliance.settings.queue.attempts
        # what the one that is gone had not done is asked of the one that is there
        again = json.loads(first.command("run", "retry", held, "--json").stdout)
        assert again["appliance"] == first.appliance.id
        first.content["held"] = second.content["held"]
        first.assert_made(again["id"])
    url = first.appliance.settings.catalog.url
    left_for = {queue for (queue,) in server.execute("SELECT queue FROM strongroom_queue_task", url)}
    assert f"runs-{second.appliance.id}" not in left_for, "nothing is left for one that is gone"
    rows = server.execute(
        "SELECT DISTINCT tablename FROM pg_tables WHERE tablename LIKE 'strongroom_queue%'",
        url,
    )
    assert len(rows) == 4
