"""What tests of instant recovery share: a protected machine, a look at everything that a recovery makes, its ends.

The rule: that nothing is left is never the product's word: domains are libvirt's to tell, processes the kernel's, files
the folder's, holds the repository's.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from appliance.models import RecoveryRecord, RecoveryState
from appliance.readable import readable
from appliance.services import spawning
from appliance.services.recovery import RecoveryService, Supervisor, service
from tests.integration.backing_up import MIB, Disk, Rig, blank, device, firmware_machine, hmp
from tests.lab import Lab, LabGuest

# What a guest says of a disk that failed it.
GUEST_ERRORS = ("I/O error", "EXT4-fs error", "EXT4-fs warning", "Buffer I/O", "JBD2", "Remounting", "hung")


@dataclass
class Finished:
    code: int
    out: str
    err: str

    def json(self) -> Any:
        return json.loads(self.out)


def strongroom(rig: Rig, *arguments: str | Path, expect: int | None = 0, timeout_s: float = 180) -> Finished:
    """The command line, as a process of its own."""
    done = subprocess.run(
        rig.command(*arguments), env=rig.process_environment(), capture_output=True, text=True, timeout=timeout_s,
        check=False,
    )  # fmt: skip
    assert expect is None or done.returncode == expect, f"{arguments} ended with {done.returncode}: {done.stderr}"
    return Finished(done.returncode, done.stdout, done.stderr)


def record_of(rig: Rig, id: str) -> RecoveryRecord:
    return rig.appliance.catalog.recoveries.get(id)


def wait_until(holds: Callable[[], object], what: str, timeout_s: float = 120) -> float:
    """Seconds that it took."""
    began = time.monotonic()
    while not holds():
        assert time.monotonic() - began < timeout_s, f"not within {timeout_s:g} s: {what}"
        time.sleep(0.05)
    return time.monotonic() - began


def exports_of(rig: Rig, record: RecoveryRecord) -> list[int]:
    """Process ids of the nbdkit servers of a recovery, from the kernel's list."""
    wanted = {os.fsencode(disk.socket) for disk in record.disks}
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (process / "cmdline").read_bytes().split(b"\0")
            if words[0].endswith(b"nbdkit") and wanted & set(words):
                found.append(int(process.name))
    return found


def kill_all(pids: list[int]) -> None:
    """SIGKILL, and wait until they are dead: the command line goes first, files and their locks some time later."""
    with contextlib.ExitStack() as stack:
        processes = []
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):  # it has ended by itself meanwhile
                process = os.pidfd_open(pid)
                stack.callback(os.close, process)
                processes.append(process)
                signal.pidfd_send_signal(process, signal.SIGKILL)
        for process in processes:
            assert readable(process, 120), "a process does not die"


def kill_exports(rig: Rig, record: RecoveryRecord) -> None:
    pids = exports_of(rig, record)
    assert len(pids) == len([disk for disk in record.disks if not disk.migrated]), "an export is not there"
    kill_all(pids)


def supervisors_of(rig: Rig) -> list[int]:
    """A child of one has its command line, until it runs its own program: it is none."""
    found: dict[int, int] = {}
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (process / "cmdline").read_bytes().split(b"\0")
            if b"supervise" in words and os.fsencode(rig.home) in words:
                state, parent = (process / "stat").read_text().rpartition(")")[2].split()[:2]
                if state != "Z":
                    found[int(process.name)] = int(parent)
    return [pid for pid, parent in found.items() if parent not in found]


def assert_export_gone(rig: Rig, record: RecoveryRecord) -> None:
    """No server, none of its files, no lock, no hold."""
    assert exports_of(rig, record) == []

    def files() -> list[str]:
        return [path.name for path in rig.settings.run_directory.iterdir() if record.id[:12] in path.name]

    # A supervisor that knew of the recovery before it ended locks it once more, and takes the lock away itself.
    wait_until(lambda: not files(), "its files are gone")
    assert [hold.owner for hold in rig.appliance.repository.holds() if record.id in hold.owner] == []


def assert_nothing_left(rig: Rig, lab: Lab, record: RecoveryRecord) -> None:
    """Of a recovery that was discarded."""
    assert record_of(rig, record.id).state is RecoveryState.DISCARDED
    assert_export_gone(rig, record)
    assert not lab.adopt(record.machine_name).exists
    assert not Path(record.folder).exists()
    for disk in record_of(rig, record.id).disks:
        assert disk.destination is None or not Path(disk.destination).exists()


