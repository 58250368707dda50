"""A disk served by a real nbdkit, read by real clients."""

from __future__ import annotations

import json
import os
import shlex
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from appliance.services.choosing import DiskNotOnPoint, NotProtected
from appliance.services.exports import ExportService
from imaging import export
from imaging.errors import ExportFailed, PointHeld
from imaging.export import Listen
from imaging.source import NbdSource
from tests.integration.protected import NAME, Protected, nbd_copy, protected_image
from tests.lab.ports import free_port
from tests.unit.cli_runner import PROJECT


@pytest.fixture
def protected(strongroom_home: Path) -> Iterator[Protected]:
    with protected_image(strongroom_home) as made:
        yield made


def test_serves_the_disk_bit_exact_and_holds_the_point(protected: Protected, tmp_path: Path) -> None:
    appliance = protected.appliance
    with ExportService(appliance).serve(NAME, "latest", None) as served:
        assert nbd_copy(served.uri, tmp_path / "copy.raw") == protected.content
        assert stat.S_IMODE(os.stat(served.record.sockets[0]).st_mode) == 0o600
        assert [hold.purpose for hold in appliance.repository.holds()] == ["export"]
        with pytest.raises(PointHeld):
            appliance.repository.delete_point(protected.point, by="test")
        assert [record.id for record in ExportService(appliance).list()] == [served.record.id]
        pid = int(Path(served.record.sockets[0] + ".pid").read_text())
    assert not Path(f"/proc/{pid}").exists()
    assert appliance.repository.holds() == []
    assert ExportService(appliance).list() == ()
    assert not list(appliance.settings.run_directory.glob("*x*"))


def test_no_secret_is_on_the_command_line(protected: Protected) -> None:
    key = protected.appliance.settings.machine_key_file.read_bytes()
    with ExportService(protected.appliance).serve(NAME, "latest", None) as served:
        pid = int(Path(served.record.sockets[0] + ".pid").read_text())
        seen = Path(f"/proc/{pid}/cmdline").read_bytes() + Path(f"/proc/{pid}/environ").read_bytes()
    assert key not in seen
    assert key.hex().encode() not in seen
    assert os.environ["STRONGROOM_PASSPHRASE"].encode() not in seen


def test_says_what_it_offers(protected: Protected) -> None:
    with ExportService(protected.appliance).serve(NAME, "latest", "disk") as served:
        told = json.loads(
            subprocess.run(["nbdinfo", "--no-content", "--json", served.uri], capture_output=True, check=True).stdout
        )
    offered = told["exports"][0]
    assert offered["export-size"] == len(protected.content)
    assert offered["is_read_only"] is True
    assert offered["can_multi_conn"] is True
    assert offered["block_size_preferred"] == 65536


def test_extents_are_the_holes_of_the_map(protected: Protected) -> None:
    with (
        ExportService(protected.appliance).serve(NAME, "latest", None) as served,
        NbdSource(Path(served.record.sockets[0])) as source,
    ):
        zero = source.status(0, len(protected.content)).zero
    assert zero
    for hole in zero:
        assert protected.content[hole.start : hole.stop] == bytes(hole.length)
    held = sum(hole.length for hole in zero)
    whole = sum(
        1 for at in range(0, len(protected.content), 1 << 20) if not any(protected.content[at : at + (1 << 20)])
    )
    assert held >= whole << 20


def test_loopback_only_when_a_port_is_asked_for(protected: Protected, tmp_path: Path) -> None:
    port = free_port()
    with ExportService(protected.appliance).serve(NAME, "latest", None, port=port) as served:
        assert served.uri == f"nbd://localhost:{port}"
        assert nbd_copy(f"nbd://127.0.0.1:{port}", tmp_path / "copy.raw") == protected.content
        listening = Path("/proc/net/tcp").read_text()
        assert f"0100007F:{port:04X}" in listening
        assert f"00000000:{port:04X}" not in listening


def test_unknown_machine_and_disk_are_one_sentence_and_leave_nothing(protected: Protected) -> None:
    service = ExportService(protected.appliance)
    with pytest.raises(NotProtected), service.serve("nobody", "latest", None):
        pass
    with pytest.raises(DiskNotOnPoint), service.serve(NAME, "latest", "vdz"):
        pass
    assert service.list() == ()
    assert protected.appliance.repository.holds() == []


