"""File systems that fill up under a run: the guest is not hurt, nothing counts that is not whole, and with room again
the next run succeeds."""

from __future__ import annotations

import contextlib
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from appliance.errors import StrongroomError
from appliance.hypervisor.errors import ScratchFull
from appliance.models import RunState
from appliance.services.backup import BackupService
from imaging.errors import ImagingError, NoSpace
from tests.integration.backing_up import MIB, Disk, Progress, Rig, bitmaps, blank, firmware_machine, reads, rig
from tests.integration.recovering import wait_until
from tests.lab import Lab, LabGuest

pytestmark = [pytest.mark.integration, pytest.mark.faults]

SIZE = 256 * MIB


@contextmanager
def small_file_system(mib: int) -> Iterator[Path]:
    """A tmpfs of its own."""
    folder = Path(tempfile.mkdtemp(prefix="strongroom-small-", dir="/var/tmp"))
    folder.chmod(0o755)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={mib}m,mode=0755", "tmpfs", folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)
        folder.rmdir()


def resize(folder: Path, mib: int) -> None:
    subprocess.run(["mount", "-o", f"remount,size={mib}m", folder], check=True)


@pytest.fixture(scope="module")
def site() -> Iterator[tuple[Rig, LabGuest, Path]]:
    """A real guest, which would be paused; its second disk is full, so that overwriting needs scratch.

    The small scratch is mounted before the guest starts: QEMU has a mount namespace of its own.
    """
    with small_file_system(40) as scratch, Lab() as lab, rig({"STRONGROOM_LIMITS_WORKERS": "1"}) as strongroom:
        disk = Disk(lab, lab.blank_disk("vdb", SIZE), SIZE)
        guest = lab.machine("space", disks=[lab.data_disk("vda"), disk.disk])
        guest.start()
        disk.write_pattern(guest, 0, SIZE, 0x44)
        strongroom.backup(guest)
        yield strongroom, guest, scratch


def overwrite(guest: LabGuest) -> None:
    """96 MiB of what is yet to be read, in the background of the guest; its end is told in /tmp/dd. The reading waits
    meanwhile, as it would for a slow repository, until the scratch is too full."""
    guest.run(
        "rm -f /tmp/dd; (dd if=/dev/zero of=/dev/vdb bs=1M seek=150 count=96 conv=fsync 2>/tmp/dd.err;"
        " echo ended with $? >/tmp/dd) >/dev/null 2>&1 &"
    )
    wait_until(lambda: guest.domain.jobInfo()[0] == 0, "the job is ended")


def wait_written(guest: LabGuest) -> str:
    deadline = time.monotonic() + 120
    while not (said := guest.run("cat /tmp/dd 2>/dev/null || true")):
        assert time.monotonic() < deadline, "the guest does not get on with its writing"
        time.sleep(0.2)
    return said.strip()


@pytest.mark.parametrize("kind", ["limit", "reserve", "full"])
def test_a_full_scratch_ends_the_run_and_not_the_guest(site: tuple[Rig, LabGuest, Path], kind: str) -> None:
    strongroom, guest, scratch = site
    small = {"STRONGROOM_SCRATCH_DIRECTORY": str(scratch)}
    settings = {
        "limit": {"STRONGROOM_SCRATCH_LIMIT_BYTES": "16MiB", "STRONGROOM_SCRATCH_RESERVE_BYTES": "0"},
        "reserve": small | {"STRONGROOM_SCRATCH_RESERVE_BYTES": "20MiB"},
        "full": small | {"STRONGROOM_SCRATCH_RESERVE_BYTES": "0"},
    }[kind]
    strongroom.reopen(settings)
    before = len(strongroom.points())
    progress = Progress(lambda: overwrite(guest), after_bytes=16 * MIB)
    with pytest.raises(ScratchFull) as caught:
        strongroom.backup(guest, full=True, progress=progress)
    assert progress.acted
    if kind == "full":
        assert "was paused by it and has been resumed" in str(caught.value)
    assert guest.running
    assert wait_written(guest) == "ended with 0"
    assert len(strongroom.points()) == before
    assert strongroom.appliance.catalog.runs.list(limit=1)[0].state is RunState.FAILED
    strongroom.assert_nothing_left(guest)
    strongroom.reopen()
    result = strongroom.backup(guest)
    assert reads(result)["vdb"] == ("incremental", None)
    assert strongroom.content(result.point, "vdb")[150 * MIB : 246 * MIB] == bytes(96 * MIB)
    strongroom.assert_nothing_left(guest)


