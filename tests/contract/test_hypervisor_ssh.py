"""A host over SSH keeps the same contract: sshd on the loopback, with keys of the test's own."""

from __future__ import annotations

import os
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from uuid import uuid4

import pytest

from appliance.bootstrap import Appliance
from appliance.hypervisor.errors import (
    HostFieldRefused,
    HostFileError,
    HostUnreachable,
    HypervisorError,
    ImageToolFailed,
    ScreenUnavailable,
)
from appliance.hypervisor.libvirt_driver import connect
from appliance.hypervisor.parts import part_of
from appliance.hypervisor.protocol import BackupRequest, DiskBackup, HostConfig, Hypervisor, Transport
from appliance.hypervisor.ssh import SshHost
from appliance.hypervisor.tools import LocalTools
from appliance.settings import load
from tests.contract.hypervisor_waiting import wait_until
from tests.integration.recovering import kill_all
from tests.lab import Lab
from tests.lab.ports import free_port

pytestmark = pytest.mark.integration
MIB = 1 << 20


@dataclass
class Sshd:
    """Owns a daemon and its folder."""

    folder: Path
    port: int
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self.process = subprocess.Popen(
            ["/usr/sbin/sshd", "-D", "-e", "-f", self.folder / "config"],
            stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip

        def answers() -> bool:
            with socket.socket() as probe:
                return probe.connect_ex(("127.0.0.1", self.port)) == 0

        wait_until(answers)

    def stop(self) -> None:
        """The daemon and its sessions."""
        if self.process is None:
            return
        sessions = subprocess.run(
            ["pgrep", "-P", str(self.process.pid)], capture_output=True, text=True, check=False
        ).stdout.split()
        self.process.kill()
        self.process.wait(60)
        kill_all([int(session) for session in sessions])
        self.process = None

    @property
    def config(self) -> HostConfig:
        return HostConfig(
            "far", Transport.SSH, hostname="127.0.0.1", user="root", port=self.port, timeout_s=60.0,
            keyfile=str(self.folder / "key"), known_hosts=str(self.folder / "known_hosts"),
        )  # fmt: skip


@pytest.fixture(scope="module")
def sshd() -> Iterator[Sshd]:
    assert shutil.which("sshd", path="/usr/sbin:/usr/bin"), "openssh-server is not installed: run 'make setup'"
    folder = Path(tempfile.mkdtemp(prefix="strongroom-sshd-", dir="/var/tmp"))
    for key in ("key", "host"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / key], check=True)
    shutil.copy(folder / "key.pub", folder / "authorized_keys")
    port = free_port()
    host_key = (folder / "host.pub").read_text().split()
    (folder / "known_hosts").write_text(f"[127.0.0.1]:{port} {host_key[0]} {host_key[1]}\n")
    (folder / "config").write_text(
        f"ListenAddress 127.0.0.1:{port}\nHostKey {folder}/host\nAuthorizedKeysFile {folder}/authorized_keys\n"
        f"PidFile {folder}/pid\nPermitRootLogin prohibit-password\nPasswordAuthentication no\n"
        "KbdInteractiveAuthentication no\nUsePAM no\nStrictModes no\nAllowStreamLocalForwarding yes\n"
    )
    Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
    daemon = Sshd(folder, port)
    daemon.start()
    yield daemon
    daemon.stop()
    shutil.rmtree(folder)


@pytest.fixture
def hypervisor(sshd: Sshd) -> Iterator[Hypervisor]:
    with connect(sshd.config) as connected:
        yield connected


@pytest.fixture
def folder() -> Iterator[Path]:
    made = Path(tempfile.mkdtemp(prefix="strongroom-far-", dir="/var/tmp"))
    made.chmod(0o755)
    yield made
    shutil.rmtree(made)


