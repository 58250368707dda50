"""Instant recovery with real guests: started, used, backed up while it runs, migrated, discarded."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from appliance.models import RecoveryState
from tests.integration.backing_up import Rig, image_info, plain, reads, rig
from tests.integration.recovering import (
    assert_export_gone,
    assert_guest_saw_nothing,
    assert_nothing_left,
    exports_of,
    record_of,
    strongroom,
    supervised,
)
from tests.lab import Lab, LabGuest

pytestmark = pytest.mark.integration


@dataclass
class Site:
    """A real guest that was protected and lost, and what it held."""

    rig: Rig
    lab: Lab
    name: str
    content: str


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with Lab() as lab, rig({"STRONGROOM_LIMITS_WORKERS": "1"}) as made:
        guest = lab.machine("web")
        guest.start()
        guest.write("/mnt/vda/letter", "written before the disaster")
        content = guest.content()
        made.backup(guest)
        paths = guest.disk_paths.values()
        guest.kill()
        for path in paths:
            path.unlink()
        with supervised(made):
            yield Site(made, lab, guest.name, content)


def recovered(site: Site, name: str, *arguments: str) -> tuple[str, LabGuest]:
    """Its recovery's id, and the machine, on its way up."""
    name = f"{site.lab.token}{name}"
    done = strongroom(site.rig, "recovery", "start", site.name, "--point", "latest", "--as", name, "--json", *arguments)
    return done.json()["id"], site.lab.adopt(name)


def test_a_lost_machine_runs_is_backed_up_and_moves_while_it_runs(site: Site) -> None:
    id, guest = recovered(site, "life")
    record = record_of(site.rig, id)
    assert record.state is RecoveryState.RUNNING
    assert record.start_ms is not None
    (proof,) = [proof for proof in site.rig.appliance.catalog.proofs.last() if proof.id == id]
    assert (proof.point, proof.took_ms) == (record.point, record.start_ms)
    report = guest.wait_ready()
    assert report.disks["vda"].filesystem == "ext4"
    assert guest.content() == site.content, "the guest reads every file as it was backed up"
    assert [hold.owner for hold in site.rig.appliance.repository.holds()] == [f"recovery-{id}"]
    assert oct(Path(record.disks[0].socket).stat().st_mode & 0o777) == "0o600"

    # a backup of the machine while it stands on its overlay, and an incremental one after that
    guest.fill("/mnt/vda/news", 2)
    first = site.rig.backup(guest)
    guest.write("/mnt/vda/reply", "written while it ran out of the repository")
    second = site.rig.backup(guest)
    assert reads(first)["vda"][0] == "full"
    assert reads(second) == {"vda": ("incremental", None)}
    content = guest.content()

    done = strongroom(site.rig, "recovery", "migrate", id, "--json").json()
    assert done["state"] == "migrated"
    assert_export_gone(site.rig, record)
    assert guest.running
    assert "full-backing-filename" not in image_info(guest.disk_paths["vda"])
    assert guest.content() == content
    guest.write("/mnt/vda/more", "written after the migration")
    assert_guest_saw_nothing(guest)
    driver = disk_driver(guest)
    assert driver.get("discard") == "unmap", "as the admin had it"
    assert not {"error_policy", "rerror_policy"} & set(driver.attrib)

    # protection goes on
    guest.domain.suspend()
    third = site.rig.backup(guest)
    assert reads(third) == {"vda": ("incremental", None)}
    guest.kill()
    assert site.rig.content(third.point) == plain(guest.disk_paths["vda"])
    guest.remove()


def test_moved_to_a_folder_by_a_copy_and_backed_up_there(site: Site) -> None:
    id, guest = recovered(site, "copied")
    target = site.lab.folder / "production"
    target.mkdir(mode=0o755)
    guest.wait_ready()
    site.rig.backup(guest)
    guest.write("/mnt/vda/reply", "written while it ran out of the repository")
    content = guest.content()
    done = strongroom(site.rig, "recovery", "migrate", id, "--to", str(target), "--json").json()
    assert done["state"] == "migrated"
    record = record_of(site.rig, id)
    path = target / f"{guest.name}-vda.qcow2"
    assert done["disks"][0]["destination"] == str(path)
    assert guest.disk_paths == {"vda": path}
    assert_export_gone(site.rig, record)
    assert not Path(record.disks[0].overlay).exists()
    assert guest.content() == content
    assert_guest_saw_nothing(guest)
    guest.domain.suspend()
    after = site.rig.backup(guest)
    assert reads(after)["vda"][0] == "full", "a disk at another path is not taken for the same"
    last = site.rig.backup(guest)
    assert reads(last) == {"vda": ("incremental", None)}
    guest.kill()
    assert site.rig.content(last.point) == site.rig.content(after.point) == plain(path)
    guest.remove()


def test_what_the_guest_shut_down_stays_off_and_what_the_host_lost_comes_back(site: Site) -> None:
    id, guest = recovered(site, "offline")
    guest.wait_ready()
    guest.write("/mnt/vda/reply", "kept")
    guest.switch_off()
    strongroom(site.rig, "recovery", "resume")
    assert not guest.running
    refused = strongroom(site.rig, "recovery", "migrate", id, expect=1)
    assert "is off" in refused.err
    assert record_of(site.rig, id).state is RecoveryState.RUNNING
    assert "is off" in (record_of(site.rig, id).error or "")
    guest.start()
    assert guest.read("/mnt/vda/reply") == "kept"
    guest.kill()  # as a power cut does
    strongroom(site.rig, "recovery", "resume")
    guest.wait_ready()
    assert guest.read("/mnt/vda/reply") == "kept"
    assert record_of(site.rig, id).error is None
    assert len(exports_of(site.rig, record_of(site.rig, id))) == 1
    strongroom(site.rig, "recovery", "discard", id, "--yes")
    assert_nothing_left(site.rig, site.lab, record_of(site.rig, id))
    again = strongroom(site.rig, "recovery", "discard", id, "--yes", expect=1)
    assert "is discarded" in again.err


def disk_driver(guest: LabGuest) -> ET.Element:
    """Of the first disk, as the next start has it."""
    inactive = 2  # VIR_DOMAIN_XML_INACTIVE
    driver = ET.fromstring(guest.domain.XMLDesc(inactive)).find("devices/disk/driver")
    assert driver is not None
    return driver
