"""Whole machines restored: under a new name, in place, and where they must not be."""

from __future__ import annotations

import contextlib
import subprocess
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
from pathlib import Path

import libvirt
import pytest

from appliance.home import HomeUnusable
from appliance.hypervisor.domain_xml import parse_machine
from appliance.services.restore import RestoreService
from appliance.services.restore.errors import (
    LeftUndefined,
    MachineRuns,
    NameInvalid,
    NameTaken,
    PartDamaged,
    PointDamaged,
    WouldOverwrite,
)
from appliance.services.restore.kept import KeptDefinition
from appliance.services.restore.parts import MachineParts
from appliance.services.upkeep import UpkeepService
from imaging.errors import ImagingError, TargetRefused
from tests.integration.backing_up import (
    HOST,
    MIB,
    Disk,
    Progress,
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
from tests.lab.holding import held_open

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
    with pytest.raises(NameInvalid):
        RestoreService(home.appliance).machine(guest.name, "latest", HOST, new_name="a/b")
    folder = lab.folder / f"{lab.token}taken"
    folder.mkdir()
    (folder / "vda.qcow2").write_bytes(b"precious")
    with pytest.raises(WouldOverwrite):
        RestoreService(home.appliance).machine(
            guest.name, "latest", HOST, new_name=folder.name, storage=str(lab.folder)
        )
    assert (folder / "vda.qcow2").read_bytes() == b"precious"
    assert list(home.settings.run_directory.glob("restore-*")) == [], "a lock of a restore that is over"


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
    deadline = time.monotonic() + 120
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
        ("appliance.services.restore.parts:MachineParts.put_files", "before"),  # only the machine is missing
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
    with held_open(first.path, "qcow2", first.lab.path("s")):
        with pytest.raises(TargetRefused) as refused:
            RestoreService(home.appliance).machine(guest.name, "latest", HOST, force=True)
        assert str(first.path) in str(refused.value)
        assert "another process has it open" in str(refused.value)
        assert guest.exists, "nothing was touched"
    assert first.content_now() == bytes(first.truth)


# --- what goes wrong while a machine is written over ------------------------------------------------------------------


def largest_pack(home: Rig) -> Path:
    """It holds chunks: map nodes have packs of their own, which are small here."""
    packs = (home.settings.repository.path / "packs").glob("*/*")
    return max(packs, key=lambda path: path.stat().st_size)


def cut_short(pack: Path) -> None:
    with pack.open("r+b") as file:
        file.truncate(pack.stat().st_size // 2)


def kept_definitions(home: Rig) -> list[Path]:
    return list(home.settings.machines_directory.glob("*.before-restore.xml"))


@pytest.mark.parametrize("damage", [Path.unlink, cut_short], ids=["missing", "cut short"])
def test_in_place_a_point_that_is_known_not_to_be_whole_is_refused_and_nothing_is_touched(
    home: Rig, machine: tuple[LabGuest, Disk, Disk], damage: Callable[[Path], None]
) -> None:
    guest, first, second = machine
    made = home.backup(guest)
    for disk in (first, second):
        disk.write_noise(guest, 0, 14 * MIB)
    guest.kill()
    pack = largest_pack(home)
    pack.chmod(0o600)
    damage(pack)
    before = guest.domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)
    with pytest.raises(PointDamaged) as refused:
        RestoreService(home.appliance).machine(guest.name, "latest", HOST, force=True)
    assert made.point.id in str(refused.value)
    assert "vdb" in str(refused.value)
    assert f"strongroom point list {guest.name}" in refused.value.hint
    assert guest.domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE) == before
    assert first.content_now() == bytes(first.truth)
    assert second.content_now() == bytes(second.truth)
    assert kept_definitions(home) == []
    assert home.appliance.repository.holds() == []
    assert list(home.settings.run_directory.glob("restore-*")) == []


