"""Image files of every format, and block devices, as runs of their own: no hypervisor is asked."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.models import RunState
from appliance.services.backup import BackupService
from imaging.errors import ImageRefused, ImageUnreadable
from tests.integration.backing_up import MIB, Rig, rig, tool
from tests.integration.protected import patchwork

pytestmark = pytest.mark.integration

FORMATS = ("raw", "qcow2", "vmdk", "vhdx", "vdi")


@pytest.fixture(scope="module")
def strongroom() -> Iterator[Rig]:
    with rig() as made:
        yield made


def converted(raw: Path, image_format: str, target: Path) -> Path:
    tool("qemu-img", "convert", "-f", "raw", "-O", image_format, raw, target)
    return target


@pytest.mark.parametrize("image_format", FORMATS)
def test_a_changed_image_is_stored_whole_and_only_what_is_new(
    tmp_path: Path, strongroom: Rig, image_format: str
) -> None:
    content = bytearray(patchwork(24 * MIB, seed=len(image_format)))
    raw = tmp_path / "plain"
    raw.write_bytes(content)
    image = converted(raw, image_format, tmp_path / f"disk.{image_format}")
    service = BackupService(strongroom.appliance)
    first = service.run_image(image, image_format, f"a {image_format}")
    assert not first.partial
    manifest = first.point.manifest
    assert (manifest.kind, manifest.consistency, manifest.checkpoint) == ("full", "offline", None)
    assert [(disk.name, disk.format) for disk in manifest.disks] == [("disk", image_format)]
    before = bytes(content)
    content[9 * MIB : 9 * MIB + 5000] = os.urandom(5000)
    raw.write_bytes(content)
    converted(raw, image_format, image)
    second = service.run_image(image, image_format, f"a {image_format}")
    assert second.point.manifest.statistics.stored_bytes < MIB
    assert second.point.manifest.generation == first.point.manifest.generation + 1
    for point, expected in ((first.point, before), (second.point, bytes(content))):
        read = strongroom.content(point, "disk")
        assert read[: len(expected)] == expected
        assert not any(read[len(expected) :])  # some formats round their size up
    strongroom.assert_nothing_left()


def test_a_block_device(tmp_path: Path, strongroom: Rig) -> None:
    content = patchwork(16 * MIB, seed=9)
    backing = tmp_path / "backing"
    backing.write_bytes(content)
    device = Path(tool("losetup", "--find", "--show", "--read-only", backing).strip())
    try:
        result = BackupService(strongroom.appliance).run_image(device, "raw", "a device")
    finally:
        subprocess.run(["losetup", "--detach", device], check=True)
    assert strongroom.content(result.point, "disk") == content


def test_what_cannot_be_backed_up_makes_no_run(tmp_path: Path, strongroom: Rig) -> None:
    points = len(strongroom.points())
    service = BackupService(strongroom.appliance)
    leading_elsewhere = tmp_path / "overlay.qcow2"
    tool("qemu-img", "create", "-q", "-u", "-f", "qcow2", "-F", "raw", "-b", "/etc/shadow", leading_elsewhere, "1M")
    with pytest.raises(ImageRefused, match="backing file"):
        service.run_image(leading_elsewhere, "qcow2", "hostile")
    with pytest.raises(ImageUnreadable, match="no such file"):
        service.run_image(tmp_path / "nothing", "raw", "nothing")
    for device in ("/dev/null", "/dev/zero"):
        with pytest.raises(ImageUnreadable, match="character device"):
            service.run_image(Path(device), "raw", "nothing at all")
    not_qcow2 = tmp_path / "plain"
    not_qcow2.write_bytes(bytes(MIB))
    with pytest.raises(ImageUnreadable):
        service.run_image(not_qcow2, "qcow2", "wrong")
    assert len(strongroom.points()) == points
    assert strongroom.appliance.catalog.runs.list(state=RunState.RUNNING) == ()
    strongroom.assert_nothing_left()


def test_what_a_killed_run_had_set_aside_is_removed(tmp_path: Path, strongroom: Rig) -> None:
    aside = strongroom.settings.cache_directory / "pending-killed"
    aside.mkdir()
    (aside / "data.mdb").write_bytes(bytes(4096))
    stale = strongroom.settings.run_directory / "run-killed.lock"
    stale.touch()
    image = tmp_path / "image"
    image.write_bytes(os.urandom(MIB))
    BackupService(strongroom.appliance).run_image(image, "raw", "after a kill")
    assert not aside.exists()
    assert not stale.exists()
