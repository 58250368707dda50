"""A running machine is backed up with a catalog in PostgreSQL, which goes away in the middle of a run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import pytest

from appliance.catalog import postgres
from appliance.catalog.database import Database
from appliance.models import ReadKind, RunState
from appliance.services.cleaning import freezing
from tests.integration.backing_up import HOST, MIB, Progress, Rig, blank, rig
from tests.lab import Lab
from tests.lab.postgres_server import PostgresServer

pytestmark = [pytest.mark.integration, pytest.mark.faults]


@pytest.fixture
def server() -> Iterator[PostgresServer]:
    with PostgresServer() as server:
        yield server


@pytest.fixture
def strongroom(server: PostgresServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[Rig]:
    url = server.fresh_catalog()
    monkeypatch.setenv("STRONGROOM_CATALOG_URL", url)  # for the processes that a run starts
    # A guest that a busy machine lets wait answers late, which is not what this is about.
    patient = {f"STRONGROOM_AGENT_{name}": "120" for name in ("FREEZE_TIMEOUT_S", "THAW_TIMEOUT_S", "LONGEST_FREEZE_S")}
    with rig({"STRONGROOM_CATALOG_URL": url, **patient}) as made:
        yield made


def test_a_run_goes_on_to_its_end_and_what_it_owes_is_settled_later(
    lab: Lab, strongroom: Rig, server: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = blank(lab, "vdb", 16 * MIB)
    guest = lab.machine("shared", disks=[lab.ext4_disk("vda", 16 * MIB), disk.disk], agent=True)
    guest.start()
    guest.wait_agent()
    disk.write_noise(guest, 0, 4 * MIB)
    first = strongroom.backup(guest)
    assert first.point.manifest.consistency == "application"
    assert first.run.state is RunState.SUCCEEDED
    strongroom.assert_nothing_left(guest)

    disk.write_noise(guest, MIB, 3 * MIB)
    progress = Progress(server.stop)
    result = strongroom.backup(guest, progress=progress)
    assert progress.acted, "the database was there to the end"
    assert result.run.state is RunState.SUCCEEDED
    assert any("the catalog learns of it when it can be written again" in note for note in progress.notes)
    assert guest.freeze_status() == "thawed"
    assert guest.domain.jobInfo()[0] == 0, "a job is left on the machine"
    assert list(strongroom.settings.scratch.directory.iterdir()) == []
    assert strongroom.content(result.point, "vdb") == disk.truth

    server.start()
    disk.write_noise(guest, 8 * MIB, MIB)
    last = strongroom.backup(guest)
    assert {entry.read for entry in last.run.disks} == {ReadKind.INCREMENTAL}
    assert strongroom.content(last.point, "vdb") == disk.truth
    strongroom.assert_nothing_left(guest)
    runs = strongroom.appliance.catalog.runs.list()
    assert [(run.state, run.point) for run in runs] == [
        (RunState.SUCCEEDED, each.point.id) for each in (last, result, first)
    ]

    # An appliance that freezes or thaws the guest at this moment, for longer than is waited.
    monkeypatch.setattr(postgres, "_SESSION", ("SET lock_timeout = '50ms'",))
    strongroom.reopen()
    with (
        closing(Database.shared(strongroom.settings.catalog.url)) as theirs,
        theirs.exclusively(freezing(guest.domain.UUIDString())) as held,
    ):
        assert held
        busy = strongroom.backup(guest)
        strongroom.appliance.catalog.thaws.owe(guest.domain.UUIDString(), HOST, guest.name, busy.run.started_utc)
        assert strongroom.settle() == ()
        assert len(strongroom.appliance.catalog.thaws.list()) == 1, "what another has frozen is not thawed"
    assert busy.point.manifest.consistency == "crash"
    assert any("another appliance is at work with its agent" in note for note in busy.point.manifest.notes)
    assert strongroom.settle() == ()
    strongroom.assert_nothing_left(guest)
