"""The console's process under `strongroom serve`: readiness, TLS, its ends, and what happens when it cannot start."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pyotp
import pytest

from appliance.bootstrap import Appliance
from appliance.services.accounts.errors import LinkUnusable
from appliance.services.accounts.setting_up import SetUpService
from appliance.services.accounts.signing_in import Origin
from appliance.settings import load
from tests.lab.ports import free_port
from tests.unit.accounts import CHEAP
from tests.unit.cli_runner import PASSPHRASE, PROJECT

_LONG_S = 120.0


def wait_for(what: str, done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _LONG_S
    while not done():
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.05)


@dataclass
class Served:
    home: Path
    port: int
    process: subprocess.Popen[str]
    log: Path
    manager: socket.socket  # what a service manager listens at

    def told(self) -> str:
        return self.manager.recv(4096).decode()

    def alive(self) -> bool:
        try:
            return self.get("/alive") == "alive\n"
        except (OSError, urllib.error.URLError):
            return False

    def get(self, path: str) -> str:
        context = ssl.create_default_context(cafile=str(self.home / "keys" / "web.crt"))
        with urllib.request.urlopen(f"https://127.0.0.1:{self.port}{path}", context=context, timeout=_LONG_S) as answer:
            text = answer.read().decode()
            assert isinstance(text, str)
            return text

    def children(self) -> list[int]:
        """The console's process, if there is one."""
        return _children_of(self.process.pid)


def _children_of(pid: int) -> list[int]:
    """Of those that are the console's."""
    found = subprocess.run(["pgrep", "-P", str(pid), "-f", "--", "-m web"], capture_output=True, text=True)
    return [int(line) for line in found.stdout.split()]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    home = tmp_path / "home"
    subprocess.run(
        [sys.executable, "-m", "appliance.cli", "init"], check=True, capture_output=True,
        env={**os.environ, "STRONGROOM_HOME": str(home), "STRONGROOM_PASSPHRASE": PASSPHRASE}, cwd=PROJECT,
    )  # fmt: skip
    return home


@contextmanager
def serving(home: Path, port: int, *words: str) -> Iterator[Served]:
    manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    address = home.parent / "notify"
    address.unlink(missing_ok=True)
    manager.bind(str(address))
    manager.settimeout(_LONG_S)
    log = home.parent / "serve.log"
    environment = {
        **os.environ, "STRONGROOM_HOME": str(home), "STRONGROOM_WEB_PORT": str(port), "NOTIFY_SOCKET": str(address),
        "STRONGROOM_QUEUE_END_S": "0",
    }  # fmt: skip
    with log.open("w") as said:
        process = subprocess.Popen(
            [sys.executable, "-m", "appliance.cli", "serve", *words], env=environment, stdout=said, stderr=said,
            cwd=PROJECT, text=True,
        )  # fmt: skip
    try:
        yield Served(home, port, process, log, manager)
    finally:
        process.kill()
        process.wait()
        manager.close()


def test_ready_by_tls_and_ended_in_order(home: Path) -> None:
    with serving(home, free_port()) as served:
        assert served.told().startswith("READY=1\n")
        assert served.alive()  # at once: that is what ready means
        told = re.search(r"certificate SHA-256 ([0-9A-F:]{95})", served.log.read_text())
        assert told is not None
        with socket.create_connection(("127.0.0.1", served.port)) as plain:
            context = ssl.create_default_context()
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            with context.wrap_socket(plain) as wrapped:
                shown = hashlib.sha256(wrapped.getpeercert(binary_form=True) or b"").digest().hex(":").upper()
                assert shown == told[1]
                assert wrapped.version() in ("TLSv1.2", "TLSv1.3")
        children = served.children()
        assert children
        served.process.send_signal(signal.SIGTERM)
        assert served.told() == "STOPPING=1"
        assert served.process.wait(_LONG_S) == 0
        assert not any(Path(f"/proc/{pid}").exists() for pid in children)
        assert not served.alive()