def test_in_place_a_failure_keeps_the_definition_tells_where_and_again_finishes_it(
    home: Rig, machine: tuple[LabGuest, Disk, Disk]
) -> None:
    """Damage that nobody knew of. The disk has been moved since, which the kept definition alone knows."""
    guest, first, second = machine
    uuid = guest.domain.UUIDString()
    home.backup(guest)
    then = bytes(first.truth), bytes(second.truth)
    for disk in (first, second):
        disk.write_noise(guest, 0, 14 * MIB)
    guest.kill()
    moved = first.path.with_name("moved.qcow2")
    first.path.rename(moved)
    xml = guest.domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE | libvirt.VIR_DOMAIN_XML_SECURE)
    first.lab.connection().defineXML(xml.replace(str(first.path), str(moved)))
    guest.domain.setAutostart(1)
    before = guest.domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE | libvirt.VIR_DOMAIN_XML_SECURE)
    pack = largest_pack(home)
    good = pack.read_bytes()
    pack.chmod(0o600)
    pack.write_bytes(good[:2000] + bytes(byte ^ 1 for byte in good[2000:-2000]) + good[-2000:])

    with pytest.raises(LeftUndefined) as failed:
        RestoreService(home.appliance).machine(guest.name, "latest", HOST, force=True)
    assert isinstance(failed.value.__cause__, PartDamaged)
    assert isinstance(failed.value.__cause__.__cause__, ImagingError), "the first error is the cause"
    assert f"host {HOST} has no machine {guest.name} any more" in str(failed.value)
    assert "run it again" in failed.value.hint
    (kept,) = kept_definitions(home)
    assert str(kept) in failed.value.hint
    assert not guest.exists
    with pytest.raises(PointDamaged) as refused:  # by now the damage is known
        RestoreService(home.appliance).machine(guest.name, "latest", HOST, force=True)
    assert str(kept) in refused.value.hint
    assert kept_definitions(home) == [kept]
    assert kept.stat().st_mode & 0o777 == 0o600
    assert kept.read_text().endswith(before)
    assert parse_machine(kept.read_text()).uuid == uuid
    assert list(home.settings.run_directory.glob("restore-*")) == []

    pack.write_bytes(good)
    restored = RestoreService(home.appliance).machine(guest.name, "latest", HOST, force=True)
    assert restored.uuid == uuid
    assert kept_definitions(home) == []
    assert {disk.path for disk in restored.disks} == {str(moved), str(second.path)}
    assert not first.path.exists()
    assert plain(moved) == then[0]
    assert second.content_now() == then[1]
    assert guest.domain.autostart() == 1
    guest.domain.setAutostart(0)


def test_in_place_an_interruption_says_what_it_leaves(
    home: Rig, machine: tuple[LabGuest, Disk, Disk], monkeypatch: pytest.MonkeyPatch
) -> None:
    guest = machine[0]
    home.backup(guest)
    guest.kill()

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    progress = Progress()
    with monkeypatch.context() as patched:
        patched.setattr(MachineParts, "put_files", interrupted)
        with pytest.raises(KeyboardInterrupt):
            RestoreService(home.appliance).machine(guest.name, "latest", HOST, force=True, progress=progress)
    (kept,) = kept_definitions(home)
    assert any(f"no machine {guest.name} any more" in note and str(kept) in note for note in progress.notes)
    RestoreService(home.appliance).machine(guest.name, "latest", HOST, force=True)
    assert guest.exists
    assert kept_definitions(home) == []


def test_in_place_a_definition_that_cannot_be_kept_is_not_given_up(
    home: Rig, machine: tuple[LabGuest, Disk, Disk], monkeypatch: pytest.MonkeyPatch
) -> None:
    guest, first, _ = machine
    home.backup(guest)
    first.write_noise(guest, 0, MIB)
    guest.kill()

    def full(self: KeptDefinition, xml: str, autostart: bool) -> None:
        raise HomeUnusable(self.path, "it cannot be written: No space left on device")

    monkeypatch.setattr(KeptDefinition, "keep", full)
    with pytest.raises(HomeUnusable):
        RestoreService(home.appliance).machine(guest.name, "latest", HOST, force=True)
    assert guest.exists
    assert first.content_now() == bytes(first.truth)


def test_in_place_snapshots_and_a_saved_state_that_go_are_told(lab: Lab, home: Rig) -> None:
    disk = blank(lab, "vda", 16 * MIB)
    guest = firmware_machine(lab, [disk.disk], "snapshots")
    home.backup(guest)
    for name in ("before-upgrade", "after-upgrade"):
        guest.domain.snapshotCreateXML(f"<domainsnapshot><name>{name}</name></domainsnapshot>", 0)
    guest.start(wait=False)
    guest.domain.managedSave(0)
    restored = RestoreService(home.appliance).machine(guest.name, "latest", HOST, force=True)
    assert any("snapshots" in note and "after-upgrade, before-upgrade" in note for note in restored.notes)
    assert any("saved state" in note for note in restored.notes)
    assert guest.domain.snapshotNum() == 0
    assert not guest.domain.hasManagedSaveImage()
