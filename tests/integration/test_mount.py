"""All disks of a point as files in a folder, by a real nbdfuse."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.models import ExportKind
from appliance.services.exports import ExportService, NothingMounted
from imaging.convert import is_mounted
from imaging.errors import MountFailed, PointHeld
from tests.integration.protected import NAME, Protected, protected_image
from tests.integration.recovering import wait_until
from tests.unit.cli_runner import PROJECT


@pytest.fixture
def protected(strongroom_home: Path) -> Iterator[Protected]:
    with protected_image(strongroom_home) as made:
        try:
            yield made
        finally:
            for record in ExportService(made.appliance).list():
                if record.kind is ExportKind.MOUNT:
                    ExportService(made.appliance).umount(Path(record.address))


def test_files_are_the_disks_read_only_until_umount(protected: Protected, tmp_path: Path) -> None:
    service = ExportService(protected.appliance)
    record = service.mount(NAME, "latest", tmp_path)
    file = tmp_path / "disk"
    assert record.disks == ("disk",)
    assert file.read_bytes() == protected.content
    with pytest.raises(OSError):
        os.close(os.open(file, os.O_RDWR))
    assert [hold.purpose for hold in protected.appliance.repository.holds()] == ["mount"]
    with pytest.raises(PointHeld):
        protected.appliance.repository.delete_point(protected.point, by="test")
    assert service.umount(tmp_path).id == record.id
    assert list(tmp_path.iterdir()) == []
    assert protected.appliance.repository.holds() == []
    assert service.list() == ()
    assert not list(protected.appliance.settings.run_directory.glob("*x*"))


def test_a_mount_keeps_neither_folder_nor_secret_of_who_asked_for_it(
    protected: Protected, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its process stays as long as the mount: a folder in use could not be unmounted, a secret would stay readable."""
    (tmp_path / "here").mkdir()
    (tmp_path / "point").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    record = ExportService(protected.appliance).mount(NAME, "latest", Path("../point"))
    process = Path("/proc") / Path(record.sockets[0] + ".fuse").read_text().strip()
    assert (process / "cwd").readlink() == Path("/")
    environment = (process / "environ").read_bytes()
    assert b"PATH=" in environment
    assert os.environ["STRONGROOM_PASSPHRASE"].encode() not in environment


def test_a_loop_device_can_stand_on_it(protected: Protected, tmp_path: Path) -> None:
    ExportService(protected.appliance).mount(NAME, "latest", tmp_path)
    made = subprocess.run(
        ["losetup", "--find", "--show", "--read-only", str(tmp_path / "disk")],
        capture_output=True,
        text=True,
        check=True,
    )
    device = Path(made.stdout.strip())
    try:
        assert device.read_bytes() == protected.content
        with pytest.raises(MountFailed) as busy:
            ExportService(protected.appliance).umount(tmp_path)
        assert "busy" in str(busy.value)
        assert is_mounted(tmp_path / "disk")
        assert len(protected.appliance.repository.holds()) == 1
    finally:
        subprocess.run(["losetup", "--detach", str(device)], check=True)

    def unmounted() -> bool:
        """The loop driver lets go of the file a moment after."""
        try:
            ExportService(protected.appliance).umount(tmp_path)
        except MountFailed as error:
            if "busy" not in str(error):
                raise
            return False
        return True

    wait_until(unmounted, "nobody has the file open")


def test_what_cannot_be_mounted_on_is_refused(protected: Protected, tmp_path: Path) -> None:
    service = ExportService(protected.appliance)
    with pytest.raises(MountFailed, match="No such file"):
        service.mount(NAME, "latest", tmp_path / "nowhere")
    (tmp_path / "file").write_bytes(b"precious")
    with pytest.raises(MountFailed, match="not empty"):
        service.mount(NAME, "latest", tmp_path)
    with pytest.raises(NothingMounted):
        service.umount(tmp_path)
    assert service.list() == ()
    assert protected.appliance.repository.holds() == []
    assert (tmp_path / "file").read_bytes() == b"precious"


def test_a_mount_outlives_its_command_and_is_left_alone_by_upkeep(protected: Protected, tmp_path: Path) -> None:
    script = (
        "import sys, os, signal; from pathlib import Path; from appliance.bootstrap import Appliance\n"
        "from appliance.services.exports import ExportService\n"
        "ExportService(Appliance.from_environment()).mount('img', 'latest', Path(sys.argv[1]))\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    died = subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=False)
    assert died.returncode == -signal.SIGKILL
    service = ExportService(protected.appliance)
    assert service.sweep() == ()
    assert (tmp_path / "disk").read_bytes() == protected.content
    service.umount(tmp_path)


@pytest.mark.faults
@pytest.mark.parametrize(
    "place",
    [
        ("appliance.services.exports:ExportService._held", "after"),
        ("imaging.export:start", "after"),
        ("imaging.convert:mount_file", "before"),
    ],
    ids=["held", "server started", "server ready"],
)
def test_killed_while_mounting_is_swept(protected: Protected, tmp_path: Path, place: tuple[str, str]) -> None:
    service = ExportService(protected.appliance)
    words = [sys.executable, "-m", "tests.faults.crash", *place, "1", "mount", NAME, "--point", "latest", str(tmp_path)]
    died = subprocess.run(words, check=False, capture_output=True, text=True, cwd=PROJECT)
    assert died.returncode == -signal.SIGKILL, died.stderr
    assert len(service.list()) == len(protected.appliance.repository.holds()) == 1
    # What it had started may hold its lock for a moment more: until then it is not swept, and that is no problem.
    wait_until(lambda: not service.sweep() and not service.list(), "it is swept")
    assert protected.appliance.repository.holds() == []
    assert list(tmp_path.iterdir()) == []
