"""Whole machines restored: under a new name, in place, and where they must not be."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import time
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path

import libvirt
import pytest

from appliance.services.restore import RestoreService
from appliance.services.restore.errors import MachineRuns, NameTaken, WouldOverwrite
from appliance.services.upkeep import UpkeepService
from imaging.errors import TargetRefused
from tests.integration.backing_up import (
    HOST,
    MIB,
    Disk,
    Rig,
    bitmaps,
    blank,
    checkpoints,
    firmware_machine,
    image_info,
    plain,
    rig,
)
from tests.lab import Lab, LabGuest

pytestmark = pytest.mark.integration


@pytest.fixture
def home() -> Iterator[Rig]:
    with rig() as made:
        yield made


@pytest.fixture
def machine(lab: Lab) -> tuple[LabGuest, Disk, Disk]:
    """Off, with a qcow2 disk that holds a bitmap and a raw one, both with content."""
    first, second = blank(lab, "vda", 32 * MIB), blank(lab, "vdb", 16 * MIB, format="raw", seed=2)
    guest = firmware_machine(lab, [first.disk, second.disk])
    guest.start(wait=False)
    for disk in (first, second):
        disk.write_noise(guest, 0, 3 * MIB)
        disk.write_noise(guest, 9 * MIB + 4096, 70_000)
    return guest, first, second


def wait_until_served(listen: Path) -> None:
    deadline = time.monotonic() + 30
    with socket.socket(socket.AF_UNIX) as probe:
        while probe.connect_ex(str(listen)) != 0:
            assert time.monotonic() < deadline, "qemu-nbd does not answer"
            time.sleep(0.01)


@contextlib.contextmanager
def removed_afterwards(lab: Lab, name: str) -> Iterator[None]:
    try:
        yield
    finally:
        with contextlib.suppress(libvirt.libvirtError):
            domain = lab.connection().lookupByName(name)
            if domain.isActive():
                domain.destroy()
            domain.undefine()


def disk_paths(lab: Lab, name: str) -> dict[str, Path]:
    root = ET.fromstring(lab.connection().lookupByName(name).XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE))
    return {
        disk.find("target").get("dev"): Path(disk.find("source").get("file"))  # type: ignore[union-attr, misc, arg-type]
        for disk in root.findall("devices/disk")
    }


def test_new_name_beside_the_running_machine(
    lab: Lab, home: Rig, machine: tuple[LabGuest, Disk, Disk], tmp_path: Path
) -> None:
    guest, first, second = machine
    home.backup(guest)
    then = bytes(first.truth), bytes(second.truth)
    first.write_noise(guest, 0, MIB)
    name = f"{lab.token}copy"
    with removed_afterwards(lab, name):
        restored = RestoreService(home.appliance).machine(guest.name, "latest", HOST, new_name=name)
        assert restored.name == name
        paths = disk_paths(lab, name)
        assert plain(paths["vda"]) == then[0]
        assert paths["vdb"].read_bytes() == then[1]
        assert image_info(paths["vda"])["format"] == "qcow2"
        assert set(paths.values()).isdisjoint(guest.disk_paths.values())
        copy = lab.connection().lookupByName(name)
        assert copy.UUIDString() == restored.uuid != guest.domain.UUIDString()
        copy.create()
        assert copy.isActive()
        assert guest.running
    assert home.appliance.repository.holds() == []
    assert home.appliance.catalog.cleanups.list() == ()


def test_storage_names_the_folder(lab: Lab, home: Rig, machine: tuple[LabGuest, Disk, Disk]) -> None:
    guest = machine[0]
    home.backup(guest)
    name = f"{lab.token}there"
    with removed_afterwards(lab, name):
        restored = RestoreService(home.appliance).machine(
            guest.name, "latest", HOST, new_name=name, storage=str(lab.folder)
        )
        assert {Path(disk.path).parent for disk in restored.disks} == {lab.folder / name}


def test_in_place_writes_only_what_differs_and_the_next_backup_is_right(
    home: Rig, machine: tuple[LabGuest, Disk, Disk]
) -> None:
    guest, first, second = machine
    uuid = guest.domain.UUIDString()
    home.backup(guest)
    then = bytes(first.truth), bytes(second.truth)
    for disk in (first, second):
        disk.write_noise(guest, MIB, 200_000)
        disk.write_noise(guest, 14 * MIB, 4096)  # where there was a hole
    guest.kill()
    guest.domain.setAutostart(1)
    restored = RestoreService(home.appliance).machine(guest.name, "latest", HOST, force=True)
    assert restored.uuid == uuid
    assert first.content_now() == then[0]
    assert second.content_now() == then[1]
    for each in restored.disks:
        assert 0 < each.written_bytes < 2 * MIB, "only what differs is written"
        assert each.kept_bytes > 13 * MIB
    assert bitmaps(guest) == set()
    assert checkpoints(guest) == set()
    assert guest.domain.autostart() == 1
    guest.domain.setAutostart(0)
    guest.start(wait=False)
    first.truth[:], second.truth[:] = then
    first.write_noise(guest, 5 * MIB, 100_000)
    again = home.backup(guest)
    assert home.content(again.point) == bytes(first.truth)
    assert home.content(again.point, "vdb") == bytes(second.truth)


def test_in_place_refuses_a_running_machine_and_touches_nothing(
    home: Rig, machine: tuple[LabGuest, Disk, Disk]
) -> None:
    guest, first, _ = machine
    home.backup(guest)
    first.write_noise(guest, 0, MIB)
    with pytest.raises(MachineRuns) as refused:
        RestoreService(home.appliance).machine(guest.name, "latest", HOST, force=True)
    assert guest.name in str(refused.value)
    assert guest.running
    guest.kill()
    assert first.content_now() == bytes(first.truth)


def test_in_place_needs_force_where_something_is_there(home: Rig, machine: tuple[LabGuest, Disk, Disk]) -> None:
    guest, first, _ = machine
    home.backup(guest)
    guest.kill()
    with pytest.raises(WouldOverwrite):
        RestoreService(home.appliance).machine(guest.name, "latest", HOST)
    assert guest.exists
    guest.domain.undefineFlags(libvirt.VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA)
    with pytest.raises(WouldOverwrite):
        RestoreService(home.appliance).machine(guest.name, "latest", HOST)
    assert first.content_now() == bytes(first.truth)


def test_lost_machine_and_disks_come_back_without_force(home: Rig, machine: tuple[LabGuest, Disk, Disk]) -> None:
    guest, first, second = machine
    uuid = guest.domain.UUIDString()
    home.backup(guest)
    guest.kill()
    guest.domain.undefineFlags(libvirt.VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA)
    first.path.unlink()
    second.path.unlink()
    restored = RestoreService(home.appliance).machine(guest.name, "latest", HOST)
    assert restored.uuid == uuid
    assert first.content_now() == bytes(first.truth)
    assert second.content_now() == bytes(second.truth)
    guest.start(wait=False)
    assert guest.running


def test_a_name_in_use_and_a_disk_in_use_are_refused(lab: Lab, home: Rig, machine: tuple[LabGuest, Disk, Disk]) -> None:
    guest = machine[0]
    home.backup(guest)
    with pytest.raises(NameTaken):
        RestoreService(home.appliance).machine(guest.name, "latest", HOST, new_name=guest.name)
    folder = lab.folder / f"{lab.token}taken"
    folder.mkdir()
    (folder / "vda.qcow2").write_bytes(b"precious")
    with pytest.raises(WouldOverwrite):
        RestoreService(home.appliance).machine(
            guest.name, "latest", HOST, new_name=folder.name, storage=str(lab.folder)
        )
    assert (folder / "vda.qcow2").read_bytes() == b"precious"


def test_killed_while_restoring_under_a_new_name_leaves_nothing(
    lab: Lab, home: Rig, machine: tuple[LabGuest, Disk, Disk]
) -> None:
    guest = machine[0]
    home.backup(guest)
    name = f"{lab.token}killed"
    folder = home.settings.home / "machines" / name
    place = ("appliance.services.restore.disks:DiskRestorer.to", "after")  # one disk of two is there
    home.killed_at(place, "restore", guest.name, "--point", "latest", "--host", HOST, "--as", name)
    assert folder.exists()
    deadline = time.monotonic() + 10
    problems: tuple[str, ...] = ("not tried",)
    while problems and time.monotonic() < deadline:  # a server that died with its caller may need a moment
        problems = UpkeepService(home.appliance).once()
    assert problems == ()
    assert not folder.exists()
    assert home.appliance.repository.holds() == []
    assert home.appliance.catalog.cleanups.list() == ()
    with pytest.raises(libvirt.libvirtError):
        lab.connection().lookupByName(name)


@pytest.mark.parametrize(
    "place",
    [
        ("imaging.overwriting:NbdTarget.write", "after"),  # a disk is half old and half new
        ("appliance.services.restore.disks:DiskRestorer.over", "after"),  # one disk is new, the other old
        ("appliance.services.restore.service:RestoreService._put_files", "before"),  # only the machine is missing
    ],
)
def test_killed_while_restoring_in_place_nobody_starts_it_half_and_again_finishes_it(
    home: Rig, machine: tuple[LabGuest, Disk, Disk], place: tuple[str, str]
) -> None:
    guest, first, second = machine
    home.backup(guest)
    then = bytes(first.truth), bytes(second.truth)
    for disk in (first, second):
        disk.write_noise(guest, 0, 14 * MIB)
    guest.kill()
    home.killed_at(place, "restore", guest.name, "--point", "latest", "--host", HOST, "--force", "--yes")
    assert not guest.exists
    restored = RestoreService(home.appliance).machine(guest.name, "latest", HOST, force=True)
    assert restored.name == guest.name
    assert first.content_now() == then[0]
    assert second.content_now() == then[1]
    guest.start(wait=False)
    assert guest.running
    assert UpkeepService(home.appliance).once() == ()
    assert home.appliance.repository.holds() == []


def test_in_place_a_disk_that_was_resized_is_the_points_again(home: Rig, machine: tuple[LabGuest, Disk, Disk]) -> None:
    guest, first, second = machine
    home.backup(guest)
    guest.kill()
    for disk, size in ((first, "48M"), (second, "24M")):
        subprocess.run(["qemu-img", "resize", "-q", "-f", disk.disk.format, str(disk.path), size], check=True)
    RestoreService(home.appliance).machine(guest.name, "latest", HOST, force=True)
    assert first.content_now() == bytes(first.truth)
    assert second.content_now() == bytes(second.truth)
    guest.start(wait=False)
    assert guest.running


def test_in_place_a_disk_that_somebody_has_open_is_refused(home: Rig, machine: tuple[LabGuest, Disk, Disk]) -> None:
    guest, first, _ = machine
    home.backup(guest)
    guest.kill()
    other = subprocess.Popen(["qemu-nbd", "-t", "-f", "qcow2", "-k", str(first.lab.path("s")), str(first.path)])
    try:
        wait_until_served(first.lab.path("s"))
        with pytest.raises(TargetRefused) as refused:
            RestoreService(home.appliance).machine(guest.name, "latest", HOST, force=True)
        assert str(first.path) in str(refused.value)
        assert "another process has it open" in str(refused.value)
        assert guest.exists, "nothing was touched"
    finally:
        other.kill()
        other.wait()
    assert first.content_now() == bytes(first.truth)
