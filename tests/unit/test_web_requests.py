"""A guarded repository in the console and the API: nothing goes by one account alone, nor by one person."""

from __future__ import annotations

import html
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pytest
from flask import Flask
from werkzeug.test import TestResponse

from appliance.acts import Act, Role
from appliance.bootstrap import Appliance
from appliance.clock import SystemClock
from appliance.services.access import SYSTEM, local_actor
from appliance.services.access.audits import AuditService
from appliance.services.accounts.setting_up import SetUpService
from appliance.services.accounts.tokens import TokenService
from appliance.services.accounts.users import UserService
from appliance.services.due_requests import DueRequests
from appliance.services.guard import GuardService, Told
from appliance.settings import load
from imaging import slots
from imaging.guard.requests import DamagedRequest, Standing
from tests.faults.repositories import CHEAP
from tests.unit.cli_runner import CommandLine
from tests.unit.test_cli_guard import PERSONS, later, turn_on
from tests.unit.test_web_access import Signed, _set_up
from tests.unit.test_web_repeats import proven_long_ago
from web.app import create_app


@dataclass
class Guarded:
    appliance: Appliance
    app: Flask
    points: list[str]
    ann: Signed
    ben: Signed
    viewer: Signed

    def ids(self) -> set[str]:
        return {point.manifest.id for point in self.appliance.repository.points()}


@pytest.fixture
def guarded(
    tmp_path_factory: pytest.TempPathFactory, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Guarded]:
    """Three persons, two points, two admins and a viewer, none of whom has signed anything yet."""
    monkeypatch.setattr(slots, "Argon2Cost", lambda: CHEAP)
    later(monkeypatch, hours=0)
    line = CommandLine(tmp_path_factory.mktemp("guarded"), capsys)
    line.init()
    for name in PERSONS:
        assert line("repository", "guard", "enrol", name, STRONGROOM_NEW_PASSPHRASE=said(name)).code == 0
    points = [line.backup(os.urandom(4096), "web")["id"] for _ in range(2)]
    turn_on(line)
    with Appliance(load(line.environment)) as appliance:
        app = create_app(appliance)
        ann = _set_up(app, appliance, SetUpService(appliance).first_link(), "ann")
        ben, viewer = (
            _set_up(app, appliance, UserService(appliance).add(SYSTEM, name, role).link, name)
            for name, role in (("ben", Role.ADMIN), ("viewer", Role.VIEWER))
        )
        yield Guarded(appliance, app, points, ann, ben, viewer)


def said(name: str) -> str:
    return f"only {name} knows"


def told(answer: TestResponse, status: int = 400) -> str:
    assert answer.status_code == status, answer.text
    return html.unescape(" ".join(re.findall(r'role="alert"><p>([^<]+)<', answer.text)))


