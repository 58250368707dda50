"""What every engine of the catalog does: migrations and tables agree, values come back as they went in, states move
only forward, and of several appliances each has what it began."""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import inspect, text

from appliance.catalog import Catalog, rows, schema, tables
from appliance.catalog.appliances import only_appliance
from appliance.catalog.errors import (
    CatalogError,
    CatalogOfAnotherRepository,
    CatalogVersionUnknown,
    HomeCopied,
    OfAnotherAppliance,
    RecordExists,
    RecordMissing,
    StateConflict,
)
from appliance.clock import format_utc, parse_utc
from appliance.hypervisor.protocol import Accelerator, Transport
from appliance.models import (
    ApplianceRecord,
    CleanupAction,
    CleanupRecord,
    ExportKind,
    ExportRecord,
    HostConfig,
    HostRecord,
    MigrationMethod,
    OwedThaw,
    ReadKind,
    RecoveryDisk,
    RecoveryRecord,
    RecoveryState,
    RepositoryRecord,
    RunDisk,
    RunRecord,
    RunState,
    new_id,
)
from tests.contract.catalogs import ME, OTHER, Place, downgrade
from tests.unit.records import NOW, machine_record, point_record


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
        appliance=ME,
    )


def test_migrations_make_exactly_the_tables_of_the_program(catalog: Catalog) -> None:
    with catalog.database.read() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": True})
        assert compare_metadata(context, tables.metadata) == []
        inspected = inspect(connection)
        for table in tables.metadata.sorted_tables:  # keys are not compared by that
            key = inspected.get_pk_constraint(table.name)["constrained_columns"]
            assert set(key) == {column.name for column in table.primary_key}, table.name


def test_a_program_of_before_the_queue_still_writes_its_runs(catalog: Catalog) -> None:
    """One that has had the catalog open since before it was migrated."""
    run = RunRecord(new_id(), "web", "vm", "u", "here", RunState.RUNNING, NOW, appliance=ME)
    known = ("id", "appliance", "name", "machine_kind", "uuid", "host", "state", "started_utc", "disks", "notes")
    with catalog.database.write() as connection:
        connection.execute(tables.runs.insert().values({name: rows.encode(run)[name] for name in known}))
    assert catalog.runs.get(run.id) == run


def test_every_migration_can_be_taken_back(place: Place, catalog: Catalog) -> None:
    with catalog.database.write() as connection:
        downgrade(connection, "base")
        assert set(inspect(connection).get_table_names()) == {"alembic_version"}
    schema.upgrade(catalog.database, place.lock)
    assert catalog.runs.list() == ()


def test_a_newer_catalog_is_left_alone(place: Place, catalog: Catalog) -> None:
    with catalog.database.write() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(CatalogVersionUnknown, match="9999") as caught, place.open():
        pass
    assert ("All appliances" in caught.value.hint) == place.shared
    with catalog.database.read() as connection:
        assert schema.version(connection) == "9999"


def _join(place: Place, me: str, home: Path, done: Any) -> None:
    """As another appliance does, with a lock file of its own."""
    home.mkdir()
    with Place(place.where, home / "lock").open(me) as catalog:
        catalog.appliances.join(ApplianceRecord(me, NOW, "hv", str(home), me, NOW), "file")
        done.put(sorted(record.id for record in catalog.appliances.list()))


def test_appliances_that_start_together_make_one_catalog(empty_place: Place, tmp_path: Path) -> None:
    """Each brings it from nothing to its newest version, if nobody else has."""
    spawn = multiprocessing.get_context("spawn")
    done = spawn.Queue()
    ids = [str(number) * 32 for number in range(2)]
    started = [spawn.Process(target=_join, args=(empty_place, id, tmp_path / id, done)) for id in ids]
    for process in started:
        process.start()
    seen = [done.get(timeout=120) for _ in started]
    for process in started:
        process.join(120)
        assert process.exitcode == 0
    assert max(seen, key=len) == ids, "none has made the others' work undone"


def test_a_catalog_of_an_earlier_version_is_brought_up_to_date_with_what_it_holds(place: Place) -> None:
    run = RunRecord(new_id(), "web-1", "vm", "u", "here", RunState.FAILED, NOW, error="long ago", appliance=ME)
    host = HostRecord(HostConfig("here"), NOW, ME)
    with place.open() as catalog:
        catalog.appliances.join(ApplianceRecord(ME, NOW, "hv", "/home", "p", NOW), "file")
        catalog.runs.save(run)
        catalog.hosts.add(host)
        catalog.thaws.owe("u", "here", "web-1", NOW)
        with catalog.database.write() as connection:
            downgrade(connection, "0001")
            assert "dismissed_utc" not in {column["name"] for column in inspect(connection).get_columns("runs")}
            assert "appliance" not in {column["name"] for column in inspect(connection).get_columns("runs")}
    with place.open() as catalog:
        assert only_appliance(catalog.database) == ME
        assert catalog.runs.list() == (run,)
        assert catalog.runs.last() == (run,), "it is found by its machine"
        assert catalog.hosts.list() == (host,)
        assert catalog.thaws.list() == (OwedThaw("u", "here", "web-1", NOW, appliance=ME),)


