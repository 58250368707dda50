"""The database of a shared catalog goes away, comes back, or refuses: what a run does then, and what is said."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.bootstrap import Appliance
from appliance.catalog import Catalog, postgres
from appliance.catalog.database import Database
from appliance.catalog.errors import CatalogBusy, CatalogDriverMissing, CatalogError, CatalogUnreachable
from appliance.models import RunState
from appliance.services.backup import BackupService
from appliance.settings import SettingsError, load
from tests.integration.backing_up import Progress
from tests.lab.postgres_server import PostgresServer
from tests.unit.cli_runner import CommandLine
from tests.unit.records import NOW

pytestmark = pytest.mark.faults
ME = "a" * 32


@pytest.fixture(scope="module")
def made() -> Iterator[PostgresServer]:
    with PostgresServer() as server:
        yield server


@pytest.fixture
def server(made: PostgresServer) -> PostgresServer:
    """One of its own, as it is stopped."""
    if not made.runs:
        made.start()
    return made


@pytest.fixture
def strongroom(server: PostgresServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> CommandLine:
    line = CommandLine(tmp_path, capsys)
    line.environment["STRONGROOM_CATALOG_URL"] = server.over_tcp(server.fresh())
    line.init()
    return line


def test_a_run_that_committed_is_a_success_and_the_catalog_learns_of_it_later(
    server: PostgresServer, strongroom: CommandLine
) -> None:
    data = os.urandom(1 << 20)
    image = strongroom.folder / "image.raw"
    image.write_bytes(data)
    progress = Progress(server.stop)
    with Appliance(load(strongroom.environment)) as appliance:
        result = BackupService(appliance).run_image(image, "raw", "web", progress=progress)
    assert progress.acted, "the database was there to the end"
    assert any("the restore point counts, and the catalog learns of it" in note for note in progress.notes)
    assert result.run.state is RunState.SUCCEEDED

    server.start()
    with Appliance(load(strongroom.environment)) as appliance:
        (run,) = appliance.catalog.runs.list()
        assert run.state is RunState.RUNNING, "it could not be told"
    (point,) = strongroom("point", "list", "--json").json()
    assert point["id"] == result.point.id
    assert strongroom("supervise", "--once").code == 0
    with Appliance(load(strongroom.environment)) as appliance:
        (run,) = appliance.catalog.runs.list()
        assert (run.state, run.point) == (RunState.SUCCEEDED, point["id"])
    assert strongroom("status").code == 0


def test_a_run_that_fails_without_its_catalog_says_what_it_failed_of(
    server: PostgresServer, strongroom: CommandLine
) -> None:
    image = strongroom.folder / "image.raw"
    image.write_bytes(os.urandom(1 << 20))

    def fail() -> None:
        server.stop()
        raise OSError("the first error")

    with Appliance(load(strongroom.environment)) as appliance, pytest.raises(OSError, match="the first error"):
        BackupService(appliance).run_image(image, "raw", "web", progress=Progress(fail))
    server.start()
    assert strongroom("supervise", "--once").code == 0
    with Appliance(load(strongroom.environment)) as appliance:
        (run,) = appliance.catalog.runs.list()
        assert (run.state, run.point) == (RunState.INTERRUPTED, None)
        assert appliance.repository.points() == []


def test_without_its_catalog_a_run_does_not_begin_and_the_repository_serves_all_the_same(
    server: PostgresServer, strongroom: CommandLine
) -> None:
    data = os.urandom(1 << 20)
    point = strongroom.backup(data, "web")
    before = sorted(path for path in strongroom.repository.rglob("*") if path.is_file())
    server.stop()
    image = str(strongroom.folder / "image.raw")
    backup = ("--debug", "backup", "--image", image, "--format", "raw", "--name", "web")
    for command in (("status",), ("point", "list"), backup):
        done = strongroom(*command)
        assert done.code == 1
        assert "error: catalog postgresql://127.0.0.1:" in done.err
        assert "cannot be reached" in done.err
        assert "STRONGROOM_CATALOG_URL= (nothing)" in done.err
        assert server.password not in done.out + done.err
    assert sorted(path for path in strongroom.repository.rglob("*") if path.is_file()) == before
    for words in ("verify --read-data", "collect"):
        done = strongroom("repository", *words.split())
        assert done.code == 0, done.err

    target = strongroom.folder / "restored.raw"
    alone = {"STRONGROOM_CATALOG_URL": ""}
    done = strongroom("restore", "web", "--point", "latest", "--to", str(target), "--format", "raw", **alone)
    assert done.code == 0, done.err
    assert target.read_bytes() == data
    (shown,) = strongroom("point", "list", "--json", **alone).json()
    assert shown["id"] == point["id"]
    for log in [path for path in (strongroom.home / "logs").rglob("*") if path.is_file()]:
        assert server.password not in log.read_text()


def test_a_server_that_was_started_again_is_used_again(server: PostgresServer, tmp_path: Path) -> None:
    catalog = Catalog.open(Database.shared(server.fresh()), tmp_path / "lock", ME)
    catalog.thaws.owe("u", "here", "web", NOW)
    server.stop()
    with pytest.raises(CatalogUnreachable) as caught:
        catalog.thaws.paid("u", "here")
    assert caught.value.retryable
    server.start()
    assert len(catalog.thaws.list()) == 1
    catalog.thaws.paid("u", "here")
    assert catalog.thaws.list() == ()
    catalog.close()


def session(**timeouts_ms: int) -> tuple[str, ...]:
    return tuple(f"SET {name} = '{value}ms'" for name, value in timeouts_ms.items())


def test_a_writer_that_sleeps_is_thrown_out_and_others_go_on(
    server: PostgresServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one whose machine was suspended in the middle of a transaction."""
    url = server.fresh()
    catalog = Catalog.open(Database.shared(url), tmp_path / "lock", ME)
    catalog.thaws.owe("u", "here", "web", NOW)
    writing, awake = threading.Event(), threading.Event()
    woken: list[CatalogError] = []

    def sleep() -> None:
        while not writing.is_set():  # one that is kept waiting before it has written anything is thrown out as well
            try:
                with sleepy.write() as connection:
                    connection.exec_driver_sql("DELETE FROM owed_thaws")
                    writing.set()
                    awake.wait(120)
            except CatalogError as err:
                woken.append(err)

    sleepy = Database.shared(url)
    sleeper = threading.Thread(target=sleep)
    with monkeypatch.context() as patch:
        patch.setattr(postgres, "_SESSION", session(idle_in_transaction_session_timeout=2000, lock_timeout=60_000))
        sleeper.start()
        assert writing.wait(120)  # it has its connection
    catalog.thaws.owe("v", "here", "db", NOW)
    awake.set()
    sleeper.join(120)
    sleepy.close()
    assert {type(err) for err in woken} == {CatalogUnreachable}
    assert {debt.machine_uuid for debt in catalog.thaws.list()} == {"u", "v"}, "what it wrote does not count"
    catalog.close()


