"""Instant recovery in its corners: overrides, KVM, firmware, pools, sizes, names, what is refused and how."""

from __future__ import annotations

import subprocess
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import libvirt
import pytest

from appliance.hypervisor.protocol import Accelerator, HostConfig
from appliance.models import RecoveryState
from appliance.services.backup import BackupService
from appliance.services.inventory import InventoryService
from appliance.services.recovery import RecoveryService
from appliance.services.recovery.errors import RecoveryEnded
from tests.integration.backing_up import (
    MIB,
    Disk,
    Rig,
    blank,
    firmware_machine,
    plain,
    rig,
    standing,
    tpm_states,
)
from tests.integration.recovering import (
    Protected,
    assert_export_gone,
    assert_nothing_left,
    exports_of,
    look,
    no_supervisor,
    protect,
    reads_right,
    record_of,
    strongroom,
    supervised,
    wait_until,
)
from tests.lab import Lab
from tests.lab.screen import Screen

__all__ = ["no_supervisor"]

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("no_supervisor")]


@dataclass
class Site:
    rig: Rig
    lab: Lab
    protected: Protected

    @property
    def service(self) -> RecoveryService:
        return RecoveryService(self.rig.appliance)

    def name(self, name: str) -> str:
        return f"{self.lab.token}{name}"


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with Lab() as lab, rig({"STRONGROOM_LIMITS_WORKERS": "1"}) as made:
        protected = protect(made, lab, "origin", [24 * MIB, 16 * MIB])
        InventoryService(made.appliance).add_host(HostConfig("emulating", accelerator=Accelerator.TCG))
        with supervised(made):
            yield Site(made, lab, protected)


def test_memory_and_processors_are_overridden_and_told(site: Site) -> None:
    name = site.name("small")
    done = strongroom(
        site.rig, "recovery", "start", site.protected.name, "--point", "latest", "--host", "here", "--as", name,
        "--memory", "48MiB", "--vcpus", "2", "--json", expect=3,
    )  # fmt: skip
    guest = site.lab.adopt(name)
    found = ET.fromstring(guest.domain.XMLDesc())
    assert (found.findtext("memory"), found.findtext("vcpu")) == ("49152", "2")
    notes = done.json()["notes"]
    assert len(notes) == 2
    assert all(note in done.err for note in notes)
    site.service.discard(done.json()["id"])
    assert_nothing_left(site.rig, site.lab, record_of(site.rig, done.json()["id"]))


def test_a_machine_made_for_kvm_runs_where_there_is_none(site: Site) -> None:
    def for_kvm(domain: ET.Element) -> None:
        domain.set("type", "kvm")
        ET.SubElement(domain, "cpu", mode="host-passthrough")

    disk = blank(site.lab, "vda", 8 * MIB, name="kvm")
    origin = firmware_machine(site.lab, [disk.disk], "kvm", edit=for_kvm)
    site.rig.appliance.catalog.hosts.get("here")
    BackupService(site.rig.appliance).run_machine(origin.name, host="here")
    name = site.name("emulated")
    done = strongroom(
        site.rig, "recovery", "start", origin.name, "--point", "latest", "--host", "emulating", "--as", name, "--json",
        expect=3,
    )  # fmt: skip
    assert any("emulated (TCG)" in note for note in done.json()["notes"])
    guest = site.lab.adopt(name)
    assert guest.running
    assert ET.fromstring(guest.domain.XMLDesc()).get("type") == "qemu"
    site.service.discard(done.json()["id"])