def test_backup_of_a_far_machine_is_read_through_a_carried_socket(lab: Lab, hypervisor: Hypervisor) -> None:
    disk = lab.data_disk("vda")
    guest = lab.machine("far", disks=[disk])
    hypervisor.machines.start(guest.name, paused=True)
    machine = hypervisor.machines.get(guest.name)
    assert machine.disks[0].can_hold_bitmap
    assert hypervisor.facts().hypervisor == "QEMU"
    run = lab.folder / "run"
    name = str(uuid4())
    request = BackupRequest(machine.uuid, name, str(run / "nbd.sock"), (DiskBackup("vda", str(run / "vda.scratch")),))
    job = hypervisor.backups.begin(request)
    with hypervisor.files.carry(job.socket) as local:
        assert local != Path(job.socket)
        copy = lab.path("copy.raw")
        subprocess.run(["nbdcopy", f"nbd+unix:///vda?socket={local}", copy], check=True)
        subprocess.run(["qemu-img", "compare", "-U", "-f", "raw", "-F", "qcow2", copy, disk.path], check=True)
    assert not local.exists()
    assert hypervisor.backups.end(machine.uuid, job.socket) is False
    assert list(run.iterdir()) == []
    hypervisor.checkpoints.delete(machine.uuid, name, ["vda"])
    guest.kill()
    assert hypervisor.bitmaps.list(str(disk.path)) == ()


def test_local_export_is_offered_to_the_far_qemu(hypervisor: Hypervisor, folder: Path) -> None:
    here, there = folder / "here.sock", folder / "there.sock"
    there.write_bytes(b"stale")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(here))
        server.listen()

        def serve() -> None:
            client, _ = server.accept()
            with client:
                client.sendall(b"NBDMAGIC")

        thread = threading.Thread(target=serve)
        thread.start()
        with hypervisor.files.offer(here, str(there)) as offered:
            found = os.stat(offered)
            assert found.st_uid == hypervisor.files.qemu().uid
            assert stat.S_IMODE(found.st_mode) & 0o077 == 0
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(offered)
                assert client.recv(8) == b"NBDMAGIC"
        thread.join()
    assert not there.exists()


@pytest.mark.parametrize(
    "name", ["plain", "with space", "$(touch pwned)", "quote'\"", "-dash", "new\nline", "ünïcode", "*"]
)
def test_names_reach_the_host_as_they_are(hypervisor: Hypervisor, folder: Path, name: str) -> None:
    files = hypervisor.files
    path = str(folder / name)
    assert not files.exists(path)
    files.write(path, b"\x00binary\n")
    assert Path(path).read_bytes() == b"\x00binary\n"
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    assert os.stat(path).st_uid == files.qemu().uid
    assert files.read(path, 100) == b"\x00binary\n"
    assert files.head(path, 3) == b"\x00bi"
    assert sorted(os.listdir(folder)) == [name]
    with pytest.raises(HostFileError, match="larger than 3 bytes"):
        files.read(path, 3)
    files.remove(path)
    files.remove(path)
    assert not files.exists(path)


def test_what_a_killed_write_left_goes_with_the_file(hypervisor: Hypervisor, folder: Path) -> None:
    path = str(folder / "scratch")
    Path(part_of(path)).write_bytes(b"half of i")
    hypervisor.files.remove(path)
    assert os.listdir(folder) == []
    Path(part_of(path)).write_bytes(b"half of i")
    hypervisor.files.write(path, b"all of it")
    assert os.listdir(folder) == ["scratch"]
    assert Path(path).read_bytes() == b"all of it"


def test_a_link_where_a_file_is_written_first_is_not_followed(
    hypervisor: Hypervisor, folder: Path, tmp_path: Path
) -> None:
    victim, path = tmp_path / "victim", str(folder / "scratch")
    victim.write_bytes(b"theirs")
    before = victim.stat()
    Path(part_of(path)).symlink_to(victim)
    hypervisor.files.write(path, b"ours")
    assert (victim.read_bytes(), victim.stat().st_uid, victim.stat().st_mode) == (
        b"theirs", before.st_uid, before.st_mode,
    )  # fmt: skip
    assert Path(path).read_bytes() == b"ours"
    assert not Path(path).is_symlink()


