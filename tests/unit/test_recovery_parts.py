"""Who waits for whom, and where disks go: the parts of instant recovery that need no machine."""

from __future__ import annotations

import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import pytest

from appliance.bootstrap import Appliance
from appliance.hypervisor.protocol import Hypervisor, PoolInfo
from appliance.models import MigrationMethod, RecoveryDisk, RecoveryRecord, RecoveryState, new_id
from appliance.ownership import InUse
from appliance.services.recovery import locking
from appliance.services.recovery.errors import DestinationTaken, DestinationUnusable
from appliance.services.recovery.migrating import destinations
from appliance.settings import load


@pytest.fixture
def appliance(tmp_path: Path) -> Appliance:
    return Appliance(load({"STRONGROOM_HOME": str(tmp_path / "home")}))


def test_a_second_command_is_told_and_does_not_wait(appliance: Appliance) -> None:
    with locking.commanding(appliance, "1" * 32):
        with pytest.raises(InUse, match="recovery 111111111111 is in use"), locking.commanding(appliance, "1" * 32):
            pass
        with locking.commanding(appliance, "2" * 32):
            pass  # another recovery is another matter


def test_a_command_waits_for_a_look_and_a_look_for_nobody(appliance: Appliance) -> None:
    got_in = threading.Event()

    def command() -> None:
        with locking.commanding(appliance, "1" * 32):
            got_in.set()

    with locking.looking(appliance, "1" * 32):
        with pytest.raises(InUse), locking.looking(appliance, "1" * 32):
            pass
        thread = threading.Thread(target=command)
        thread.start()
        assert not got_in.wait(0.2)
    assert got_in.wait(60)
    thread.join()
    with locking.commanding(appliance, "1" * 32), pytest.raises(InUse), locking.looking(appliance, "1" * 32):
        pass


def test_locks_of_what_has_ended_are_forgotten(appliance: Appliance) -> None:
    with locking.commanding(appliance, "1" * 32):
        locking.forget(appliance, "1" * 32)
        locking.forget(appliance, "1" * 32)
    assert [path.name for path in appliance.settings.run_directory.iterdir() if "1" * 32 in path.name] == []


class Host:
    """As much of a hypervisor as a plan of destinations asks."""

    def __init__(self, pool: PoolInfo | None = None) -> None:
        self.files = self.storage = self
        self._pool = pool

    def exists(self, path: str) -> bool:
        return Path(path).exists()

    def pool(self, name: str) -> PoolInfo:
        assert self._pool is not None
        assert self._pool.name == name
        return self._pool


def planned(record: RecoveryRecord, to: str | None, pool: PoolInfo | None = None) -> RecoveryRecord:
    return destinations(cast(Hypervisor, cast(Any, Host(pool))), record, to, "qcow2")


def recovery(*disks: RecoveryDisk) -> RecoveryRecord:
    now = datetime(2026, 1, 1, tzinfo=UTC)
    return RecoveryRecord(
        new_id(), RecoveryState.RUNNING, "p", "m", "web", "here", "web-new", "u", "none", now, now, disks=disks
    )


def disk(target: str, **about: Any) -> RecoveryDisk:
    return RecoveryDisk(target, 1 << 30, f"/run/{target}", f"/run/{target}", f"/overlays/{target}.qcow2", **about)


def test_disks_that_have_moved_stay_where_they_are(tmp_path: Path) -> None:
    """A recovery whose first disk was pulled, and whose rest is copied, or the other way round."""
    pulled, copied = (
        disk("vda", migrated=True),
        disk("vdb", migrated=True, destination="/srv/b", destination_format="raw"),
    )
    record = recovery(pulled, copied, disk("vdc", destination="/srv/given-up"))
    plan = planned(record, str(tmp_path))
    assert plan.method is MigrationMethod.COPY
    assert plan.disks[:2] == (pulled, copied)
    assert plan.disks[2].destination == str(tmp_path / "web-new-vdc.qcow2")
    plan = planned(record, None)
    assert plan.method is MigrationMethod.PULL
    assert plan.disks[:2] == (pulled, copied)
    assert plan.disks[2] == disk("vdc")


def test_nothing_that_is_there_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "web-new-vdb.qcow2").write_bytes(b"somebody's")
    with pytest.raises(DestinationTaken, match=r"web-new-vdb\.qcow2 exists already"):
        planned(recovery(disk("vda"), disk("vdb")), str(tmp_path))


@pytest.mark.parametrize(
    ("kind", "path", "active", "says"),
    [
        ("logical", "/dev/vg", True, "of kind 'logical'"),
        ("rbd", None, True, "of kind 'rbd'"),
        ("dir", "/srv/pool", False, "it is not active"),
    ],
)
def test_pools_that_are_no_folder_are_refused(kind: str, path: str | None, active: bool, says: str) -> None:
    with pytest.raises(DestinationUnusable, match=says) as refused:
        planned(recovery(disk("vda")), "fast", PoolInfo("fast", kind, path, active, 1))
    assert refused.value.hint


def test_a_pool_that_is_a_folder_names_the_files() -> None:
    plan = planned(recovery(disk("vda")), "fast", PoolInfo("fast", "netfs", "/srv/pool", True, 1))
    assert plan.disks[0].destination == "/srv/pool/web-new-vda.qcow2"
