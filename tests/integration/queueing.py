"""What tests of the queue share: a home, daemons on it, and runs that stand still for as long as a test wants.

A run of the queue stands still by a `qemu-img`, and one that is begun at once by a `qemu-nbd`, of ours that is first in
PATH: it waits as long as a file of the image's name is there, and then becomes the real one. The product waits two
minutes for the one, and one minute for the other.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from appliance.bootstrap import Appliance
from appliance.models import RunRecord, RunState
from appliance.services.queue.service import QueueService
from appliance.settings import load
from imaging.images import SOCKET_FOLDER_PREFIX
from imaging.reader import DiskReader

_HELD_BY = ("qemu-img", "qemu-nbd")
_GATE = """#!/bin/sh
for image; do :; done
while [ -e "$image.{name}" ]; do sleep 0.05; done
exec {real} "$@"
"""
TIMEOUT_S = 120.0


@dataclass(eq=False)
class Queueing:
    """A home with its images below `folder`; `environment` is what its commands get. Borrows the appliance."""

    folder: Path
    appliance: Appliance
    environment: dict[str, str]
    content: dict[str, bytes] = field(default_factory=dict)

    def __post_init__(self) -> None:
        programs = self.folder / "bin"
        programs.mkdir(parents=True)
        for name in _HELD_BY:
            gate = programs / name
            gate.write_text(_GATE.format(name=name, real=shutil.which(name)))
            gate.chmod(0o755)
        self.environment = {**os.environ, **self.environment, "PATH": f"{programs}:{os.environ['PATH']}"}

    def image(self, name: str, size_bytes: int = 300_000, *, held_by: str = "") -> list[str]:
        """The options of a backup of it."""
        path = self.folder / f"{name}.raw"
        self.content[name] = os.urandom(size_bytes)
        path.write_bytes(self.content[name])
        if held_by:
            self._hold(name, held_by).touch()
        return ["--image", str(path), "--format", "raw", "--name", name]

    def put(self, name: str, size_bytes: int = 300_000, *, held: bool = False) -> str:
        """The id of a run that was queued."""
        self.image(name, size_bytes, held_by="qemu-img" if held else "")
        return QueueService(self.appliance).ask_image(self.folder / f"{name}.raw", "raw", name).run.id

    def release(self, name: str, held_by: str = "qemu-img") -> None:
        self._hold(name, held_by).unlink()

    def _hold(self, name: str, held_by: str) -> Path:
        return self.folder / f"{name}.raw.{held_by}"

    def run(self, id: str) -> RunRecord:
        return self.appliance.catalog.runs.get(id)

    def wait(self, id: str, state: RunState) -> RunRecord:
        self.until(lambda: self.run(id).state is state, lambda: f"run {self.run(id)} becomes {state}")
        return self.run(id)

    def wait_held(self, id: str) -> None:
        """It runs, and stands still."""
        self.wait(id, RunState.RUNNING)
        name = self.run(id).name
        self.until(lambda: self.processes("qemu-img", f"{name}.raw"), lambda: f"{name} is held")

    def until(self, holds: Callable[[], object], what: Callable[[], str]) -> None:
        deadline = time.monotonic() + TIMEOUT_S
        while not holds():
            assert time.monotonic() < deadline, f"not within {TIMEOUT_S:g} s: {what()}\n{self.log()}"
            time.sleep(0.05)

    def log(self) -> str:
        return "\n".join(path.read_text()[-3000:] for path in self.appliance.settings.log_directory.glob("*.log"))

    def said_by_serve(self) -> str:
        """By all daemons of this home until now."""
        return self._serve_log.read_text()

    @property
    def _serve_log(self) -> Path:
        return self.appliance.settings.log_directory / "serve.log"

    def executor(self, id: str) -> int:
        """The process that executes a run. A child of it has its command line, until it runs its own program."""
        found = self.processes("execute", id)
        (pid,) = (pid for pid in found if _parent_of(pid) not in found)
        return pid

    def processes(self, *words: str) -> list[int]:
        """Of this home, with all these words in their command lines."""
        mark, found = f"STRONGROOM_HOME={self.environment['STRONGROOM_HOME']}\0".encode(), []
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                line = (folder / "cmdline").read_bytes().decode(errors="replace")
                if all(word in line for word in words) and mark in (folder / "environ").read_bytes():
                    found.append(int(folder.name))
        return found

    def command(self, *arguments: str, expect: int | None = 0) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            self._words(*arguments), env=self.environment, capture_output=True, text=True, timeout=TIMEOUT_S,
            check=False,
        )  # fmt: skip
        assert expect is None or done.returncode == expect, f"{arguments}: {done.returncode}\n{done.stderr}"
        return done

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            self._words(*arguments), env=self.environment, text=True, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    @contextmanager
    def suspended(self, place: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
        """A command that stands still before this place in its code; what the test leaves of it is killed."""
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.crash", place, "before-SIGSTOP", "1", *arguments],
            env=self.environment, text=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        try:
            _, status = os.waitpid(process.pid, os.WUNTRACED)
            assert os.WIFSTOPPED(status), f"{arguments} ended before it reached {place}"
            yield process
        finally:
            process.kill()
            process.wait()

    @contextmanager
    def serving(self, hanging: str = "", **settings: str) -> Iterator[subprocess.Popen[str]]:
        """A daemon, which ends by SIGTERM and with exit code 0, unless the test killed it. What it says is a log. The
        first call of `hanging`, a place in its code, never comes back."""
        environment = {**self.environment, **{f"STRONGROOM_QUEUE_{key.upper()}": v for key, v in settings.items()}}
        with self._serve_log.open("a") as log:
            words = self._words("serve")
            if hanging:
                words = [sys.executable, "-m", "tests.faults.crash", hanging, "before-hang", "1", "serve"]
            process = subprocess.Popen(words, env=environment, stdout=log, stderr=log, text=True)
        try:
            yield process
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
                assert process.wait(TIMEOUT_S) == 0, self.log()
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()

    def restored(self, point: str | None) -> bytes:
        assert point is not None
        repository = self.appliance.repository
        disk = repository.point(point).manifest.disks[0]
        return DiskReader(repository.blobs, disk.root, disk.size_bytes).pread(0, disk.size_bytes)

    def assert_made(self, id: str) -> RunRecord:
        """It has succeeded, and once."""
        run = self.wait(id, RunState.SUCCEEDED)
        assert self.restored(run.point)[: len(self.content[run.name])] == self.content[run.name]
        made = [point for point in self.appliance.repository.points() if point.manifest.run == id]
        assert [point.manifest.id for point in made] == [run.point]
        return run

    def assert_nothing_left(self) -> None:
        """But for the socket of a killed run's server, which is removed after a minute."""
        names = [path.name for path in self.appliance.settings.run_directory.iterdir()]
        assert [
            name for name in names if not name.endswith(".lock") and not name.startswith(SOCKET_FOLDER_PREFIX)
        ] == []
        assert [name for name in names if name.startswith("run-")] == []
        assert self.processes("execute") == []

    def _words(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "appliance.cli", *arguments]


def _parent_of(pid: int) -> int:
    """0: it has just ended."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


@contextmanager
def queueing(folder: Path, environment: dict[str, str]) -> Iterator[Queueing]:
    """On a home that has a repository. No process of it is left behind."""
    with Appliance(load(environment)) as appliance:
        made = Queueing(folder, appliance, environment)
        try:
            yield made
        finally:
            for pid in made.processes("appliance.cli"):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
