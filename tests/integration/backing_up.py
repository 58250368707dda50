"""What tests of machine backups share: an appliance of their own, machines that are all firmware, and the disk's truth.

The rule: what a restore point should hold is never taken from the product: it is a bytearray that the test wrote
through QEMU itself, or the disk's file as qemu-img reads it.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import secrets
import signal
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import libvirt_qemu

from appliance.bootstrap import Appliance
from appliance.hypervisor.protocol import HostConfig, Hypervisor
from appliance.models import RunDisk
from appliance.services import repositories
from appliance.services.backup import BackupService, RunResult
from appliance.services.cleaning import CleaningService
from appliance.services.inventory import InventoryService
from appliance.settings import load
from imaging.manifest import FileEntry
from imaging.points import Point
from imaging.reader import DiskReader
from tests.lab import Lab, LabDisk, LabGuest
from tests.lab.owned import home_folder

T = TypeVar("T")
S = TypeVar("S")

MIB = 1 << 20
HOST = "here"
_HMP = libvirt_qemu.VIR_DOMAIN_QEMU_MONITOR_COMMAND_HMP


class Progress:
    """Remembers what a run told, and does something once, in the middle of it.

    `act` is called when `after_bytes` of the disks have been read, between two reads.
    """

    def __init__(self, act: Callable[[], None] | None = None, *, after_bytes: int = 1) -> None:
        self.notes: list[str] = []
        self.acted = False
        self._act = act
        self._left_bytes = after_bytes

    def start(self, label: str, total_bytes: int | None) -> None: ...

    def advance(self, count_bytes: int) -> None:
        self._left_bytes -= count_bytes
        if self._act is not None and not self.acted and self._left_bytes <= 0:
            self.acted = True
            self._act()

    def note(self, text: str) -> None:
        self.notes.append(text)

    def finish(self) -> None: ...


class Rig:
    """An appliance with an empty repository and one host. Owns the appliance; its home is the caller's to remove."""

    def __init__(
        self, home: Path, environment: Mapping[str, str] | None = None, *, socket: str = "", timeout_s: float = 60
    ) -> None:
        self.home = home
        self.environment = {"STRONGROOM_HOME": str(home), **(environment or {})}
        self.settings = load(self.environment)
        repositories.init(self.settings, None, secrets.token_urlsafe(16), lambda _: None)
        self.appliance = Appliance(self.settings)
        InventoryService(self.appliance).add_host(HostConfig(HOST, socket=socket, timeout_s=timeout_s))

    def close(self) -> None:
        self.appliance.close()

    def reopen(
        self,
        environment: Mapping[str, str] | None = None,
        *,
        connector: Callable[[HostConfig], Hypervisor] | None = None,
    ) -> None:
        """The same home, as a new process would find it, with settings over those it was made with."""
        self.appliance.close()
        self.settings = load({**self.environment, **(environment or {})})
        self.appliance = Appliance(self.settings, connector=connector)

    def backup(self, guest: LabGuest, *, full: bool = False, progress: Progress | None = None) -> RunResult:
        return BackupService(self.appliance).run_machine(guest.name, full=full, progress=progress or Progress())

    def settle(self) -> tuple[str, ...]:
        return CleaningService(self.appliance).settle()

    def points(self) -> list[Point]:
        return self.appliance.repository.points()

    def content(self, point: Point, disk: str = "vda") -> bytes:
        """All bytes of one disk of a point, read back through the repository."""
        entry = point.manifest.disk(disk)
        assert entry is not None, f"{disk} is not on the point"
        return DiskReader(self.appliance.repository.blobs, entry.root, entry.size_bytes).pread(0, entry.size_bytes)

    def file_content(self, entry: FileEntry) -> bytes:
        """A small file that was kept with a machine."""
        reader = DiskReader(self.appliance.repository.blobs, entry.root, entry.size_bytes)
        return reader.pread(0, entry.size_bytes)

    def command(self, *arguments: str | Path) -> list[str]:
        """The command line of this project, to be run with `process_environment`."""
        return [str(Path(sys.executable).with_name("strongroom")), *map(str, arguments)]

    def process_environment(self) -> dict[str, str]:
        return {**os.environ, **self.environment}

    def killed_at(self, place: tuple[str, str], *arguments: str) -> None:
        """Run a command that dies by SIGKILL at this place (see tests/faults/crash.py), which it has to reach."""
        done = self.signalled_at(place, *arguments)
        assert done.returncode == -signal.SIGKILL, f"{place} was not reached by {arguments}: {done.stderr}"

    def signalled_at(self, place: tuple[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "tests.faults.crash", *place, "1", *arguments],
            env=self.process_environment(), capture_output=True, text=True, timeout=180, check=False,
        )  # fmt: skip

    def assert_nothing_left(self, *guests: LabGuest, bitmap_lost: bool = False) -> None:
        """No debt, nothing in scratch; on each machine no job, and the newest point's checkpoint alone.

        `bitmap_lost`: the machine was killed, so that not even that needs to be there.
        """
        catalog = self.appliance.catalog
        assert catalog.cleanups.list() == ()
        assert catalog.thaws.list() == ()
        assert list(self.settings.scratch.directory.iterdir()) == []
        assert [path.name for path in self.settings.run_directory.glob("run-*")] == []
        for guest in guests:
            series = self.appliance.repository.series_of("vm", guest.domain.UUIDString())
            points = self.appliance.repository.points(series)
            wanted = {points[-1].manifest.checkpoint} - {None} if points else set()
            assert bitmaps(guest) == wanted or (bitmap_lost and not bitmaps(guest))
            if guest.domain.isActive():
                assert guest.domain.jobInfo()[0] == 0, "a job is left on the machine"