def assert_guest_saw_nothing(guest: LabGuest) -> None:
    told = guest.run("dmesg")
    assert not [line for line in told.splitlines() if any(word in line for word in GUEST_ERRORS)], told[-2000:]


@contextlib.contextmanager
def supervised(rig: Rig) -> Iterator[None]:
    """Afterwards every recovery is discarded, and the supervisor has ended by itself."""
    try:
        yield
    finally:
        for record in rig.appliance.catalog.recoveries.list(ended=False):
            RecoveryService(rig.appliance).discard(record.id)
        wait_until(lambda: not supervisors_of(rig), "the supervisor ends when nothing is left")
        assert not rig.appliance.alive(spawning.SUPERVISOR)


@contextlib.contextmanager
def serving(made: Rig) -> Iterator[subprocess.Popen[str]]:
    """It looks after recoveries when this begins. Ends by SIGTERM, in time and with exit code 0."""
    process = subprocess.Popen(made.command("serve"), env=made.process_environment(), stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        assert "serving" in process.stderr.readline()
        wait_until(lambda: spawning.looked_after(made.appliance) or process.poll() is not None, "a supervisor lives")
        yield process
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=120)
        assert process.returncode == 0
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()


@pytest.fixture
def no_supervisor(monkeypatch: pytest.MonkeyPatch) -> None:
    """In this process no supervisor is started, so that what a command does can be told from what it would do."""
    monkeypatch.setattr(service, "ensure_supervisor", lambda _appliance: None)


def look(rig: Rig, *, for_ever: bool = False) -> Supervisor:
    """A supervisor in this process, to be asked for single looks."""
    return Supervisor(rig.appliance, for_ever=for_ever)


@dataclass
class Protected:
    """A machine without a guest, backed up and lost. `disks` know what must be read."""

    guest: LabGuest
    disks: list[Disk]

    def __post_init__(self) -> None:
        self._kept = [bytes(disk.truth) for disk in self.disks]

    @property
    def name(self) -> str:
        return self.guest.name

    def reset(self) -> None:
        """The disks of the next recovery begin as they were backed up."""
        for disk, kept in zip(self.disks, self._kept, strict=True):
            disk.truth[:] = kept


def protect(rig: Rig, lab: Lab, name: str, sizes_bytes: list[int], noise_bytes: int = 4 * MIB) -> Protected:
    disks = [blank(lab, f"vd{'abc'[at]}", size, seed=at, name=f"{name}-{at}") for at, size in enumerate(sizes_bytes)]
    guest = firmware_machine(lab, [disk.disk for disk in disks], name)
    guest.start(wait=False)
    for disk in disks:
        disk.write_pattern(guest, MIB, 4 * MIB, 0x5A)
        disk.write_noise(guest, 6 * MIB, noise_bytes)
    rig.backup(guest)
    guest.kill()
    return Protected(guest, disks)


def reads_right(guest: LabGuest, disk: Disk, logs: Path = Path("/var/log/libvirt/qemu")) -> bool:
    """Whether the running machine reads what the backup held, and zeros where nothing was written.

    QEMU does not answer what its qemu-io found: it writes it into the log of the machine, by a process between them. So
    what is told of these reads is what stands between two commands that it does not know, and says so of.
    """
    node, log = device(guest, disk.disk.target), logs / f"{guest.name}.log"
    begin, end = (f"{each}-{secrets.token_hex(4)}" for each in ("begin", "end"))
    wanted = ((0x5A, MIB, 4 * MIB), (0, 0, MIB))
    for command in (begin, *(f"read -P {byte} {start} {length}" for byte, start, length in wanted), end):
        hmp(guest, f'qemu-io -d {node} "{command}"')
    between = re.compile(rf'"{begin}" not found\s(.*)command "{end}" not found', re.DOTALL)

    def said() -> list[str]:
        return between.findall(log.read_text(errors="replace"))

    wait_until(said, f"{log} tells of both reads")
    (told,) = said()
    assert len(re.findall(r"ops/sec|failed: ", told)) == len(wanted), told
    assert "Pattern verification failed" not in told, "an error may pass, wrong bytes never"
    return "failed" not in told
