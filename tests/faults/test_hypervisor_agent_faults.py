"""A guest agent that is slow, silent or gone: the guest never stays frozen."""

from __future__ import annotations

import time
from collections.abc import Iterator

import libvirt
import pytest

from appliance.hypervisor.libvirt_driver import connect
from appliance.hypervisor.protocol import FreezeOutcome, Hypervisor, ThawOutcome
from tests.contract.hypervisor_waiting import HERE, wait_until
from tests.lab import LabGuest

pytestmark = [pytest.mark.integration, pytest.mark.faults]


@pytest.fixture
def hypervisor() -> Iterator[Hypervisor]:
    with connect(HERE) as connected:
        yield connected


def test_freeze_that_timed_out_happens_later_and_is_thawed(agent_guest: LabGuest, hypervisor: Hypervisor) -> None:
    wait_until(lambda: hypervisor.machines.get(agent_guest.name).agent_connected)
    agent_guest.run("killall -STOP qemu-ga")
    freeze = hypervisor.agents.freeze(agent_guest.name, 2)
    assert freeze.outcome is FreezeOutcome.TIMED_OUT
    assert freeze.thaw_owed
    thaw = hypervisor.agents.thaw(agent_guest.name, 1)
    assert thaw.outcome is ThawOutcome.NOT_CONFIRMED
    assert not thaw.confirmed
    agent_guest.run("killall -CONT qemu-ga")
    wait_until(lambda: hypervisor.agents.thaw(agent_guest.name, 3).outcome is ThawOutcome.THAWED)
    assert agent_guest.freeze_status() == "thawed"
    agent_guest.write("/mnt/vda/after", "writes go on")


def test_thaw_of_a_machine_that_went_off_is_moot(agent_guest: LabGuest, hypervisor: Hypervisor) -> None:
    wait_until(lambda: hypervisor.machines.get(agent_guest.name).agent_connected)
    agent_guest.run("killall -STOP qemu-ga")
    assert hypervisor.agents.freeze(agent_guest.name, 1).thaw_owed
    agent_guest.kill()
    assert hypervisor.agents.thaw(agent_guest.name, 1).outcome is ThawOutcome.MOOT
    agent_guest.remove()
    assert hypervisor.agents.thaw(agent_guest.name, 1).outcome is ThawOutcome.MOOT


def test_timeout_for_others_is_put_back(agent_guest: LabGuest, hypervisor: Hypervisor) -> None:
    """libvirt keeps the time-out per machine: ours must not cut off what others ask the agent."""
    wait_until(lambda: hypervisor.machines.get(agent_guest.name).agent_connected)
    wait_until(lambda: hypervisor.agents.thaw(agent_guest.name, 1).confirmed)
    agent_guest.run("(killall -STOP qemu-ga; sleep 2; killall -CONT qemu-ga) >/dev/null 2>&1 &")
    began = time.monotonic()
    try:
        assert agent_guest.domain.fsThaw() == 0
    except libvirt.libvirtError:
        # By libvirt's default it waits up to 5 s for the agent to answer a greeting: an agent that a busy machine keeps
        # waiting for so long is given up then, but never after our second.
        assert time.monotonic() - began > 4
