"""Restores asked for in the console: what would be refused is told on the form, what is asked is what is done."""

from __future__ import annotations

import contextlib
import html
import re
from collections.abc import Iterator

import libvirt
import pytest
from werkzeug.test import TestResponse

from appliance.acts import Role
from appliance.hypervisor.protocol import HostConfig, Transport
from appliance.models import HostRecord, RunRecord, RunState
from appliance.services.access import SYSTEM
from appliance.services.access.audits import AuditService
from appliance.services.accounts.setting_up import SetUpService
from appliance.services.accounts.users import UserService
from appliance.services.queue.executing import Executor
from appliance.services.queue.service import QueueService
from appliance.services.restore.errors import HostIsRemote
from tests.integration.backing_up import HOST, MIB, Disk, Rig, blank, firmware_machine, plain, rig
from tests.lab import Lab, LabGuest
from tests.unit.records import NOW
from tests.unit.test_web_access import Signed, _set_up
from web.app import create_app

FAR = HostRecord(HostConfig("far", Transport.SSH, "far.example.org", "backup"), NOW)

pytestmark = pytest.mark.integration


@pytest.fixture
def home(lab: Lab) -> Iterator[Rig]:
    with rig({"STRONGROOM_RESTORE_FOLDERS": str(lab.folder)}) as made:
        yield made


@pytest.fixture
def machine(lab: Lab) -> tuple[LabGuest, Disk]:
    """Off, with content."""
    disk = blank(lab, "vda", 4 * MIB)
    guest = firmware_machine(lab, [disk.disk])
    disk.write_off(0, disk.random.randbytes(MIB))
    return guest, disk


@contextlib.contextmanager
def removed_afterwards(lab: Lab, name: str) -> Iterator[libvirt.virDomain]:
    try:
        yield
    finally:
        with contextlib.suppress(libvirt.libvirtError):
            lab.connection().lookupByName(name).undefine()


def wrong(answer: TestResponse, status: int = 400) -> dict[str, str]:
    """What is told beside which field."""
    assert answer.status_code == status, answer.text
    told = re.findall(r'class="wrong" id="(\w+)-(?:hint|wrong)">([^<]+)<', answer.text)
    return {name: html.unescape(text) for name, text in told}


def run_of(home: Rig, answer: TestResponse) -> RunRecord:
    assert answer.status_code == 302, answer.text
    return home.appliance.catalog.runs.get(answer.headers["Location"].rsplit("/", 1)[1])


def carried_out(home: Rig, answer: TestResponse) -> RunRecord:
    run = run_of(home, answer)
    assert run.state is RunState.QUEUED
    ended = Executor(home.appliance, lambda: None).execute(run.id)
    assert ended in (RunState.SUCCEEDED, RunState.PARTIAL)  # what is different from the original is told
    return home.appliance.catalog.runs.get(run.id)


