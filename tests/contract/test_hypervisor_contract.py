"""What every hypervisor driver keeps, asked of libvirt with a real guest."""

from __future__ import annotations

import subprocess
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import pytest

from appliance.hypervisor.errors import (
    BackupRefused,
    BitmapUntrusted,
    HostFileError,
    HypervisorError,
    ImageToolFailed,
    MachineInState,
    MachineNotFound,
    ScreenUnavailable,
    StorageNotFound,
)
from appliance.hypervisor.libvirt_driver import connect
from appliance.hypervisor.protocol import (
    BackupJob,
    BackupRequest,
    CopyTarget,
    DiskBackup,
    FreezeOutcome,
    Hypervisor,
    MachineState,
    ThawOutcome,
)
from tests.contract.hypervisor_waiting import HERE, wait_until
from tests.lab import Lab, LabGuest
from tests.lab.screen import Screen

pytestmark = pytest.mark.integration
MIB = 1 << 20


@pytest.fixture
def hypervisor() -> Iterator[Hypervisor]:
    with connect(HERE) as connected:
        yield connected


def request_for(lab: Lab, machine: str, checkpoint: str, **incremental: str | None) -> BackupRequest:
    """Of these disks, each full (None) or since a checkpoint."""
    folder = lab.folder / "scratch"
    disks = tuple(DiskBackup(disk, str(folder / f"{disk}.scratch"), since) for disk, since in incremental.items())
    return BackupRequest(machine, checkpoint, str(folder / "nbd.sock"), disks)