def test_whoever_waits_in_vain_is_told_so(
    server: PostgresServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres, "_SESSION", session(lock_timeout=50))
    database = Database.shared(server.fresh_catalog())
    catalog = Catalog.open(database, tmp_path / "lock", ME)
    with database.write(), pytest.raises(CatalogBusy, match="locked by another") as caught:
        catalog.thaws.paid("u", "here")
    assert caught.value.retryable
    with database.exclusively("freeze-u") as first, database.exclusively("freeze-u") as second:
        assert (first, second) == (True, False)
        with database.exclusively("freeze-u", wait=True) as third, database.exclusively("freeze-v") as another:
            assert (third, another) == (False, True)
    with database.exclusively("freeze-u") as again:
        assert again, "it was let go of"
    catalog.close()


def test_a_lock_goes_with_its_holder(server: PostgresServer, tmp_path: Path) -> None:
    database = Database.shared(server.fresh())
    with database.exclusively("freeze-u") as held:
        assert held
        server.stop()
        server.start()
        with database.exclusively("freeze-u") as taken:
            assert taken
    database.close()


def test_what_is_wrong_with_the_database_is_told_without_the_password(
    server: PostgresServer, strongroom: CommandLine
) -> None:
    url = server.over_tcp(server.fresh())
    name = url.rsplit("/", 1)[1]
    wrong = {
        "refuses the login": server.over_tcp(url, "wrong-secret"),
        "Make it: createdb": url.replace(name, "nowhere"),
        "catalog.url is no URL": url.replace("@127", ":wrong-secret@127:x"),
        "Install it: pip install": url,
    }
    for says, each in wrong.items():
        with pytest.MonkeyPatch.context() as patch:
            if "Install" in says:
                patch.setitem(sys.modules, "psycopg", None)
            done = strongroom("--debug", "status", STRONGROOM_CATALOG_URL=each)
        assert done.code == 1
        assert says in done.err, done.err
        assert "wrong-secret" not in done.err
        assert server.password not in done.err
    assert isinstance(CatalogDriverMissing("x"), CatalogError)


def test_the_settings_keep_the_password_to_themselves(tmp_path: Path) -> None:
    environment = {"STRONGROOM_HOME": str(tmp_path)}
    url = "postgresql+psycopg://strongroom:very-secret@db.example.com/strongroom"
    assert "very-secret" not in repr(load(environment | {"STRONGROOM_CATALOG_URL": url}))
    for bad in ("mysql://u:very-secret@h/d", "postgresql://u:very-secret@h", "very-secret"):
        with pytest.raises(SettingsError) as caught:
            load(environment | {"STRONGROOM_CATALOG_URL": bad})
        assert "very-secret" not in f"{caught.value}{caught.value.hint}"
        assert "postgresql+psycopg://USER" in str(caught.value)
    file = tmp_path / "strongroom.toml"
    file.write_text(f'[catalog]\nurl = "{url}"\n')
    file.chmod(0o640)
    with pytest.raises(SettingsError, match="others may read it") as caught:
        load(environment)
    assert "chmod 0600" in caught.value.hint
    assert "very-secret" not in str(caught.value)
    file.chmod(0o600)
    assert load(environment).catalog.url == url
