"""A backup that dies, alone or together with its storage, leaves no guest frozen and no job whose scratch nobody
watches; one that is told to end undoes everything itself."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from appliance.models import RunState
from appliance.services.upkeep import UpkeepService
from tests.integration.backing_up import HOST, MIB, Disk, Rig, blank, firmware_machine, reads, rig
from tests.integration.recovering import supervisors_of, wait_until
from tests.lab import Lab, LabGuest

pytestmark = [pytest.mark.integration, pytest.mark.faults]

READING = "appliance.services.backup.storing:Storer.store_disk"


@pytest.fixture(scope="module")
def strongroom() -> Iterator[Rig]:
    with rig() as made:
        yield made


@pytest.fixture
def machine(lab: Lab) -> tuple[Disk, LabGuest]:
    disk = blank(lab, "vda", 32 * MIB)
    guest = firmware_machine(lab, [disk.disk], "watched")
    guest.start(wait=False)
    disk.write_noise(guest, MIB, 2 * MIB)
    return disk, guest


@pytest.fixture(scope="module")
def agent_guest() -> Iterator[LabGuest]:
    with Lab() as lab:
        guest = lab.machine("watched-agent", agent=True)
        guest.start()
        guest.wait_agent()
        yield guest


def wait_settled(strongroom: Rig, guest: LabGuest) -> None:
    """By whatever runs already: this asks the product for nothing."""
    wait_until(lambda: guest.domain.jobInfo()[0] == 0, "the job is gone")
    wait_until(lambda: not list(strongroom.settings.scratch.directory.iterdir()), "the scratch is gone")
    wait_until(lambda: strongroom.appliance.catalog.cleanups.list() == (), "no debt is left")


def last_run(strongroom: Rig) -> tuple[RunState, str | None]:
    run = strongroom.appliance.catalog.runs.list(limit=1)[0]
    return run.state, run.error


def test_a_killed_run_is_undone_without_any_further_command(strongroom: Rig, machine: tuple[Disk, LabGuest]) -> None:
    disk, guest = machine
    first = strongroom.backup(guest)
    disk.write_noise(guest, 8 * MIB, MIB)
    strongroom.killed_at((READING, "before"), "backup", guest.name)
    wait_settled(strongroom, guest)
    wait_until(lambda: last_run(strongroom)[0] is RunState.INTERRUPTED, "the run is told as interrupted")
    strongroom.assert_nothing_left(guest)
    assert [point.id for point in strongroom.points()] == [first.point.id]
    result = strongroom.backup(guest)
    assert reads(result) == {"vda": ("incremental", None)}
    assert strongroom.content(result.point) == disk.truth


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_run_that_is_told_to_end_undoes_everything(
    strongroom: Rig, machine: tuple[Disk, LabGuest], number: signal.Signals
) -> None:
    disk, guest = machine
    strongroom.backup(guest)
    disk.write_noise(guest, 8 * MIB, MIB)
    done = strongroom.signalled_at((READING, f"before-{number.name}"), "backup", guest.name)
    assert done.returncode == 128 + number
    assert f"interrupted by {number.name}" in done.stderr
    assert "Traceback" not in done.stderr
    strongroom.assert_nothing_left(guest)
    assert last_run(strongroom) == (RunState.FAILED, f"it was ended by {number.name}")
    assert reads(strongroom.backup(guest)) == {"vda": ("incremental", None)}


@contextmanager
def storage_dies_with_a_run(strongroom: Rig, place: str, guest: LabGuest) -> Iterator[None]:
    """The process moves the repository's folder away at that place, and kills itself; the folder is back afterwards."""
    repository = strongroom.settings.repository.path
    away = repository.with_name("away")
    module, path = place.split(":")
    script = (
        "import importlib, os, signal, sys\n"
        f"owner = getattr(importlib.import_module({module!r}), {path.split('.')[0]!r})\n"
        f"def die(*_): os.rename({str(repository)!r}, {str(away)!r}); os.kill(os.getpid(), signal.SIGKILL)\n"
        f"setattr(owner, {path.split('.')[1]!r}, die)\n"
        "from appliance.cli import main\n"
        "main(['backup', sys.argv[1]])\n"
    )
    try:
        done = subprocess.run(
            [sys.executable, "-c", script, guest.name], env=strongroom.process_environment(), capture_output=True,
            text=True, timeout=60, check=False, cwd=Path(__file__).parents[2],
        )  # fmt: skip
        assert done.returncode == -signal.SIGKILL, done.stderr
        assert not repository.exists()
        yield
    finally:
        away.rename(repository)


def test_a_guest_is_thawed_although_the_repository_went_with_the_run(strongroom: Rig, agent_guest: LabGuest) -> None:
    guest = agent_guest
    with storage_dies_with_a_run(strongroom, "appliance.hypervisor.backups:LibvirtBackups.begin", guest):
        wait_until(lambda: guest.freeze_status() == "thawed", "the guest is thawed")
        wait_until(lambda: not strongroom.appliance.catalog.thaws.list(), "the thaw is paid")
    guest.run("echo still writable >/mnt/vda/after && sync")
    assert strongroom.backup(guest).point.manifest.consistency == "application"
    strongroom.assert_nothing_left(guest)


def test_a_job_is_ended_although_the_repository_went_with_the_run(
    strongroom: Rig, machine: tuple[Disk, LabGuest]
) -> None:
    disk, guest = machine
    strongroom.backup(guest)
    disk.write_noise(guest, 8 * MIB, MIB)
    with storage_dies_with_a_run(strongroom, READING, guest):
        wait_until(lambda: guest.domain.jobInfo()[0] == 0, "the job is gone")
        wait_until(lambda: not list(strongroom.settings.scratch.directory.iterdir()), "the scratch is gone")
    result = strongroom.backup(guest)
    assert reads(result) == {"vda": ("incremental", None)}
    assert strongroom.content(result.point) == disk.truth
    strongroom.assert_nothing_left(guest)


def test_a_thaw_is_owed_beyond_patience(strongroom: Rig, agent_guest: LabGuest) -> None:
    """Who gives up hands over to a supervisor, which asks until the agent confirms, and then ends."""
    guest, catalog = agent_guest, strongroom.appliance.catalog
    catalog.thaws.owe(guest.domain.UUIDString(), HOST, guest.name, strongroom.appliance.clock.now_utc())
    guest.agent("guest-fsfreeze-freeze")
    guest.run("killall -STOP qemu-ga")
    told: list[str] = []
    left = UpkeepService(strongroom.appliance).until_paid(threading.Event(), told.append, patience_s=0)
    assert told == list(left)
    assert f"thaw of {guest.name} is not confirmed" in told[0]
    wait_until(lambda: len(supervisors_of(strongroom)) == 1, "a supervisor lives")
    assert len(catalog.thaws.list()) == 1
    guest.run("killall -CONT qemu-ga")
    wait_until(lambda: not catalog.thaws.list(), "the thaw is paid")
    assert guest.freeze_status() == "thawed"
    wait_until(lambda: not supervisors_of(strongroom), "the supervisor ends when nothing is owed")
