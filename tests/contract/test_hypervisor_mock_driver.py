"""Inventory and life cycle on libvirt's own test driver: a hypervisor that lacks nearly all that QEMU has."""

from __future__ import annotations

import re
from collections.abc import Iterator
from uuid import uuid4

import pytest

from appliance.hypervisor.errors import HypervisorError, MachineNotFound
from appliance.hypervisor.libvirt_driver import connect
from appliance.hypervisor.protocol import HostConfig, Hypervisor, MachineState, Transport
from appliance.hypervisor.uri import parse_host


@pytest.fixture
def hypervisor() -> Iterator[Hypervisor]:
    with connect(parse_host("mock", "test:///default")) as connected:
        yield connected


def test_machines_are_listed(hypervisor: Hypervisor) -> None:
    (machine,) = hypervisor.machines.list()
    assert (machine.name, machine.state, machine.persistent) == ("test", MachineState.RUNNING, True)
    assert machine.memory_bytes == 8 << 30
    assert [(disk.target, disk.can_hold_bitmap) for disk in machine.disks] == [("vda", False)]
    assert not machine.agent_channel
    assert hypervisor.machines.get(machine.uuid) == hypervisor.machines.get("test")


def test_life_cycle(hypervisor: Hypervisor) -> None:
    machines = hypervisor.machines
    machines.suspend("test")
    assert machines.state("test").state is MachineState.PAUSED
    machines.resume("test")
    machines.destroy("test")
    assert machines.state("test").state is MachineState.OFF
    machines.start("test")
    assert machines.state("test").state is MachineState.RUNNING


def test_definition_makes_another_machine(hypervisor: Hypervisor) -> None:
    first = hypervisor.machines.get("test")
    uuid = str(uuid4())
    with pytest.raises(MachineNotFound):
        hypervisor.machines.get("other")
    xml = first.inactive_xml.replace("<name>test<", "<name>other<").replace(first.uuid, uuid)
    assert hypervisor.machines.define(xml) == uuid
    assert hypervisor.machines.get("other").state is MachineState.OFF


def test_disk_named_to_lead_elsewhere_is_listed_and_skipped(hypervisor: Hypervisor) -> None:
    """libvirt's parser takes such a name (its QEMU driver, as of 9.0, does not): it must reach no path."""
    first, target = hypervisor.machines.get("test"), "vda/../../../../tmp/x"
    xml = first.inactive_xml.replace("<name>test<", "<name>named<").replace(first.uuid, str(uuid4()))
    hypervisor.machines.define(re.sub(r"dev=.vda.", f"dev='{target}'", xml))
    (disk,) = hypervisor.machines.get("named").disks
    assert disk.target == target
    assert "no plain name" in (disk.skip_reason or "")


def test_facts_are_told_without_guessing(hypervisor: Hypervisor) -> None:
    facts = hypervisor.facts()
    assert facts.hypervisor == "TEST"
    assert facts.kvm is False
    with pytest.raises(HypervisorError, match="does not tell which user"):
        hypervisor.files.qemu()


def test_closed_connection_stays_closed() -> None:
    hypervisor = connect(HostConfig("mock", Transport.TEST))
    hypervisor.close()
    hypervisor.close()
    with pytest.raises(HypervisorError, match="closed here"):
        hypervisor.machines.list()
