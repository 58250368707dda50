"""The nbdkit process that serves one disk of a restore point.

Rules: a living export is told by the lock that its process holds, never by a process id alone; ready means that it
has answered a client; the socket is its owner's alone (0600). An export either dies with its caller or outlives him,
as the caller says.

    SOCKET         what clients connect to
    SOCKET.lock    held with flock by nbdkit itself (it inherits the descriptor), so that a SIGKILL frees it
    SOCKET.pid     written by nbdkit once it accepts; worth something only while the lock is held
    SOCKET.log     what it said
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import quote

from imaging.errors import ExportFailed
from imaging.serving import ServedDisk

CLIENTS_MAX: Final = 64
SOCKET_PATH_BYTES_MAX: Final = 107
_THREADS: Final = 8
_POLL_S: Final = 0.005
_STOP_S: Final = 5.0
_KILLED_S: Final = 60.0  # a busy machine may let even who was killed wait for his end
_LOOKS: Final = 4
_SHARED_LOOKS: Final = 1000  # counted, and not timed: who was stopped himself has waited for nobody meanwhile
_LOG_BYTES_MAX: Final = 1 << 20
_GREETING: Final = b"NBDMAGICIHAVEOPT"
_ABORT: Final = struct.pack(">I8sII", 1, b"IHAVEOPT", 2, 0)


@dataclass(frozen=True, slots=True)
class Owner:
    """Who may connect: the user that QEMU runs as, when a machine boots from the export."""

    uid: int
    gid: int


@dataclass(frozen=True, slots=True)
class Listen:
    """A UNIX socket, or, with a port, TCP on the loopback address. The path names the lock and log files in both
    cases.
    """

    path: Path
    owner: Owner | None = None
    port: int | None = None

    @property
    def uri(self) -> str:
        if self.port is not None:
            return f"nbd://localhost:{self.port}"
        return f"nbd+unix:///?socket={quote(str(self.path))}"

    def beside(self, suffix: str) -> Path:
        return self.path.with_name(self.path.name + suffix)


class Export:
    """A served disk. Not thread-safe."""

    def __init__(self, listen: Listen, label: str, process: subprocess.Popen[bytes] | None = None) -> None:
        self.listen = listen
        self._label = label
        self._process = process

    def alive(self) -> bool:
        """Whether the server's process lives."""
        if self._process is not None:
            self._process.poll()  # a dead child is buried here
        return _held(self.listen.beside(".lock"))

    def wait_ready(self, timeout_s: float) -> None:
        """Until it has greeted a client, and the socket is its owner's. Raises ExportFailed with the server's last
        words.
        """
        deadline = time.monotonic() + timeout_s
        while not self._greets(max(0.05, deadline - time.monotonic())):
            if not self.alive():
                raise ExportFailed(self._label, self.last_words() or "its server ended without a word")
            if time.monotonic() > deadline:
                raise ExportFailed(self._label, f"its server was not ready in {timeout_s:g} s")
            time.sleep(_POLL_S)

    def stop(self) -> None:
        """End the server and remove its files. Safe again, and when it is dead. Raises ExportFailed if it does not
        end.
        """
        for number, patience_s in ((signal.SIGTERM, _STOP_S), (signal.SIGKILL, _KILLED_S)):
            deadline = time.monotonic() + patience_s
            signalled = False
            while self.alive():
                pid = _pid(self.listen.beside(".pid"))
                if pid is None and self._process is not None:
                    pid = self._process.pid
                if pid is not None and not signalled:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, number)
                    signalled = True
                if time.monotonic() > deadline:
                    break
                time.sleep(_POLL_S)
        if self.alive():
            raise ExportFailed(self._label, "its server does not end")
        if self._process is not None:
            self._process.wait()
        for path in (self.listen.path, *(self.listen.beside(suffix) for suffix in (".pid", ".log", ".lock"))):
            path.unlink(missing_ok=True)

    def last_words(self) -> str:
        """The last line that it logged."""
        try:
            lines = self.listen.beside(".log").read_text(errors="replace").strip().splitlines()
        except FileNotFoundError:
            return ""
        said = [line for line in lines if line.startswith("strongroom export: ")]
        return (said or lines or [""])[-1].removeprefix("strongroom export: ")

    def trim_log(self) -> None:
        """Empty a log that has grown; the server appends, so nothing is torn."""
        path = self.listen.beside(".log")
        with contextlib.suppress(FileNotFoundError):
            if path.stat().st_size > _LOG_BYTES_MAX:
                os.truncate(path, 0)

    def _greets(self, timeout_s: float) -> bool:
        """Connect, read the greeting, say goodbye. Nothing of the disk is touched."""
        listen = self.listen
        try:
            if listen.port is None:
                self._give()
                connection = socket.socket(socket.AF_UNIX)
            else:
                connection = socket.socket(socket.AF_INET)
            with connection:
                connection.settimeout(timeout_s)
                connection.connect(str(listen.path) if listen.port is None else ("127.0.0.1", listen.port))
                greeting = b""
                while len(greeting) < 18:
                    received = connection.recv(18 - len(greeting))
                    if not received:
                        return False
                    greeting += received
                connection.sendall(_ABORT)
                return greeting.startswith(_GREETING)
        except OSError:
            return False

    def _give(self) -> None:
        """Mode and owner of the socket; nbdkit makes it for itself alone, as its umask says."""
        os.chmod(self.listen.path, 0o600)
        if self.listen.owner is not None:
            os.chown(self.listen.path, self.listen.owner.uid, self.listen.owner.gid)