def test_firmware_and_tpm_wake_up_with_what_they_knew(site: Site) -> None:
    nvram = site.lab.folder / "nvram.fd"

    def uefi(domain: ET.Element) -> None:
        system, devices = domain.find("os"), domain.find("devices")
        assert system is not None
        assert devices is not None
        ET.SubElement(system, "loader", readonly="yes", type="pflash").text = "/usr/share/OVMF/OVMF_CODE_4M.fd"
        ET.SubElement(system, "nvram", template="/usr/share/OVMF/OVMF_VARS_4M.fd").text = str(nvram)
        tpm = ET.SubElement(devices, "tpm", model="tpm-tis")
        ET.SubElement(tpm, "backend", type="emulator", version="2.0")

    disk = blank(site.lab, "vda", 8 * MIB, name="uefi")
    origin = firmware_machine(site.lab, [disk.disk], "uefi", edit=uefi)
    origin.start(wait=False)
    origin.domain.suspend()  # its firmware would go on writing both, after the backup too
    standing(
        lambda: BackupService(site.rig.appliance).run_machine(origin.name, host="here"),
        lambda: (nvram.read_bytes(), tpm_states(origin.domain.UUIDString())),
    )
    origin.kill()
    old_state = tpm_states(origin.domain.UUIDString())
    assert "tpm2/tpm2-00.permall" in old_state
    name = site.name("firmware")
    # The firmware writes into its memory at once: what it was given is seen before.
    seen: dict[str, dict[str, bytes]] = {}
    record = start_watched(site, origin.name, name, seen)
    assert seen["tpm"]["tpm2/tpm2-00.permall"] == old_state["tpm2/tpm2-00.permall"]
    assert seen["nvram"]["nvram"] == nvram.read_bytes()
    guest = site.lab.adopt(name)
    assert guest.running
    assert guest.domain.UUIDString() != origin.domain.UUIDString()
    assert tpm_states(origin.domain.UUIDString()) == old_state, "the old machine's is not touched"
    site.service.discard(record)
    assert_nothing_left(site.rig, site.lab, record_of(site.rig, record))
    assert not Path("/var/lib/libvirt/swtpm", record_of(site.rig, record).machine_uuid).exists()


def start_watched(site: Site, origin: str, name: str, seen: dict[str, dict[str, bytes]]) -> str:
    from appliance.hypervisor.machines import LibvirtMachines

    real = LibvirtMachines.start

    def start(self: LibvirtMachines, machine: str, *, paused: bool = False) -> None:
        record = site.rig.appliance.catalog.recoveries.list(ended=False)[-1]
        seen["tpm"] = tpm_states(machine)
        seen["nvram"] = {"nvram": Path(record.folder, "nvram").read_bytes()}
        real(self, machine, paused=paused)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LibvirtMachines, "start", start)
        return site.service.start(origin, "latest", host="here", new_name=name).id


@contextmanager
def pool(site: Site, name: str, xml: str, *, active: bool) -> Iterator[str]:
    connection = site.lab.connection()
    name = site.name(name)
    made = connection.storagePoolDefineXML(xml.replace("NAME", name))
    try:
        if active:
            made.create()
        yield name
    finally:
        if made.isActive():
            made.destroy()
        made.undefine()


def test_disks_move_to_a_pool_that_is_a_folder(site: Site) -> None:
    folder = site.lab.folder / "pool"
    folder.mkdir(mode=0o755)
    record = site.service.start(site.protected.name, "latest", host="here", new_name=site.name("pooled"))
    guest = site.lab.adopt(record.machine_name)
    definition = f"<pool type='dir'><name>NAME</name><target><path>{folder}</path></target></pool>"
    with pool(site, "production", definition, active=True) as name:
        done = strongroom(site.rig, "recovery", "migrate", record.id, "--to", name, "--format", "raw", "--json").json()
    assert done["state"] == "migrated"
    assert_export_gone(site.rig, record)
    paths = guest.disk_paths
    assert [path.parent for path in paths.values()] == [folder, folder]
    assert all(reads_right(guest, disk) for disk in site.protected.disks)
    guest.remove()
    for disk in site.protected.disks:
        assert plain(paths[disk.disk.target], "raw") == disk.truth