def test_a_machine_and_a_disk_are_restored_from_the_console(
    lab: Lab, home: Rig, machine: tuple[LabGuest, Disk]
) -> None:
    guest, disk = machine
    point = home.backup(guest).point
    assert point is not None
    then = bytes(disk.truth)
    app = create_app(home.appliance)
    admin = _set_up(app, home.appliance, SetUpService(home.appliance).first_link(), "admin")
    invited = UserService(home.appliance).add(SYSTEM, "operator", Role.OPERATOR)
    operator = _set_up(app, home.appliance, invited.link, "operator")
    key = f"vm:{guest.domain.UUIDString()}"
    whole = {"machine": key, "what": "whole", "point": point.id, "step": "review", "host": HOST}
    one = {"machine": key, "what": "disk:vda", "point": point.id, "step": "review", "format": "raw"}

    def look(person: Signed, **answers: str) -> TestResponse:
        path = "/restore?" + "&".join(f"{name}={value}" for name, value in answers.items())
        return person.send("GET", path)

    # From the page of the machine, by what and when.
    assert f"/restore?machine={key}" in html.unescape(admin.send("GET", f"/vms/{key}").text)
    assert "Disk vda" in look(admin, machine=key).text
    assert "Disk vda" not in look(operator, machine=key).text
    assert point.id in look(admin, machine=key, what="whole").text
    assert "In place of" in look(admin, machine=key, what="whole", point=point.id).text

    # What stands in the way, beside what has to be another.
    taken = look(admin, **whole, place="new", name=guest.name)
    assert "has another machine called" in wrong(taken)["name"]
    assert "pool" in wrong(look(admin, **whole, place="new", name="fresh", storage="nowhere"))["storage"]
    assert "nobody" in wrong(look(admin, **{**whole, "host": "nobody"}, place="new", name="fresh"))["host"]
    no_folder = look(admin, **whole, place="new", name="fresh", storage=str(disk.path))
    assert "Not a directory" in wrong(no_folder)["storage"]
    home.appliance.catalog.hosts.add(FAR)
    assert "over SSH" in wrong(look(admin, **{**whole, "host": FAR.name}, place="new", name="fresh"))["host"]
    with pytest.raises(HostIsRemote):
        QueueService(home.appliance).ask_restore(guest.name, point.id, FAR.name, new_name="fresh")
    assert "exists already" in wrong(look(admin, **one, place="file", target=str(disk.path)))["target"]
    assert "folder" in wrong(look(admin, **one, place="file", target="/nowhere/at/all"))["target"]
    assert "whole path" in wrong(look(admin, **one, place="file", target="relative"))["target"]
    assert look(operator, **one, place="file", target="/tmp/x").status_code == 403
    guest.start(wait=False)
    assert "runs on host" in wrong(look(admin, **whole, place="in-place"))["place"]
    refused = admin.send("POST", "/restores/in-place", **whole, typed=guest.name)
    assert "runs on host" in wrong(refused)["place"]
    guest.kill()
    assert home.appliance.catalog.queue.waiting() == (), "nothing of it was asked for"

    # Under a new name.
    name = f"{lab.token}again"
    storage = str(lab.folder / "restored")
    answers = {**whole, "place": "new", "name": name, "storage": storage}
    outside = str(lab.folder.parent)
    assert f"{outside}/{name}/vda.qcow2" in look(admin, **{**answers, "storage": outside}).text
    assert str(lab.folder) in wrong(look(operator, **{**answers, "storage": outside}), 403)["storage"]
    refused = operator.send("POST", "/restores", **{**answers, "storage": outside})
    assert "restore.folders" in wrong(refused, 403)["storage"]
    assert f"{storage}/{name}/vda.qcow2" in look(operator, **answers).text
    with removed_afterwards(lab, name):
        run = carried_out(home, operator.send("POST", "/restores", **answers))
        assert plain(lab.folder / "restored" / name / "vda.qcow2") == then
        assert run.name == guest.name
        page = operator.send("GET", f"/runs/{run.id}").text
        assert "it is off" in page
        assert name in page
        assert "has another machine called" in wrong(operator.send("POST", "/restores", **answers))["name"]

    # One disk to a file.
    target = lab.folder / "vda.raw"
    carried_out(home, admin.send("POST", "/restores/disk", **one, target=str(target)))
    assert target.read_bytes() == then
    assert operator.send("POST", "/restores/disk", **one, target=str(target) + "2").status_code == 403

    # Over itself: by its name, to the letter.
    disk.write_off(MIB, disk.random.randbytes(MIB))
    review = look(admin, **whole, place="in-place").text
    assert "written over" in review
    assert str(disk.path) in review
    assert "to the letter" in wrong(admin.send("POST", "/restores/in-place", **whole, typed="another"))["typed"]
    carried_out(home, admin.send("POST", "/restores/in-place", **whole, typed=guest.name))
    assert disk.content_now() == then
    assert guest.domain.UUIDString() == key.removeprefix("vm:")

    done = [each for each in AuditService(home.appliance).newest() if each.act.startswith("restore.")]
    assert [(each.act, each.result) for each in done if each.result == "ok"] == [
        ("restore.overwrite", "ok"), ("restore.start", "ok"), ("restore.start", "ok")
    ]  # fmt: skip
    assert {each.machine for each in done if each.result == "ok"} == {key}
