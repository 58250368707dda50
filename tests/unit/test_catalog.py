"""The catalog: migrations and tables agree, values come back as they went in, states move only forward."""

from __future__ import annotations

import multiprocessing
import sqlite3
import stat
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from io import StringIO
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.operations import Operations
from alembic.script import ScriptDirectory
from sqlalchemy import inspect, text
from sqlalchemy.dialects import registry
from sqlalchemy.schema import CreateTable

import appliance.catalog
from appliance import models
from appliance.catalog import Catalog, schema, tables
from appliance.catalog.errors import (
    CatalogError,
    CatalogVersionUnknown,
    RecordExists,
    RecordMissing,
    StateConflict,
)
from appliance.clock import SystemClock, format_utc, parse_utc
from appliance.hypervisor.protocol import Accelerator, Transport
from appliance.models import (
    CleanupAction,
    CleanupRecord,
    HostConfig,
    HostRecord,
    MigrationMethod,
    ReadKind,
    RecoveryDisk,
    RecoveryRecord,
    RecoveryState,
    RunDisk,
    RunRecord,
    RunState,
    new_id,
)
from tests.unit.records import NOW, machine_record, point_record

MIGRATIONS = Path(appliance.catalog.__file__).parent / "migrations"


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    return Catalog.open(tmp_path / "catalog.sqlite", tmp_path / "lock")


def recovery() -> RecoveryRecord:
    return RecoveryRecord(
        id=new_id(),
        state=RecoveryState.SERVING,
        point="1" * 32,
        manifest_name="manifests/x",
        source_name="web-1",
        host="here",
        machine_name="web-1-recovered",
        machine_uuid="b-uuid",
        network="none",
        started_utc=NOW,
        updated_utc=NOW,
        disks=(RecoveryDisk("vda", 1 << 30, "/run/a.sock", "/run/a.sock", "/o/vda.qcow2", None, None, False),),
        method=MigrationMethod.PULL,
    )


def test_migrations_make_exactly_the_tables_of_the_program(tmp_path: Path) -> None:
    database = Catalog.open(tmp_path / "c.sqlite", tmp_path / "lock").database
    with database.read() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, tables.metadata) == []


def test_head_is_the_newest_script() -> None:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    config.set_main_option("path_separator", "os")
    assert ScriptDirectory.from_config(config).get_heads() == [schema.HEAD]


def test_every_migration_can_be_taken_back(tmp_path: Path) -> None:
    from alembic import command

    catalog = Catalog.open(tmp_path / "c.sqlite", tmp_path / "lock")
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    config.set_main_option("path_separator", "os")
    with catalog.database.write() as connection:
        config.attributes["connection"] = connection
        command.downgrade(config, "base")
        assert set(inspect(connection).get_table_names()) == {"alembic_version"}
    schema.upgrade(catalog.database, tmp_path / "lock")
    catalog.appliance(SystemClock())


def test_the_migrations_speak_postgresql() -> None:
    output = StringIO()
    context = MigrationContext.configure(
        dialect_name="postgresql", opts={"as_sql": True, "output_buffer": output, "target_metadata": tables.metadata}
    )
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    config.set_main_option("path_separator", "os")
    with Operations.context(context):
        for script in reversed(list(ScriptDirectory.from_config(config).walk_revisions())):
            script.module.upgrade()
    made = output.getvalue()
    for table in tables.metadata.sorted_tables:
        assert f"CREATE TABLE {table.name} " in made
        assert str(CreateTable(table).compile(dialect=registry.load("postgresql")()))
    assert "TIMESTAMP WITH TIME ZONE" in made


def test_the_file_is_private_and_durable(catalog: Catalog, tmp_path: Path) -> None:
    catalog.appliance(SystemClock())
    for path in tmp_path.glob("catalog.sqlite*"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
    with catalog.database.read() as connection:
        pragmas = {
            name: connection.execute(text(f"PRAGMA {name}")).scalar_one()
            for name in ("journal_mode", "synchronous", "foreign_keys")
        }
    assert pragmas == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1}


