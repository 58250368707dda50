"""Where disks may go that somebody asks for who is no admin: to a storage pool, or into the folders that are for it."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from werkzeug.test import TestResponse

from appliance.acts import Act, Role
from appliance.audit import Result
from appliance.catalog.audit import Filter
from appliance.models import RecoveryRecord, RecoveryState, RunArguments, RunKind, RunRecord, RunState, new_id
from appliance.services.access import SYSTEM, Actor, ActorKind, local_actor
from appliance.services.access.places import folder_of, place_refusal
from appliance.services.accounts.setting_up import SetUpService
from appliance.services.accounts.users import UserService
from tests.unit.api_site import Site, site
from tests.unit.records import NOW
from tests.unit.test_web_access import Signed, _set_up

OPERATOR = Actor(ActorKind.USER, "o", "olga", Role.OPERATOR)
ADMIN = Actor(ActorKind.TOKEN, "a", "nightly", Role.ADMIN)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """With a folder for restores, one beside it, and a link from the one into the other."""
    with site(tmp_path_factory.mktemp("places")) as made:
        allowed(made).mkdir()
        outside(made).mkdir()
        (allowed(made) / "out").symlink_to(outside(made))
        (allowed(made) / "in").symlink_to(allowed(made) / "vms")
        yield made


@pytest.fixture(scope="module")
def admin(made: Site) -> Signed:
    return _set_up(made.app, made.appliance, SetUpService(made.appliance).first_link(), "admin")


@pytest.fixture(scope="module")
def operator(made: Site, admin: Signed) -> Signed:
    link = UserService(made.appliance).add(SYSTEM, "operator", Role.OPERATOR).link
    return _set_up(made.app, made.appliance, link, "operator")


def allowed(made: Site) -> Path:
    return made.image.parent / "images"


def outside(made: Site) -> Path:
    return made.image.parent / "images-of-others"


def theirs(made: Site) -> list[str]:
    """Places that an operator may name."""
    return [
        "default-pool",
        str(allowed(made)),
        str(allowed(made) / "vms"),
        str(allowed(made) / "in" / "deeper"),
        f"/{allowed(made)}//x",
    ]


def not_theirs(made: Site) -> list[str]:
    folder = allowed(made)
    return [
        "/etc", "/", str(outside(made)), str(folder.parent), str(folder / "out"), str(folder / "out" / "deeper"),
        f"{folder}/../images", f"{folder}/vms/../../x", "vms/relative", "./x",
    ]  # fmt: skip


def refusals(made: Site, act: Act) -> int:
    """How many acts of this kind the audit has that were refused for their place."""
    found = made.appliance.catalog.audit.newest(Filter(act=act, result=Result.REFUSED), limit=1000)
    return sum("disks may not go to" in each.error for each in found)


def test_whose_a_place_is_to_name(made: Site) -> None:
    folders = made.appliance.settings.restore.folders
    for place in theirs(made):
        assert place_refusal(OPERATOR, Act.RESTORE_START, folders, place) is None, place
    for place in not_theirs(made):
        refused = place_refusal(OPERATOR, Act.RESTORE_START, folders, place)
        assert refused is not None, place
        assert place in str(refused)
        assert folders[0] in str(refused)
        assert "restore.folders" in refused.hint
        for trusted in (ADMIN, SYSTEM, local_actor({})):
            assert place_refusal(trusted, Act.RESTORE_START, folders, place) is None
    assert place_refusal(OPERATOR, Act.RESTORE_START, (), None) is None
    assert place_refusal(OPERATOR, Act.RESTORE_START, (), "pool") is None
    none = place_refusal(OPERATOR, Act.RESTORE_START, (), folders[0])
    assert none is not None
    assert "no path" in str(none)


def test_links_are_followed_on_this_machine_and_not_taken_for_another_ones(made: Site) -> None:
    folder, link = allowed(made), made.image.parent / "link"
    link.symlink_to(folder)
    for place, folders in ((link / "x", folder), (folder / "x", link)):  # the setting may be a link too
        assert place_refusal(OPERATOR, Act.RESTORE_START, (str(folders),), str(place)) is None
        assert place_refusal(OPERATOR, Act.RESTORE_START, (str(folders),), str(place), here=False) is not None
    there = (str(folder),)
    assert place_refusal(OPERATOR, Act.RESTORE_START, there, f"{folder}//./out/x", here=False) is None
    assert place_refusal(OPERATOR, Act.RESTORE_START, there, f"{folder}/x/../y", here=False) is not None


def test_a_machine_has_a_folder_of_its_own_in_what_is_named() -> None:
    assert folder_of("/srv/vms/", "web-1") == "/srv/vms/web-1"
    assert folder_of("/srv/vms", "/etc") == "/etc", "it is that what is checked"
    assert folder_of("pool", "web-1") == "pool"
    assert folder_of(None, "web-1") is None


# By API


def problem(answer: TestResponse) -> str:
    return str(answer.json["type"]).rpartition(":")[2] if answer.json else ""


def test_a_restore_by_api_goes_to_no_other_place(made: Site) -> None:
    token = made.token_of(Role.OPERATOR)

    def ask(storage: str | None, token: str | None, name: str = "copy") -> TestResponse:
        wanted = {"machine": "image:office", "host": "tested", "new_name": name}
        return made.post("/restores", wanted if storage is None else wanted | {"storage": storage}, token=token)

    for storage in not_theirs(made):
        before = refusals(made, Act.RESTORE_START)
        answer = ask(storage, token)
        assert (answer.status_code, answer.mimetype) == (403, "application/problem+json"), storage
        assert problem(answer) == "PlaceNotAllowed"
        assert answer.json is not None
        assert str(allowed(made)) in answer.json["detail"]
        assert "restore.folders" in answer.json["hint"]
        assert refusals(made, Act.RESTORE_START) == before + 1
        assert problem(ask(storage, None)) == "NotAMachine", "an admin may: it is an image that cannot"
    for where in (*theirs(made), None):
        assert problem(ask(where, token)) == "NotAMachine", where
    assert problem(ask(str(allowed(made)), token, "out")) == "PlaceNotAllowed", "there the machine's own folder is"
    assert made.appliance.catalog.queue.waiting() == ()


def test_a_migration_by_api_goes_to_no_other_place(made: Site) -> None:
    token = made.token_of(Role.OPERATOR)
    (recovery,) = (each for each in made.appliance.catalog.recoveries.list(ended=True) if each.state.ended)

    def ask(to: str | None, token: str | None) -> TestResponse:
        return made.post(f"/recoveries/{recovery.id}/migrate", {"to": to}, token=token)

    for to in not_theirs(made):
        before = refusals(made, Act.RECOVERY_MIGRATE)
        answer = ask(to, token)
        assert (answer.status_code, problem(answer)) == (403, "PlaceNotAllowed"), to
        assert refusals(made, Act.RECOVERY_MIGRATE) == before + 1
        assert problem(ask(to, None)) == "RecoveryEnded", "an admin may: there is nothing to migrate any more"
    for where in (*theirs(made), None):
        assert problem(ask(where, token)) == "RecoveryEnded", where


def failed_restore(made: Site, arguments: RunArguments, **changes: Any) -> RunRecord:
    run = RunRecord(
        new_id(), "office", "vm", "a-uuid", "tested", RunState.FAILED, NOW, ended_utc=NOW, error="it failed",
        asked_utc=NOW, appliance=made.appliance.catalog.me, kind=RunKind.RESTORE, arguments=arguments,
    )  # fmt: skip
    made.appliance.catalog.runs.save(run)
    return run


def test_what_an_admin_had_restored_elsewhere_an_operator_does_not_repeat(
    made: Site, operator: Signed, admin: Signed
) -> None:
    token, point = made.token_of(Role.OPERATOR), made.appliance.catalog.points.list()[0].id
    for storage in not_theirs(made):
        run = failed_restore(made, RunArguments(point, new_name="copy", storage=storage))
        before = refusals(made, Act.RESTORE_START)
        answer = made.post(f"/runs/{run.id}/retry", token=token)
        assert (answer.status_code, problem(answer)) == (403, "PlaceNotAllowed"), storage
        assert refusals(made, Act.RESTORE_START) == before + 1
        assert problem(made.post(f"/runs/{run.id}/retry")) == "NotAMachine"
        assert "disks may not go to" in operator.send("POST", f"/runs/{run.id}/retry").text
        assert "Run again" not in operator.send("GET", f"/runs/{run.id}").text
        assert "Run again" in admin.send("GET", f"/runs/{run.id}").text
    for where in (*theirs(made), None):
        run = failed_restore(made, RunArguments(point, new_name="copy", storage=where))
        assert problem(made.post(f"/runs/{run.id}/retry", token=token)) == "NotAMachine", where
        assert "Run again" in operator.send("GET", f"/runs/{run.id}").text


# In the console


def told(answer: TestResponse, field: str) -> str:
    """Beside this field."""
    found = re.search(rf'class="wrong" id="{field}-hint">([^<]+)<', answer.text)
    return html.unescape(found[1]) if found else ""


def test_a_restore_in_the_console_goes_to_no_other_place(made: Site, operator: Signed, admin: Signed) -> None:
    point = next(each.id for each in made.appliance.catalog.points.list() if each.name == "office")
    answers = {"machine": "image:office", "what": "whole", "point": point, "host": "tested", "name": "copy"}

    def look(person: Signed, storage: str) -> TestResponse:
        asked = {**answers, "place": "new", "step": "review", "storage": storage}
        return person.send("GET", "/restore?" + "&".join(f"{name}={value}" for name, value in asked.items()))

    for storage in not_theirs(made):
        before = refusals(made, Act.RESTORE_START)
        for answer in (look(operator, storage), operator.send("POST", "/restores", **answers, storage=storage)):
            assert answer.status_code == 403, storage
            assert "disks may not go to" in told(answer, "storage"), storage
            assert "restore.folders" in told(answer, "storage")
        assert refusals(made, Act.RESTORE_START) == before + 2
        for answer in (look(admin, storage), admin.send("POST", "/restores", **answers, storage=storage)):
            assert "is a disk image, not a machine" in answer.text
    for where in (*theirs(made), ""):
        for answer in (look(operator, where), operator.send("POST", "/restores", **answers, storage=where)):
            assert "is a disk image, not a machine" in answer.text, where
    assert made.appliance.catalog.queue.waiting() == ()


def test_a_migration_in_the_console_goes_to_no_other_place(made: Site, operator: Signed, admin: Signed) -> None:
    point = next(each for each in made.appliance.catalog.points.list() if each.name == "office")
    running = RecoveryRecord(
        new_id(), RecoveryState.RUNNING, point.id, point.manifest_name, "office", "tested", "office-again", new_id(),
        "none", NOW, NOW, appliance=made.appliance.catalog.me,
    )  # fmt: skip
    made.appliance.catalog.recoveries.add(running)
    for to in not_theirs(made):
        before = refusals(made, Act.RECOVERY_MIGRATE)
        answer = operator.send("POST", f"/recoveries/{running.id}/migrate", to=to)
        assert answer.status_code == 403, to
        assert '<dialog id="migrate" open' in answer.text
        assert f"disks may not go to {to}" in told(answer, "to")
        assert refusals(made, Act.RECOVERY_MIGRATE) == before + 1
        assert made.appliance.catalog.recoveries.get(running.id).state is RecoveryState.RUNNING
    assert '<dialog id="migrate" aria' in operator.send("GET", f"/recoveries/{running.id}").text
    unknown = str(allowed(made) / "not-there")
    for person, to in ((operator, unknown), (admin, str(outside(made) / "not-there"))):
        answer = person.send("POST", f"/recoveries/{running.id}/migrate", to=to)
        assert "there is no such folder" in answer.text