def test_who_does_not_wait_for_a_migration_finds_it_done(site: Site) -> None:
    record = site.service.start(site.protected.name, "latest", host="here", new_name=site.name("moved"))
    guest = site.lab.adopt(record.machine_name)
    assert site.service.begin_migration(record.id).state is RecoveryState.MIGRATING
    supervisor = look(site.rig)

    def moved() -> bool:
        supervisor.look()
        return site.service.show(record.id).state is RecoveryState.MIGRATED

    wait_until(moved, "a supervisor has moved it")
    assert all(reads_right(guest, disk) for disk in site.protected.disks)
    with pytest.raises(RecoveryEnded):
        site.service.begin_migration(record.id)
    guest.remove()


def test_what_is_no_place_for_disks_is_refused_and_changes_nothing(site: Site) -> None:
    record = site.service.start(site.protected.name, "latest", host="here", new_name=site.name("refused"))
    guest = site.lab.adopt(record.machine_name)

    def refused(to: str, code: int) -> str:
        done = strongroom(site.rig, "recovery", "migrate", record.id, "--to", to, expect=code)
        assert record_of(site.rig, record.id).state is RecoveryState.RUNNING
        assert "Traceback" not in done.err
        return done.err

    assert "no storage pool 'nowhere'" in refused("nowhere", 1)
    assert "there is no such folder" in refused(str(site.lab.folder / "missing"), 2)
    logical = "<pool type='logical'><name>NAME</name><source><name>vg</name></source></pool>"
    with pool(site, "volumes", logical, active=False) as name:
        assert "of kind 'logical'" in refused(name, 2)
    idle = f"<pool type='dir'><name>NAME</name><target><path>{site.lab.folder}</path></target></pool>"
    with pool(site, "idle", idle, active=False) as name:
        assert "it is not active" in refused(name, 2)
    assert guest.running
    site.service.discard(record.id)
    assert_nothing_left(site.rig, site.lab, record)


def test_of_two_that_want_one_name_one_gets_it(site: Site) -> None:
    """Both find the name free; libvirt decides."""
    name = site.name("twice")
    command = site.rig.command("recovery", "start", site.protected.name, "--point", "latest", "--as", name, "--host")
    both = [
        subprocess.Popen([*command, host], env=site.rig.process_environment(), stderr=subprocess.PIPE, text=True)
        for host in ("here", "emulating")
    ]
    told = [process.communicate(timeout=180)[1] for process in both]
    codes = [process.returncode for process in both]
    assert sorted(codes) == [0, 1], told
    assert f"has a machine '{name}' already" in told[codes.index(1)]
    guest = site.lab.adopt(name)
    assert guest.running
    (winner,) = [record for record in site.service.list() if record.machine_name == name]
    losers = [each for each in site.service.list(ended=True) if each.machine_name == name and each.state.ended]
    for loser in losers:
        assert not Path(loser.folder).exists()
        assert_export_gone(site.rig, loser)
    assert len(exports_of(site.rig, winner)) == 2
    # and two machines out of one point, side by side
    other = site.service.start(site.protected.name, "latest", host="here", new_name=site.name("beside"))
    assert all(reads_right(site.lab.adopt(other.machine_name), disk) for disk in site.protected.disks)
    assert all(reads_right(guest, disk) for disk in site.protected.disks)
    for record in (winner, other):
        site.service.discard(record.id)
        assert_nothing_left(site.rig, site.lab, record)


def test_a_disk_of_two_tebibytes_starts_like_any_other(site: Site) -> None:
    size = 2 << 40
    disk = Disk(site.lab, site.lab.blank_disk("vda", size, name="huge"), 16 * MIB)
    origin = firmware_machine(site.lab, [disk.disk], "huge")
    origin.start(wait=False)
    disk.write_pattern(origin, MIB, 4 * MIB, 0x5A)
    BackupService(site.rig.appliance).run_machine(origin.name, host="here")
    origin.kill()
    record = site.service.start(origin.name, "latest", host="here", new_name=site.name("immense"))
    guest = site.lab.adopt(record.machine_name)
    assert reads_right(guest, disk)
    assert guest.domain.blockInfo("vda")[0] == size
    assert record.start_ms is not None
    assert record.start_ms < 60_000  # the benchmark says how fast; here: that it does not depend on the size
    site.service.discard(record.id)
    assert_nothing_left(site.rig, site.lab, record)