def test_folder_is_read_without_following_links(hypervisor: Hypervisor, folder: Path) -> None:
    (folder / "tpm2").mkdir()
    (folder / "tpm2" / "state").write_bytes(b"sealed")
    (folder / "shadow").symlink_to("/etc/shadow")
    assert hypervisor.files.read_folder(str(folder), 1000) == (("tpm2/state", b"sealed"),)
    with pytest.raises(HostFileError, match="holds more than 3 bytes"):
        hypervisor.files.read_folder(str(folder), 3)
    with pytest.raises(HostFileError, match="cannot be read"):
        hypervisor.files.read(str(folder / "absent"), 10)


def test_folder_that_qemu_cannot_reach_is_named(hypervisor: Hypervisor, folder: Path) -> None:
    hypervisor.files.prepare_folder(str(folder / "open"))
    assert (folder / "open").stat().st_uid == hypervisor.files.qemu().uid
    assert (hypervisor.files.free_bytes(str(folder)) or 0) > 0
    assert hypervisor.files.free_bytes(str(folder / "absent")) is None
    (folder / "closed").mkdir(mode=0o700)
    with pytest.raises(HostFileError, match="does not get there"):
        hypervisor.files.prepare_folder(str(folder / "closed" / "scratch"))


def test_screen_of_another_host_is_not_shown(hypervisor: Hypervisor) -> None:
    with pytest.raises(ScreenUnavailable, match="is reached over SSH"):
        hypervisor.machines.open_screen("any")


def test_tool_that_fails_there_says_why(hypervisor: Hypervisor, folder: Path) -> None:
    with pytest.raises(HostFileError):
        hypervisor.bitmaps.list(str(folder / "absent.qcow2"))
    (folder / "raw").write_bytes(bytes(4096))
    with pytest.raises(ImageToolFailed, match="not a qcow2"):
        hypervisor.bitmaps.list(str(folder / "raw"))


def test_unknown_host_key_is_refused(sshd: Sshd, folder: Path) -> None:
    (folder / "known").write_text("")
    with pytest.raises(HostUnreachable, match="Host key verification failed"):
        connect(replace(sshd.config, known_hosts=str(folder / "known")))


def test_changed_host_key_is_refused(sshd: Sshd, folder: Path) -> None:
    other = (sshd.folder / "key.pub").read_text().split()
    (folder / "known").write_text(f"[127.0.0.1]:{sshd.port} {other[0]} {other[1]}\n")
    with pytest.raises(HostUnreachable):
        connect(replace(sshd.config, known_hosts=str(folder / "known")))


def test_wrong_key_wrong_port_and_session_are_told(sshd: Sshd, folder: Path) -> None:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / "stranger"], check=True)
    with pytest.raises(HostUnreachable, match="Permission denied"):
        connect(replace(sshd.config, keyfile=str(folder / "stranger")))
    with pytest.raises(HostUnreachable, match="refused"):
        connect(replace(sshd.config, port=1))
    with pytest.raises(HostFieldRefused):
        connect(replace(sshd.config, session=True))


def test_host_that_accepts_and_says_nothing_times_out(sshd: Sshd) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        with pytest.raises(HostUnreachable):
            connect(replace(sshd.config, port=silent.getsockname()[1], timeout_s=2.0))


def test_connection_comes_back_after_sshd_was_killed(sshd: Sshd, folder: Path) -> None:
    with connect(sshd.config) as hypervisor:
        assert isinstance(hypervisor.machines.list(), tuple)
        sshd.stop()
        with pytest.raises(HostUnreachable):
            hypervisor.storage.pools()
        with pytest.raises(HostUnreachable):
            hypervisor.files.exists(str(folder))
        sshd.start()
        assert hypervisor.files.exists(str(folder))
        assert hypervisor.facts().hypervisor == "QEMU"


def test_nothing_is_left_behind(sshd: Sshd, folder: Path) -> None:
    with connect(sshd.config, runtime=folder) as hypervisor:
        assert [path.name for path in folder.iterdir()] != []
        assert hypervisor.files.local is False
    assert list(folder.iterdir()) == []


def masters(folder: Path) -> dict[int, str]:
    """SSH masters whose sockets are below the folder, with their command lines."""
    found: dict[int, str] = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes().decode().split("\0")
        except OSError:
            continue  # it has just ended
        if words[0] == "ssh" and "-M" in words and any(word.startswith(f"{folder}/") for word in words):
            found[int(process.name)] = " ".join(words)
    return found