def test_a_newer_catalog_is_left_alone(catalog: Catalog, tmp_path: Path) -> None:
    with catalog.database.write() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(CatalogVersionUnknown, match="9999"):
        Catalog.open(tmp_path / "catalog.sqlite", tmp_path / "lock")
    with catalog.database.read() as connection:
        assert schema.version(connection) == "9999"


def test_a_file_that_is_no_catalog_is_an_error_with_a_way_out(tmp_path: Path) -> None:
    (tmp_path / "catalog.sqlite").write_bytes(b"this is not a database, and long enough to be read as one" * 100)
    with pytest.raises(CatalogError, match="damaged") as caught:
        Catalog.open(tmp_path / "catalog.sqlite", tmp_path / "lock")
    warning, promise = caught.value.hint.index("thaws"), caught.value.hint.index("No restore point is lost")
    assert warning < promise, "what is lost comes first"


def _open(path: Path, lock: Path, done: Any) -> None:
    done.put(Catalog.open(path, lock).appliance(SystemClock()).id)


def test_processes_that_start_together_make_one_catalog(tmp_path: Path) -> None:
    spawn = multiprocessing.get_context("spawn")
    done = spawn.Queue()
    started = [spawn.Process(target=_open, args=(tmp_path / "c.sqlite", tmp_path / "lock", done)) for _ in range(4)]
    for process in started:
        process.start()
    ids = {done.get(timeout=60) for _ in started}
    for process in started:
        process.join(60)
        assert process.exitcode == 0
    assert len(ids) == 1


def test_a_catalog_of_the_first_version_is_brought_up_to_date_with_what_it_holds(tmp_path: Path) -> None:
    from alembic import command

    catalog = Catalog.open(tmp_path / "c.sqlite", tmp_path / "lock")
    run = RunRecord(new_id(), "web-1", "vm", "u", "here", RunState.FAILED, NOW, error="it was long ago")
    catalog.runs.save(run)
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    config.set_main_option("path_separator", "os")
    with catalog.database.write() as connection:
        config.attributes["connection"] = connection
        command.downgrade(config, "0001")
        assert "dismissed_utc" not in {column["name"] for column in inspect(connection).get_columns("runs")}
    assert Catalog.open(tmp_path / "c.sqlite", tmp_path / "lock").runs.list() == (run,)


def test_the_last_run_of_each_machine_or_image(catalog: Catalog) -> None:
    def run(name: str, uuid: str | None, hour: int, state: RunState = RunState.SUCCEEDED) -> RunRecord:
        kind = "vm" if uuid else "image"
        return RunRecord(new_id(), name, kind, uuid, None, state, NOW + timedelta(hours=hour))

    old, new = run("web", "u-1", 0), run("web-renamed", "u-1", 1, RunState.FAILED)
    made_anew, image, older_image = run("web", "u-2", 3), run("web", None, 2), run("web", None, 0)
    for each in (older_image, new, old, image, made_anew):
        catalog.runs.save(each)
    assert catalog.runs.last() == (made_anew, image, new)
    catalog.runs.remove(new.id)
    catalog.runs.remove(new.id)
    assert catalog.runs.last() == (made_anew, image, old)


def test_moments_keep_zone_and_microseconds(catalog: Catalog) -> None:
    elsewhere = NOW.astimezone(ZoneInfo("Asia/Tokyo"))
    run = RunRecord(new_id(), "web-1", "vm", "u", "here", RunState.RUNNING, elsewhere)
    catalog.runs.save(run)
    back = catalog.runs.get(run.id)
    assert back.started_utc == NOW
    assert back.started_utc.tzinfo is UTC
    assert parse_utc(format_utc(back.started_utc)) == NOW
    with pytest.raises(ValueError, match="without a time zone"):
        format_utc(datetime(2026, 1, 1))  # noqa: DTZ001
    with pytest.raises(Exception, match="time zone"):
        catalog.runs.save(replace(run, started_utc=datetime(2026, 1, 1)))  # noqa: DTZ001