@contextmanager
def rig(environment: Mapping[str, str] | None = None, *, socket: str = "", timeout_s: float = 60) -> Iterator[Rig]:
    """Where QEMU's user can reach scratch and sockets. `environment`: settings as STRONGROOM_SECTION_KEY."""
    with home_folder() as parent:
        made = Rig(parent / "home", environment, socket=socket, timeout_s=timeout_s)
        try:
            yield made
        finally:
            made.close()


# --- machines without a guest -----------------------------------------------------------------------------------------


def firmware_machine(
    lab: Lab, disks: Sequence[LabDisk], name: str = "bios", edit: Callable[[ET.Element], None] | None = None
) -> LabGuest:
    """A machine that is on at once: firmware that finds nothing to boot. Its disks are written through QEMU."""

    def no_kernel(domain: ET.Element) -> None:
        system = domain.find("os")
        assert system is not None
        for tag in ("kernel", "initrd", "cmdline"):
            element = system.find(tag)
            assert element is not None
            system.remove(element)
        if edit is not None:
            edit(domain)

    return lab.machine(name, disks=disks, memory_mib=64, edit=no_kernel)


def standing(act: Callable[[], T], state: Callable[[], S]) -> tuple[T, S]:
    """What `act` gave, once `state` was the same before and after it. A machine that was suspended does nothing more,
    but who works for it may still be at what it was told before."""
    deadline = time.monotonic() + 120
    while True:
        before, given = state(), act()
        if before == state():
            return given, before
        assert time.monotonic() < deadline, "it does not come to a rest"


def tpm_states(uuid: str) -> dict[str, bytes]:
    """The files of a machine's emulated TPM; a new one of them is written beside the old one, and then gets its
    name."""
    root, found = Path("/var/lib/libvirt/swtpm", uuid), {}
    for path in root.rglob("*"):
        with contextlib.suppress(FileNotFoundError):
            if path.is_file():
                found[str(path.relative_to(root))] = path.read_bytes()
    return found


def hmp(guest: LabGuest, command: str) -> str:
    return str(libvirt_qemu.qemuMonitorCommand(guest.domain, command, _HMP))


def qmp(guest: LabGuest, command: str) -> Any:
    return qmp_run(guest, command)


def qmp_run(guest: LabGuest, command: str, **arguments: Any) -> Any:
    request = json.dumps({"execute": command, "arguments": arguments} if arguments else {"execute": command})
    answer = json.loads(libvirt_qemu.qemuMonitorCommand(guest.domain, request, 0))
    assert "return" in answer, answer
    return answer["return"]


