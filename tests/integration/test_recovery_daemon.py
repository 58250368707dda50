"""`strongroom serve`: takes recoveries up again, takes over from a spawned supervisor, and ends at once when asked."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.models import RecoveryState
from appliance.services.recovery import RecoveryService
from tests.integration.backing_up import MIB, Rig, rig
from tests.integration.recovering import (
    Protected,
    exports_of,
    kill_exports,
    protect,
    reads_right,
    record_of,
    serving,
    strongroom,
    supervised,
    supervisors_of,
    wait_until,
)
from tests.lab import Lab

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def site() -> Iterator[tuple[Rig, Lab, Protected]]:
    with Lab() as lab, rig({"STRONGROOM_LIMITS_WORKERS": "1"}) as made:
        protected = protect(made, lab, "origin", [24 * MIB])
        with supervised(made):
            yield made, lab, protected


def test_serve_takes_everything_up_again_at_its_start(site: tuple[Rig, Lab, Protected]) -> None:
    made, lab, protected = site
    service = RecoveryService(made.appliance)
    with serving(made):  # a daemon lives: no supervisor is spawned beside it
        running, moving, going = (
            service.start(protected.name, "latest", new_name=f"{lab.token}{name}")
            for name in ("running", "moving", "going")
        )
        assert supervisors_of(made) == []
    # the host goes down, in the middle of a migration and a discard
    catalog, now = made.appliance.catalog, made.appliance.clock.now_utc()
    guests = {record.id: lab.adopt(record.machine_name) for record in (running, moving, going)}
    for record in (running, moving, going):
        kill_exports(made, record)
        guests[record.id].kill()
    catalog.recoveries.update(moving, now_utc=now, state=RecoveryState.MIGRATING)
    catalog.recoveries.update(going, now_utc=now, state=RecoveryState.DISCARDING)
    with serving(made):
        wait_until(lambda: guests[running.id].running, "the machine is started")
        wait_until(lambda: record_of(made, moving.id).state.ended, "the migration is carried on")
        wait_until(lambda: record_of(made, going.id).state.ended, "the discard is carried on")
        assert record_of(made, moving.id).state is RecoveryState.MIGRATED
        assert record_of(made, going.id).state is RecoveryState.DISCARDED
        assert not guests[going.id].exists
        assert reads_right(guests[running.id], protected.disks[0])
        # and keeps it alive, without ever standing in the way of a command
        kill_exports(made, running)
        wait_until(lambda: exports_of(made, running), "its export is started again")
        second = strongroom(made, "serve", expect=1)
        assert "is in use" in second.err
        strongroom(made, "recovery", "discard", running.id, "--yes")
    assert exports_of(made, running) == []
    guests[moving.id].remove()


def test_serve_takes_over_from_a_spawned_supervisor(site: tuple[Rig, Lab, Protected]) -> None:
    made, lab, protected = site
    record = RecoveryService(made.appliance).start(protected.name, "latest", new_name=f"{lab.token}handed")
    wait_until(lambda: len(supervisors_of(made)) == 1, "a supervisor was spawned")
    (spawned,) = supervisors_of(made)
    environment = Path("/proc", str(spawned), "environ").read_bytes()
    assert b"STRONGROOM_PASSPHRASE" not in environment
    assert os.readlink(f"/proc/{spawned}/cwd") == "/"
    with serving(made):
        wait_until(lambda: not supervisors_of(made), "it makes way")
        kill_exports(made, record)
        wait_until(lambda: exports_of(made, record), "the daemon looks after it")
    assert exports_of(made, record), "exports outlive the daemon"
    strongroom(made, "recovery", "resume")
    wait_until(lambda: len(supervisors_of(made)) == 1, "a supervisor lives")
    RecoveryService(made.appliance).discard(record.id)
    wait_until(lambda: not supervisors_of(made), "it ends by itself")


def test_commands_are_not_kept_away_by_the_supervisor(site: tuple[Rig, Lab, Protected]) -> None:
    made, lab, protected = site
    service = RecoveryService(made.appliance)
    with serving_at(made, "0.05"):
        record = service.start(protected.name, "latest", new_name=f"{lab.token}often")
        for _ in range(20):
            (resumed,) = service.resume(supervise=False)
            assert resumed.problems == ()
        service.discard(record.id)
    assert [path.name for path in made.settings.run_directory.iterdir() if record.id in path.name] == []


@contextlib.contextmanager
def serving_at(made: Rig, interval_s: str) -> Iterator[None]:
    made.environment["STRONGROOM_RECOVERY_SUPERVISE_INTERVAL_S"] = interval_s
    try:
        with serving(made):
            yield
    finally:
        del made.environment["STRONGROOM_RECOVERY_SUPERVISE_INTERVAL_S"]