def test_known_hosts_are_never_written_to(sshd: Sshd, folder: Path) -> None:
    """ssh adds keys that a host shows to the user's own file, unless it is told not to."""
    with connect(sshd.config, runtime=folder):
        (command,) = masters(folder).values()
    assert "UpdateHostKeys=no" in command
    assert "StrictHostKeyChecking=yes" in command


def test_sockets_of_a_home_are_in_its_run_folder(sshd: Sshd, folder: Path) -> None:
    with Appliance(load({"STRONGROOM_HOME": str(folder / "home")})) as appliance:
        run = appliance.settings.run_directory
        with appliance.connect_to(sshd.config) as hypervisor:
            assert len(masters(run)) == 1
            assert hypervisor.files.local is False
            (made,) = [path for path in run.iterdir() if path.is_dir()]
            assert stat.S_IMODE(made.stat().st_mode) == 0o700
        assert list(run.iterdir()) == []


def test_home_that_is_too_deep_for_sockets_says_so(sshd: Sshd, folder: Path) -> None:
    deep = folder / ("d" * (74 - len(str(folder)) - 1))
    deep.mkdir()
    with pytest.raises(HypervisorError, match="is 1 bytes too long for the sockets of a host over SSH") as refused:
        connect(sshd.config, runtime=deep)
    assert "STRONGROOM_HOME" in refused.value.hint
    assert list(deep.iterdir()) == []
    fits = folder / ("d" * (73 - len(str(folder)) - 1))
    fits.mkdir()
    with connect(sshd.config, runtime=fits) as hypervisor:
        assert hypervisor.facts().hypervisor == "QEMU"


def test_master_outlives_the_thread_that_first_needed_it(sshd: Sshd, folder: Path) -> None:
    with SshHost(sshd.config, folder) as host:
        thread = threading.Thread(target=host.run, args=(["true"],))
        thread.start()
        thread.join()
        first = masters(folder)
        assert len(first) == 1
        assert host.run(["true"]).returncode == 0
        assert masters(folder) == first


def test_no_tool_sees_our_secrets(sshd: Sshd, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither SSH, nor what is run here on images that may be hostile."""
    monkeypatch.setenv("STRONGROOM_S3_SECRET_KEY", "hush")
    assert b"hush" not in LocalTools().run(["env"], "an image")
    with SshHost(sshd.config, folder) as host:
        assert host.run(["true"]).returncode == 0
        (master,) = masters(folder)
        seen = Path(f"/proc/{master}/environ").read_bytes()
    assert b"PATH=" in seen
    assert b"hush" not in seen


KILLED = """
import sys, time
from pathlib import Path
from appliance.hypervisor.libvirt_driver import connect
from appliance.hypervisor.protocol import HostConfig, Transport
runtime, port, keys = sys.argv[1:]
config = HostConfig("far", Transport.SSH, hostname="127.0.0.1", user="root", port=int(port),
                    keyfile=f"{keys}/key", known_hosts=f"{keys}/known_hosts", timeout_s=60)
with connect(config, runtime=Path(runtime)):
    print("connected", flush=True)
    time.sleep(300)
"""


def test_killed_process_leaves_no_master_and_the_next_removes_its_sockets(sshd: Sshd, folder: Path) -> None:
    with connect(sshd.config, runtime=folder) as living:
        mine = set(folder.iterdir())
        command = [sys.executable, "-c", KILLED, str(folder), str(sshd.port), str(sshd.folder)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "connected\n"
            assert len(masters(folder)) == 2
            process.kill()
        wait_until(lambda: len(masters(folder)) == 1)
        assert len(set(folder.iterdir()) - mine) == 2, "its folder and its lock"
        with connect(sshd.config, runtime=folder):
            assert len(list(folder.iterdir())) == 2 * len(mine)
        assert set(folder.iterdir()) == mine
        assert living.facts().hypervisor == "QEMU"
    assert list(folder.iterdir()) == []
