"""A host that is silent, or comes back: nothing waits for ever, and jobs outlive libvirtd."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import libvirt
import pytest

from appliance.hypervisor.calls import Domain, Handle
from appliance.hypervisor.errors import BackupRefused, HostUnreachable, HypervisorError
from appliance.hypervisor.libvirt_driver import connect
from appliance.hypervisor.protocol import HostConfig, Hypervisor, MachineState
from appliance.hypervisor.scratch import ScratchWatch
from tests.contract.hypervisor_waiting import HERE, wait_until
from tests.faults.hypervisor_rig import MIB, request_for
from tests.lab import Lab, PrivateLibvirtd

pytestmark = [pytest.mark.integration, pytest.mark.faults]


@pytest.fixture
def daemon() -> Iterator[PrivateLibvirtd]:
    with PrivateLibvirtd() as started:
        yield started


def test_host_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(HostUnreachable, match="host nowhere does not answer") as error:
        connect(HostConfig("nowhere", socket="/var/tmp/strongroom-no-such-socket"))
    assert error.value.retryable
    assert "strongroom host test nowhere" in error.value.hint


def test_host_that_accepts_and_says_nothing_times_out() -> None:
    """Like a libvirtd that hangs: the connection opens, and no word comes."""
    path = f"/var/tmp/strongroom-silent-{uuid4()}"
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(path)
        silent.listen()
        try:
            with pytest.raises(HostUnreachable, match="within 1 s"):
                connect(HostConfig("silent", socket=path, timeout_s=1.0))
        finally:
            os.unlink(path)


def test_call_to_a_host_that_fell_silent_ends_in_time(daemon: PrivateLibvirtd) -> None:
    with connected_in_time(daemon, timeout_s=6.0) as hypervisor:
        wait_until(lambda: _answers(hypervisor))
        os.kill(daemon.pid, signal.SIGSTOP)
        try:
            with pytest.raises(HostUnreachable):
                hypervisor.machines.list()
        finally:
            os.kill(daemon.pid, signal.SIGCONT)
        wait_until(lambda: _answers(hypervisor))


def connected_in_time(daemon: PrivateLibvirtd, timeout_s: float) -> Hypervisor:
    """To one that is there, also where a busy machine takes longer for that at first."""
    found: list[Hypervisor] = []

    def connected() -> bool:
        with contextlib.suppress(HostUnreachable):
            found.append(connect(HostConfig("private", socket=str(daemon.socket), timeout_s=timeout_s)))
        return bool(found)

    wait_until(connected)
    return found[0]


def _answers(hypervisor: Hypervisor) -> bool:
    try:
        return hypervisor.machines.list() == ()
    except HostUnreachable:
        return False


def test_backup_job_outlives_libvirtd(daemon: PrivateLibvirtd) -> None:
    """Killed during a run: the watch keeps calm, and the job is found again and ended, checkpoint and all."""
    with (
        Lab(uri=daemon.uri) as lab,
        connect(HostConfig("private", socket=str(daemon.socket), timeout_s=120)) as hypervisor,
    ):
        guest = lab.machine("outlives", disks=[lab.blank_disk("vda", 4 * MIB)])
        hypervisor.machines.start(guest.name, paused=True)
        checkpoint = str(uuid4())
        job = hypervisor.backups.begin(request_for(lab.folder / "run", guest.name, checkpoint, vda=None))
        with ScratchWatch(hypervisor, job, limit_bytes=64 * MIB, look_s=0.05) as watch:
            daemon.kill()
            time.sleep(0.5)
            watch.check()
            # The reading goes on meanwhile: the job is QEMU's.
            with socket.socket(socket.AF_UNIX) as nbd:
                nbd.connect(job.socket)
                assert nbd.recv(8) == b"NBDMAGIC"
            restarting = threading.Timer(1.0, daemon.start)
            restarting.start()
            running = hypervisor.backups.current(guest.name)  # waits for it to come back
            restarting.join()
            assert running is not None
            assert running.socket == job.socket
            watch.check()
        assert hypervisor.backups.end(guest.name, job.socket) is False
        assert hypervisor.backups.current(guest.name) is None
        assert [found.name for found in hypervisor.checkpoints.list(guest.name)] == [checkpoint]
        hypervisor.checkpoints.delete(guest.name, checkpoint, ["vda"])
        assert hypervisor.machines.state(guest.name).state is MachineState.PAUSED


class FailingBegin(Handle):
    """libvirt as it is, but for one call."""

    fired = 0

    def call(self, name: str, *arguments: object) -> object:
        if name == "backupBegin":
            FailingBegin.fired += 1
            error = libvirt.libvirtError("told to fail")
            error.err = (67, libvirt.VIR_FROM_QEMU, "told to fail", 2, "", "", "", -1, -1)
            from appliance.hypervisor.calls import translate

            raise translate(error, "here", "guest", name, alive=True)
        return super().call(name, *arguments)


def test_begin_that_fails_leaves_nothing(lab: Lab) -> None:
    FailingBegin.fired = 0
    with connect(HERE, handle=FailingBegin) as hypervisor:
        guest = lab.machine("fails", disks=[lab.blank_disk("vda", MIB)])
        hypervisor.machines.start(guest.name, paused=True)
        with pytest.raises(BackupRefused, match="told to fail"):
            hypervisor.backups.begin(request_for(lab.folder / "run", guest.name, str(uuid4()), vda=None))
        assert FailingBegin.fired == 1
        assert hypervisor.backups.current(guest.name) is None
        assert hypervisor.checkpoints.list(guest.name) == ()
        assert list((lab.folder / "run").iterdir()) == []


def test_every_domain_call_goes_through_the_seam() -> None:
    """So that any of them can be failed: `Domain` touches libvirt only by name, through its handle."""

    class Recorder:
        raw = None

        def __init__(self) -> None:
            self.names: list[str] = []

        def call(self, name: str, *arguments: object) -> object:
            self.names.append(name)
            raise HypervisorError(name)

        def sub(self, raw: object) -> object:
            return raw

    recorder = Recorder()
    domain = Domain(recorder)  # type: ignore[arg-type]
    methods = [name for name in vars(Domain) if not name.startswith("_")]
    for name in methods:
        count = Domain.__dict__[name].__code__.co_argcount - 1
        with pytest.raises(HypervisorError):
            getattr(domain, name)(*([0] * count))
    assert len(recorder.names) == len(methods)
    assert all(hasattr(libvirt.virDomain, name) for name in recorder.names)