def test_what_was_recorded_before_an_appliance_was_named_is_of_a_new_one(place: Place) -> None:
    with place.open() as catalog:
        catalog.thaws.owe("u", "here", "web-1", NOW)
        with catalog.database.write() as connection:
            downgrade(connection, "0002")
    with place.open() as catalog:
        id = only_appliance(catalog.database)
        assert [debt.appliance for debt in catalog.thaws.list(everyones=True)] == [id]


def test_the_last_run_of_each_machine_or_image(catalog: Catalog) -> None:
    def run(name: str, uuid: str | None, hour: int, state: RunState = RunState.SUCCEEDED) -> RunRecord:
        kind = "vm" if uuid else "image"
        started = NOW + timedelta(hours=hour)
        return RunRecord(new_id(), name, kind, uuid, None, state, started, appliance=ME)

    old, new = run("web", "u-1", 0), run("web-renamed", "u-1", 1, RunState.FAILED)
    made_anew, image, older_image = run("web", "u-2", 3), run("web", None, 2), run("web", None, 0)
    for each in (older_image, new, old, image, made_anew):
        catalog.runs.save(each)
    assert catalog.runs.last() == (made_anew, image, new)
    for state in (RunState.CANCELLED, RunState.QUEUED):
        catalog.runs.save(run("web", "u-1", 9, state))
    assert catalog.runs.last() == (made_anew, image, new), "what waits or was called off tells nothing"
    catalog.runs.remove(new.id)
    catalog.runs.remove(new.id)
    assert catalog.runs.last() == (made_anew, image, old)


def test_runs_are_found_by_the_beginning_of_an_id(catalog: Catalog) -> None:
    ids = ["ab" + "0" * 30, "ab" + "f" * 30, "b" * 32]
    for id in ids:
        catalog.runs.save(RunRecord(id, "web", "image", None, None, RunState.SUCCEEDED, NOW))
    assert [catalog.runs.find(some).id for some in ("ab0", "abf", "b", "b" * 32)] == [ids[0], ids[1], ids[2], ids[2]]
    for wrong in ("ab", "", "c", "b" * 33, "%", "ab_", "AB0", "g"):
        with pytest.raises(RecordMissing):
            catalog.runs.find(wrong)


def test_a_name_that_no_index_takes_is_a_machine_as_any_other(catalog: Catalog) -> None:
    names = ["n" * 4096 + end for end in "ab"]
    made = [RunRecord(new_id(), name, "image", None, None, RunState.FAILED, NOW, appliance=ME) for name in names]
    for run in made:
        catalog.runs.save(run)
    assert set(catalog.runs.last()) == set(made)


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
    catalog.hosts.add(HostRecord(config, NOW, ME))
    assert catalog.hosts.get("rack2") == HostRecord(config, NOW, ME)
    with pytest.raises(RecordExists, match="rack2"):
        catalog.hosts.add(HostRecord(config, NOW, ME))
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