def start(served: ServedDisk, listen: Listen, *, outlives_caller: bool) -> Export:
    """Start a server, or find the one that lives on this socket; not ready yet (`wait_ready`). Raises ExportFailed.

    A server that does not outlive its caller dies with the *thread* that called this: call it from one that lives as
    long.
    """
    label = f"disk {served.disk} of restore point {served.point}"
    if len(os.fsencode(listen.path)) > SOCKET_PATH_BYTES_MAX:
        raise ExportFailed(label, f"the socket's path {listen.path} is longer than {SOCKET_PATH_BYTES_MAX} bytes")
    lock = os.open(listen.beside(".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        if not _locked(lock):
            return Export(listen, label)
        for stale in (listen.path, listen.beside(".pid")):
            stale.unlink(missing_ok=True)
        log = os.open(listen.beside(".log"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            process = subprocess.Popen(
                command(served, listen, outlives_caller=outlives_caller),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=_environment(),
                pass_fds=(lock,),
                cwd="/",  # whoever outlives his caller must not keep the caller's folder in use
                umask=0o177,
                start_new_session=True,
            )
        except OSError as err:
            hint = "install the packages nbdkit and nbdkit-plugin-python"
            raise ExportFailed(label, f"nbdkit cannot be started: {err.strerror}", hint=hint) from err
        finally:
            os.close(log)
        return Export(listen, label, process)
    finally:
        os.close(lock)


def find(listen: Listen, label: str) -> Export:
    """The export that lives, or does not, on this socket."""
    return Export(listen, label)


def command(served: ServedDisk, listen: Listen, *, outlives_caller: bool) -> list[str]:
    """nbdkit's command line: paths and names only."""
    where = (
        ["--unix", str(listen.path)] if listen.port is None else ["--ipaddr", "127.0.0.1", "--port", str(listen.port)]
    )
    return [
        "nbdkit",
        "--foreground" if outlives_caller else "--exit-with-parent",
        "--readonly",
        "--newstyle",
        f"--threads={_THREADS}",
        f"--pidfile={listen.beside('.pid')}",
        *where,
        "--filter=blocksize-policy",
        "--filter=limit",
        "python",
        str(Path(__file__).with_name("export_plugin.py")),
        *served.arguments(),
        *(["outlives_caller=true"] if outlives_caller else []),
        f"limit={CLIENTS_MAX}",
        "blocksize-error-policy=error",
    ]


def _environment() -> dict[str, str]:
    """nbdkit's interpreter is the distribution's: it finds this project and its libraries through PYTHONPATH."""
    here = str(Path(__file__).resolve().parent.parent)
    paths = [here, *(path for path in sys.path if path.endswith(("site-packages", "dist-packages")))]
    kept = {name: value for name, value in os.environ.items() if name in ("PATH", "LANG", "LC_ALL", "TZ", "TMPDIR")}
    return kept | {"PYTHONPATH": os.pathsep.join(dict.fromkeys(paths)), "PYTHONDONTWRITEBYTECODE": "1"}


def _locked(lock: int) -> bool:
    """Take the lock; False: a server has it. Who only looks whether one lives shares it, and is waited for."""
    looks = shared = 0
    while looks < _LOOKS and shared < _SHARED_LOOKS:
        if _flock(lock, fcntl.LOCK_EX):
            return True
        if _flock(lock, fcntl.LOCK_SH):
            fcntl.flock(lock, fcntl.LOCK_UN)
            shared += 1
        else:
            looks += 1
        time.sleep(_POLL_S)
    return False


def _flock(lock: int, kind: int) -> bool:
    try:
        fcntl.flock(lock, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _held(path: Path) -> bool:
    try:
        lock = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return False
    try:
        return not _flock(lock, fcntl.LOCK_SH)
    finally:
        os.close(lock)


def _pid(path: Path) -> int | None:
    try:
        text = path.read_text("ascii").strip()
    except (FileNotFoundError, ValueError):
        return None
    return int(text) if text.isdigit() else None


def stop_all(exports: Sequence[Export]) -> None:
    """Stop every one; the first failure is raised after all were tried."""
    failures = []
    for export in exports:
        try:
            export.stop()
        except ExportFailed as err:
            failures.append(err)
    if failures:
        raise failures[0]