def test_a_full_repository(lab: Lab) -> None:
    with small_file_system(24) as repository, rig({"STRONGROOM_REPOSITORY_PATH": str(repository)}) as strongroom:
        disk = blank(lab, "vda", 96 * MIB)
        guest = firmware_machine(lab, [disk.disk], "enospc")
        guest.start(wait=False)
        image = lab.path("image.raw")
        image.write_bytes(os.urandom(2 * MIB))
        kept_image = image.read_bytes()
        disk.write_noise(guest, 0, 6 * MIB)
        first = strongroom.backup(guest)
        first_image = BackupService(strongroom.appliance).run_image(image, "raw", "img").point
        content = bytes(disk.truth)
        disk.write_noise(guest, 20 * MIB, 60 * MIB)
        image.write_bytes(os.urandom(60 * MIB))
        backups: tuple[Callable[[], object], ...] = (
            lambda: strongroom.backup(guest),
            lambda: BackupService(strongroom.appliance).run_image(image, "raw", "img"),
        )
        for backup in backups:
            with pytest.raises(NoSpace) as caught:
                backup()
            assert "\n" not in str(caught.value)
            assert caught.value.hint
            assert len(strongroom.points()) == 2
            assert guest.running
            strongroom.assert_nothing_left(guest)
            assert strongroom.content(first.point) == content
            assert strongroom.content(first_image, "disk") == kept_image
        resize(repository, 200)
        result = strongroom.backup(guest)
        assert reads(result) == {"vda": ("incremental", None)}
        assert strongroom.content(result.point) == disk.truth
        again = BackupService(strongroom.appliance).run_image(image, "raw", "img").point
        assert strongroom.content(again, "disk") == image.read_bytes()
        strongroom.assert_nothing_left(guest)


def test_a_full_home(lab: Lab) -> None:
    """Catalog, cache and scratch lie there: it fills up in the middle of a run. The repository has room."""
    with small_file_system(64) as folder:
        elsewhere = lab.path("repository")
        settings = {"STRONGROOM_REPOSITORY_PATH": str(elsewhere), "STRONGROOM_SCRATCH_RESERVE_BYTES": "0"}
        strongroom = Rig(folder / "home", settings | {"STRONGROOM_LIMITS_WORKERS": "1"})
        disk = blank(lab, "vda", 192 * MIB)
        guest = firmware_machine(lab, [disk.disk], "full-home")
        guest.start(wait=False)
        disk.write_pattern(guest, 0, 192 * MIB, 0x77)
        disk.write_noise(guest, 0, MIB)
        first = strongroom.backup(guest)
        content = bytes(disk.truth)
        disk.write_noise(guest, 100 * MIB, MIB)
        ballast = folder / "ballast"

        def fill() -> None:
            with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
                while True:
                    file.write(bytes(4096))

        progress = Progress(fill, after_bytes=16 * MIB)
        made = strongroom.backup(guest, full=True, progress=progress)
        assert progress.acted
        assert strongroom.content(made.point) == disk.truth
        disk.write_noise(guest, 120 * MIB, MIB)
        fill()
        with pytest.raises((StrongroomError, ImagingError)) as caught:
            strongroom.backup(guest)
        assert "\n" not in str(caught.value)
        assert guest.running
        assert bitmaps(guest) == {made.point.manifest.checkpoint}, "nothing was begun"
        ballast.unlink()
        strongroom.reopen()
        assert strongroom.content(first.point) == content
        result = strongroom.backup(guest)
        assert reads(result) == {"vda": ("incremental", None)}
        assert strongroom.content(result.point) == disk.truth
        strongroom.assert_nothing_left(guest)
        strongroom.close()
