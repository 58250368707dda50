"""One disk restored to a file of every format, and to a block device; and what is refused."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from appliance.services.restore import RestoreService
from imaging.errors import TargetFailed, TargetRefused
from tests.integration.protected import MIB, NAME, Protected, protected_image


@pytest.fixture
def protected(strongroom_home: Path) -> Iterator[Protected]:
    with protected_image(strongroom_home) as made:
        yield made


def as_raw(path: Path, image_format: str, into: Path) -> bytes:
    subprocess.run(["qemu-img", "convert", "-f", image_format, "-O", "raw", str(path), str(into)], check=True)
    return into.read_bytes()


@pytest.mark.parametrize("image_format", ["raw", "qcow2", "vmdk", "vhdx", "vpc"])
def test_every_format_holds_the_disk(protected: Protected, tmp_path: Path, image_format: str) -> None:
    target = tmp_path / "restored"
    restored = RestoreService(protected.appliance).disk(NAME, "latest", None, target, image_format)
    content = target.read_bytes() if image_format == "raw" else as_raw(target, image_format, tmp_path / "raw")
    assert content == protected.content
    assert restored.size_bytes == len(protected.content)
    assert restored.written_bytes > 0
    assert protected.appliance.repository.holds() == []
    assert not list(protected.appliance.settings.run_directory.glob("export-*"))
    assert {path.name for path in tmp_path.iterdir()} <= {"restored", "raw"}
    assert target.stat().st_mode & 0o077 == 0


def test_raw_is_sparse(protected: Protected, tmp_path: Path) -> None:
    RestoreService(protected.appliance).disk(NAME, "latest", None, tmp_path / "raw", "raw")
    used = (tmp_path / "raw").stat().st_blocks * 512
    zero_pages = sum(1 for at in range(0, len(protected.content), 65536) if not any(protected.content[at : at + 65536]))
    assert zero_pages > 20
    assert used <= len(protected.content) - zero_pages * 65536 * 3 // 4


class Stages:
    """What was told of each stage."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def start(self, label: str, total_bytes: int | None) -> None:
        self.told.append(label)

    def advance(self, count_bytes: int) -> None: ...

    def note(self, text: str) -> None: ...

    def finish(self) -> None:
        self.told.append("finished")


@pytest.mark.parametrize("image_format", ["raw", "qcow2"])
def test_only_what_was_restored_is_told_as_finished(protected: Protected, tmp_path: Path, image_format: str) -> None:
    service = RestoreService(protected.appliance)
    stages = Stages()
    service.disk(NAME, "latest", None, tmp_path / "x", image_format, progress=stages)
    assert stages.told == ["restoring disk", "finished"]
    refused = Stages()
    with pytest.raises(TargetRefused):
        service.disk(NAME, "latest", None, tmp_path / "x", image_format, progress=refused)
    assert refused.told == []


def test_progress_reaches_the_whole_disk(protected: Protected, tmp_path: Path) -> None:
    class Counting:
        total = 0

        def start(self, label: str, total_bytes: int | None) -> None: ...

        def advance(self, count_bytes: int) -> None:
            self.total += count_bytes

        def note(self, text: str) -> None: ...

        def finish(self) -> None: ...

    for image_format in ("raw", "qcow2"):
        counting = Counting()
        RestoreService(protected.appliance).disk(
            NAME, "latest", None, tmp_path / image_format, image_format, progress=counting
        )
        assert counting.total == len(protected.content)


def test_an_existing_file_stays_unless_forced(protected: Protected, tmp_path: Path) -> None:
    target = tmp_path / "there"
    target.write_bytes(b"precious")
    with pytest.raises(TargetRefused) as refused:
        RestoreService(protected.appliance).disk(NAME, "latest", None, target, "raw")
    assert "exists already" in str(refused.value)
    assert target.read_bytes() == b"precious"
    RestoreService(protected.appliance).disk(NAME, "latest", None, target, "raw", force=True)
    assert target.read_bytes() == protected.content


