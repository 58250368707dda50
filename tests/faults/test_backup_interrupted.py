"""What is read from dies in the middle of a run: no point, nothing left behind, and the next run is right at once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator

import libvirt
import pytest

from appliance.bootstrap import Appliance
from appliance.errors import StrongroomError
from appliance.hypervisor.errors import BackupBusy
from appliance.hypervisor.libvirt_driver import LibvirtHypervisor, connect
from appliance.hypervisor.protocol import HostConfig
from appliance.models import RunState
from appliance.services.backup import BackupService
from imaging import ingest
from imaging.errors import ImagingError, SeriesBusy
from tests.integration.backing_up import (
    MIB,
    Disk,
    Progress,
    Rig,
    bitmaps,
    blank,
    file_bitmaps,
    firmware_machine,
    reads,
    rig,
)
from tests.integration.recovering import wait_until
from tests.lab import Lab, LabGuest, PrivateLibvirtd

pytestmark = [pytest.mark.integration, pytest.mark.faults]

SIZE = 256 * MIB


@pytest.fixture(autouse=True)
def few_regions_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    """Most of the disk is yet to be read when a fault has been made, however long that takes: as many regions as are
    under way otherwise are all of it."""
    monkeypatch.setattr(ingest, "_FLYING", 1)


@pytest.fixture(scope="module")
def strongroom() -> Iterator[Rig]:
    with rig({"STRONGROOM_LIMITS_WORKERS": "1"}) as made:
        yield made


def filled(lab: Lab, name: str, size_bytes: int = SIZE) -> tuple[Disk, LabGuest]:
    disk = blank(lab, "vda", size_bytes, name=name)
    guest = firmware_machine(lab, [disk.disk], name)
    guest.start(wait=False)
    disk.write_pattern(guest, 0, size_bytes, 0x5A)
    disk.write_noise(guest, 3 * MIB, 2 * MIB)
    return disk, guest


def test_qemu_killed_between_runs_breaks_the_bitmap_once(lab: Lab, strongroom: Rig) -> None:
    disk, guest = filled(lab, "killed-between", 64 * MIB)
    strongroom.backup(guest)
    disk.write_noise(guest, 20 * MIB, MIB)
    guest.kill_qemu()
    disk.truth[:] = disk.content_now()  # what was not flushed is lost to the guest as well
    guest.start(wait=False)
    disk.write_noise(guest, 30 * MIB, MIB)
    result = strongroom.backup(guest)
    read, reason = reads(result)["vda"]
    assert read == "full"
    assert "bitmap" in (reason or "")
    assert strongroom.content(result.point) == disk.truth
    assert bitmaps(guest) == {result.point.manifest.checkpoint}, "the broken bitmap is gone"
    disk.write_noise(guest, 40 * MIB, MIB)
    after = strongroom.backup(guest)
    assert reads(after) == {"vda": ("incremental", None)}
    assert strongroom.content(after.point) == disk.truth
    # and so for a machine that stays off
    guest.kill()
    guest.start(wait=False)
    guest.kill_qemu()
    disk.truth[:] = disk.content_now()
    off = strongroom.backup(guest)
    read, reason = reads(off)["vda"]
    assert (read, reason) == ("full", "its bitmap was not closed: QEMU was killed while it recorded")
    assert strongroom.content(off.point) == disk.truth
    assert reads(strongroom.backup(guest)) == {"vda": ("incremental", None)}
    strongroom.assert_nothing_left(guest)


def destroy(guest: LabGuest) -> None:
    guest.domain.destroy()


def abort_job(guest: LabGuest) -> None:
    """Until it is gone: libvirt says yes before, and a busy machine may read all of the disk meanwhile."""
    guest.domain.abortJob()
    wait_until(lambda: guest.domain.jobInfo()[0] == libvirt.VIR_DOMAIN_JOB_NONE, "the job is gone")


@pytest.mark.parametrize(
    ("end", "still_on"),
    [(LabGuest.kill_qemu, False), (destroy, False), (abort_job, True)],
    ids=["qemu-killed", "destroyed", "job-aborted"],
)
def test_the_source_dies_mid_run(lab: Lab, strongroom: Rig, end: Callable[[LabGuest], None], still_on: bool) -> None:
    disk, guest = filled(lab, f"dies-{end.__name__}")
    first = strongroom.backup(guest)
    content = bytes(disk.truth)
    disk.write_noise(guest, 100 * MIB, MIB)
    before = len(strongroom.points())
    progress = Progress(lambda: end(guest), after_bytes=16 * MIB)
    with pytest.raises(StrongroomError, match=r"the backup job of .* is gone"):
        strongroom.backup(guest, full=True, progress=progress)
    assert progress.acted, "the fault did not fire"
    assert len(strongroom.points()) == before
    assert strongroom.appliance.catalog.runs.list(limit=1)[0].state is RunState.FAILED
    strongroom.assert_nothing_left(guest, bitmap_lost=end is LabGuest.kill_qemu)
    assert strongroom.content(first.point) == content
    if not still_on:
        assert not guest.domain.isActive()
        disk.truth[:] = disk.content_now()
        guest.start(wait=False)
    result = strongroom.backup(guest)
    # a QEMU that was killed leaves no bitmap to trust, one that was ended properly does
    assert reads(result)["vda"][0] == ("full" if end is LabGuest.kill_qemu else "incremental")
    assert strongroom.content(result.point) == disk.truth
    strongroom.assert_nothing_left(guest)


def test_killed_while_a_scratch_file_is_written(lab: Lab, strongroom: Rig) -> None:
    """Before QEMU is told of it: the half that lies in its folder has no name that was recorded."""
    disk, guest = filled(lab, "scratch-killed", 64 * MIB)
    strongroom.backup(guest)
    # Looked at while it is suspended: once it is dead, its watchdog clears up after it at once.
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.faults.crash", "os:fchown", "before-SIGSTOP", "1", "backup", guest.name],
        env=strongroom.process_environment(),
    )
    try:
        _, status = os.waitpid(process.pid, os.WUNTRACED)
        assert os.WIFSTOPPED(status), "it was not suspended"
        assert [path.name for path in strongroom.settings.scratch.directory.rglob(".strongroom-*")], "it left nothing"
    finally:
        process.kill()
        process.wait()
    result = strongroom.backup(guest)
    assert strongroom.content(result.point) == disk.truth
    strongroom.assert_nothing_left(guest)


def test_a_transient_machine_that_goes_away_mid_run(lab: Lab, strongroom: Rig) -> None:
    """With it libvirt forgets everything; its file keeps the bitmap of the run that failed, if nobody removes it."""
    disk, guest = filled(lab, "transient-dies")
    first = strongroom.backup(guest)
    definition = guest.domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)
    guest.domain.undefineFlags(libvirt.VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA)
    progress = Progress(guest.domain.destroy, after_bytes=16 * MIB)
    with pytest.raises(StrongroomError):
        strongroom.backup(guest, full=True, progress=progress)
    assert progress.acted
    assert not guest.exists
    assert file_bitmaps(disk.path) == {first.point.manifest.checkpoint}
    lab.connection().createXML(definition)
    disk.write_noise(guest, 20 * MIB, MIB)
    result = strongroom.backup(guest)
    assert reads(result) == {"vda": ("incremental", None)}
    assert strongroom.content(result.point) == disk.truth
    strongroom.assert_nothing_left(guest)
    # libvirt 9.0 has written the definition anew, which was undefined, when the job of the running machine ended, and
    # would find it when it starts next: only of a machine that is defined does it remove the file.
    lab.connection().defineXML(definition)


def test_what_others_do_meanwhile_is_left_alone(lab: Lab, strongroom: Rig) -> None:
    disk, guest = filled(lab, "shared")
    refused: list[ImagingError] = []

    def second() -> None:
        with Appliance(strongroom.settings) as another, pytest.raises(ImagingError) as caught:
            BackupService(another).run_machine(guest.name)
        refused.append(caught.value)

    progress = Progress(second, after_bytes=16 * MIB)
    result = strongroom.backup(guest, progress=progress)
    assert isinstance(refused[0], SeriesBusy)
    assert strongroom.content(result.point) == disk.truth
    strongroom.assert_nothing_left(guest)

    # a job of another product
    folder = lab.path("theirs")
    folder.mkdir()
    folder.chmod(0o777)
    xml = (
        f"<domainbackup mode='pull'><server transport='unix' socket='{folder}/s'/>"
        f"<disks><disk name='vda' type='file'><scratch file='{folder}/scratch'/></disk></disks></domainbackup>"
    )
    guest.domain.backupBegin(xml, None)
    with pytest.raises(BackupBusy, match=f"{folder}/s"):
        strongroom.backup(guest)
    assert f"{folder}/s" in guest.domain.backupGetXMLDesc()
    abort_job(guest)
    assert reads(strongroom.backup(guest)) == {"vda": ("incremental", None)}
    strongroom.assert_nothing_left(guest)


def test_a_guest_that_shuts_itself_down_mid_run(lab: Lab, strongroom: Rig) -> None:
    """A real guest: its power-off is QEMU's own end, with bitmaps saved."""
    noise = lab.blank_disk("vdb", SIZE)
    disk = Disk(lab, noise, SIZE)
    guest = lab.machine("shuts-down", disks=[lab.data_disk("vda"), noise])
    guest.start()
    disk.write_pattern(guest, 0, SIZE, 0x33)
    strongroom.backup(guest)
    before = len(strongroom.points())
    progress = Progress(guest.switch_off, after_bytes=16 * MIB)
    with pytest.raises((StrongroomError, ImagingError), match="is gone"):
        strongroom.backup(guest, full=True, progress=progress)
    assert progress.acted
    assert len(strongroom.points()) == before
    strongroom.assert_nothing_left(guest)
    result = strongroom.backup(guest)
    assert {name: read for name, (read, _) in reads(result).items()} == {"vda": "incremental", "vdb": "incremental"}
    assert strongroom.content(result.point, "vdb") == disk.truth
    strongroom.assert_nothing_left(guest)


