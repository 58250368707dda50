"""A guest that was frozen for a backup is thawed, whatever happens to its agent, to the hypervisor and to us."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from appliance.hypervisor.domain_xml import parse_machine
from appliance.hypervisor.libvirt_driver import LibvirtHypervisor, connect
from appliance.hypervisor.protocol import BackupJob, BackupRequest, HostConfig
from tests.integration.backing_up import HOST, Progress, Rig, rig, tool
from tests.integration.recovering import wait_until
from tests.lab import Lab, LabGuest

pytestmark = [pytest.mark.integration, pytest.mark.faults]


@pytest.fixture(scope="module")
def site() -> Iterator[tuple[Rig, LabGuest]]:
    """One guest with an agent for all of this module: what each test does to it, it undoes."""
    with Lab() as lab, rig() as strongroom:
        guest = lab.machine("freeze", agent=True)
        guest.start()
        guest.wait_agent()
        yield strongroom, guest


def wait_thawed(guest: LabGuest) -> None:
    """Until the agent itself says so."""
    deadline = time.monotonic() + 120
    while guest.freeze_status() != "thawed":
        assert time.monotonic() < deadline, "the guest stays frozen"
        time.sleep(0.1)


def test_with_its_agent_a_guest_is_caught_with_clean_file_systems(site: tuple[Rig, LabGuest]) -> None:
    strongroom, guest = site
    for run in range(2):
        # Not synced: the freeze is what brings it to the disk.
        guest.run(f"echo written before run {run} >/mnt/vda/note; head -c 1000000 /dev/urandom >/mnt/vda/noise-{run}")
        result = strongroom.backup(guest)
        assert result.point.manifest.consistency == "application"
        assert result.point.manifest.kind == ("incremental" if run else "full")
        assert guest.freeze_status() == "thawed"
        copy = guest.ports.serial_log.with_name(f"copy-{run}.raw")
        copy.write_bytes(strongroom.content(result.point))
        assert "needs_recovery" not in tool("/usr/sbin/dumpe2fs", "-h", copy), "its journal would have to be replayed"
        tool("/usr/sbin/e2fsck", "-fn", copy)
        assert tool("/usr/sbin/debugfs", "-R", "cat /note", copy) == f"written before run {run}\n"
    strongroom.assert_nothing_left(guest)


def test_without_an_answer_of_the_agent_the_backup_is_made_and_the_late_freeze_undone(
    site: tuple[Rig, LabGuest],
) -> None:
    strongroom, guest = site
    guest.run("killall -STOP qemu-ga")
    strongroom.reopen({"STRONGROOM_AGENT_FREEZE_TIMEOUT_S": "2", "STRONGROOM_AGENT_THAW_TIMEOUT_S": "2"})
    progress = Progress()
    result = strongroom.backup(guest, progress=progress)
    strongroom.reopen()
    assert result.point.manifest.consistency == "crash"
    assert result.partial
    assert any("was not frozen: timed out" in note for note in result.point.manifest.notes)
    (debt,) = strongroom.appliance.catalog.thaws.list()
    assert debt.name == guest.name
    # What waits in the agent's channel is done when it goes on: it freezes now. Nothing is asked of us any more.
    guest.run("killall -CONT qemu-ga")
    wait_paid(strongroom)
    assert guest.freeze_status() == "thawed", "what is paid is done"
    guest.run("echo still writable >/mnt/vda/after && sync")
    assert strongroom.backup(guest).point.manifest.consistency == "application"
    strongroom.assert_nothing_left(guest)


def wait_paid(strongroom: Rig) -> None:
    deadline = time.monotonic() + 120
    while strongroom.appliance.catalog.thaws.list():
        assert time.monotonic() < deadline, "the thaw stays owed"
        time.sleep(0.1)


def test_what_is_owed_is_paid_when_debts_are_settled(site: tuple[Rig, LabGuest]) -> None:
    """As after a host that went down with the appliance: nobody but the next start can pay."""
    strongroom, guest = site
    thaws = strongroom.appliance.catalog.thaws
    thaws.owe(guest.domain.UUIDString(), HOST, guest.name, strongroom.appliance.clock.now_utc())
    guest.agent("guest-fsfreeze-freeze")
    guest.run("killall -STOP qemu-ga")
    (problem,) = strongroom.settle()
    assert f"thaw of {guest.name} is not confirmed" in problem
    assert len(thaws.list()) == 1
    guest.run("killall -CONT qemu-ga")
    assert strongroom.settle() == ()
    assert guest.freeze_status() == "thawed"
    strongroom.assert_nothing_left(guest)


def test_a_guest_without_an_agent_owes_nothing(site: tuple[Rig, LabGuest]) -> None:
    strongroom, guest = site
    guest.run("killall qemu-ga")
    try:
        wait_until(lambda: not parse_machine(guest.domain.XMLDesc()).agent_connected, "libvirt knows that it has gone")
        result = strongroom.backup(guest)
        assert result.point.manifest.consistency == "crash"
        assert result.point.manifest.notes == (
            "the guest was not frozen: no agent: no agent is connected in the guest",
        )
        strongroom.assert_nothing_left(guest)
    finally:
        guest.run("qemu-ga -d -m virtio-serial -p /dev/virtio-ports/org.qemu.guest_agent.0")
        guest.wait_agent()


def test_a_begin_that_takes_too_long_does_not_keep_the_guest_frozen(site: tuple[Rig, LabGuest]) -> None:
    strongroom, guest = site
    seen: list[str] = []

    def connector(config: HostConfig) -> LibvirtHypervisor:
        hypervisor = connect(config)
        begin = hypervisor.backups.begin

        def slow(request: BackupRequest) -> BackupJob:
            seen.append(guest.freeze_status())
            wait_thawed(guest)
            seen.append("thawed")
            return begin(request)

        hypervisor.backups.begin = slow  # type: ignore[method-assign]
        return hypervisor

    strongroom.reopen({"STRONGROOM_AGENT_LONGEST_FREEZE_S": "3"}, connector=connector)
    result = strongroom.backup(guest)
    assert seen == ["frozen", "thawed"]
    assert result.point.manifest.consistency == "crash"
    assert any("thawed before" in note for note in result.point.manifest.notes)
    strongroom.reopen()
    strongroom.assert_nothing_left(guest)


def test_a_killed_appliance_leaves_no_frozen_guest(site: tuple[Rig, LabGuest]) -> None:
    strongroom, guest = site
    # The process stops itself between freeze and begin, and is killed there.
    script = (
        "import os, signal, sys\n"
        "from appliance.bootstrap import Appliance\n"
        "from appliance.hypervisor.backups import LibvirtBackups\n"
        "from appliance.services.backup import BackupService\n"
        "LibvirtBackups.begin = lambda *_: os.kill(os.getpid(), signal.SIGSTOP)\n"
        "BackupService(Appliance.from_environment()).run_machine(sys.argv[1])\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, guest.name], env=strongroom.process_environment(), start_new_session=True
    )
    try:
        deadline = time.monotonic() + 120
        while guest.freeze_status() != "frozen":
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    wait_thawed(guest)
    wait_paid(strongroom)
    guest.run("echo still writable >/mnt/vda/after && sync")
    result = strongroom.backup(guest)
    assert result.point.manifest.consistency == "application"
    strongroom.assert_nothing_left(guest)
