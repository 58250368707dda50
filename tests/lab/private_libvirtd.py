"""A libvirtd of a test's own, to be killed and started again while the machine's libvirtd serves others.

The rule: it lives in its own mount namespace, with folders of its own over all that libvirt keeps state in, so neither
daemon sees the other's machines. Its machines survive its death, as they do a real one's; closing ends them too.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

import libvirt

from tests.lab.listening import accepts
from tests.lab.owned import PARENT, OwnedFolder

START_TIMEOUT_S = 120.0
PREFIX = "strongroom-private-"
_PLACES = {
    "run": "/run/libvirt",
    "lib": "/var/lib/libvirt",
    "etc": "/etc/libvirt",
    "cache": "/var/cache/libvirt",
    "log": "/var/log/libvirt",
}


def _copy_of_what_changes(source: Path, target: Path, but: str = "") -> None:
    """The other daemon works in there meanwhile: what goes between being listed and being copied is not copied."""

    def copy(name: str, to: str) -> str:
        with contextlib.suppress(FileNotFoundError):
            shutil.copy2(name, to)
        return to

    def ignored(folder: str, names: list[str]) -> set[str]:
        return {but} & set(names) if Path(folder) == source else set()

    shutil.copytree(source, target, dirs_exist_ok=True, copy_function=copy, ignore=ignored)


class PrivateLibvirtd:
    """Owns two daemons (libvirtd, and the virtlogd it needs) and their folder. Needs root."""

    def __init__(self, parent: Path = PARENT) -> None:
        self._owned = OwnedFolder(PREFIX, parent)
        self.folder = self._owned.path
        self.folder.chmod(0o755)
        for name in _PLACES:
            (self.folder / name).mkdir(mode=0o755)
        (self.folder / "lib" / "qemu").mkdir()
        # Without `qemu`: no machine starts by itself, and no network of the other daemon comes up twice.
        _copy_of_what_changes(Path("/etc/libvirt"), self.folder / "etc", but="qemu")
        # What QEMU can do was found out once already; asking again takes seconds.
        _copy_of_what_changes(Path("/var/cache/libvirt"), self.folder / "cache")
        self._virtlogd: subprocess.Popen[bytes] | None = None
        self._libvirtd: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def uri(self) -> str:
        return f"qemu:///system?socket={self.socket}"

    @property
    def socket(self) -> Path:
        return self.folder / "run" / "libvirt-sock"

    @property
    def pid(self) -> int:
        assert self._libvirtd is not None, "it was not started"
        return self._libvirtd.pid

    def start(self) -> None:
        """Start it (again) and wait until it answers; harmless when it runs."""
        if self._virtlogd is None or self._virtlogd.poll() is not None:
            self._virtlogd = self._spawn("virtlogd")
            self._wait_for(lambda: accepts(self.folder / "run" / "virtlogd-sock"), self._virtlogd)
        if self._libvirtd is None or self._libvirtd.poll() is not None:
            self._libvirtd = self._spawn("libvirtd")
        self._wait_for(self._answers, self._libvirtd)

    def kill(self) -> None:
        """SIGKILL, as a crash would end it. Its machines run on."""
        if self._libvirtd is not None:
            self._libvirtd.kill()
            self._libvirtd.wait(timeout=60)

    def close(self) -> None:
        """End both daemons and every machine of theirs that still runs, and remove the folder."""
        for pid_file in (self.folder / "run" / "qemu").glob("*.pid"):
            with contextlib.suppress(ProcessLookupError, FileNotFoundError, ValueError):
                os.kill(int(pid_file.read_text()), signal.SIGKILL)
        for process in (self._libvirtd, self._virtlogd):
            if process is not None:
                process.kill()
                process.wait(timeout=60)
        self._owned.remove()

    def log(self) -> str:
        """What the daemon said, for the message of a failing test."""
        return (self.folder / "libvirtd.out").read_text(errors="replace")

    def _spawn(self, daemon: str) -> subprocess.Popen[bytes]:
        binds = "; ".join(f"mount --bind '{self.folder / name}' {place}" for name, place in _PLACES.items())
        # exec all the way down: the process started here is the daemon itself.
        script = f"set -e; {binds}; exec {daemon} --pid-file /run/libvirt/{daemon}.pid"
        with (self.folder / f"{daemon}.out").open("ab") as out:
            return subprocess.Popen(
                ["unshare", "--mount", "--propagation", "private", "sh", "-c", script],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
                env={**os.environ, "STRONGROOM_LAB": str(self.folder)},  # whose it is, when we are dead
            )

    def _answers(self) -> bool:
        if not self.socket.exists():
            return False
        try:
            connection = libvirt.open(self.uri)
            connection.getVersion()
            connection.close()
        except libvirt.libvirtError:
            return False
        return True

    def _wait_for(self, holds: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        while not holds():
            if process.poll() is not None or time.monotonic() >= deadline:
                raise RuntimeError(f"{process.args!r} did not come up: {self.log() if self._libvirtd else ''}")
            time.sleep(0.1)