def test_libvirtd_killed_mid_run() -> None:
    """The job outlives it. Back in time, the run succeeds; else it is cleaned up after by the next one."""
    with PrivateLibvirtd() as daemon, Lab(uri=daemon.uri) as lab, rig(
        {"STRONGROOM_LIMITS_WORKERS": "1"}, socket=str(daemon.socket), timeout_s=120
    ) as strongroom:  # fmt: skip
        disk, guest = filled(lab, "daemon")
        first = strongroom.backup(guest)
        disk.write_noise(guest, 200 * MIB, MIB)
        content = bytes(disk.truth)

        restarting = threading.Timer(1, daemon.start)

        def crash() -> None:
            daemon.kill()
            restarting.start()

        progress = Progress(crash, after_bytes=16 * MIB)
        result = strongroom.backup(guest, full=True, progress=progress)
        assert progress.acted
        restarting.join()
        assert strongroom.content(result.point) == content
        strongroom.assert_nothing_left(guest)

        disk.write_noise(guest, 220 * MIB, MIB)
        connected: list[LibvirtHypervisor] = []

        def connector(config: HostConfig) -> LibvirtHypervisor:
            connected.append(connect(config))
            return connected[-1]

        def crash_for_good() -> None:
            daemon.kill()
            for each in connected:
                each._connection.timeout_s = 4  # it is waited for in vain

        strongroom.reopen(connector=connector)
        progress = Progress(crash_for_good, after_bytes=16 * MIB)
        result = strongroom.backup(guest, full=True, progress=progress)
        assert progress.acted
        assert any("not cleaned up" in note for note in progress.notes)
        assert strongroom.content(result.point) == disk.truth, "it was read to its end, and counts"
        daemon.start()
        strongroom.reopen()
        disk.write_noise(guest, 240 * MIB, MIB)
        healed = strongroom.backup(guest)
        assert reads(healed) == {"vda": ("incremental", None)}
        assert strongroom.content(healed.point) == disk.truth
        assert strongroom.content(first.point)[200 * MIB : 201 * MIB] == b"\x5a" * MIB
        strongroom.assert_nothing_left(guest)


def test_qemu_nbd_killed_mid_run(lab: Lab, strongroom: Rig) -> None:
    """A machine that is off, read through a process of our own."""
    disk, guest = filled(lab, "nbd")
    guest.kill()
    first = strongroom.backup(guest)
    content = bytes(disk.truth)
    disk.write_off(30 * MIB, os.urandom(MIB))
    before = len(strongroom.points())

    def kill_server() -> None:
        found = subprocess.run(["pgrep", "-f", f"qemu-nbd.*{disk.path}"], capture_output=True, text=True, check=True)
        for pid in found.stdout.split():
            os.kill(int(pid), signal.SIGKILL)

    progress = Progress(kill_server, after_bytes=16 * MIB)
    with pytest.raises(ImagingError):
        strongroom.backup(guest, full=True, progress=progress)
    assert progress.acted
    assert len(strongroom.points()) == before
    assert bitmaps(guest) == {first.point.manifest.checkpoint}
    result = strongroom.backup(guest)
    assert reads(result) == {"vda": ("incremental", None)}
    assert strongroom.content(result.point) == disk.truth
    assert strongroom.content(first.point) == content
    strongroom.assert_nothing_left(guest)