def test_a_deletion_takes_two_accounts_two_passphrases_and_the_delay(
    guarded: Guarded, monkeypatch: pytest.MonkeyPatch
) -> None:
    ann, ben, viewer, (point, other) = guarded.ann, guarded.ben, guarded.viewer, guarded.points
    question = {"what": "point", "id": point}

    def ask(who: Signed, person: str, passphrase: str, **asked: str) -> TestResponse:
        return who.send("POST", "/requests", **{**question, **asked}, person=person, passphrase=passphrase)

    # Deleting leads to asking, and the guard keeps it from whoever does not ask.
    assert "/requests/new?what=point" in ann.send("GET", f"/points/{point}/delete").headers["Location"]
    refused = ann.send("POST", f"/points/{point}/delete")
    assert refused.status_code == 403
    assert "guard does not let" in refused.text
    assert "of web of" in ann.send("GET", f"/requests/new?what=point&id={point}").text
    assert viewer.send("GET", "/requests/count").status_code == 204

    # One person asks; what is wrong makes no request, and ties nobody.
    assert "not alice's passphrase" in told(ask(ann, "alice", said("bob")))
    assert guarded.appliance.catalog.persons.all() == {}
    place = ask(ann, "alice", said("alice"), reason="retired").headers["Location"]
    assert "retired" in viewer.send("GET", "/requests").text
    assert ">1<" in viewer.send("GET", "/requests/count").text
    assert "You cannot confirm it" in ann.send("GET", place).text

    def confirm(who: Signed, person: str, passphrase: str) -> TestResponse:
        return who.send("POST", f"{place}/confirm", person=person, passphrase=passphrase)

    # Never who asked, whatever passphrases they know; and nobody by the name of another account's person.
    assert "alice asked for this" in told(confirm(ann, "alice", said("alice")))
    assert "ann signs as alice" in told(confirm(ann, "bob", said("bob")))
    assert "alice signs by the account ann" in told(confirm(ben, "alice", said("alice")))
    assert "not bob's passphrase" in told(confirm(ben, "bob", said("carol")))
    assert confirm(viewer, "bob", said("bob")).status_code == 403
    with proven_long_ago(guarded.appliance):
        asked_again = confirm(ben, "bob", said("bob"))
    assert "fill in the form once more" in told_of_proof(asked_again)
    assert said("bob") not in asked_again.text, "a passphrase does not go back to the browser"
    assert 'name="proof_code"' not in ben.send("GET", place).text
    assert confirm(ben, "bob", said("bob")).status_code == 302
    assert guarded.ids() == {point, other}

    # It waits, whatever is looked at, and then serve does it.
    due = DueRequests(guarded.appliance)
    assert due.look() == ()
    assert "is carried out" not in viewer.send("GET", place).text
    assert ben.send("POST", f"{place}/apply").status_code == 409
    keys_and_protections_are_asked_for_and_anybody_may_refuse(guarded)
    later(monkeypatch, hours=25)
    (applied,) = due.look()
    assert applied.problems == ()
    assert guarded.ids() == {other}
    assert "carried out" in viewer.send("GET", place).text
    done = [(each.act, each.actor_name, each.result) for each in AuditService(guarded.appliance).newest()]
    for entry in (
        ("point.delete", "ann", "failed"), ("request.ask", "ann", "ok"), ("request.confirm", "ann", "failed"),
        ("request.confirm", "ben", "ok"), ("request.confirm", "viewer", "refused"), ("request.apply", "system", "ok"),
    ):  # fmt: skip
        assert entry in done
    assert AuditService(guarded.appliance).verify().good


def test_who_guesses_a_passphrase_waits_and_the_person_themselves_does_not(
    guarded: Guarded, monkeypatch: pytest.MonkeyPatch
) -> None:
    appliance, ann, ben, now = guarded.appliance, guarded.ann, guarded.ben, SystemClock().now_utc()
    monkeypatch.setattr(SystemClock, "now_utc", lambda _self: now)
    token = TokenService(appliance).add(
        local_actor({}), "program", Role.ADMIN, acts=(Act.REQUEST_ASK,), good_for=timedelta(days=1)
    )

    def ask(who: Signed, person: str, passphrase: str) -> TestResponse:
        question = {"what": "point", "id": guarded.points[0]}
        return who.send("POST", "/requests", **question, person=person, passphrase=passphrase)

    def by_program(passphrase: str) -> TestResponse:
        wanted = {"what": "point", "id": guarded.points[0], "person": "bob", "passphrase": passphrase}
        headers = {"Authorization": f"Bearer {token.secret}"}
        return guarded.app.test_client().post("/api/v1/requests", json=wanted, headers=headers)

    place = ask(ann, "alice", said("alice")).headers["Location"]
    for _ in range(2):
        assert "not bob's passphrase" in told(ask(ann, "bob", "a guess"))
        assert by_program("a guess").status_code == 409
    assert by_program("a guess").status_code == 409

    # Whoever it is now, and with whatever passphrase, as nobody has signed as bob yet.
    waits = ben.send("POST", f"{place}/confirm", person="bob", passphrase=said("bob"))
    assert "too many attempts to sign as bob: wait 1 s" in told(waits, 429)
    assert waits.headers["Retry-After"] == "1"
    refused = by_program(said("bob"))
    assert (refused.status_code, refused.headers["Retry-After"]) == (429, "1")
    assert appliance.catalog.persons.all().keys() == {named(appliance, "alice")}
    assert ask(ann, "alice", said("alice")).status_code == 302, "another person is another count"

    # Who has signed as bob waits for nobody else, and begins anew with each success.
    now += timedelta(seconds=1)
    assert ben.send("POST", f"{place}/confirm", person="bob", passphrase=said("bob")).status_code == 302
    while ask(ann, "bob", "a guess").status_code == 400:
        pass
    for _ in range(2):
        for _ in range(4):
            assert "not bob's passphrase" in told(ask(ben, "bob", "a slip"))
        assert ask(ben, "bob", said("bob")).status_code == 302
    assert ask(ann, "bob", said("bob")).status_code == 429, "which excuses nobody else"
    what_is_refused_while_serve_looks_is_no_failure(guarded, monkeypatch, place.rsplit("/", 1)[1])