def dirty(job: BackupJob, target: str) -> list[tuple[int, int]]:
    """Offset and length of what the job says has changed."""
    export = next(export for export in job.exports if export.target == target)
    listed = subprocess.run(
        ["nbdinfo", f"--map={export.dirty_context}", f"nbd+unix:///{export.export}?socket={job.socket}"],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    rows = [line.split() for line in listed.splitlines()]
    return [(int(row[0]), int(row[1])) for row in rows if row[2] == "1"]


def bitmap_names(path: Path) -> str:
    done = subprocess.run(["qemu-img", "info", "-U", "-f", "qcow2", path], capture_output=True, text=True, check=True)
    return done.stdout


def test_host_tells_its_facts(hypervisor: Hypervisor) -> None:
    facts = hypervisor.facts()
    assert facts.hypervisor == "QEMU"
    assert facts.architecture == "x86_64"
    assert facts.tcg
    assert facts.libvirt_version.count(".") == 2
    assert hypervisor.files.qemu().uid > 0


def test_unknown_machine_is_named(hypervisor: Hypervisor) -> None:
    with pytest.raises(MachineNotFound, match="no virtual machine 'strongroom-nobody'"):
        hypervisor.machines.get("strongroom-nobody")
    assert not hypervisor.machines.exists("strongroom-nobody")


def test_inventory_tells_what_each_disk_is(lab: Lab, hypervisor: Hypervisor) -> None:
    raw = lab.blank_disk("vdb", 32 * MIB, format="raw")
    old = lab.blank_disk("vdc", 16 * MIB, compat="0.10")
    guest = lab.machine("inventory", disks=[lab.blank_disk("vda", 64 * MIB), raw, old])
    for _ in range(2):
        machine = hypervisor.machines.get(guest.name)
        assert [(disk.target, disk.size_bytes, disk.format, disk.can_hold_bitmap) for disk in machine.disks] == [
            ("vda", 64 * MIB, "qcow2", True),
            ("vdb", 32 * MIB, "raw", False),
            ("vdc", 16 * MIB, "qcow2", False),
        ]
        assert all(disk.skip_reason is None for disk in machine.disks)
        assert machine.persistent
        if not machine.running:
            assert machine.live_xml is None
            hypervisor.machines.start(machine.uuid, paused=True)
    assert machine.state is MachineState.PAUSED
    assert machine.uuid in {found.uuid for found in hypervisor.machines.list()}
    assert hypervisor.machines.get(machine.uuid).name == guest.name


def test_tags_are_those_that_virsh_set(lab: Lab, hypervisor: Hypervisor) -> None:
    """As docs/policies.md has it; in the end only in one of the two definitions."""
    guest = lab.machine("tagged", disks=[lab.blank_disk("vda", MIB)])
    assert hypervisor.machines.get(guest.name).tags == frozenset()
    hypervisor.machines.start(guest.name, paused=True)
    metadata = ["virsh", "metadata", guest.name, "--uri", "urn:strongroom:tags"]
    tags = "<tags><tag>gold</tag><tag>site=berlin</tag></tags>"
    subprocess.run([*metadata, "--key", "tags", "--config", "--live", "--set", tags], capture_output=True, check=True)
    assert hypervisor.machines.get(guest.name).tags == {"gold", "site=berlin"}
    subprocess.run([*metadata, "--live", "--remove"], capture_output=True, check=True)
    assert hypervisor.machines.get(guest.name).tags == {"gold", "site=berlin"}
    subprocess.run([*metadata, "--config", "--remove"], capture_output=True, check=True)
    assert hypervisor.machines.get(guest.name).tags == frozenset()


def test_powered_off_disk_whose_file_is_gone_says_so(lab: Lab, hypervisor: Hypervisor) -> None:
    disk = lab.blank_disk("vda", MIB)
    guest = lab.machine("gone", disks=[disk])
    disk.path.unlink()
    found = hypervisor.machines.get(guest.name).disk("vda")
    assert found is not None
    assert found.size_bytes is None
    assert "cannot be read" in (found.skip_reason or "")


def test_backup_follows_what_the_guest_writes(lab: Lab, hypervisor: Hypervisor) -> None:
    """A full run, then an incremental that shows exactly the changes, with disks beside it that hold no bitmap."""
    disks = [lab.data_disk("vda"), lab.blank_disk("vdb", 8 * MIB, format="raw")]
    disks.append(lab.blank_disk("vdc", 8 * MIB, compat="0.10"))
    guest = lab.machine("backup", disks=disks)
    guest.start()
    uuid = hypervisor.machines.get(guest.name).uuid
    first, second = str(uuid4()), str(uuid4())

    job = hypervisor.backups.begin(request_for(lab, uuid, first, vda=None, vdb=None, vdc=None))
    assert [(export.target, export.checkpointed) for export in job.exports] == [
        ("vda", True), ("vdb", False), ("vdc", False),
    ]  # fmt: skip
    current = hypervisor.backups.current(uuid)
    assert current is not None
    assert current.socket == job.socket
    assert set(current.scratches) == {export.scratch for export in job.exports}
    assert hypervisor.backups.usage(uuid).scratch_used_bytes >= 0
    assert hypervisor.backups.end(uuid, job.socket) is False
    assert hypervisor.backups.current(uuid) is None
    assert list((lab.folder / "scratch").iterdir()) == []
    assert [(found.name, found.disks) for found in hypervisor.checkpoints.list(uuid)] == [(first, ("vda",))]

    guest.fill("/mnt/vda/new", 3)
    hypervisor.checkpoints.redefine(uuid, first, ["vda"])
    job = hypervisor.backups.begin(request_for(lab, uuid, second, vda=first, vdb=None, vdc=None))
    changed = sum(length for _, length in dirty(job, "vda"))
    assert 3 * MIB <= changed < 8 * MIB
    hypervisor.checkpoints.delete(uuid, first, ["vda"])  # while the job runs, as a run does it
    hypervisor.backups.end(uuid, job.socket)
    assert [found.name for found in hypervisor.checkpoints.list(uuid)] == [second]
    guest.switch_off()
    assert second in bitmap_names(disks[0].path)
    assert first not in bitmap_names(disks[0].path)


def test_backup_of_what_cannot_be_is_refused_by_name(lab: Lab, hypervisor: Hypervisor) -> None:
    guest = lab.machine("refused", disks=[lab.blank_disk("vda", MIB)])
    request = request_for(lab, guest.name, str(uuid4()), vda=None)
    with pytest.raises(MachineInState, match="it is off"):
        hypervisor.backups.begin(request)
    hypervisor.machines.start(guest.name, paused=True)
    with pytest.raises(BackupRefused, match="no disk vdz any more"):
        hypervisor.backups.begin(request_for(lab, guest.name, str(uuid4()), vdz=None))
    with pytest.raises(BitmapUntrusted) as refused:
        hypervisor.backups.begin(request_for(lab, guest.name, str(uuid4()), vda=str(uuid4())))
    assert refused.value.disk == "vda"
    assert hypervisor.checkpoints.list(guest.name) == ()


@pytest.mark.parametrize("path", ["scratch/../outside/precious", "./scratch/x", "//scratch/x", "scratch/x/"])
def test_scratch_that_is_no_plain_path_is_refused(lab: Lab, hypervisor: Hypervisor, path: str) -> None:
    """Whatever it was made of: the file would be removed, and its folder given to QEMU's user, as root."""
    guest = lab.machine("plain", disks=[lab.blank_disk("vda", MIB)])
    hypervisor.machines.start(guest.name, paused=True)
    outside = lab.folder / "outside"
    outside.mkdir()
    (outside / "precious").write_bytes(b"precious")
    request = replace(request_for(lab, guest.name, str(uuid4())), disks=(DiskBackup("vda", f"{lab.folder}/{path}"),))
    with pytest.raises(HostFileError, match="no plain absolute path"):
        hypervisor.backups.begin(request)
    assert (outside / "precious").read_bytes() == b"precious"
    assert outside.stat().st_uid == 0
    assert not (lab.folder / "scratch").exists()


def test_forgotten_checkpoint_is_told_again_and_removed(lab: Lab, hypervisor: Hypervisor) -> None:
    disk = lab.blank_disk("vda", MIB)
    guest = lab.machine("forgot", disks=[disk, lab.blank_disk("vdb", MIB)])
    hypervisor.machines.start(guest.name, paused=True)
    name = str(uuid4())
    job = hypervisor.backups.begin(request_for(lab, guest.name, name, vda=None, vdb=None))
    hypervisor.backups.end(guest.name, job.socket)
    guest.domain.checkpointLookupByName(name).delete(2)  # metadata only, as a lost state folder
    assert hypervisor.checkpoints.list(guest.name) == ()

    hypervisor.checkpoints.redefine(guest.name, name, ["vda", "vdb"])
    hypervisor.checkpoints.redefine(guest.name, name, ["vda", "vdb"])
    with pytest.raises(BitmapUntrusted):
        hypervisor.checkpoints.redefine(guest.name, str(uuid4()), ["vda"])
    with pytest.raises(BitmapUntrusted) as absent:
        hypervisor.checkpoints.redefine(guest.name, name, ["vda", "vdq"])
    assert absent.value.disk == "vdq"

    guest.domain.checkpointLookupByName(name).delete(2)
    hypervisor.checkpoints.delete(guest.name, name, ["vda", "vdb", "vdq"])
    hypervisor.checkpoints.delete(guest.name, name, ["vda", "vdb"])
    guest.kill()
    assert name not in bitmap_names(disk.path)


def foreign_checkpoint(guest: LabGuest, target: str) -> str:
    """As oVirt makes them: named by a UUID, too."""
    name = str(uuid4())
    guest.domain.checkpointCreateXML(
        f"<domaincheckpoint><name>{name}</name><disks><disk name='{target}' checkpoint='bitmap'/></disks>"
        "</domaincheckpoint>",
        0,
    )
    return name


def test_forget_drops_what_is_ours_and_nothing_else(lab: Lab, hypervisor: Hypervisor) -> None:
    disk = lab.blank_disk("vda", MIB)
    guest = lab.machine("forget", disks=[disk])
    leaked, foreign_leaked = str(uuid4()), str(uuid4())
    for name in (leaked, foreign_leaked, "the-admins-own"):
        hypervisor.bitmaps.add(str(disk.path), name)
    hypervisor.machines.start(guest.name, paused=True)
    made: list[str] = []
    for checkpoint in (str(uuid4()), str(uuid4())):
        job = hypervisor.backups.begin(request_for(lab, guest.name, checkpoint, vda=None))
        hypervisor.backups.end(guest.name, job.socket)
        made.append(checkpoint)
    foreign = foreign_checkpoint(guest, "vda")
    marked = {checkpoint.name: checkpoint.ours for checkpoint in hypervisor.checkpoints.list(guest.name)}
    assert marked == {made[0]: True, made[1]: True, foreign: False}
    # One that libvirt forgot, or that an older version made, is marked when it is told again.
    guest.domain.checkpointLookupByName(made[1]).delete(2)
    hypervisor.checkpoints.redefine(guest.name, made[1], ["vda"])

    assert set(hypervisor.checkpoints.forget(guest.name, [leaked])) == {leaked, *made}
    assert [checkpoint.name for checkpoint in hypervisor.checkpoints.list(guest.name)] == [foreign]
    hypervisor.machines.destroy(guest.name)
    left = {bitmap.name for bitmap in hypervisor.checkpoints.bitmaps(guest.name)}
    assert left == {foreign, foreign_leaked, "the-admins-own"}
    assert hypervisor.checkpoints.forget(guest.name) == ()
    assert set(hypervisor.checkpoints.forget(guest.name, others=True)) == {foreign, foreign_leaked}
    assert [bitmap.name for bitmap in hypervisor.checkpoints.bitmaps(guest.name)] == ["the-admins-own"]
    assert hypervisor.checkpoints.list(guest.name) == ()


def test_checkpoint_made_before_there_was_a_mark_is_known_by_its_name(lab: Lab, hypervisor: Hypervisor) -> None:
    guest = lab.machine("unmarked", disks=[lab.blank_disk("vda", MIB)])
    hypervisor.machines.start(guest.name, paused=True)
    ours, foreign = foreign_checkpoint(guest, "vda"), foreign_checkpoint(guest, "vda")
    assert hypervisor.checkpoints.forget(guest.name, [ours, str(uuid4())]) == (ours,)
    assert [checkpoint.name for checkpoint in hypervisor.checkpoints.list(guest.name)] == [foreign]
    hypervisor.checkpoints.redefine(guest.name, foreign, ["vda"])
    assert [checkpoint.ours for checkpoint in hypervisor.checkpoints.list(guest.name)] == [True]


def test_powered_off_machine_keeps_a_chain_of_bitmaps(lab: Lab, hypervisor: Hypervisor) -> None:
    disk = lab.blank_disk("vda", 4 * MIB)
    path = str(disk.path)
    guest = lab.machine("off", disks=[disk])
    first, second = str(uuid4()), str(uuid4())
    hypervisor.bitmaps.add(path, first)
    hypervisor.bitmaps.check(path, first)
    hypervisor.checkpoints.redefine(guest.name, first, ["vda"])
    with pytest.raises(BitmapUntrusted, match="not in the file"):
        hypervisor.checkpoints.redefine(guest.name, second, ["vda"])
    hypervisor.bitmaps.add(path, second)
    hypervisor.checkpoints.delete(guest.name, first)
    hypervisor.checkpoints.delete(guest.name, first)
    assert [bitmap.name for bitmap in hypervisor.bitmaps.list(path)] == [second]
    hypervisor.machines.start(guest.name, paused=True)
    hypervisor.checkpoints.redefine(guest.name, second, ["vda"])
    with pytest.raises(ImageToolFailed):
        hypervisor.bitmaps.add(path, first)  # QEMU holds the file


def test_old_and_strange_files_hold_no_bitmaps(lab: Lab, hypervisor: Hypervisor) -> None:
    old = lab.blank_disk("vda", MIB, compat="0.10")
    with pytest.raises(BitmapUntrusted, match=r"compat=0\.10"):
        hypervisor.bitmaps.add(str(old.path), str(uuid4()))
    raw = lab.blank_disk("vdb", MIB, format="raw")
    with pytest.raises(ImageToolFailed, match="not a qcow2 file"):
        hypervisor.bitmaps.list(str(raw.path))
    path, data = lab.path("external.qcow2"), lab.path("external.data")
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-o", f"data_file={data}", path, "1M"], check=True)
    with pytest.raises(ImageToolFailed, match="another file"):
        hypervisor.bitmaps.list(str(path))


def test_guest_is_frozen_and_thawed(agent_guest: LabGuest, hypervisor: Hypervisor) -> None:
    agents, name = hypervisor.agents, agent_guest.name
    wait_until(lambda: hypervisor.machines.get(name).agent_connected)
    freeze = agents.freeze(name, 60)
    assert (freeze.outcome, freeze.filesystems, freeze.thaw_owed) == (FreezeOutcome.FROZEN, 1, True)
    assert agent_guest.freeze_status() == "frozen"
    again = agents.freeze(name, 60)
    assert again.outcome is FreezeOutcome.REFUSED
    assert again.thaw_owed
    assert agents.thaw(name, 60).outcome is ThawOutcome.THAWED
    assert agent_guest.freeze_status() == "thawed"
    assert agents.thaw(name, 60).confirmed


def test_guest_without_agent_owes_nothing(guest: LabGuest, hypervisor: Hypervisor) -> None:
    result = hypervisor.agents.freeze(guest.name, 3)
    assert result.outcome is FreezeOutcome.NO_AGENT
    assert not result.thaw_owed
    guest.kill()
    assert hypervisor.agents.thaw(guest.name, 3).outcome is ThawOutcome.MOOT


def test_life_cycle(lab: Lab, hypervisor: Hypervisor) -> None:
    guest = lab.machine("life", disks=[lab.blank_disk("vda", MIB)])
    machines = hypervisor.machines
    uuid = machines.get(guest.name).uuid
    machines.start(uuid, paused=True)
    with pytest.raises(MachineInState):
        machines.start(uuid)
    assert machines.state(uuid).state is MachineState.PAUSED
    machines.resume(uuid)
    assert machines.state(uuid).state is MachineState.RUNNING
    machines.suspend(uuid)
    assert machines.disk_errors(uuid) == ()
    with pytest.raises(HypervisorError):
        machines.screenshot(uuid)  # it has no screen
    machines.set_autostart(uuid, True)
    assert machines.get(uuid).autostart
    machines.destroy(uuid)
    machines.destroy(uuid)
    assert machines.state(uuid).state is MachineState.OFF
    machines.undefine(uuid)
    machines.undefine(uuid)
    assert not machines.exists(uuid)


def test_undefine_takes_checkpoints_along(lab: Lab, hypervisor: Hypervisor) -> None:
    guest = lab.machine("undefine", disks=[lab.blank_disk("vda", MIB)])
    hypervisor.machines.start(guest.name, paused=True)
    job = hypervisor.backups.begin(request_for(lab, guest.name, str(uuid4()), vda=None))
    hypervisor.backups.end(guest.name, job.socket)
    hypervisor.machines.destroy(guest.name)
    hypervisor.machines.undefine(guest.name)
    assert not guest.exists


def test_screenshot_of_a_machine_with_a_screen(lab: Lab, hypervisor: Hypervisor) -> None:
    def add_screen(domain: ET.Element) -> None:
        devices = domain.find("devices")
        assert devices is not None
        ET.SubElement(ET.SubElement(devices, "video"), "model", type="vga")
        ET.SubElement(devices, "graphics", type="vnc", autoport="yes")

    guest = lab.machine("screen", disks=[lab.blank_disk("vda", MIB)], edit=add_screen)
    guest.start(wait=False)
    shot = hypervisor.machines.screenshot(guest.name)
    assert shot.mime_type in ("image/png", "image/x-portable-pixmap")
    assert shot.data.startswith(b"\x89PNG" if shot.mime_type == "image/png" else b"P6")


def test_who_sits_at_the_screen_types_into_the_guest(lab: Lab, hypervisor: Hypervisor) -> None:
    def add_screen(domain: ET.Element) -> None:
        devices = domain.find("devices")
        assert devices is not None
        ET.SubElement(ET.SubElement(devices, "video"), "model", type="vga")
        graphics = ET.SubElement(devices, "graphics", type="vnc", passwd="unasked")
        ET.SubElement(graphics, "listen", type="none")

    guest = lab.machine("typing", edit=add_screen)
    with pytest.raises(MachineInState, match="it is off"):
        hypervisor.machines.open_screen(guest.name)
    guest.start()
    with Screen(hypervisor.machines.open_screen(guest.name)) as screen:
        assert (screen.width, screen.height) == (720, 400)  # a VGA's text

        def typed() -> bool:
            """A guest that a busy machine lets wait misses strokes: who sits there types the line again."""
            screen.enter("echo typed > /mnt/vda/typed")
            done = guest.run("for n in $(seq 50); do cat /mnt/vda/typed 2>/dev/null && break; sleep 0.1; done")
            return done.strip() == "typed"

        wait_until(typed)


def test_a_machine_without_a_screen_says_so(lab: Lab, hypervisor: Hypervisor) -> None:
    guest = lab.machine("blind", disks=[lab.blank_disk("vda", MIB)])
    hypervisor.machines.start(guest.name, paused=True)
    with pytest.raises(ScreenUnavailable, match="it has none that speaks VNC"):
        hypervisor.machines.open_screen(guest.name)


def test_disk_moves_while_the_guest_writes(guest: LabGuest, lab: Lab, hypervisor: Hypervisor) -> None:
    jobs = hypervisor.block_jobs
    new = lab.path("moved.qcow2")
    with pytest.raises(MachineInState, match="not complete, or there is none"):
        jobs.pivot(guest.name, "vda")
    jobs.abort(guest.name, "vda")  # no job: fine
    jobs.copy(guest.name, "vda", CopyTarget(str(new), "qcow2"), bandwidth_bytes_s=64 * 1024)
    with pytest.raises(MachineInState, match="not complete, or there is none"):
        jobs.pivot(guest.name, "vda")
    jobs.set_bandwidth(guest.name, "vda", 0)

    def ready() -> bool:
        job = jobs.info(guest.name, "vda")
        return job is not None and job.ready

    wait_until(ready)
    guest.run("(while true; do fill /mnt/vda/busy 2; done) >/dev/null 2>&1 &")
    guest.write("/mnt/vda/meanwhile", "written while it moved")
    assert ready()
    jobs.pivot(guest.name, "vda")
    assert jobs.info(guest.name, "vda") is None
    found = hypervisor.machines.get(guest.name).disk("vda")
    assert found is not None
    assert found.source.path == str(new)
    assert guest.read("/mnt/vda/meanwhile") == "written while it moved"
    assert not jobs.depends_on(guest.name, "vda")
    guest.kill()
    assert jobs.info(guest.name, "vda") is None


def test_storage_pool(lab: Lab, hypervisor: Hypervisor) -> None:
    folder = lab.folder / "pool"
    folder.mkdir()
    name = f"{lab.token}pool"
    pool = lab.connection().storagePoolCreateXML(
        f"<pool type='dir'><name>{name}</name><target><path>{folder}</path></target></pool>"
    )
    try:
        assert hypervisor.storage.pool(name).path == str(folder)
        path = hypervisor.storage.create_volume(name, "disk.qcow2", 4 * MIB, "qcow2")
        assert hypervisor.storage.volume_path(name, "disk.qcow2") == path == str(folder / "disk.qcow2")
        with pytest.raises(HypervisorError, match=r"has a volume 'disk\.qcow2' already"):
            hypervisor.storage.create_volume(name, "disk.qcow2", 4 * MIB, "qcow2")

        def use_volume(domain: ET.Element) -> None:
            disk = domain.find("devices/disk")
            assert disk is not None
            disk.set("type", "volume")
            source = disk.find("source")
            assert source is not None
            source.attrib.clear()
            source.attrib.update({"pool": name, "volume": "disk.qcow2"})

        guest = lab.machine("volume", disks=[lab.blank_disk("vda", MIB)], edit=use_volume)
        disk = hypervisor.machines.get(guest.name).disks[0]
        assert (disk.source.path, disk.size_bytes, disk.can_hold_bitmap) == (path, 4 * MIB, True)
        hypervisor.storage.delete_volume(name, "disk.qcow2")
        with pytest.raises(StorageNotFound, match=r"volume 'disk\.qcow2'"):
            hypervisor.storage.volume_path(name, "disk.qcow2")
    finally:
        pool.destroy()
    with pytest.raises(StorageNotFound, match="storage pool"):
        hypervisor.storage.pool(name)
