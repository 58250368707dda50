"""What else goes wrong under a recovery: libvirtd dies, overlays find no room, somebody takes files or machine away."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import libvirt
import pytest

from appliance.hypervisor.libvirt_driver import LibvirtHypervisor, connect
from appliance.hypervisor.protocol import HostConfig
from appliance.models import RecoveryState
from appliance.services.recovery import RecoveryService
from appliance.services.recovery.errors import DestinationTaken, MigrationStuck
from tests.integration.backing_up import MIB, Progress, Rig, plain, rig, tool
from tests.integration.recovering import (
    Protected,
    assert_export_gone,
    assert_guest_saw_nothing,
    assert_nothing_left,
    exports_of,
    kill_exports,
    look,
    no_supervisor,
    protect,
    reads_right,
    record_of,
    serving,
    supervised,
    wait_until,
)
from tests.lab import Lab, PrivateLibvirtd

__all__ = ["no_supervisor"]

pytestmark = [pytest.mark.integration, pytest.mark.faults, pytest.mark.usefixtures("no_supervisor")]


@pytest.fixture(scope="module")
def site() -> Iterator[tuple[Rig, Lab, Protected]]:
    with Lab() as lab, rig({"STRONGROOM_LIMITS_WORKERS": "1"}) as made:
        protected = protect(made, lab, "hosts", [24 * MIB])
        with supervised(made):
            yield made, lab, protected


def test_libvirtd_killed_while_tending_and_while_a_disk_moves() -> None:
    """Both wait for it, however long it is away, and carry on over a new connection."""
    with (
        PrivateLibvirtd() as daemon,
        Lab(uri=daemon.uri) as lab,
        rig({"STRONGROOM_LIMITS_WORKERS": "1"}, socket=str(daemon.socket), timeout_s=4) as strongroom,
    ):
        connected: list[LibvirtHypervisor] = []
        patience_s = 120.0

        def connector(config: HostConfig) -> LibvirtHypervisor:
            connected.append(connect(replace(config, timeout_s=patience_s)))
            return connected[-1]

        def be_patient(seconds: float) -> None:
            """With a libvirtd that is not there: where it is waited for in vain, not for long."""
            nonlocal patience_s
            patience_s = seconds
            for each in connected:
                each._connection.timeout_s = seconds

        strongroom.reopen(connector=connector)
        protected = protect(strongroom, lab, "origin", [256 * MIB])
        service = RecoveryService(strongroom.appliance)
        record = service.start(protected.name, "latest", new_name=f"{lab.token}daemon")
        guest = lab.adopt(record.machine_name)
        supervisor = look(strongroom)
        supervisor.look()
        daemon.kill()
        be_patient(4)
        for looking in (supervisor, look(strongroom)):  # one that was connected, and one that never was
            kill_exports(strongroom, record)
            looking.look()
            assert len(exports_of(strongroom, record)) == 1, "exports need no libvirtd"
        assert "does not answer" in (record_of(strongroom, record.id).error or "")
        assert record_of(strongroom, record.id).state is RecoveryState.RUNNING
        be_patient(120)
        daemon.start()

        def healed() -> bool:
            supervisor.look()
            return record_of(strongroom, record.id).error is None

        wait_until(healed, "it is back")

        class Told(Progress):
            """libvirtd comes back once it was missed."""

            def note(self, text: str) -> None:
                super().note(text)
                if "does not answer" in text and restarting.ident is None:
                    be_patient(120)
                    restarting.start()

        def crash() -> None:
            daemon.kill()
            be_patient(4)

        restarting = threading.Thread(target=daemon.start)
        progress = Told(crash)
        migrated = service.migrate(record.id, bandwidth_bytes_s=64 * MIB, progress=progress)
        restarting.join()
        assert progress.acted, "the fault did not fire"
        assert migrated.state is RecoveryState.MIGRATED
        assert any("does not answer" in note for note in progress.notes)
        assert_export_gone(strongroom, record)
        assert guest.running
        assert reads_right(guest, protected.disks[0], daemon.folder / "log" / "qemu")
        path = guest.disk_paths["vda"]
        guest.remove()
        assert plain(path) == protected.disks[0].truth

        # a libvirtd that is stopped answers nothing, not even no; `strongroom serve` ends in time all the same
        record = service.start(protected.name, "latest", new_name=f"{lab.token}silent")
        try:
            with serving(strongroom):
                os.kill(daemon.pid, signal.SIGSTOP)
                time.sleep(1.5)
        finally:
            os.kill(daemon.pid, signal.SIGCONT)
        service.discard(record.id)


@contextmanager
def small_file_system(folder: Path, size_bytes: int) -> Iterator[None]:
    """A loop file system of its own over an empty folder."""
    image = folder.with_suffix(".img")
    with image.open("wb") as file:
        file.truncate(size_bytes)
    tool("/usr/sbin/mkfs.ext4", "-q", "-F", "-m", "0", image)
    folder.mkdir()
    tool("mount", "-o", "loop", image, folder)
    folder.chmod(0o711)
    try:
        yield
    finally:
        tool("umount", folder)


def test_overlays_that_find_no_room_pause_the_machine_until_there_is_some(lab: Lab) -> None:
    folder = lab.folder / "overlays"
    with (
        small_file_system(folder, 64 * MIB),
        rig({"STRONGROOM_LIMITS_WORKERS": "1", "STRONGROOM_OVERLAYS_DIRECTORY": str(folder)}) as strongroom,
        supervised(strongroom),
    ):
        origin = lab.machine("origin")
        strongroom.backup(origin)
        record = RecoveryService(strongroom.appliance).start(origin.name, "latest", new_name=f"{lab.token}full")
        guest = lab.adopt(record.machine_name)
        guest.wait_ready()
        ballast = folder / "ballast"
        ballast.write_bytes(bytes(40 * MIB))
        guest.run("(fill /mnt/vda/much 32; echo over >/tmp/over) >/dev/null 2>&1 &")
        wait_until(lambda: guest.state == libvirt.VIR_DOMAIN_PAUSED, "the machine pauses")
        supervisor = look(strongroom)
        supervisor.look()
        assert "has no room left" in (record_of(strongroom, record.id).error or "")
        assert guest.state == libvirt.VIR_DOMAIN_PAUSED
        ballast.unlink()

        def healed() -> bool:
            supervisor.look()
            return record_of(strongroom, record.id).error is None and guest.running

        wait_until(healed, "it goes on")
        wait_until(lambda: "over" in guest.run("cat /tmp/over 2>/dev/null || true"), "the guest's write ends")
        guest.run("sync")
        assert_guest_saw_nothing(guest)
        assert guest.run("stat -c %s /mnt/vda/much").strip() == str(32 * MIB)


def test_a_copy_that_finds_no_room_is_given_up_and_leaves_nothing(site: tuple[Rig, Lab, Protected]) -> None:
    strongroom, lab, protected = site
    folder = lab.folder / "small"
    service = RecoveryService(strongroom.appliance)
    # There before QEMU starts: its mount namespace may not learn of later mounts.
    with small_file_system(folder, 4 * MIB):
        record = service.start(protected.name, "latest", new_name=f"{lab.token}small")
        guest = lab.adopt(record.machine_name)
        with pytest.raises(MigrationStuck, match="MiB free"):
            service.migrate(record.id, to=str(folder))
        assert [path.name for path in folder.iterdir()] == ["lost+found"]
        told = record_of(strongroom, record.id)
        assert told.state is RecoveryState.RUNNING
        assert "was not moved" in (told.error or "")
        assert guest.running
        taken = folder / f"{guest.name}-vda.qcow2"
        taken.write_text("somebody's")
        with pytest.raises(DestinationTaken):
            service.migrate(record.id, to=str(folder))
        assert taken.read_text() == "somebody's"
        assert record_of(strongroom, record.id).state is RecoveryState.RUNNING
    # and then the other way
    assert service.migrate(record.id).state is RecoveryState.MIGRATED
    path = guest.disk_paths["vda"]
    assert path.parent == Path(record.folder)
    guest.remove()
    assert plain(path) == protected.disks[0].truth


def test_what_others_take_away_is_told_as_failed(site: tuple[Rig, Lab, Protected]) -> None:
    strongroom, lab, protected = site
    service = RecoveryService(strongroom.appliance)
    record = service.start(protected.name, "latest", new_name=f"{lab.token}taken")
    guest = lab.adopt(record.machine_name)
    supervisor = look(strongroom)
    supervisor.look()
    overlay = Path(record.disks[0].overlay)
    guest.kill()
    overlay.rename(overlay.with_suffix(".away"))
    supervisor.look()
    told = record_of(strongroom, record.id)
    assert told.state is RecoveryState.FAILED
    assert str(overlay) in (told.error or "")
    overlay.with_suffix(".away").rename(overlay)
    (resumed,) = service.resume(supervise=False)
    assert (resumed.record.state, resumed.problems) == (RecoveryState.RUNNING, ())
    assert guest.running
    assert reads_right(guest, protected.disks[0])
    guest.remove()
    (resumed,) = service.resume(supervise=False)
    assert resumed.record.state is RecoveryState.FAILED
    assert "no longer defined" in resumed.problems[0]
    service.discard(record.id)
    assert_nothing_left(strongroom, lab, record)


def test_a_supervisor_with_an_old_list_starts_nothing_for_a_recovery_that_has_ended(
    site: tuple[Rig, Lab, Protected], monkeypatch: pytest.MonkeyPatch
) -> None:
    strongroom, lab, protected = site
    service = RecoveryService(strongroom.appliance)
    record = service.start(protected.name, "latest", new_name=f"{lab.token}old")
    known = strongroom.appliance.catalog.recoveries.list(ended=False)
    service.discard(record.id)
    monkeypatch.setattr(strongroom.appliance.catalog.recoveries, "list", lambda ended=True: known)
    look(strongroom).look()
    assert_nothing_left(strongroom, lab, record)