class Disk:
    """A virtio disk of a machine, written as its guest would write it, and what it must hold now."""

    def __init__(self, lab: Lab, disk: LabDisk, size_bytes: int, seed: int = 1) -> None:
        self.lab = lab
        self.disk = disk
        self.truth = bytearray(size_bytes)
        self.random = random.Random(seed)

    @property
    def path(self) -> Path:
        return self.disk.path

    def write(self, guest: LabGuest, offset: int, data: bytes) -> None:
        """Through the device of the running machine, so that bitmaps and backup jobs see it."""
        self.write_to(guest, self.disk.target, offset, data)

    def write_to(self, guest: LabGuest, target: str, offset: int, data: bytes) -> None:
        """As write, where the disk is at another target than it was made for."""
        block = self.lab.folder / f"block-{self.disk.target}"
        block.write_bytes(data)
        block.chmod(0o644)
        self._io(guest, f"write -s {block} {offset} {len(data)}", target)
        self.truth[offset : offset + len(data)] = data

    def write_noise(self, guest: LabGuest, offset: int, length: int) -> None:
        self.write(guest, offset, self.random.randbytes(length))

    def write_pattern(self, guest: LabGuest, offset: int, length: int, byte: int) -> None:
        """Fast at any length: QEMU makes up the data."""
        for start in range(offset, offset + length, 64 * MIB):
            self._io(guest, f"write -P {byte} {start} {min(64 * MIB, offset + length - start)}")
        self.truth[offset : offset + length] = bytes([byte]) * length

    def flush(self, guest: LabGuest) -> None:
        """What was written outlives QEMU."""
        self._io(guest, "flush")

    def discard(self, guest: LabGuest, offset: int, length: int) -> None:
        self._io(guest, f"discard {offset} {length}")
        self.truth[offset : offset + length] = bytes(length)

    def write_off(self, offset: int, data: bytes) -> None:
        """Into the file of a machine that is off, as QEMU itself would."""
        block = self.lab.folder / f"block-{self.disk.target}"
        block.write_bytes(data)
        tool("qemu-io", "-f", self.disk.format, "-c", f"write -s {block} {offset} {len(data)}", self.path)
        self.truth[offset : offset + len(data)] = data

    def content_now(self) -> bytes:
        """What the file holds; nobody has it open."""
        return plain(self.path, self.disk.format)

    def _io(self, guest: LabGuest, command: str, target: str | None = None) -> None:
        answer = hmp(guest, f'qemu-io -d {device(guest, target or self.disk.target)} "{command}"')
        assert not any(word in answer.lower() for word in ("error", "failed")), answer


def device(guest: LabGuest, target: str) -> str:
    """QEMU's name of a virtio disk's back end."""
    for disk in ET.fromstring(guest.domain.XMLDesc()).findall("devices/disk"):
        found, alias = disk.find("target"), disk.find("alias")
        if found is not None and alias is not None and found.get("dev") == target:
            return f"/machine/peripheral/{alias.get('name')}/virtio-backend"
    raise AssertionError(f"{guest.name} has no disk {target}")


def blank(lab: Lab, target: str, size_bytes: int, seed: int = 1, **kind: Any) -> Disk:
    return Disk(lab, lab.blank_disk(target, size_bytes, **kind), size_bytes, seed)


def bitmaps(guest: LabGuest) -> set[str]:
    """Names of all bitmaps on the machine's disks: QEMU's word when it runs, the files' when it is off."""
    if guest.domain.isActive():
        nodes = qmp(guest, "query-named-block-nodes")
        return {found["name"] for node in nodes for found in node.get("dirty-bitmaps", [])}
    return {name for path in guest.disk_paths.values() for name in file_bitmaps(path)}


def file_bitmaps(path: Path) -> set[str]:
    """Of a file that nobody has open."""
    info = image_info(path)
    if info["format"] != "qcow2":
        return set()
    return {found["name"] for found in info["format-specific"]["data"].get("bitmaps", [])}


def checkpoints(guest: LabGuest) -> set[str]:
    """What libvirt knows."""
    return {found.getName() for found in guest.domain.listAllCheckpoints()}


def image_info(path: Path) -> Any:
    return json.loads(tool("qemu-img", "info", "-U", "--output=json", path))


def plain(path: Path, image_format: str = "qcow2") -> bytes:
    """The content of an image file that nobody has open."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
        raw = Path(folder, "raw")
        tool("qemu-img", "convert", "-f", image_format, "-O", "raw", path, raw)
        return raw.read_bytes()


def tool(*command: str | Path) -> str:
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 0, f"{command[0]}: {done.stderr.strip()}"
    return done.stdout


def reads(result: RunResult) -> dict[str, tuple[str, str | None]]:
    """Of each disk, how it was read and why."""
    return {disk.name: (disk.read.value, disk.reason) for disk in result.run.disks}


def read_of(result: RunResult, disk: str = "vda") -> RunDisk:
    return next(found for found in result.run.disks if found.name == disk)