def test_requests_that_cannot_be_met_end_with_a_sentence_and_leave_nothing(site: Site, tmp_path: Path) -> None:
    before = site.rig.appliance.catalog.recoveries.list()
    image = tmp_path / "image.raw"
    image.write_bytes(bytes(MIB))
    BackupService(site.rig.appliance).run_image(image, "raw", "picture")

    def refused(*arguments: str, code: int = 1) -> str:
        done = strongroom(site.rig, "recovery", *arguments, expect=code)
        assert "Traceback" not in done.err
        return done.err

    start = ("start", site.protected.name, "--point", "latest")
    assert "is a disk image" in refused("start", "picture", "--point", "latest")
    assert "there is no host nowhere" in refused(*start, "--host", "nowhere")
    assert "already" in refused(*start, "--host", "here", "--as", site.protected.name)
    assert "hint: " in refused("start", "unheard-of", "--point", "latest")
    assert "hint: " in refused(*start[:2], "--point", "2001-01-01")
    assert "there is no recovery 0123" in refused("migrate", "0123")
    assert "there is no recovery 0123" in refused("discard", "0123", "--yes")
    failed = refused(*start, "--host", "here", "--as", "no/such/name")
    assert "libvirt" in failed
    (record,) = [each for each in site.rig.appliance.catalog.recoveries.list() if each not in before]
    assert_nothing_left(site.rig, site.lab, record)
    assert record.error


def test_network_none_takes_the_cable_out(site: Site) -> None:
    def card(domain: ET.Element) -> None:
        devices = domain.find("devices")
        assert devices is not None
        interface: Any = ET.SubElement(devices, "interface", type="user")
        ET.SubElement(interface, "mac", address="52:54:00:11:22:33")
        ET.SubElement(interface, "model", type="virtio")

    disk = blank(site.lab, "vda", 8 * MIB, name="net")
    origin = firmware_machine(site.lab, [disk.disk], "net", edit=card)
    BackupService(site.rig.appliance).run_machine(origin.name, host="here")
    kinds = {}
    for network in ("none", "keep"):
        record = site.service.start(
            origin.name, "latest", host="here", new_name=site.name(f"net-{network}"), network=network
        )
        found = ET.fromstring(site.lab.adopt(record.machine_name).domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE))
        interface = found.find("devices/interface")
        assert interface is not None
        mac = interface.find("mac")
        assert mac is not None
        assert mac.get("address") != "52:54:00:11:22:33"
        link = interface.find("link")
        kinds[network] = None if link is None else link.get("state")
        site.service.discard(record.id)
    assert kinds == {"none": "down", "keep": None}


def test_the_screen_of_a_recovered_machine_is_open_until_it_is_gone(site: Site) -> None:
    def terminal(domain: ET.Element) -> None:
        devices = domain.find("devices")
        assert devices is not None
        for serial in devices.findall("serial"):
            devices.remove(serial)
        ET.SubElement(devices, "serial", type="pty")

    machine = site.lab.machine("headless", disks=[site.lab.blank_disk("vda", MIB)], edit=terminal)
    BackupService(site.rig.appliance).run_machine(machine.name, host="here")
    name = site.name("shown")
    record = site.service.start(machine.name, "latest", host="here", new_name=name)
    site.lab.adopt(name)
    assert record.notes == ()  # what is shown for a while is no lasting change
    with Screen(site.service.open_screen(record.id)) as screen:
        assert name in screen.name
    site.service.discard(record.id)
    with pytest.raises(RecoveryEnded, match="is discarded"):
        site.service.open_screen(record.id)
