"""What must not hurt a machine while it is backed up, each provoked for real."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import libvirt
import pytest

from appliance.hypervisor.errors import BackupBusy, BackupJobLost, BitmapUntrusted, MachineBusy, ScratchFull
from appliance.hypervisor.libvirt_driver import connect
from appliance.hypervisor.protocol import CopyTarget, Hypervisor, MachineState
from appliance.hypervisor.scratch import ScratchWatch, over_limit
from tests.contract.hypervisor_waiting import HERE, wait_until
from tests.faults.hypervisor_rig import MIB, request_for, small_file_system
from tests.lab import Lab, LabGuest

pytestmark = [pytest.mark.integration, pytest.mark.faults]
OLD_MIB = 24  # more than the scratch of any test here may have
OVERWRITE = f"dd if=/dev/urandom of=/mnt/vda/old bs=1M count={OLD_MIB} conv=notrunc,fsync"


@pytest.fixture
def hypervisor() -> Iterator[Hypervisor]:
    with connect(HERE) as connected:
        yield connected


def paused_machine(lab: Lab, hypervisor: Hypervisor, name: str) -> LabGuest:
    """A machine that has its disks open and executes nothing."""
    guest = lab.machine(name, disks=[lab.blank_disk("vda", 4 * MIB, name=name)])
    hypervisor.machines.start(guest.name, paused=True)
    return guest


def started(lab: Lab, name: str) -> LabGuest:
    """A running guest with OLD_MIB to overwrite. Mount what it shall reach before: QEMU has its own mount namespace."""
    guest = lab.machine(name)
    guest.start()
    guest.fill("/mnt/vda/old", OLD_MIB)
    return guest


def wait_for_verdict(watch: ScratchWatch) -> None:
    """Raises what the watch finds."""

    def undecided() -> bool:
        watch.check()
        return False

    wait_until(undecided)


def test_second_begin_is_refused_and_says_whose_the_job_is(lab: Lab, hypervisor: Hypervisor) -> None:
    guest = paused_machine(lab, hypervisor, "busy")
    ours = hypervisor.backups.begin(request_for(lab.folder / "one", guest.name, str(uuid4()), vda=None))
    with pytest.raises(BackupBusy) as busy:
        hypervisor.backups.begin(request_for(lab.folder / "two", guest.name, str(uuid4()), vda=None))
    assert busy.value.socket == ours.socket
    assert busy.value.retryable
    # Who does not own the job does not end it, nor remove its files.
    assert hypervisor.backups.end(guest.name, str(lab.folder / "two" / "nbd.sock")) is False
    assert hypervisor.backups.current(guest.name) is not None
    assert os.path.exists(ours.socket)
    hypervisor.backups.end(guest.name, ours.socket)
    assert hypervisor.backups.current(guest.name) is None


def test_backup_waits_for_a_block_job(guest: LabGuest, lab: Lab, hypervisor: Hypervisor) -> None:
    hypervisor.block_jobs.copy(guest.name, "vda", CopyTarget(str(lab.path("copy.qcow2")), "qcow2"), 64 * 1024)
    with pytest.raises(MachineBusy, match="block job is under way on disk vda"):
        hypervisor.backups.begin(request_for(lab.folder / "run", guest.name, str(uuid4()), vda=None))
    hypervisor.block_jobs.abort(guest.name, "vda")
    job = hypervisor.backups.begin(request_for(lab.folder / "run", guest.name, str(uuid4()), vda=None))
    with pytest.raises(MachineBusy, match="another job"):
        hypervisor.block_jobs.pull(guest.name, "vda")
    hypervisor.backups.end(guest.name, job.socket)


def test_stale_scratch_and_socket_do_not_stop_a_run(lab: Lab, hypervisor: Hypervisor) -> None:
    guest = paused_machine(lab, hypervisor, "stale")
    folder = lab.folder / "run"
    folder.mkdir()
    request = request_for(folder, guest.name, str(uuid4()), vda=None)
    for path in (request.socket, request.disks[0].scratch):
        Path(path).write_bytes(b"left by a killed run")
    job = hypervisor.backups.begin(request)
    hypervisor.backups.end(guest.name, job.socket)
    assert list(folder.iterdir()) == []


def test_scratch_folder_that_qemu_cannot_reach_is_named(lab: Lab, hypervisor: Hypervisor) -> None:
    guest = paused_machine(lab, hypervisor, "barred")
    closed = lab.folder / "closed"
    closed.mkdir(mode=0o700)
    with pytest.raises(Exception, match=f"does not get through {closed}") as refused:
        hypervisor.backups.begin(request_for(closed / "run", guest.name, str(uuid4()), vda=None))
    assert "chmod o+x" in getattr(refused.value, "hint", "")
    assert hypervisor.backups.current(guest.name) is None


def test_bitmap_of_a_killed_qemu_is_not_trusted(lab: Lab, hypervisor: Hypervisor) -> None:
    """Beside the broken bitmap a full run works, and afterwards the broken one is removed."""
    guest = paused_machine(lab, hypervisor, "killed")
    path = str(guest.disk_paths["vda"])
    old, new = str(uuid4()), str(uuid4())
    folder = lab.folder / "run"
    job = hypervisor.backups.begin(request_for(folder, guest.name, old, vda=None))
    hypervisor.backups.end(guest.name, job.socket)
    guest.kill()
    hypervisor.checkpoints.redefine(guest.name, old, ["vda"])  # closed properly: trusted
    hypervisor.machines.start(guest.name, paused=True)
    hypervisor.checkpoints.redefine(guest.name, old, ["vda"])

    os.kill(int(Path(f"/run/libvirt/qemu/{guest.name}.pid").read_text()), signal.SIGKILL)
    wait_until(lambda: hypervisor.machines.state(guest.name).state is MachineState.OFF)
    with pytest.raises(BitmapUntrusted, match="QEMU was killed"):
        hypervisor.checkpoints.redefine(guest.name, old, ["vda"])
    hypervisor.machines.start(guest.name, paused=True)
    with pytest.raises(BitmapUntrusted) as untrusted:
        hypervisor.checkpoints.redefine(guest.name, old, ["vda"])
    assert untrusted.value.disk == "vda"
    with pytest.raises(BitmapUntrusted):
        hypervisor.backups.begin(request_for(folder, guest.name, new, vda=old))
    assert hypervisor.backups.current(guest.name) is None
    job = hypervisor.backups.begin(request_for(folder, guest.name, new, vda=None))
    hypervisor.backups.end(guest.name, job.socket)
    hypervisor.checkpoints.delete(guest.name, old, ["vda"])
    assert [found.name for found in hypervisor.checkpoints.list(guest.name)] == [new]
    guest.kill()
    assert [bitmap.name for bitmap in hypervisor.bitmaps.list(path)] == [new]


def test_machine_destroyed_during_a_run(lab: Lab, hypervisor: Hypervisor) -> None:
    guest = paused_machine(lab, hypervisor, "destroyed")
    checkpoint = str(uuid4())
    job = hypervisor.backups.begin(request_for(lab.folder / "run", guest.name, checkpoint, vda=None))
    with ScratchWatch(hypervisor, job, limit_bytes=64 * MIB) as watch:
        guest.kill()
        with pytest.raises(BackupJobLost):
            watch.check(after_failure=True)
    scratches = [export.scratch for export in job.exports]
    assert hypervisor.backups.end(guest.name, job.socket, scratches) is False
    hypervisor.checkpoints.delete(guest.name, checkpoint, ["vda"])
    assert list((lab.folder / "run").iterdir()) == []
    assert hypervisor.checkpoints.list(guest.name) == ()
    assert hypervisor.checkpoints.bitmaps(guest.name) == ()


def test_over_limit_looks_ahead() -> None:
    assert not over_limit(used_bytes=10, before_bytes=10, limit_bytes=11)
    assert over_limit(used_bytes=11, before_bytes=11, limit_bytes=11)
    assert over_limit(used_bytes=60, before_bytes=50, limit_bytes=100)
    assert not over_limit(used_bytes=50, before_bytes=60, limit_bytes=51)


def test_run_ends_before_its_scratch_is_full_and_the_guest_never_notices(
    guest: LabGuest, lab: Lab, hypervisor: Hypervisor
) -> None:
    guest.fill("/mnt/vda/old", OLD_MIB)
    job = hypervisor.backups.begin(request_for(lab.folder / "run", guest.name, str(uuid4()), vda=None))
    with ScratchWatch(hypervisor, job, limit_bytes=8 * MIB, look_s=0.05) as watch:
        guest.run(OVERWRITE)
        with pytest.raises(ScratchFull, match="the guest was not disturbed") as full:
            watch.check(after_failure=True)
    assert full.value.facts["limit_bytes"] == 8 * MIB
    assert hypervisor.backups.current(guest.name) is None
    assert guest.running
    assert list((lab.folder / "run").iterdir()) == []


def test_guest_that_a_full_scratch_paused_is_resumed(lab: Lab, hypervisor: Hypervisor) -> None:
    with small_file_system(lab.folder, 16 * MIB) as small:
        guest = started(lab, "paused")
        job = hypervisor.backups.begin(request_for(small / "run", guest.name, str(uuid4()), vda=None))
        guest.run(f"({OVERWRITE}; echo rewritten >/mnt/vda/proof; sync) >/dev/null 2>&1 &")
        wait_until(lambda: hypervisor.machines.state(guest.name).io_error)
        assert hypervisor.machines.state(guest.name).state is MachineState.PAUSED
        with ScratchWatch(hypervisor, job, limit_bytes=1 << 40) as watch, pytest.raises(ScratchFull, match="resumed"):
            wait_for_verdict(watch)
        assert hypervisor.machines.state(guest.name).state is MachineState.RUNNING
        wait_until(lambda: guest.run("cat /mnt/vda/proof 2>/dev/null || true") == "rewritten\n")
        assert "I/O error" not in guest.console()
        assert list((small / "run").iterdir()) == []
        guest.kill()


def test_run_ends_when_the_file_system_below_its_scratch_gets_crowded(lab: Lab, hypervisor: Hypervisor) -> None:
    with small_file_system(lab.folder, 64 * MIB) as small:
        guest = started(lab, "crowded")
        job = hypervisor.backups.begin(request_for(small / "run", guest.name, str(uuid4()), vda=None))
        with ScratchWatch(hypervisor, job, limit_bytes=1 << 40, reserve_bytes=32 * MIB) as watch:
            watch.check(after_failure=True)
            (small / "somebody-else").write_bytes(os.urandom(40 * MIB))
            with pytest.raises(ScratchFull):
                wait_for_verdict(watch)
        assert guest.running
        guest.kill()


def test_guest_left_paused_by_a_killed_run_is_resumed_by_the_next_start(lab: Lab, hypervisor: Hypervisor) -> None:
    """Killed between aborting the job and resuming the guest: there is no job any more to tell of it."""
    with small_file_system(lab.folder, 16 * MIB) as small:
        guest = started(lab, "left")
        job = hypervisor.backups.begin(request_for(small / "run", guest.name, str(uuid4()), vda=None))
        guest.run(f"({OVERWRITE}) >/dev/null 2>&1 &")
        wait_until(lambda: hypervisor.machines.state(guest.name).io_error)
        guest.domain.abortJob()
        wait_until(lambda: hypervisor.backups.current(guest.name) is None)
        assert guest.domain.state()[0] == libvirt.VIR_DOMAIN_PAUSED
        assert hypervisor.backups.end(guest.name, job.socket) is True
        assert guest.running
        assert hypervisor.backups.end(guest.name, job.socket) is False
        guest.kill()
