"""SIGKILL of a command that serves a point: its hold does not keep the point, on a home where no supervisor runs.
A server that dies under the command, by a client even, is replaced.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import nbd
import pytest

from appliance.bootstrap import Appliance
from appliance.readable import readable
from appliance.settings import load
from tests.unit.cli_runner import PROJECT, CommandLine

pytestmark = [pytest.mark.integration, pytest.mark.faults]


@pytest.mark.parametrize("next_command", ["delete", "backup"])
def test_the_next_command_lets_go_of_it(tmp_path: Path, capsys: pytest.CaptureFixture[str], next_command: str) -> None:
    strongroom = CommandLine(tmp_path, capsys)
    strongroom.init()
    point = strongroom.backup(os.urandom(300_000), "web")
    served = subprocess.Popen(
        [sys.executable, "-m", "appliance.cli", "export", "serve", "web", "--point", "latest"],
        cwd=PROJECT, env=strongroom.environment, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    with served:
        assert served.stdout is not None
        assert served.stdout.readline().startswith("nbd+unix:")
        assert "held for export" in strongroom("point", "delete", point["id"], "--yes").error()
        served.kill()
    if next_command == "delete":
        done = strongroom("point", "delete", point["id"], "--yes")
        assert done.code == 0, done.err
    else:
        strongroom.backup(os.urandom(4096), "other")
    with Appliance(load(strongroom.environment)) as appliance:
        assert appliance.repository.holds() == []
        assert appliance.catalog.exports.list() == ()


def test_a_client_that_goes_amid_its_requests_ends_the_service_for_nobody(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """nbdkit 1.32 dies of that."""
    strongroom = CommandLine(tmp_path, capsys)
    strongroom.init()
    content = os.urandom(24 << 20)
    strongroom.backup(content, "web")
    with subprocess.Popen(
        [sys.executable, "-m", "appliance.cli", "export", "serve", "web", "--point", "latest"],
        cwd=PROJECT, env=strongroom.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as serving:  # fmt: skip
        try:
            assert serving.stdout is not None
            assert serving.stderr is not None
            uri = serving.stdout.readline().strip()
            assert "Serving" in serving.stderr.readline()
            leaving = threading.Thread(target=leave_amid_requests, args=(uri, over := threading.Event()))
            leaving.start()
            try:
                assert readable(serving.stderr, 300), "no client ended a server"
            finally:
                over.set()
                leaving.join()
            assert "died, and was started again" in serving.stderr.readline()
            copy = tmp_path / "copy"
            deadline = time.monotonic() + 300
            while subprocess.run(["nbdcopy", uri, copy], check=False, timeout=300).returncode:
                assert time.monotonic() < deadline, "it is served no more"
                time.sleep(0.2)  # the last who left may have ended it once more
            assert copy.read_bytes() == content
            serving.send_signal(signal.SIGTERM)
            assert serving.wait(120) == 0
        finally:
            serving.kill()


def leave_amid_requests(uri: str, over: threading.Event) -> None:
    """Again and again: more requests than a server has threads, and nobody there for the answers."""
    while not over.is_set():
        handle = nbd.NBD()
        try:
            handle.connect_uri(uri)
            for number in range(24):
                handle.aio_pread(nbd.Buffer(1 << 20), number << 20)
            while handle.aio_in_flight() > 12:
                handle.poll(1000)
            with socket.socket(fileno=os.dup(handle.aio_get_fd())) as line:
                line.shutdown(socket.SHUT_RDWR)
        except (nbd.Error, OSError):
            time.sleep(0.05)  # as many clients as may are there, or nobody is: it is started again