def test_hosts(catalog: Catalog) -> None:
    config = HostConfig(
        "rack2", Transport.SSH, hostname="h", user="u", port=2222, accelerator=Accelerator.TCG, timeout_s=2.5
    )
    catalog.hosts.add(HostRecord(config, NOW))
    assert catalog.hosts.get("rack2") == HostRecord(config, NOW)
    with pytest.raises(RecordExists, match="rack2"):
        catalog.hosts.add(HostRecord(config, NOW))
    catalog.hosts.remove("rack2")
    assert catalog.hosts.list() == ()
    for missing in (catalog.hosts.remove, catalog.hosts.get):
        with pytest.raises(RecordMissing, match="rack2"):
            missing("rack2")


def test_points_come_back_as_they_went_in(catalog: Catalog) -> None:
    first, second = (
        point_record(),
        point_record(generation=1, disks=(), skipped=(), notes=("\x1b[31m'; DROP TABLE points; --",)),
    )
    catalog.points.add(machine_record(), first)
    catalog.points.add(replace(machine_record(), last_point=second.id), second)
    assert catalog.points.list() == (first, second)
    assert catalog.points.machine("5" * 32) == replace(machine_record(), last_point=second.id)
    assert catalog.points.list("6" * 32) == ()
    catalog.points.remove(first.id)
    assert catalog.points.list() == (second,)


def test_replacing_the_points_is_all_or_nothing(catalog: Catalog) -> None:
    kept = point_record()
    catalog.points.replace([machine_record()], [kept])
    with pytest.raises(CatalogError):
        catalog.points.replace([], [point_record(series="9" * 32)])  # no such machine: the foreign key refuses
    assert catalog.points.list() == (kept,)
    assert catalog.points.machines() == (machine_record(),)


def test_runs_and_what_they_would_leave_behind(catalog: Catalog) -> None:
    run = RunRecord(
        new_id(),
        "web-1",
        "vm",
        "u",
        "here",
        RunState.RUNNING,
        NOW,
        disks=(RunDisk("vda", ReadKind.INCREMENTAL, None, 1, 2),),
    )
    catalog.runs.save(run)
    done = replace(run, state=RunState.PARTIAL, ended_utc=NOW + timedelta(seconds=1), notes=("vdb was skipped",))
    catalog.runs.save(done)
    assert catalog.runs.list() == (done,)
    assert catalog.runs.list(state=RunState.RUNNING) == ()

    owner = f"run-{run.id}"
    records = [
        CleanupRecord(
            new_id(), owner, CleanupAction.END_BACKUP_JOB, NOW, "here", "u", "web-1", paths=("/s", "/scratch")
        ),
        CleanupRecord(
            new_id(), owner, CleanupAction.DELETE_CHECKPOINT, NOW + timedelta(seconds=1), subject="cp", disks=("vda",)
        ),
        CleanupRecord(new_id(), "run-other", CleanupAction.REMOVE_FILES, NOW, paths=("/x",)),
    ]
    for record in records:
        catalog.cleanups.add(record)
    assert catalog.cleanups.list(owner) == (records[1], records[0]), "undone in the reverse order"
    catalog.cleanups.failed(records[0].id, "host away")
    assert [c.attempts for c in catalog.cleanups.list(owner)] == [0, 1]
    catalog.cleanups.drop(records[1].id)
    catalog.cleanups.drop_owner(owner)
    assert catalog.cleanups.list() == (records[2],)


def test_a_thaw_is_owed_until_it_is_paid(catalog: Catalog) -> None:
    catalog.thaws.owe("u", "here", "web-1", NOW)
    catalog.thaws.owe("u", "here", "web-1", NOW + timedelta(hours=1))
    catalog.thaws.failed("u", "here", "agent silent")
    (debt,) = catalog.thaws.list()
    assert (debt.since_utc, debt.attempts, debt.last_error) == (NOW, 1, "agent silent")
    catalog.thaws.paid("u", "here")
    assert catalog.thaws.list() == ()


