"""A look at a machine's disks, by whomever, while its backup begins: QEMU 7.2 dies of it where it makes the scratch
files itself (docs/decisions, 30)."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from uuid import uuid4

import libvirt
import pytest

from appliance.hypervisor.libvirt_driver import connect
from appliance.hypervisor.protocol import Hypervisor
from tests.contract.hypervisor_waiting import HERE
from tests.faults.hypervisor_rig import MIB, request_for
from tests.lab import Lab, LabGuest

pytestmark = [pytest.mark.integration, pytest.mark.faults]
# Where QEMU makes the images, it died in the first to third.
_BEGINS = 12
_MOST_BEGINS = 100


@pytest.fixture
def hypervisor() -> Iterator[Hypervisor]:
    with connect(HERE) as connected:
        yield connected


def paused_machine(lab: Lab, hypervisor: Hypervisor, name: str) -> LabGuest:
    guest = lab.machine(name, disks=[lab.blank_disk(disk, 4 * MIB, name=f"{name}-{disk}") for disk in ("vda", "vdb")])
    hypervisor.machines.start(guest.name, paused=True)
    return guest


class Looking:
    """Another program that watches a machine's disks, over a connection of its own, all the time."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self.looks = 0

    def _look(self) -> None:
        connection = libvirt.open("qemu:///system")
        try:
            domain = connection.lookupByName(self._name)
            while not self._stop.is_set() and domain.isActive():
                domain.blockInfo("vda")
                self.looks += 1
        finally:
            connection.close()

    @contextmanager
    def all_the_time(self) -> Iterator[None]:
        self._thread.start()
        try:
            yield
        finally:
            self._stop.set()
            self._thread.join()

    def through(self, begin: Callable[[], object], end: Callable[[], object]) -> None:
        """Begin and end, again until this many looks were answered while something began."""
        seen = 0
        for done in range(_MOST_BEGINS):
            if done >= _BEGINS and seen >= _BEGINS:
                return
            before = self.looks
            begin()
            seen += self.looks - before
            end()
        raise AssertionError(f"only {seen} looks met a begin")


def test_a_look_while_a_backup_begins(lab: Lab, hypervisor: Hypervisor) -> None:
    guest = paused_machine(lab, hypervisor, "looked")
    request = request_for(lab.folder / "run", guest.name, str(uuid4()), vda=None, vdb=None)

    def end() -> None:
        hypervisor.backups.end(guest.name, request.socket)
        hypervisor.checkpoints.delete(guest.name, request.checkpoint, ["vda", "vdb"])

    looking = Looking(guest.name)
    with looking.all_the_time():
        looking.through(lambda: hypervisor.backups.begin(request), end)
    assert guest.domain.isActive()
    assert list((lab.folder / "run").iterdir()) == []