def test_refusals_name_the_target_and_leave_nothing(protected: Protected, tmp_path: Path) -> None:
    service = RestoreService(protected.appliance)
    with pytest.raises(TargetRefused, match="No such file"):
        service.disk(NAME, "latest", None, tmp_path / "nowhere" / "x", "raw")
    with pytest.raises(TargetRefused, match="not a format"):
        service.disk(NAME, "latest", None, tmp_path / "x", "vdi")
    with pytest.raises(TargetRefused, match="exists already"):
        service.disk(NAME, "latest", None, tmp_path, "raw", force=True)
    assert list(tmp_path.iterdir()) == []
    assert protected.appliance.catalog.cleanups.list() == ()


@contextmanager
def loop_device(backing: Path, size_bytes: int) -> Iterator[Path]:
    with backing.open("wb") as file:
        file.truncate(size_bytes)
    made = subprocess.run(["losetup", "--find", "--show", str(backing)], capture_output=True, text=True, check=True)
    device = Path(made.stdout.strip())
    try:
        yield device
    finally:
        subprocess.run(["losetup", "--detach", str(device)], check=True)


def test_block_device_needs_force_and_room(protected: Protected, tmp_path: Path) -> None:
    service = RestoreService(protected.appliance)
    with loop_device(tmp_path / "small", 8 * MIB) as device:
        with pytest.raises(TargetRefused, match="exists already"):
            service.disk(NAME, "latest", None, device, "raw")
        with pytest.raises(TargetRefused, match="holds 8388608 bytes"):
            service.disk(NAME, "latest", None, device, "raw", force=True)
        assert not any((tmp_path / "small").read_bytes())
    with loop_device(tmp_path / "large", 32 * MIB) as device:
        with device.open("r+b") as dirty:
            dirty.write(b"\xff" * (32 * MIB))
        with pytest.raises(TargetRefused, match="raw only"):
            service.disk(NAME, "latest", None, device, "qcow2", force=True)
        service.disk(NAME, "latest", None, device, "raw", force=True)
        written = device.read_bytes()
    assert written[: len(protected.content)] == protected.content
    assert written[len(protected.content) :] == b"\xff" * (32 * MIB - len(protected.content))


@pytest.mark.parametrize("image_format", ["raw", "qcow2"])
def test_a_full_file_system_is_one_sentence_and_leaves_nothing(
    protected: Protected, tmp_path: Path, image_format: str
) -> None:
    mounted = tmp_path / "full"
    mounted.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(mounted)], check=True)
    try:
        stages = Stages()
        with pytest.raises(TargetFailed) as failed:
            RestoreService(protected.appliance).disk(NAME, "latest", None, mounted / "x", image_format, progress=stages)
        assert "No space left" in str(failed.value)
        assert stages.told == ["restoring disk"]
        assert list(mounted.iterdir()) == []
    finally:
        subprocess.run(["umount", str(mounted)], check=True)
    assert protected.appliance.repository.holds() == []


@pytest.mark.parametrize("image_format", ["raw", "qcow2"])
def test_a_killed_restore_leaves_no_target_and_the_next_one_heals(
    protected: Protected, tmp_path: Path, image_format: str
) -> None:
    target = tmp_path / "killed"
    script = (
        "import os, signal, sys; from pathlib import Path; from appliance.bootstrap import Appliance\n"
        "from appliance.progress import SilentProgress; from appliance.services.restore import RestoreService\n"
        "class Dies(SilentProgress):\n"
        "    def advance(self, count_bytes):\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "with Appliance.from_environment() as a:\n"
        "    RestoreService(a).disk('img', 'latest', None, Path(sys.argv[1]), sys.argv[2], progress=Dies())\n"
    )
    part = tmp_path / "killed.strongroom-part"
    died = subprocess.run([sys.executable, "-c", script, str(target), image_format], check=False)
    assert died.returncode == -signal.SIGKILL
    assert part.exists(), "it was at it"
    assert not target.exists()
    RestoreService(protected.appliance).disk(NAME, "latest", None, target, image_format)
    assert target.exists()
    assert not part.exists()
    from appliance.services.upkeep import UpkeepService

    assert UpkeepService(protected.appliance).once() == ()
    assert protected.appliance.repository.holds() == []
    assert protected.appliance.catalog.exports.list() == ()
