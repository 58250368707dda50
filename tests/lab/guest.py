"""One lab machine: start it, wait until it says that it is ready, have it do things, end it.

The rule: what a guest is said to hold, the guest itself said, on its console or through its command port.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import libvirt
import libvirt_qemu

from tests.lab.channel import GuestSilent, run_in_guest
from tests.lab.domain import Ports, disk_paths, ports_of

BOOT_TIMEOUT_S = 180.0
COMMAND_TIMEOUT_S = 120.0
POLL_S = 0.1
_REPORT = "STRONGROOM-GUEST "
_READY = re.compile(rf"^{_REPORT}ready .*\n", re.MULTILINE)
"""To its end: the port writes letter by letter."""


@dataclass(frozen=True, slots=True)
class DiskReport:
    """What the guest found on one disk. `marker` is the first line of its file /marker."""

    disk: str
    size_bytes: int
    filesystem: str
    files: int
    marker: str


@dataclass(frozen=True, slots=True)
class GuestReport:
    disks: dict[str, DiskReport]


class LabGuest:
    """Borrows the connection. Its domain is looked up by name each time: it may be undefined and defined again."""

    def __init__(self, connection: Callable[[], Any], name: str, ports: Ports | None = None) -> None:
        self._connection = connection
        self.name = name
        self._ports = ports

    @property
    def domain(self) -> Any:
        """The virDomain. libvirtError when there is none by this name."""
        return self._connection().lookupByName(self.name)

    @property
    def ports(self) -> Ports:
        return self._ports or ports_of(self.domain.XMLDesc())

    @property
    def exists(self) -> bool:
        return self.name in {domain.name() for domain in self._connection().listAllDomains()}

    @property
    def running(self) -> bool:
        """True when it executes; a paused machine does not."""
        return self.exists and bool(self.state == libvirt.VIR_DOMAIN_RUNNING)

    @property
    def state(self) -> int:
        return int(self.domain.state()[0])

    @property
    def disk_paths(self) -> dict[str, Path]:
        """Target → file, as the machine has them now."""
        return disk_paths(self.domain.XMLDesc())

    def start(self, *, wait: bool = True) -> GuestReport | None:
        """Switch it on; with `wait`, until it reports."""
        self.domain.create()
        return self.wait_ready() if wait else None

    def wait_ready(self, timeout_s: float = BOOT_TIMEOUT_S) -> GuestReport:
        """The report of this boot (the console file begins anew with each). GuestSilent with the console's end."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            text = self.console()
            if _READY.search(text):
                return parse_report(text)
            if not self.exists or self.state in (libvirt.VIR_DOMAIN_SHUTOFF, libvirt.VIR_DOMAIN_CRASHED):
                raise GuestSilent(f"{self.name} went off before it was ready; its console ends:\n{text[-2000:]}")
            time.sleep(POLL_S)
        raise GuestSilent(
            f"{self.name} was not ready within {timeout_s:g} s; its console ends:\n{self.console()[-2000:]}"
        )

    def console(self) -> str:
        """All that the first serial port said since the machine was switched on."""
        try:
            return self.ports.serial_log.read_text(errors="replace")
        except FileNotFoundError:
            return ""

    def run(self, command: str, *, timeout_s: float = COMMAND_TIMEOUT_S) -> str:
        """Run a shell command in the guest; its output. CommandFailed when it fails, GuestSilent when none answers."""
        return run_in_guest(self.ports.command_socket, command, timeout_s=timeout_s).decode(errors="surrogateescape")

    def write(self, path: str, text: str) -> None:
        """Write a small file in the guest, safe on its disk when this returns."""
        quoted = shlex.quote(path)
        self.run(f"printf %s {shlex.quote(text)} >{quoted} && fsync {quoted}")

    def read(self, path: str) -> str:
        return self.run(f"cat {shlex.quote(path)}")

    def fill(self, path: str, mib: int, *, timeout_s: float = COMMAND_TIMEOUT_S) -> None:
        """Write that many MiB of random data, safe on the disk when this returns."""
        self.run(f"fill {shlex.quote(path)} {mib}", timeout_s=timeout_s)

    def content(self, folder: str = "/mnt/vda") -> str:
        """One hash over names and contents of all files below a folder, read past no cache but the guest's own."""
        return self.run(f"sync; echo 3 >/proc/sys/vm/drop_caches; content {shlex.quote(folder)}").strip()

    def sync(self) -> None:
        self.run("sync")

    def agent(self, command: str, *, timeout_s: int = 60, **arguments: Any) -> Any:
        """Ask the guest agent; what it returned. libvirtError when it does not answer."""
        request: dict[str, Any] = {"execute": command}
        if arguments:
            request["arguments"] = arguments
        return json.loads(libvirt_qemu.qemuAgentCommand(self.domain, json.dumps(request), timeout_s, 0))["return"]

    def wait_agent(self, timeout_s: float = 120.0) -> None:
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                self.agent("guest-ping", timeout_s=2)
            except libvirt.libvirtError as err:
                if time.monotonic() >= deadline:
                    raise GuestSilent(f"the agent of {self.name} did not answer within {timeout_s:g} s") from err
                time.sleep(POLL_S)
            else:
                return

    def freeze_status(self) -> str:
        """ "frozen" or "thawed", by the agent's own word."""
        return str(self.agent("guest-fsfreeze-status"))

    def switch_off(self, timeout_s: float = 120.0) -> None:
        """Orderly: file systems unmounted, then power off. Bitmaps are saved by QEMU."""
        # On a busy machine the command port may vanish before the answer has come. What follows tells how it went.
        with contextlib.suppress(GuestSilent):
            self.run("(sleep 0.5; umount -a -t ext4; poweroff -f) >/dev/null 2>&1 &")
        self._wait_off(timeout_s)

    def kill(self) -> None:
        """Pull the plug; harmless when it is off or gone."""
        try:
            self.domain.destroy()
        except libvirt.libvirtError as err:
            if err.get_error_code() not in (libvirt.VIR_ERR_OPERATION_INVALID, libvirt.VIR_ERR_NO_DOMAIN):
                raise

    def kill_qemu(self) -> None:
        """As a crash of QEMU itself; until libvirt knows."""
        os.kill(int(Path(f"/run/libvirt/qemu/{self.name}.pid").read_text()), signal.SIGKILL)
        self._wait_off()

    def _wait_off(self, timeout_s: float = 120.0) -> None:
        """Until libvirt has done all that an end of QEMU wants: it says "inactive" before, while the process may still
        have the locks of its disks."""
        deadline = time.monotonic() + timeout_s
        while self.exists and self.state != libvirt.VIR_DOMAIN_SHUTOFF:
            if time.monotonic() >= deadline:
                raise GuestSilent(f"{self.name} is not off within {timeout_s:g} s")
            time.sleep(POLL_S)

    def remove(self) -> None:
        """Pull the plug and undefine, with all that libvirt remembers; harmless when it is gone."""
        self.kill()
        if not self.exists:
            return
        self.domain.undefineFlags(
            libvirt.VIR_DOMAIN_UNDEFINE_MANAGED_SAVE
            | libvirt.VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA
            | libvirt.VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA
            | libvirt.VIR_DOMAIN_UNDEFINE_NVRAM
        )


def parse_report(text: str) -> GuestReport:
    """The last full report in a text: from the line after the "ready" before it, to its own."""
    lines = [line.strip() for line in text.splitlines() if line.startswith(_REPORT)]
    ends = [at for at, line in enumerate(lines) if line.startswith(f"{_REPORT}ready ")]
    if not ends:
        raise ValueError("there is no report of the guest in this text")
    begin = ends[-2] + 1 if len(ends) > 1 else 0
    disks: dict[str, DiskReport] = {}
    for line in lines[begin : ends[-1]]:
        fields = dict(word.split("=", 1) for word in line.removeprefix(_REPORT).split(" ") if "=" in word)
        if "disk" in fields:
            disks[fields["disk"]] = DiskReport(
                disk=fields["disk"],
                size_bytes=int(fields["bytes"]),
                filesystem=fields["filesystem"],
                files=int(fields["files"]),
                marker=fields["marker"],
            )
    expected = dict(word.split("=", 1) for word in lines[ends[-1]].split(" ")[2:])["disks"]
    if len(disks) != int(expected):
        raise ValueError(f"the guest found {expected} disks and reported {len(disks)}")
    return GuestReport(disks)
