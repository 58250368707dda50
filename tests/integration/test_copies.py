"""Copies of a machine's points: into a bucket, out of it into a folder, and good for everything that points are for."""

from __future__ import annotations

import secrets
import shutil
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from appliance.services.recovery import RecoveryService
from imaging.points import Point
from tests.integration.backing_up import MIB, Disk, Rig, blank, firmware_machine, plain, rig
from tests.integration.recovering import assert_nothing_left, no_supervisor, reads_right, record_of, strongroom
from tests.lab import Lab, LabGuest
from tests.lab.owned import home_folder
from tests.lab.s3_server import running

__all__ = ["no_supervisor"]

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("no_supervisor")]


@pytest.fixture
def bucket() -> Iterator[Rig]:
    """A home whose own settings lead to a bucket: the environment of a copy speaks of its first home alone."""
    server = running()
    with ExitStack() as stack:
        home = stack.enter_context(home_folder()) / "home"
        home.mkdir(mode=0o711)
        settings = home / "strongroom.toml"
        settings.touch(mode=0o600)
        settings.write_text(
            f'[s3]\nendpoint = "{server.url}"\nbucket = "{server.bucket().name}"\n'
            f'prefix = "copies-{secrets.token_hex(4)}/"\naccess_key = "{server.credentials.access_key}"\n'
            f'secret_key = "{server.credentials.secret_key}"\n[limits]\nworkers = 1\n'
        )
        made = Rig(home)
        stack.callback(made.close)
        yield made


def uefi(nvram: Path, domain: ET.Element) -> None:
    system = domain.find("os")
    assert system is not None
    ET.SubElement(system, "loader", readonly="yes", type="pflash").text = "/usr/share/OVMF/OVMF_CODE_4M.fd"
    ET.SubElement(system, "nvram", template="/usr/share/OVMF/OVMF_VARS_4M.fd").text = str(nvram)


def copied(origin: Rig, target: Rig) -> list[dict[str, object]]:
    done = strongroom(origin, "repository", "copy", target.home, "--json").json()["points"]
    assert all(each["verified_bytes"] > 0 for each in done)
    return list(done)


def points_of(home: Rig, name: str) -> list[Point]:
    return [point for point in home.points() if point.manifest.machine.name == name]


def test_a_machine_comes_back_from_its_copies_alone(bucket: Rig, lab: Lab) -> None:
    nvram = lab.folder / "nvram.fd"
    with rig() as folder, ExitStack() as lost:
        origin = lost.enter_context(rig())
        guest, disk, states = protected(origin, lab, nvram)
        name, variables, definition = guest.name, nvram.read_bytes(), guest.domain.XMLDesc()
        assert len(copied(origin, bucket)) == 2
        assert origin.appliance.repository.holds() == []
        origin.close()
        guest.remove()
        for path in (origin.home, disk.path, nvram):
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        origin.home.mkdir()  # for its fixture to remove

        assert len(copied(bucket, folder)) == 2, "out of the bucket into a folder"
        assert copied(bucket, folder) == []
        for home in (bucket, folder):
            made = points_of(home, name)
            assert [point.manifest.disks[0].read for point in made] == ["full", "incremental"]
            assert [home.content(point) for point in made] == states
            assert home.file_content(made[-1].manifest.files[0]) == variables
            assert home.appliance.repository.verify(read_data=True).ok

        restores_under_a_new_name(folder, lab, name, definition, states[-1], variables)
        restores_under_a_new_name(bucket, lab, name, definition, states[-1], variables)
        runs_out_of(bucket, lab, name, disk)


def protected(home: Rig, lab: Lab, nvram: Path) -> tuple[LabGuest, Disk, list[bytes]]:
    """Backed up twice, with what its disk held each time. Off in the end."""
    disk = blank(lab, "vda", 24 * MIB)
    guest = firmware_machine(lab, [disk.disk], "copied", edit=lambda domain: uefi(nvram, domain))
    guest.start(wait=False)
    guest.domain.suspend()  # its firmware would go on writing its variables
    disk.write_pattern(guest, MIB, 4 * MIB, 0x5A)
    disk.write_noise(guest, 6 * MIB, 8 * MIB)
    states = []
    for _ in range(2):
        home.backup(guest)
        states.append(bytes(disk.truth))
        disk.write_noise(guest, 8 * MIB, 70_000)
    disk.truth[:] = states[-1]
    return guest, disk, states


def restores_under_a_new_name(home: Rig, lab: Lab, name: str, definition: str, state: bytes, variables: bytes) -> None:
    again = lab.adopt(f"{lab.token}again-{secrets.token_hex(2)}")
    place = ("--host", "here", "--as", again.name, "--storage", lab.folder)
    strongroom(home, "restore", name, "--point", "latest", *place, expect=3)  # it tells what became of its consoles
    assert plain(again.disk_paths["vda"]) == state
    old, new = ET.fromstring(definition), ET.fromstring(again.domain.XMLDesc())
    for path in ("memory", "vcpu", "os/loader", "devices/disk/target", "devices/interface/model"):
        before, after = old.find(path), new.find(path)
        assert (before is None) == (after is None), path
        assert before is None or after is None or (before.text, before.attrib) == (after.text, after.attrib), path
    assert new.findtext("uuid") != old.findtext("uuid")
    assert Path(new.findtext("os/nvram") or "").read_bytes() == variables
    again.start(wait=False)
    assert again.running
    again.remove()


def runs_out_of(home: Rig, lab: Lab, name: str, disk: Disk) -> None:
    service = RecoveryService(home.appliance)
    record = service.start(name, "latest", host="here", new_name=f"{lab.token}instant")
    guest = lab.adopt(record.machine_name)
    assert guest.running
    assert reads_right(guest, disk)
    service.discard(record.id)
    assert_nothing_left(home, lab, record_of(home, record.id))
