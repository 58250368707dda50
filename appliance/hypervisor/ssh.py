"""A host over SSH: one connection, through which commands run and sockets are carried.

The rule: SSH is called with options stated here and no configuration file, so that nothing but the host's checked
fields decides where it goes and what it runs; a host's key must be known before (no "yes" is ever given for an admin);
every step has a time-out. libvirt is reached through its carried socket, like every export.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import shlex
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Self

from appliance.hypervisor.errors import HostFieldRefused, HostUnreachable, HypervisorError
from appliance.hypervisor.protocol import HostConfig
from appliance.hypervisor.ssh_folder import socket_folder
from appliance.hypervisor.tools import limited, raise_for_tool
from appliance.hypervisor.uri import libvirt_uri
from appliance.settings import PREFIX
from imaging.images import dying_with_parent

LIBVIRT_SOCKET = "/run/libvirt/libvirt-sock"
_POLL_S = 0.05
_SSH_FAILED = 255
_ALIVE_S = 5
_MAX_ERROR_BYTES = 4096

Done = subprocess.CompletedProcess[bytes]


def _without_settings() -> dict[str, str]:
    """SSH needs much of the environment (agents, HOME), and none of our settings, some of which are secret."""
    return {
        name: value for name, value in os.environ.items() if name == "STRONGROOM_HOME" or not name.startswith(PREFIX)
    }


class SshHost:
    """Owns one SSH master and the folder of its sockets. Thread-safe.

    `runtime`: where that folder is made; short, as a socket's path has at most 107 bytes. Without it, in the system's
    folder for temporary files.
    """

    def __init__(self, config: HostConfig, runtime: Path | None = None) -> None:
        if config.session:
            raise HostFieldRefused("session", "true", "a host over SSH is reached by its system instance only")
        self.config = config
        self._closing = contextlib.ExitStack()
        self._folder = self._closing.enter_context(socket_folder(runtime))
        # The kernel ends the master with the thread that started it: one that lives as long as this host is used.
        self._starter = self._closing.enter_context(ThreadPoolExecutor(1, f"ssh-{config.name}"))
        self._closing.callback(self._end_master)
        self._lock = threading.Lock()
        self._master: subprocess.Popen[bytes] | None = None
        self._libvirt: Path | None = None
        self._numbers = itertools.count()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:
            self._closing.close()

    # --- the master ------------------------------------------------------------------------------------------------

    def _options(self) -> list[str]:
        config = self.config
        timeout_s = max(1, round(config.timeout_s))
        options = {
            "BatchMode": "yes",
            "ConnectTimeout": str(timeout_s),
            "ServerAliveInterval": str(_ALIVE_S),
            "ServerAliveCountMax": "3",
            "StrictHostKeyChecking": "yes",
            "UpdateHostKeys": "no",  # else a host may add keys to ~/.ssh/known_hosts
            "ExitOnForwardFailure": "yes",
            "StreamLocalBindMask": "0177",
            "StreamLocalBindUnlink": "yes",
            "ForwardAgent": "no",
            "ForwardX11": "no",
            "PermitLocalCommand": "no",
            "LogLevel": "ERROR",
            "Port": str(config.port),
        }
        if config.user:
            options["User"] = config.user
        if config.known_hosts:
            options |= {"UserKnownHostsFile": config.known_hosts, "GlobalKnownHostsFile": "none"}
        if config.keyfile:
            options |= {"IdentityFile": config.keyfile, "IdentitiesOnly": "yes"}
        stated = [part for name, value in options.items() for part in ("-o", f"{name}={value}")]
        return ["ssh", "-F", "none", "-S", str(self._folder / "ctl"), *stated]

    def _ready(self) -> None:
        """A master that is up. Holds the lock."""
        if self._master is not None and self._master.poll() is None:
            return
        self._end_master()
        errors = (self._folder / "errors").open("w+b")
        with errors:
            # In a session of its own, as it ends the connection in order after an interrupt that all of ours get.
            self._master = self._starter.submit(
                subprocess.Popen[bytes],
                dying_with_parent([*self._options(), "-M", "-N", "-T", "--", self.config.hostname]),
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=errors, start_new_session=True,
                env=_without_settings(),
            ).result()  # fmt: skip
            deadline = time.monotonic() + self.config.timeout_s
            while not (self._folder / "ctl").exists():
                ended = self._master.poll() is not None
                if ended or time.monotonic() >= deadline:
                    self._end_master()
                    errors.seek(0)
                    words = " ".join(errors.read(_MAX_ERROR_BYTES).decode("utf-8", "replace").split())
                    late = f"no SSH connection within {self.config.timeout_s:g} s"
                    raise HostUnreachable(self.config.name, (words or "SSH ended at once") if ended else late)
                time.sleep(_POLL_S)

    def _end_master(self) -> None:
        self._libvirt = None
        if self._master is not None:
            self._master.terminate()
            try:
                self._master.wait(self.config.timeout_s)
            except subprocess.TimeoutExpired:
                self._master.kill()
                self._master.wait()
            self._master = None
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._folder / "ctl")

    # --- commands --------------------------------------------------------------------------------------------------

    def run(self, arguments: Sequence[str], *, data: bytes = b"", timeout_s: float = 0.0) -> Done:
        """Run a program there; its arguments reach it as they are. HostUnreachable when SSH itself fails."""
        with self._lock:
            self._ready()
        command = [*self._options(), "-T", "--", self.config.hostname, shlex.join(arguments)]
        limit_s = timeout_s or max(30.0, self.config.timeout_s)
        try:
            done = subprocess.run(
                command, input=data, capture_output=True, timeout=limit_s, check=False, env=_without_settings()
            )
        except subprocess.TimeoutExpired as error:
            raise HostUnreachable(self.config.name, f"{arguments[0]} took longer than {limit_s:g} s there") from error
        if done.returncode == _SSH_FAILED:
            words = " ".join(done.stderr[:_MAX_ERROR_BYTES].decode("utf-8", "replace").split())
            raise HostUnreachable(self.config.name, words or "the SSH connection broke")
        return done

    # --- sockets ---------------------------------------------------------------------------------------------------

    def libvirt_address(self) -> str:
        """The URI of its libvirtd, carried here; carried anew when the SSH connection was lost."""
        with self._lock:
            self._ready()
            if self._libvirt is None:
                self._libvirt = self._forward_here(self.config.socket or LIBVIRT_SOCKET)
            return libvirt_uri(self.config, str(self._libvirt))

    def _forward_here(self, socket: str) -> Path:
        local = self._folder / str(next(self._numbers))
        self._control("forward", "-L", f"{local}:{socket}")
        return local

    def _control(self, what: str, *arguments: str) -> None:
        command = [*self._options(), "-O", what, *arguments, "--", self.config.hostname]
        try:
            done = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=self.config.timeout_s,
                check=False,
                env=_without_settings(),
            )
        except subprocess.TimeoutExpired as error:
            raise HostUnreachable(self.config.name, f"SSH did not {what} a socket in time") from error
        if done.returncode != 0:
            words = " ".join(done.stderr[:_MAX_ERROR_BYTES].decode("utf-8", "replace").split())
            raise HypervisorError(
                f"host {self.config.name}: SSH would not {what} {' '.join(arguments)}: {words}",
                hint="Its sshd has to allow it: AllowStreamLocalForwarding yes, AllowTcpForwarding not 'no'.",
            )

    @contextlib.contextmanager
    def carry(self, socket: str) -> Iterator[Path]:
        with self._lock:
            self._ready()
            local = self._forward_here(socket)
        try:
            yield local
        finally:
            self._cancel("-L", f"{local}:{socket}")
            with contextlib.suppress(FileNotFoundError):
                local.unlink()

    @contextlib.contextmanager
    def offer(self, local_socket: Path, socket: str) -> Iterator[str]:
        """Borrows the local socket. The one there is removed before and after: sshd leaves it lying."""
        self.run(["rm", "-f", "--", socket])
        with self._lock:
            self._ready()
            self._control("forward", "-R", f"{socket}:{local_socket}")
        try:
            yield socket
        finally:
            self._cancel("-R", f"{socket}:{local_socket}")
            # A host that is away takes its socket along when it comes back: nothing is lost by not removing it.
            with contextlib.suppress(HostUnreachable):
                self.run(["rm", "-f", "--", socket])

    def _cancel(self, *arguments: str) -> None:
        """A forward whose connection was lost is gone already."""
        with contextlib.suppress(HypervisorError):
            self._control("cancel", *arguments)


class SshTools:
    """Implements tools.Tools. Borrows the host."""

    def __init__(self, host: SshHost) -> None:
        self._host = host

    def run(self, arguments: Sequence[str], subject: str) -> bytes:
        done = self._host.run(limited(arguments), timeout_s=120.0)
        raise_for_tool(arguments[0], subject, done)
        return done.stdout
