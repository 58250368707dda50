"""The catalog of one home: a SQLite file. What every engine does, tests/contract/test_catalog_contract.py shows."""

from __future__ import annotations

import sqlite3
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import text

import appliance.catalog
from appliance import accounts, inventory, models, proofs
from appliance.catalog import Catalog, schema, tables
from appliance.catalog.database import Database
from appliance.catalog.errors import CatalogError
from appliance.catalog.scheduling import SchedulerMark
from appliance.models import RecoveryState
from appliance.notices import records
from appliance.policy import stored
from appliance.sealed import CatalogKeyRecord
from tests.unit.records import NOW

MIGRATIONS = Path(appliance.catalog.__file__).parent / "migrations"
ME = "a" * 32


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    return Catalog.open(Database.at(tmp_path / "catalog.sqlite"), tmp_path / "lock", ME)


def test_head_is_the_newest_script() -> None:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    config.set_main_option("path_separator", "os")
    assert ScriptDirectory.from_config(config).get_heads() == [schema.HEAD]


def test_the_file_is_private_and_durable(catalog: Catalog, tmp_path: Path) -> None:
    catalog.runs.list()
    for path in tmp_path.glob("catalog.sqlite*"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
    with catalog.database.read() as connection:
        pragmas = {
            name: connection.execute(text(f"PRAGMA {name}")).scalar_one()
            for name in ("journal_mode", "synchronous", "foreign_keys")
        }
    assert pragmas == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1}


def test_a_file_that_is_no_catalog_is_an_error_with_a_way_out(tmp_path: Path) -> None:
    (tmp_path / "catalog.sqlite").write_bytes(b"this is not a database, and long enough to be read as one" * 100)
    with pytest.raises(CatalogError, match="damaged") as caught:
        Catalog.open(Database.at(tmp_path / "catalog.sqlite"), tmp_path / "lock", ME)
    warning, promise = caught.value.hint.index("thaws"), caught.value.hint.index("No restore point is lost")
    assert warning < promise, "what is lost comes first"


def test_a_writer_waits_for_another_instead_of_failing(catalog: Catalog, tmp_path: Path) -> None:
    other = sqlite3.connect(tmp_path / "catalog.sqlite", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with ThreadPoolExecutor() as pool:
        writing = pool.submit(catalog.thaws.owe, "u", "here", "web-1", NOW)
        with pytest.raises(TimeoutError):
            writing.result(timeout=0.3)
        other.execute("COMMIT")
        writing.result(timeout=120)
    other.close()
    assert len(catalog.thaws.list()) == 1


def test_models_and_tables_have_the_same_fields() -> None:
    pairs: list[tuple[type[Any], Any, set[str]]] = [
        (models.ApplianceRecord, tables.appliances, set()),
        (models.RepositoryRecord, tables.repositories, set()),
        (models.HostConfig, tables.hosts, {"added_utc", "appliance"}),
        (models.MachineRecord, tables.machines, {"points_mark"}),
        (models.PointRecord, tables.points, set()),
        (models.RunRecord, tables.runs, {"machine", "noticed_utc"}),
        (models.RecoveryRecord, tables.recoveries, set()),
        (models.ExportRecord, tables.exports, set()),
        (models.OwedThaw, tables.owed_thaws, set()),
        (inventory.HostLook, tables.host_looks, set()),
        (inventory.SeenMachine, tables.seen_machines, set()),
        (models.CleanupRecord, tables.cleanups, set()),
        (stored.StoredPolicy, tables.policies, set()),
        (stored.MachinePause, tables.machine_pauses, set()),
        (proofs.RepositorySize, tables.repository_sizes, set()),
        (proofs.Verification, tables.verifications, {"noticed_utc"}),
        (proofs.Proof, tables.proofs, set()),
        (records.Concern, tables.notice_concerns, set()),
        (records.Notice, tables.notices, set()),
        (records.Delivery, tables.notice_deliveries, set()),
        (accounts.UserRecord, tables.users, {"totp_secret"}),
        (accounts.SessionRecord, tables.sessions, set()),
        (accounts.SetupLink, tables.setup_links, {"totp_secret"}),
        (CatalogKeyRecord, tables.catalog_keys, set()),
        (accounts.TokenRecord, tables.tokens, set()),
        (accounts.Attempts, tables.sign_in_failures, set()),
        (SchedulerMark, tables.schedulers, set()),
    ]
    for kind, table, beyond in pairs:
        assert set(kind.__dataclass_fields__) | beyond == set(table.columns.keys()), table.name
    without = {
        tables.request_keys, tables.audit, tables.notice_state, tables.known_addresses, tables.recovery_codes,
        tables.signers,
    }  # fmt: skip
    assert {table for _, table, _ in pairs} | without == set(tables.metadata.sorted_tables)


def test_an_admin_can_always_get_rid_of_a_recovery() -> None:
    for state in RecoveryState:
        way_out = state.may_become(RecoveryState.DISCARDING) or state.may_become(RecoveryState.DISCARDED)
        assert way_out == (state is not RecoveryState.MIGRATED), state