def what_is_refused_while_serve_looks_is_no_failure(guarded: Guarded, monkeypatch: pytest.MonkeyPatch, id: str) -> None:
    """It is confirmed."""
    appliance, requests = guarded.appliance, GuardService.requests

    def and_one_is_refused_then(service: GuardService) -> tuple[tuple[Told, ...], tuple[DamagedRequest, ...]]:
        found = requests(service)
        service.refuse(id)
        return found

    assert DueRequests(appliance).look() == (), "from here its delay counts"
    later(monkeypatch, hours=25)
    with monkeypatch.context() as patched:
        patched.setattr(GuardService, "requests", and_one_is_refused_then)
        assert DueRequests(appliance).look() == ()
    assert GuardService(appliance).request(id).request.standing is Standing.REFUSED
    assert "request.apply" not in {each.act for each in AuditService(appliance).newest()}
    assert set(guarded.points) <= guarded.ids()


def named(appliance: Appliance, name: str) -> str:
    person = GuardService(appliance).state().rules.person(name)
    assert person is not None
    return person.id


def told_of_proof(answer: TestResponse) -> str:
    assert answer.status_code == 403
    assert "Prove that it is you" in answer.text
    return answer.text


def keys_and_protections_are_asked_for_and_anybody_may_refuse(guarded: Guarded) -> None:
    """Ann signs as alice by now."""
    appliance, ann, viewer, (_, point) = guarded.appliance, guarded.ann, guarded.viewer, guarded.points
    before = {told.request.id for told in GuardService(appliance).requests()[0]}
    slot = next(each for each in appliance.repository.slots() if each.kind == "recovery")
    assert slot.id[:12] in ann.send("GET", "/repository/keys").text
    answer = ann.send("POST", f"/repository/keys/{slot.id}/remove")
    assert "/requests/new?what=key" in answer.headers["Location"]
    assert ann.send("POST", f"/points/{point}/protect").status_code == 302
    answer = ann.send("POST", f"/points/{point}/unprotect")
    assert "/requests/new?what=protection" in answer.headers["Location"]

    # The API asks as the console does, for the account whose token it is; a token confirms nothing.
    token = TokenService(appliance).add(
        local_actor({}), "program", Role.ADMIN, acts=tuple(Act), good_for=timedelta(days=1), owner="ann"
    )

    def api(method: str, path: str, document: object = None) -> TestResponse:
        headers = {"Authorization": f"Bearer {token.secret}"}
        body: dict[str, Any] = {} if document is None else {"json": document}
        return guarded.app.test_client().open(f"/api/v1{path}", method=method, headers=headers, **body)

    assert api("DELETE", f"/keys/{slot.id}").status_code == 403
    wanted = {"what": "key", "id": slot.id, "person": "alice", "passphrase": said("alice")}
    made = api("POST", "/requests", wanted)
    assert made.status_code == 201, made.text
    (made_request,) = made.json["items"]  # type: ignore[index]
    assert slot.id in made_request["subjects"][0]
    elsewise = api("POST", "/requests", {**wanted, "person": "bob", "passphrase": said("bob")})
    assert elsewise.status_code == 409
    assert "ann signs as alice" in elsewise.text
    assert said("bob") not in elsewise.text
    assert api("POST", f"/requests/{made_request['id']}/confirm", {}).status_code in (404, 405)
    assert open_ids(api("GET", "/requests")) == {*before, made_request["id"]}

    assert viewer.send("POST", f"/requests/{made_request['id']}/refuse", reason="nobody told me").status_code == 302
    shown = api("GET", f"/requests/{made_request['id'][:8]}").json
    assert shown is not None
    assert shown["standing"] == "refused"
    assert open_ids(api("GET", "/requests")) == before
    assert any(each.id == slot.id for each in appliance.repository.slots())


def open_ids(answer: TestResponse) -> set[str]:
    assert answer.json is not None
    return {each["id"] for each in answer.json["items"]}
