"""A running machine from the queue: an attempt that was killed is undone, then the next one begins."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace

import pytest

from appliance.hypervisor.errors import HostUnreachable
from appliance.hypervisor.protocol import HostConfig, Hypervisor
from appliance.models import CleanupAction, CleanupRecord, ReadKind, RunState, new_id
from appliance.services.backup import BackupService
from appliance.services.backup.service import NotUndone
from appliance.services.queue.service import QueueService
from tests.integration.backing_up import HOST, MIB, Rig, blank, firmware_machine, rig
from tests.integration.recovering import serving, strongroom, wait_until
from tests.lab import Lab

pytestmark = [pytest.mark.integration, pytest.mark.faults]
READING = ("appliance.services.backup.storing:Storer.store_disk", "before")


@pytest.fixture
def made() -> Iterator[Rig]:
    with rig({"STRONGROOM_QUEUE_RETRY_S": "0.2"}) as made:
        yield made


def test_a_killed_attempt_is_undone_before_the_next_one(lab: Lab, made: Rig) -> None:
    disk = blank(lab, "vda", 8 * MIB)
    guest = firmware_machine(lab, [disk.disk])
    guest.start(wait=False)
    disk.write_noise(guest, 0, 2 * MIB)
    first = made.backup(guest)
    disk.write_noise(guest, 4 * MIB, MIB)

    id = json.loads(strongroom(made, "backup", guest.name, "--queue", "--json").out)["id"]
    made.killed_at(READING, "run", "execute", id)
    assert made.appliance.catalog.runs.get(id).attempts == 1
    with serving(made):
        wait_until(lambda: made.appliance.catalog.runs.get(id).state is RunState.SUCCEEDED, "it is tried again")
    run = made.appliance.catalog.runs.get(id)
    assert run.attempts == 2
    assert [entry.read for entry in run.disks] == [ReadKind.INCREMENTAL]
    points = made.points()
    assert [point.manifest.run for point in points] == [first.run.id, id]
    assert made.content(points[1]) == disk.truth
    made.assert_nothing_left(guest)


def test_nothing_begins_beside_what_could_not_be_undone(lab: Lab, made: Rig) -> None:
    """As the next attempt is of the same owner, whoever undoes the former would undo it too."""
    disk = blank(lab, "vda", 8 * MIB)
    guest = firmware_machine(lab, [disk.disk])
    guest.start(wait=False)
    asked = QueueService(made.appliance).ask_machine(guest.name).run
    catalog, now = made.appliance.catalog, made.appliance.clock.now_utc()
    attempt = catalog.queue.claim(asked.id, now)
    assert attempt is not None
    catalog.queue.settle(attempt, replace(attempt, state=RunState.QUEUED, error="it was killed"), now)
    left = CleanupRecord(new_id(), f"run-{asked.id}", CleanupAction.END_BACKUP_JOB, now, HOST, asked.uuid, guest.name,
                         paths=("/nowhere",))  # fmt: skip
    catalog.cleanups.add(left)

    def away(config: HostConfig) -> Hypervisor:
        raise HostUnreachable(config.name, "the cable")

    made.reopen(connector=away)
    with pytest.raises(NotUndone, match="is not undone yet"):
        BackupService(made.appliance).run_queued(asked.id)
    run = made.appliance.catalog.runs.get(asked.id)
    assert (run.state, run.attempts) == (RunState.QUEUED, 2)
    made.reopen()
    made.appliance.catalog.queue.hurry(asked.id)
    result = BackupService(made.appliance).run_queued(asked.id)
    assert result is not None
    assert result.run.state is RunState.SUCCEEDED
    assert made.content(result.point) == disk.truth
    made.assert_nothing_left(guest)