def test_recoveries_move_only_along_their_states(catalog: Catalog) -> None:
    first = recovery()
    catalog.recoveries.add(first)
    running = catalog.recoveries.update(first, now_utc=NOW, state=RecoveryState.RUNNING, start_ms=1800)
    assert catalog.recoveries.get(first.id[:8]) == running
    with pytest.raises(StateConflict):  # the caller saw `serving`, and it is not that any more
        catalog.recoveries.update(first, now_utc=NOW, state=RecoveryState.FAILED)
    with pytest.raises(StateConflict):  # there is no such step
        catalog.recoveries.update(running, now_utc=NOW, state=RecoveryState.MIGRATED)
    assert catalog.recoveries.get(first.id).state is RecoveryState.RUNNING
    migrating = catalog.recoveries.update(running, now_utc=NOW, state=RecoveryState.MIGRATING)
    ended = catalog.recoveries.update(migrating, now_utc=NOW, state=RecoveryState.MIGRATED)
    for state in RecoveryState:
        if state is not RecoveryState.MIGRATED:
            with pytest.raises(StateConflict):
                catalog.recoveries.update(ended, now_utc=NOW, state=state)
    assert catalog.recoveries.list(ended=False) == ()
    catalog.recoveries.forget(ended.id)
    assert catalog.recoveries.list() == ()


def test_a_recovery_under_way_is_not_forgotten(catalog: Catalog) -> None:
    first = recovery()
    catalog.recoveries.add(first)
    catalog.recoveries.forget(first.id)
    assert catalog.recoveries.list() == (first,)


@pytest.mark.parametrize("wanted", ["", "%", "_", "zz"])
def test_wildcards_name_no_recovery(catalog: Catalog, wanted: str) -> None:
    catalog.recoveries.add(recovery())
    with pytest.raises(RecordMissing):
        catalog.recoveries.get(wanted)


def test_an_admin_can_always_get_rid_of_a_recovery() -> None:
    for state in RecoveryState:
        way_out = state.may_become(RecoveryState.DISCARDING) or state.may_become(RecoveryState.DISCARDED)
        assert way_out == (state is not RecoveryState.MIGRATED), state


def test_a_writer_waits_for_another_instead_of_failing(catalog: Catalog, tmp_path: Path) -> None:
    other = sqlite3.connect(tmp_path / "catalog.sqlite", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with ThreadPoolExecutor() as pool:
        writing = pool.submit(catalog.thaws.owe, "u", "here", "web-1", NOW)
        with pytest.raises(TimeoutError):
            writing.result(timeout=0.3)
        other.execute("COMMIT")
        writing.result(timeout=20)
    other.close()
    assert len(catalog.thaws.list()) == 1


def test_models_and_tables_have_the_same_fields() -> None:
    pairs: list[tuple[type[Any], Any, set[str]]] = [
        (models.ApplianceRecord, tables.appliance, set()),
        (models.RepositoryRecord, tables.repositories, set()),
        (models.HostConfig, tables.hosts, {"added_utc"}),
        (models.MachineRecord, tables.machines, set()),
        (models.PointRecord, tables.points, set()),
        (models.RunRecord, tables.runs, set()),
        (models.RecoveryRecord, tables.recoveries, set()),
        (models.ExportRecord, tables.exports, set()),
        (models.OwedThaw, tables.owed_thaws, set()),
        (models.CleanupRecord, tables.cleanups, set()),
    ]
    for kind, table, beyond in pairs:
        assert set(kind.__dataclass_fields__) | beyond == set(table.columns.keys()), table.name
    assert {table for _, table, _ in pairs} == set(tables.metadata.sorted_tables)