def test_the_first_admin_is_invited_until_there_is_one(home: Path) -> None:
    links = []
    with Appliance(load({"STRONGROOM_HOME": str(home)})) as appliance:
        service = SetUpService(appliance, passwords=CHEAP)
        for invited in (True, True, False):
            port = free_port()
            with serving(home, port) as served:
                assert served.told().startswith("READY=1\n")
                found = re.search(rf"https://127.0.0.1:{port}/set-up/(\S{{43}}) \(once", served.log.read_text())
                assert bool(found) == invited
                links += [found[1]] if found else []
            if len(links) == 2 and not appliance.catalog.users.exist():
                with pytest.raises(LinkUnusable):
                    service.offer(links[0])
                code = pyotp.TOTP(service.offer(links[1]).secret).now()
                service.complete(links[1], "alice", "correct horse battery staple", code, Origin("127.0.0.1"))


def test_the_console_is_started_again_and_dies_with_its_parent(home: Path) -> None:
    with serving(home, free_port()) as served:
        served.told()
        (first,) = served.children()
        forks = _children_of(first)  # they answer for a moment more, and keep the port from the next one
        assert forks
        os.kill(first, signal.SIGKILL)
        wait_for("the end of the first", lambda: not any(Path(f"/proc/{pid}").exists() for pid in (first, *forks)))
        wait_for("another console", served.alive)
        assert "started again" in served.log.read_text()
        (second,) = served.children()
        assert second != first
        served.process.kill()
        wait_for("the end of the console", lambda: not Path(f"/proc/{second}").exists() and not served.alive())


def test_a_port_that_is_taken_keeps_nothing_else_from_working(home: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with serving(home, port) as served:
            assert served.told().startswith("READY=1\n")
            assert "the console ended" in served.log.read_text() or served.process.poll() is None
            taken.close()
            wait_for("the console", served.alive)
            served.process.send_signal(signal.SIGTERM)
            assert served.process.wait(_LONG_S) == 0


@pytest.mark.parametrize("words", [("--no-web",), ()])
def test_without_a_console(home: Path, words: tuple[str, ...]) -> None:
    port = free_port() if words else 0
    with serving(home, port, *words) as served:
        assert served.told().startswith("READY=1\n")
        assert not served.children()
        served.process.send_signal(signal.SIGTERM)
        assert served.process.wait(_LONG_S) == 0


def test_passwords_never_travel_in_the_clear(home: Path) -> None:
    environment = {
        **os.environ, "STRONGROOM_HOME": str(home), "STRONGROOM_WEB_PORT": str(free_port()),
        "STRONGROOM_WEB_TLS": "no", "STRONGROOM_WEB_LISTEN": "0.0.0.0",
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "web"], env=environment, capture_output=True, text=True, timeout=_LONG_S, cwd=PROJECT
    )
    assert done.returncode == 1
    assert "in the clear" in done.stderr


def test_the_unit_that_is_shipped_is_one_for_systemd(tmp_path: Path) -> None:
    """Its command is put where there is one: the check asks for that."""
    assert shutil.which("systemd-analyze"), ".ci/setup --test installs it"
    unit = (PROJECT / "docs" / "strongroom.service").read_text()
    assert "ExecStart=/usr/local/bin/strongroom serve" in unit
    (tmp_path / "strongroom.service").write_text(unit.replace("/usr/local/bin/strongroom", "/bin/true"))
    (tmp_path / "broken.service").write_text(unit.replace("Type=notify", "Typo=notify"))

    def verify(name: str) -> str:
        done = subprocess.run(
            ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no", str(tmp_path / name)],
            capture_output=True, text=True,
        )  # fmt: skip
        return done.stdout + done.stderr

    assert "Typo" in verify("broken.service")  # it does look
    assert "strongroom.service" not in verify("strongroom.service")
