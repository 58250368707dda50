"""Definitions that were rewritten are accepted, and started, by libvirt itself."""

from __future__ import annotations

import subprocess
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
from uuid import uuid4

import pytest

from appliance.hypervisor.domain_rewriting import (
    Changes,
    OverlayDisk,
    RestoredDisk,
    put_below,
    restore_settings,
    rewrite,
)
from appliance.hypervisor.domain_xml import parse_machine
from appliance.hypervisor.errors import HypervisorError
from appliance.hypervisor.libvirt_driver import connect
from appliance.hypervisor.protocol import Hypervisor, MachineState
from tests.contract.hypervisor_waiting import HERE, wait_until
from tests.lab import Lab
from tests.lab.listening import wait_listening
from tests.lab.screen import Screen

pytestmark = pytest.mark.integration
MIB = 1 << 20


@pytest.fixture
def hypervisor() -> Iterator[Hypervisor]:
    with connect(HERE) as connected:
        yield connected


def made_for_kvm(domain: ET.Element) -> None:
    """What an admin's machine may have that an emulated one cannot."""
    ET.SubElement(domain, "genid")
    cpu = ET.SubElement(domain, "cpu", mode="host-passthrough")
    ET.SubElement(cpu, "topology", sockets="1", cores="2", threads="1")
    features = domain.find("features")
    assert features is not None
    hyperv = ET.SubElement(features, "hyperv")
    ET.SubElement(hyperv, "relaxed", state="on")
    ET.SubElement(ET.SubElement(features, "kvm"), "hidden", state="on")
    clock = ET.SubElement(domain, "clock", offset="utc")
    ET.SubElement(clock, "timer", name="kvmclock", present="yes")
    devices = domain.find("devices")
    assert devices is not None
    card = ET.SubElement(devices, "interface", type="bridge")
    ET.SubElement(card, "mac", address="52:54:00:01:02:03")
    ET.SubElement(card, "source", bridge="no-such-bridge")
    ET.SubElement(card, "model", type="virtio")
    graphics = ET.SubElement(devices, "graphics", type="vnc", port="5999", autoport="no")
    ET.SubElement(graphics, "listen", type="address", address="127.0.0.1")
    ET.SubElement(ET.SubElement(devices, "video"), "model", type="vga")


def test_machine_made_for_kvm_starts_emulated_beside_the_old_one(lab: Lab, hypervisor: Hypervisor) -> None:
    guest = lab.machine("kvm", disks=[lab.blank_disk("vda", MIB)], cpus=2, agent=True, edit=made_for_kvm)
    original = hypervisor.machines.get(guest.name).inactive_xml.replace("type='qemu'", "type='kvm'", 1)
    new = lab.blank_disk("vda", MIB, name="restored")
    result = rewrite(
        original,
        Changes(
            name=f"{guest.name}-copy",
            uuid=str(uuid4()),
            disks={"vda": RestoredDisk(str(new.path), "qcow2")},
            network="none",
            kvm_available=False,
            memory_bytes=128 * MIB,
            vcpus=1,
            made_by="test",
        ),
    )
    uuid = hypervisor.machines.define(result.xml)
    lab.adopt(f"{guest.name}-copy")
    hypervisor.machines.start(uuid, paused=True)
    machine = hypervisor.machines.get(uuid)
    assert machine.state is MachineState.PAUSED
    assert machine.domain_type == "qemu"
    assert (machine.memory_bytes, machine.vcpus) == (128 * MIB, 1)
    assert parse_machine(machine.inactive_xml).marker == "test"
    assert machine.live_xml is not None
    assert "no-such-bridge" not in machine.live_xml
    assert len(result.warnings) >= 4


def host_backed(file: str) -> Callable[[ET.Element], None]:
    """What leads into the host, in every way that this libvirt takes; persistent memory is in `file`."""

    def edit(domain: ET.Element) -> None:
        ET.SubElement(domain, "maxMemory", slots="4", unit="MiB").text = "1024"
        numa = ET.SubElement(ET.SubElement(domain, "cpu"), "numa")
        ET.SubElement(numa, "cell", id="0", cpus="0", memory="192", unit="MiB")
        devices = domain.find("devices")
        assert devices is not None
        for model in ("nvdimm", "virtio-pmem"):
            memory = ET.SubElement(devices, "memory", model=model, access="shared")
            ET.SubElement(ET.SubElement(memory, "source"), "path").text = file
            target = ET.SubElement(memory, "target")
            ET.SubElement(target, "size", unit="MiB").text = "128"
            if model == "nvdimm":
                ET.SubElement(target, "node").text = "0"
                ET.SubElement(ET.SubElement(target, "label"), "size", unit="KiB").text = "128"
        for tag, attributes, child, below in (
            ("shmem", {"name": "shared"}, "model", {"type": "ivshmem-plain"}),
            ("input", {"type": "evdev"}, "source", {"dev": "/dev/input/event0"}),
            ("filesystem", {"type": "mount"}, "source", {"dir": "/srv"}),
            ("vsock", {"model": "virtio"}, "cid", {"auto": "no", "address": "4242"}),
            ("sound", {"model": "ich9"}, "audio", {"id": "1"}),
        ):
            device = ET.SubElement(devices, tag, attributes)
            ET.SubElement(device, child, below)
            if tag == "filesystem":
                ET.SubElement(device, "target", dir="srv")
        ET.SubElement(devices, "audio", id="1", type="file", path=f"{file}.wav")
        namespace = "http://libvirt.org/schemas/domain/qemu/1.0"
        options = ET.SubElement(domain, f"{{{namespace}}}commandline")
        for value in ("-drive", f"file={file},format=raw,if=none"):
            ET.SubElement(options, f"{{{namespace}}}arg", value=value)

    return edit