def test_whatever_changes_the_points_of_a_machine_changes_its_mark(catalog: Catalog) -> None:
    other = replace(machine_record(), series="6" * 32, uuid=new_id())
    first, second, third = point_record(), point_record(generation=1), point_record(series=other.series)
    seen = []
    for change in (
        lambda: catalog.points.replace([machine_record(), other], [first, third]),
        lambda: catalog.points.add(machine_record(), second),
        lambda: catalog.points.remove(first.id),
        lambda: catalog.points.replace([machine_record(), other], [first, second, third]),
    ):
        change()
        seen.append(catalog.points.marks())
    assert len({each[first.series] for each in seen}) == 4
    assert seen[0][other.series] == seen[1][other.series] == seen[2][other.series]
    assert all(marks.keys() == {first.series, other.series} and all(marks.values()) for marks in seen)


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
        appliance=ME,
    )
    catalog.runs.save(run)
    done = replace(run, state=RunState.PARTIAL, ended_utc=NOW + timedelta(seconds=1), notes=("vdb was skipped",))
    catalog.runs.save(done)
    assert catalog.runs.list() == (done,)
    assert catalog.runs.list(state=RunState.RUNNING) == ()

    owner = f"run-{run.id}"
    records = [
        CleanupRecord(
            new_id(),
            owner,
            CleanupAction.END_BACKUP_JOB,
            NOW,
            "here",
            "u",
            "web-1",
            paths=("/s", "/scratch"),
            appliance=ME,
        ),
        CleanupRecord(
            new_id(),
            owner,
            CleanupAction.DELETE_CHECKPOINT,
            NOW + timedelta(seconds=1),
            subject="cp",
            disks=("vda",),
            appliance=ME,
        ),
        CleanupRecord(new_id(), "run-other", CleanupAction.REMOVE_FILES, NOW, paths=("/x",), appliance=ME),
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


# --- several appliances -----------------------------------------------------------------------------------------------


def test_what_is_under_way_is_of_the_appliance_that_began_it(catalog: Catalog, other: Catalog) -> None:
    record = replace(recovery(), appliance="")
    added = catalog.recoveries.add(record)
    cleanup = CleanupRecord(new_id(), "run-x", CleanupAction.REMOVE_FILES, NOW, paths=("/x",))
    export = ExportRecord(new_id(), ExportKind.EXPORT, "1" * 32, "m", "web-1", ("vda",), NOW)
    run = RunRecord(new_id(), "web-1", "vm", "u", "here", RunState.RUNNING, NOW)
    catalog.cleanups.add(cleanup)
    catalog.exports.save(export)
    catalog.runs.save(run)
    catalog.thaws.owe("u", "here", "web-1", NOW)
    other.thaws.owe("u", "here", "web-1", NOW + timedelta(hours=1))

    assert added == replace(record, appliance=ME)
    assert catalog.recoveries.list() == other.recoveries.list(everyones=True) == (added,)
    assert catalog.cleanups.list() == other.cleanups.list(everyones=True) == (replace(cleanup, appliance=ME),)
    assert catalog.exports.list() == other.exports.list(everyones=True) == (replace(export, appliance=ME),)
    assert catalog.runs.own_running() == other.runs.list() == (replace(run, appliance=ME),)
    for theirs in (
        other.recoveries.list(),
        other.cleanups.list("run-x"),
        other.exports.list(),
        other.runs.own_running(),
    ):
        assert theirs == ()
    with pytest.raises(OfAnotherAppliance, match=ME):
        other.recoveries.update(added, now_utc=NOW, state=RecoveryState.DISCARDING)
    assert other.recoveries.get(added.id) == added

    other.thaws.paid("u", "here")
    assert [debt.since_utc for debt in catalog.thaws.list(everyones=True)] == [NOW], "each pays its own"


def test_a_host_s_name_means_one_host_to_all(catalog: Catalog, other: Catalog) -> None:
    far = HostConfig("rack2", Transport.SSH, hostname="h", user="u", keyfile="/mine")
    catalog.hosts.add(HostRecord(far, NOW))
    catalog.hosts.add(HostRecord(HostConfig("here"), NOW))
    assert other.hosts.list() == ()
    with pytest.raises(RecordExists, match="another appliance"):
        other.hosts.add(HostRecord(HostConfig("here"), NOW))
    with pytest.raises(RecordExists, match="another appliance"):
        other.hosts.add(HostRecord(replace(far, hostname="elsewhere"), NOW))
    other.hosts.add(HostRecord(replace(far, keyfile="/theirs"), NOW))
    catalog.hosts.remove("rack2")
    assert other.hosts.get("rack2").config.keyfile == "/theirs"


def test_an_appliance_joins_once_and_its_copy_is_refused(place: Place, catalog: Catalog) -> None:
    first = ApplianceRecord(ME, NOW, "hv1", "/home", "place", NOW)
    assert catalog.appliances.join(first, "file") == first
    soon = replace(first, created_utc=NOW + timedelta(days=1), seen_utc=NOW + timedelta(seconds=30))
    assert catalog.appliances.join(soon, "file") == first, "not written at every command"
    later = replace(first, name="hv1-renamed", seen_utc=NOW + timedelta(hours=1))
    assert catalog.appliances.join(replace(later, created_utc=NOW + timedelta(hours=1)), "file") == later
    assert catalog.appliances.list() == (later,)
    copy = replace(later, place="another place", home="/copy")
    if place.shared:
        with pytest.raises(HomeCopied, match="hv1-renamed") as caught:
            catalog.appliances.join(copy, "/copy/appliance.id")
        assert "Remove /copy/appliance.id" in caught.value.hint
        assert catalog.appliances.list() == (later,)
    else:  # the catalog has moved with its home
        assert catalog.appliances.join(copy, "file") == copy


def test_an_appliance_that_is_gone_can_be_taken_over(catalog: Catalog, other: Catalog) -> None:
    other.appliances.join(ApplianceRecord(OTHER, NOW, "hv2", "/home", "p", NOW), "file")
    far = HostConfig("rack2", Transport.SSH, hostname="h", user="u", keyfile="/theirs")
    other.hosts.add(HostRecord(far, NOW))
    other.hosts.add(HostRecord(replace(far, name="rack3", hostname="g"), NOW))
    catalog.hosts.add(HostRecord(replace(far, keyfile="/mine"), NOW))
    running_run = RunRecord(new_id(), "web", "vm", "u", "rack2", RunState.RUNNING, NOW)
    ended_run = replace(running_run, id=new_id(), state=RunState.SUCCEEDED)
    for run in (running_run, ended_run):
        other.runs.save(run)
    other.thaws.owe("u", "rack2", "web", NOW)
    catalog.thaws.owe("u", "rack2", "web", NOW + timedelta(hours=1))
    other.thaws.owe("v", "rack3", "db", NOW)
    taken = other.recoveries.add(replace(recovery(), appliance=""))
    over = other.recoveries.add(replace(recovery(), appliance="", state=RecoveryState.MIGRATED))
    assert {what: count for what, count in catalog.appliances.under_way(OTHER).items() if count} == {
        "runs": 1, "recoveries": 1, "owed thaws": 2,
    }  # fmt: skip

    catalog.appliances.take_over(OTHER)

    assert catalog.appliances.list() == ()
    assert not any(catalog.appliances.under_way(OTHER).values())
    assert [(host.name, host.config.keyfile) for host in catalog.hosts.list()] == [
        ("rack2", "/mine"),
        ("rack3", "/theirs"),
    ]
    assert [run.id for run in catalog.runs.own_running()] == [running_run.id]
    assert catalog.runs.get(ended_run.id).appliance == OTHER, "history stays what it was"
    assert {(debt.machine_uuid, debt.since_utc) for debt in catalog.thaws.list()} == {
        ("u", NOW + timedelta(hours=1)), ("v", NOW),
    }  # fmt: skip
    assert catalog.recoveries.list() == (replace(taken, appliance=ME),)
    assert catalog.recoveries.get(over.id).appliance == OTHER


def test_a_stale_look_at_the_repository_replaces_no_newer_one(catalog: Catalog, other: Catalog) -> None:
    old, new = point_record(), point_record(generation=1)
    catalog.points.replace([machine_record()], [old])
    before = catalog.points.names()
    other.points.add(machine_record(), new)
    assert not catalog.points.replace([machine_record()], [old], before=before)
    assert catalog.points.list() == (old, new)
    assert catalog.points.replace([machine_record()], [old, new], before=catalog.points.names())


def test_a_shared_catalog_keeps_to_its_repository(place: Place, catalog: Catalog, other: Catalog) -> None:
    catalog.attach_repository(RepositoryRecord("1" * 32, "/srv/a", NOW))
    other.attach_repository(RepositoryRecord("1" * 32, "/mnt/a", NOW))
    if place.shared:
        with pytest.raises(CatalogOfAnotherRepository, match="2222"):
            other.attach_repository(RepositoryRecord("2" * 32, "/srv/b", NOW))
        expected = "1" * 32
    else:  # a home that was given another one
        other.attach_repository(RepositoryRecord("2" * 32, "/srv/b", NOW))
        expected = "2" * 32
    found = catalog.repository()
    assert found is not None
    assert found.id == expected


def test_all_write_at_once_and_nothing_is_lost_or_refused(place: Place, catalog: Catalog) -> None:
    """Each of these looks and then writes: two that do so at once would write twice, or fail."""

    def work(me: str) -> None:
        with place.open(me) as mine:
            for number in range(8):
                mine.points.replace([machine_record()], [point_record(generation=number)])
                mine.thaws.owe(f"u{number}", "here", "web", NOW)
                mine.runs.save(replace(run, notes=(me, str(number))))

    run = RunRecord(new_id(), "web", "vm", "u", "here", RunState.RUNNING, NOW, appliance=ME)
    whos = [character * 32 for character in "abab"]
    with ThreadPoolExecutor(len(whos)) as pool:
        for done in [pool.submit(work, me) for me in whos]:
            done.result(120)
    assert len(catalog.points.list()) == 1
    assert len(catalog.thaws.list()) == 8
    assert len(catalog.thaws.list(everyones=True)) == 16
    assert [each.id for each in catalog.runs.list()] == [run.id]