def test_a_server_that_cannot_open_the_repository_says_why(protected: Protected, tmp_path: Path) -> None:
    service = ExportService(protected.appliance)
    served = service.served(protected.point, "disk")
    wrong = tmp_path / "key"
    wrong.write_bytes(bytes(32))
    server = export.start(replace(served, machine_key=wrong), Listen(tmp_path / "s"), outlives_caller=False)
    with pytest.raises(ExportFailed) as failed:
        server.wait_ready(120)
    assert "Traceback" not in str(failed.value)
    assert "secret" in str(failed.value) or "key" in str(failed.value)
    server.stop()
    assert not server.alive()


def test_one_that_outlives_its_caller_is_found_again_and_stopped(protected: Protected, tmp_path: Path) -> None:
    served = ExportService(protected.appliance).served(protected.point, "disk")
    listen = Listen(tmp_path / "s")
    script = (
        "import sys,os,signal; from pathlib import Path; from imaging import export;"
        "from imaging.serving import ServedDisk;"
        "served=ServedDisk.parse(dict(word.split('=',1) for word in sys.argv[2:]));"
        "export.start(served, export.Listen(Path(sys.argv[1])), outlives_caller=True).wait_ready(120);"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    died = subprocess.run([sys.executable, "-c", script, str(listen.path), *served.arguments()], check=False)
    assert died.returncode == -signal.SIGKILL
    again = export.start(served, listen, outlives_caller=True)
    assert again.alive()
    again.wait_ready(120)
    assert nbd_copy(listen.uri, tmp_path / "copy.raw") == protected.content
    again.stop()
    assert not again.alive()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy.raw"]


def test_killed_server_comes_back_on_the_same_socket(protected: Protected, tmp_path: Path) -> None:
    served = ExportService(protected.appliance).served(protected.point, "disk")
    listen = Listen(tmp_path / "s")
    first = export.start(served, listen, outlives_caller=True)
    first.wait_ready(120)
    os.kill(int((tmp_path / "s.pid").read_text()), signal.SIGKILL)
    deadline = time.monotonic() + 120
    while first.alive() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not first.alive()
    second = export.start(served, listen, outlives_caller=True)
    second.wait_ready(120)
    assert nbd_copy(listen.uri, tmp_path / "copy.raw") == protected.content
    second.stop()


def test_export_serve_does_not_outlive_its_caller_and_is_swept(protected: Protected) -> None:
    script = (
        "import os; from appliance.bootstrap import Appliance; from appliance.services.exports import ExportService\n"
        "with Appliance.from_environment() as a, ExportService(a).serve('img', 'latest', None) as served:\n"
        "    print(open(served.record.sockets[0] + '.pid').read().strip(), flush=True)\n"
        "    served.wait()\n"
    )
    child = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    assert child.stdout is not None
    pid = int(child.stdout.readline())
    service = ExportService(protected.appliance)
    service.sweep()
    assert len(service.list()) == 1, "what is alive is left alone"
    child.kill()
    child.wait()
    child.stdout.close()
    deadline = time.monotonic() + 120
    while Path(f"/proc/{pid}").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not Path(f"/proc/{pid}").exists()
    assert len(protected.appliance.repository.holds()) == 1
    left = protected.appliance.settings.run_directory / "export-of-an-earlier-version.lock"
    left.touch()
    assert service.sweep() == ()
    assert service.list() == ()
    assert protected.appliance.repository.holds() == []
    assert not list(left.parent.glob("export-*"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_export_serve_in_the_background_of_a_script_ends_when_interrupted(
    protected: Protected, number: signal.Signals
) -> None:
    """A shell without job control starts what runs in its background with SIGINT ignored."""
    command = [sys.executable, "-m", "appliance.cli", "export", "serve", NAME, "--point", "latest"]
    script = f"{shlex.join(command)} & echo $!; wait $!; echo code $?"
    shell = subprocess.Popen(["sh", "-c", script], stdout=subprocess.PIPE, text=True, cwd=PROJECT)
    assert shell.stdout is not None
    pid = int(shell.stdout.readline())
    assert shell.stdout.readline().startswith("nbd+unix")
    os.kill(pid, number)
    try:
        assert shell.communicate(timeout=120)[0] == "code 0\n"
    except subprocess.TimeoutExpired:
        os.kill(pid, signal.SIGKILL)
        raise
    assert protected.appliance.repository.holds() == []