def test_copy_has_nothing_of_what_leads_into_the_host(lab: Lab, hypervisor: Hypervisor) -> None:
    precious = lab.path("precious")
    precious.write_bytes(b"precious" * (128 * MIB // 8))
    guest = lab.machine("backed", disks=[lab.blank_disk("vda", MIB)], edit=host_backed(str(precious)))
    found = hypervisor.machines.get(guest.name)
    assert found.memory_files == (str(precious), str(precious))
    changes = Changes(
        name=f"{guest.name}-copy",
        uuid=str(uuid4()),
        disks={"vda": RestoredDisk(str(lab.blank_disk("vda", MIB, name="restored").path), "qcow2")},
    )
    result = rewrite(found.inactive_xml, changes)
    uuid = hypervisor.machines.define(result.xml)
    lab.adopt(f"{guest.name}-copy")
    copy = hypervisor.machines.get(uuid)
    for gone in (str(precious), "/srv", "4242", "event0", "shared"):
        assert gone in found.inactive_xml
        assert gone not in copy.inactive_xml
    assert copy.memory_bytes == 192 * MIB, "without the modules, not grown by them"
    assert "<cid auto='yes'/>" in copy.inactive_xml
    for words in ("nvdimm", "virtio-pmem", "shared", "input device", "folder", "vsock", "sound", "past libvirt"):
        assert any(words in warning for warning in result.warnings), words
    # This machine may have no vhost-vsock device, which all the rest can be started without.
    root = ET.fromstring(result.xml)
    devices, vsock = root.find("devices"), root.find("devices/vsock")
    assert devices is not None
    assert vsock is not None
    devices.remove(vsock)
    hypervisor.machines.define(ET.tostring(root, encoding="unicode"))
    hypervisor.machines.start(uuid, paused=True)
    assert hypervisor.machines.get(uuid).state is MachineState.PAUSED


def test_a_terminal_becomes_a_screen_and_a_terminal_again(lab: Lab, hypervisor: Hypervisor) -> None:
    def headless(domain: ET.Element) -> None:
        devices = domain.find("devices")
        assert devices is not None
        for serial in devices.findall("serial"):
            devices.remove(serial)
        ET.SubElement(devices, "serial", type="pty")

    disk = lab.blank_disk("vda", MIB)
    guest = lab.machine("headless", disks=[disk], edit=headless)
    original = hypervisor.machines.get(guest.name).inactive_xml
    new = {"vda": RestoredDisk(str(disk.path), disk.format)}
    changes = Changes(name=f"{guest.name}-copy", uuid=str(uuid4()), disks=new, screen=True)
    uuid = hypervisor.machines.define(rewrite(original, changes).xml)
    copy = lab.adopt(f"{guest.name}-copy")
    hypervisor.machines.start(uuid)
    with Screen(hypervisor.machines.open_screen(uuid)) as screen:
        assert copy.name in screen.name
    current = hypervisor.machines.get(uuid).inactive_xml
    assert "type='vc'" in current
    hypervisor.machines.define(restore_settings(current, original))
    copy.kill()
    hypervisor.machines.start(uuid)
    live = ET.fromstring(hypervisor.machines.get(uuid).live_xml or "")
    assert {serial.get("type") for serial in live.findall("devices/serial")} == {"pty"}
    assert live.find("devices/graphics") is None


def test_machine_on_an_export_is_pulled_and_stands_alone(lab: Lab, hypervisor: Hypervisor) -> None:
    """Overlay, export, definition: as in an instant recovery, down to the admin's own policies at the end."""

    def policies(domain: ET.Element) -> None:
        driver = domain.find("devices/disk/driver")
        assert driver is not None
        driver.set("error_policy", "report")
        driver.set("cache", "none")

    disk = lab.data_disk("vda")
    guest = lab.machine("export", disks=[disk], edit=policies)
    original = hypervisor.machines.get(guest.name).inactive_xml
    socket, overlay = lab.folder / "export.sock", lab.folder / "overlay.qcow2"
    server = subprocess.Popen(
        ["qemu-nbd", "--read-only", "--persistent", "--shared=4", "-f", "qcow2", "-k", socket, disk.path]
    )
    try:
        wait_listening(socket, server)
        with hypervisor.files.offer(socket, str(socket)) as reachable:
            hypervisor.overlays.create(str(overlay), reachable, 256 * MIB)
            changes = Changes(
                name=f"{guest.name}-copy",
                uuid=str(uuid4()),
                disks={"vda": OverlayDisk(str(overlay), reachable)},
                console_folder=str(lab.folder),
            )
            uuid = hypervisor.machines.define(rewrite(original, changes).xml)
            copy = lab.adopt(f"{guest.name}-copy")
            hypervisor.machines.start(uuid)
            assert copy.wait_ready().disks["vda"].marker == "as-built"
            assert hypervisor.block_jobs.depends_on(uuid, "vda", reachable)
            assert not hypervisor.block_jobs.depends_on(uuid, "vda", "/another.sock")
            hypervisor.block_jobs.pull(uuid, "vda")
            wait_until(lambda: not hypervisor.block_jobs.depends_on(uuid, "vda"))
            # Its QEMU dies before it has written out what it pulled: the export is below the overlay again.
            copy.kill_qemu()
            assert hypervisor.machines.state(uuid).crashed
            hypervisor.overlays.put_below(str(overlay), reachable)
            alone = hypervisor.machines.get(uuid).inactive_xml
            hypervisor.machines.define(put_below(alone, "vda", OverlayDisk(str(overlay), reachable)))
            assert hypervisor.block_jobs.depends_on(uuid, "vda", reachable)
            hypervisor.machines.start(uuid)
            assert copy.wait_ready().disks["vda"].marker == "as-built"
            hypervisor.block_jobs.pull(uuid, "vda")
            wait_until(lambda: not hypervisor.block_jobs.depends_on(uuid, "vda"))
            hypervisor.overlays.sync(str(overlay))
            hypervisor.machines.suspend(uuid)
            hypervisor.machines.resume(uuid)
    finally:
        server.terminate()
        server.wait(60)
    copy.write("/mnt/vda/alone", "without the export")
    hypervisor.machines.define(restore_settings(hypervisor.machines.get(uuid).inactive_xml, original))
    driver = ET.fromstring(hypervisor.machines.get(uuid).inactive_xml).find("devices/disk/driver")
    assert driver is not None
    assert (driver.get("error_policy"), driver.get("rerror_policy"), driver.get("cache")) == ("report", None, "none")
    copy.kill()
    assert not hypervisor.machines.state(uuid).crashed
    hypervisor.machines.start(uuid)
    copy.wait_ready()
    assert copy.read("/mnt/vda/alone") == "without the export"


def test_one_definition_that_cannot_be_read_hides_no_other_machine(lab: Lab, hypervisor: Hypervisor) -> None:
    """Metadata is kept as it was given: with a namespace that nobody states, or grown too large for libvirt to send."""
    sound = lab.machine("sound", disks=[lab.blank_disk("vda", MIB)])
    xml = hypervisor.machines.get(sound.name).inactive_xml
    odd = {
        "unbound": '<x:note xmlns:x="urn:x"><y:nowhere/></x:note>',
        "grown": f'<x:note xmlns:x="urn:x">{">" * 1_200_000}</x:note>',  # each is written as four letters
    }
    for word, metadata in odd.items():
        domain = ET.fromstring(xml)
        names = {"name": f"{sound.name}-{word}", "uuid": str(uuid4())}
        for tag, text in names.items():
            element = domain.find(tag)
            assert element is not None
            element.text = text
        for each in domain.findall("metadata"):
            domain.remove(each)
        ET.SubElement(domain, "metadata").text = "METADATA"
        lab.connection().defineXML(ET.tostring(domain, "unicode").replace("METADATA", metadata))
        lab.adopt(names["name"])
    found = {each.name: each for each in hypervisor.machines.list()}
    assert found[sound.name].unreadable is None
    assert len(found[sound.name].disks) == 1
    unbound, grown = (found[f"{sound.name}-{word}"] for word in odd)
    assert "unbound prefix" in (unbound.unreadable or "")
    assert "larger than libvirt can send" in (grown.unreadable or "")
    assert (grown.state, grown.disks, len(grown.uuid)) == (MachineState.OFF, (), 36)
    with pytest.raises(HypervisorError, match="larger than libvirt can send"):
        hypervisor.machines.get(grown.uuid)
