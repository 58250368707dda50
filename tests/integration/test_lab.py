"""The lab itself: real guests boot, hold what they are told, freeze, and outlive the daemon that started them."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import libvirt
import pytest

from appliance.readable import readable
from tests.integration.backing_up import firmware_machine
from tests.lab import CommandFailed, GuestSilent, Lab, LabGuest, PrivateLibvirtd
from tests.lab.guest import parse_report
from tests.lab.machines import sweep

pytestmark = pytest.mark.integration
MIB = 1 << 20


def test_a_guest_reports_its_disk_and_keeps_what_it_was_told_to_write(lab: Lab) -> None:
    guest = lab.machine()
    first = guest.start()
    assert first is not None
    assert first.disks["vda"].size_bytes == 256 * MIB
    assert first.disks["vda"].filesystem == "ext4"
    assert first.disks["vda"].marker == "as-built"

    guest.write("/mnt/vda/marker", "written 'by' a test\n")
    guest.fill("/mnt/vda/noise", 2)
    content = guest.content()
    assert guest.read("/mnt/vda/marker") == "written 'by' a test\n"
    guest.kill()
    assert not guest.running

    second = guest.start()
    assert second is not None
    assert second.disks["vda"].marker == "written_'by'_a_test"
    assert second.disks["vda"].files == first.disks["vda"].files + 1
    assert guest.content() == content


def test_a_guest_finds_disks_of_every_kind(lab: Lab) -> None:
    disks = [
        lab.data_disk("vda", serial="SR0001"),
        lab.ext4_disk("vdb", 64 * MIB, {"marker": b"second\n", "deep/file": b"x" * 5000}, format="raw"),
        lab.blank_disk("vdc", 32 * MIB, compat="0.10"),
    ]
    guest = lab.machine(disks=disks)
    report = guest.start()
    assert report is not None
    assert report.disks["vdb"].marker == "second"
    assert report.disks["vdb"].files == 2
    assert report.disks["vdc"].filesystem == "none"
    assert guest.disk_paths == {disk.target: disk.path for disk in disks}
    guest.run("dd if=/mnt/vdb/deep/file of=/dev/vdc bs=4k conv=fsync")
    guest.switch_off()
    assert guest.state == libvirt.VIR_DOMAIN_SHUTOFF
    start = subprocess.run(
        ["qemu-io", "-r", "-f", "qcow2", "-c", "read -P 0x78 0 4096", str(disks[2].path)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "Pattern verification failed" not in start.stdout


def test_a_failing_command_says_why_and_a_silent_guest_is_noticed(guest: LabGuest) -> None:
    with pytest.raises(CommandFailed, match="No such file") as failure:
        guest.run("cat /mnt/vda/absent")
    assert failure.value.status == 1
    with pytest.raises(CommandFailed, match="syntax error"):
        guest.run("if")
    with pytest.raises(GuestSilent, match="did not end"):
        guest.run("sleep 8", timeout_s=5)
    assert guest.run("printf '\\000\\377' | hexdump -C | head -n 1").startswith("00000000  00 ff")


def test_the_agent_freezes_and_thaws(agent_guest: LabGuest) -> None:
    assert agent_guest.freeze_status() == "thawed"
    assert agent_guest.domain.fsFreeze() == 1
    assert agent_guest.freeze_status() == "frozen"
    agent_guest.run("(echo late >/mnt/vda/late; fsync /mnt/vda/late; echo done >/tmp/late) >/dev/null 2>&1 &")
    assert agent_guest.run("sleep 1; cat /tmp/late 2>/dev/null || echo waiting").strip() == "waiting"
    agent_guest.domain.fsThaw()
    assert agent_guest.freeze_status() == "thawed"
    assert agent_guest.run("while [ ! -e /tmp/late ]; do sleep 0.1; done; cat /tmp/late").strip() == "done"


@pytest.fixture
def private_libvirtd() -> Iterator[PrivateLibvirtd]:
    with PrivateLibvirtd() as daemon:
        yield daemon


@pytest.mark.faults
def test_a_private_libvirtd_dies_and_its_guest_runs_on(private_libvirtd: PrivateLibvirtd) -> None:
    with Lab(uri=private_libvirtd.uri) as lab:
        guest = lab.machine()
        guest.start()
        shared = libvirt.open("qemu:///system")
        assert guest.name not in {domain.name() for domain in shared.listAllDomains()}
        shared.close()
        guest.run("writer /mnt/vda/journal >/dev/null 2>&1 &")

        private_libvirtd.kill()
        before = int(guest.run("while [ ! -s /tmp/writer.count ]; do sleep 0.1; done; cat /tmp/writer.count"))
        private_libvirtd.start()

        assert guest.running
        guest.run(f"while [ $(cat /tmp/writer.count) -le {before} ]; do sleep 0.1; done")
        assert guest.run("cat /tmp/writer.errors") == ""


def test_closing_a_lab_leaves_nothing(lab: Lab) -> None:
    with Lab() as inner:
        guest = inner.machine()
        guest.start(wait=False)
        folder, name = inner.folder, guest.name
    assert not folder.exists()
    assert name not in {domain.name() for domain in lab.connection().listAllDomains()}


def test_a_report_that_lacks_a_disk_is_refused() -> None:
    line = "STRONGROOM-GUEST disk=vda bytes=512 filesystem=none files=0 marker=none"
    assert parse_report(f"{line}\nSTRONGROOM-GUEST ready disks=1 mounted=0\n").disks["vda"].size_bytes == 512
    with pytest.raises(ValueError, match="2 disks and reported 1"):
        parse_report(f"{line}\nSTRONGROOM-GUEST ready disks=2 mounted=0\n")


_DIES = """
import os, subprocess, time
from tests.integration.backing_up import firmware_machine
from tests.lab import Lab
from tests.lab.owned import home_folder
with Lab() as lab, home_folder() as parent:
    firmware_machine(lab, [lab.blank_disk("vda", 1 << 20)], "left").start(wait=False)
    environment = {**os.environ, "STRONGROOM_HOME": f"{parent}/home"}
    daemon = subprocess.Popen(["sleep", "600"], env=environment, stdout=subprocess.DEVNULL)
    print(lab.token, lab.folder, parent, daemon.pid, flush=True)
    time.sleep(600)
"""


@pytest.mark.faults
def test_what_a_killed_process_left_is_removed_and_nothing_else(lab: Lab) -> None:
    """Machines, processes and folders; what is of a lab that lives stays."""
    mine = firmware_machine(lab, [lab.blank_disk("vda", MIB)], "mine")
    mine.start(wait=False)
    owner = subprocess.Popen([sys.executable, "-c", _DIES], stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    token, *folders, daemon = owner.stdout.readline().split()

    def there() -> list[bool]:
        named = [name for domain in lab.connection().listAllDomains() if (name := domain.name()).startswith(token)]
        return [bool(named), *(Path(each).exists() for each in folders)]

    assert there() == [True] * 3
    sweep()
    assert there() == [True] * 3
    with os.fdopen(os.pidfd_open(int(daemon))) as process:
        owner.kill()
        owner.communicate()
        deadline = time.monotonic() + 120
        while there() != [False] * 3:  # a process of tests beside this one may be at it
            assert time.monotonic() < deadline, there()
            sweep()
        assert readable(process, 120), "a process is left"
    assert mine.running
    assert lab.folder.exists()
