"""Virtual machines of the benchmark: a disk each and no operating system, run by the local hypervisor.

The rule: a machine is named after the process that made it, and is taken away with everything that libvirt keeps of it
when that process ends; what a killed run left behind is taken away by the next one. Changes are written by QEMU itself,
through the virtual disk, so that its dirty bitmaps see them as they see a guest's.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import libvirt
import libvirt_qemu

from tests.bench.images import BLOCK_BYTES
from tests.bench.measure import BenchError, CommandFailed

URI = "qemu:///system"
_BATCH = 256
_PREFIX = "strongroom-bench-"
_UNDEFINE = (
    libvirt.VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA
    | libvirt.VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA
    | libvirt.VIR_DOMAIN_UNDEFINE_MANAGED_SAVE
)
# TCG, because a machine may offer KVM that does not work; nothing here waits for a guest's CPU.
_XML = """<domain type='qemu'>
  <name>{name}</name><memory unit='MiB'>64</memory><vcpu>1</vcpu>
  <os><type arch='x86_64'>hvm</type></os><features><acpi/><apic/></features>
  <devices>
    <disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='{disk}'/>
      <target dev='vda' bus='virtio'/><serial>{name}</serial></disk>
  </devices>
</domain>"""


class Machine:
    """A defined machine. Borrows the connection."""

    def __init__(self, domain: Any, disk: Path) -> None:
        self.domain = domain
        self.disk = disk
        self.name: str = domain.name()

    def start(self) -> None:
        self.domain.create()

    def power_off(self) -> None:
        self.domain.destroyFlags(libvirt.VIR_DOMAIN_DESTROY_GRACEFUL)

    def write(self, blocks: Sequence[int], seed: int) -> None:
        """Write random bytes over 64 KiB blocks, at these offsets, running or off."""
        if self.domain.isActive():
            self._write_running(blocks, random.Random(seed))
        else:
            self._write_off(blocks, random.Random(seed))

    def _write_running(self, blocks: Sequence[int], rng: random.Random) -> None:
        device = self._device()
        with _pattern_file(self.disk.parent) as (path, pattern):
            for offset in blocks:
                pattern.seek(0)
                pattern.write(rng.randbytes(BLOCK_BYTES))
                pattern.flush()
                command = f'qemu-io -d {device} "write -q -s {path} {offset} {BLOCK_BYTES}"'
                said = libvirt_qemu.qemuMonitorCommand(
                    self.domain, command, libvirt_qemu.VIR_DOMAIN_QEMU_MONITOR_COMMAND_HMP
                )
                if said.strip():
                    raise BenchError(f"{self.name}: QEMU could not write at {offset}: {said.strip()}")

    def _device(self) -> str:
        """QEMU's path of the virtual disk: only through that may one write beside the guest."""
        answer = json.loads(libvirt_qemu.qemuMonitorCommand(self.domain, '{"execute": "query-block"}', 0))
        return str(next(each["qdev"] for each in answer["return"] if "inserted" in each))

    def _write_off(self, blocks: Sequence[int], rng: random.Random) -> None:
        command = ["qemu-io", "-f", "qcow2", str(self.disk)]
        with tempfile.TemporaryDirectory(dir=self.disk.parent) as folder:
            patterns = [Path(folder) / str(number) for number in range(_BATCH)]
            for first in range(0, len(blocks), _BATCH):
                chosen = list(zip(blocks[first : first + _BATCH], patterns, strict=False))
                for _, path in chosen:
                    path.write_bytes(rng.randbytes(BLOCK_BYTES))
                script = "".join(f"write -q -s {path} {offset} {BLOCK_BYTES}\n" for offset, path in chosen)
                done = subprocess.run(command, input=script, capture_output=True, text=True, check=False)
                said = done.stdout.replace("qemu-io> ", "") + done.stderr
                if done.returncode != 0 or said.strip():
                    raise CommandFailed(command, done.returncode, said)


@contextlib.contextmanager
def _pattern_file(folder: Path) -> Iterator[tuple[Path, Any]]:
    with tempfile.NamedTemporaryFile(dir=folder, prefix="pattern-") as pattern:
        os.fchmod(pattern.fileno(), 0o644)  # QEMU runs as a user of its own
        yield Path(pattern.name), pattern


class Lab:
    """The machines of this run, and of those that were recovered from them."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self._own = f"{_PREFIX}{os.getpid()}-"

    def name(self, what: str) -> str:
        return self._own + what

    def define(self, what: str, disk: Path) -> Machine:
        xml = _XML.format(name=self.name(what), disk=escape(str(disk), {"'": "&apos;"}))
        return Machine(self._connection.defineXML(xml), disk)

    def running(self, name: str) -> bool:
        try:
            state = self._connection.lookupByName(name).state()[0]
        except libvirt.libvirtError as err:
            if err.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
                return False
            raise
        return bool(state == libvirt.VIR_DOMAIN_RUNNING)

    def forget(self, machine: Machine) -> None:
        """Lose a machine: its definition and its disk."""
        _remove(machine.domain)
        machine.disk.unlink()

    def clear(self) -> None:
        """Take away this run's machines, and those of runs that are no more."""
        for domain in self._connection.listAllDomains():
            name = domain.name()
            if name.startswith(_PREFIX):
                pid = name.removeprefix(_PREFIX).partition("-")[0]
                if name.startswith(self._own) or not Path(f"/proc/{pid}").exists():
                    _remove(domain)


def _remove(domain: Any) -> None:
    deadline = time.monotonic() + 10
    while True:
        try:
            if domain.isActive():
                domain.destroy()
            if domain.isPersistent():
                domain.undefineFlags(_UNDEFINE)
        except libvirt.libvirtError as err:
            if err.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
                return
            if time.monotonic() > deadline:
                raise BenchError(f"{domain.name()} cannot be removed: {err}") from err
            time.sleep(0.2)
        else:
            return


@contextlib.contextmanager
def lab() -> Iterator[Lab]:
    libvirt.registerErrorHandler(lambda _context, _error: None, None)  # it prints what is raised anyway
    try:
        connection = libvirt.open(URI)
    except libvirt.libvirtError as err:
        raise BenchError(f"{URI} does not answer: run '.ci/services'\n{err}") from err
    try:
        made = Lab(connection)
        made.clear()
        try:
            yield made
        finally:
            made.clear()
    finally:
        connection.close()
