"""The API as programs use it: what it gives, what it refuses and how it says so."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from werkzeug.test import TestResponse

from appliance.acts import Act, Role
from appliance.policy.selectors import Clause, Selector
from appliance.services.access import local_actor
from appliance.services.accounts.users import UserService
from tests.bench.pages import counted
from tests.unit.api_site import Site, site
from tests.unit.test_web_access import BASE, _set_up
from web.acts import PUBLIC, act, stated
from web.api.bodies import BODY_BYTES_MAX
from web.api.resources import PREFIX, resource
from web.api.schemas import Out

OFFICE = Selector((Clause(image="office"),))


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with site(tmp_path_factory.mktemp("api")) as made:
        yield made


def problem(answer: TestResponse, status: int) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    assert answer.mimetype == "application/problem+json"
    told: dict[str, Any] = answer.json or {}
    assert told["status"] == status
    assert told["detail"]
    assert told["instance"] == f"urn:strongroom:request:{answer.headers['X-Request-Id']}"
    assert "Traceback" not in answer.text
    return told


# What it gives


def test_what_the_appliance_owes_and_holds_and_its_settings_can_be_seen(api: Site) -> None:
    status = api.get("/status")
    assert (status["hosts"], status["workers"], status["repository"]["reachable"]) == (["tested"], False, True)
    assert (status["scheduler"]["selected"], status["owed_thaws"], status["failed"]) == (2, [], [])
    sections = api.get("/settings")["sections"]
    assert sections["recovery"]
    assert sections["catalog"]["url"] is None
    assert "STRONGROOM" not in str(sections)
    (look,) = api.post("/inventory/refresh").json["items"]  # type: ignore[index]
    assert (look["host"], look["machines"], look["error"]) == ("tested", 1, None)
    assert (api.get("/notices"), api.get("/notices/targets")) == ({"items": []}, {"items": []})
    assert "no target" in problem(api.post("/notices/targets/ops/test"), 409)["detail"]


def test_months_that_were_and_that_come(api: Site) -> None:
    report = api.get("/report?month=2026-11&zone=Europe/Berlin")
    assert (report["month"], report["begin_utc"]) == ("2026-11", "2026-10-31T23:00:00Z")
    assert {each["name"] for each in report["machines"]} >= {"office", "shop"}
    for wrong in ("month=2026-13", "zone=Mars", "zone=localtime", "month=../x"):
        problem(api.ask("GET", f"/report?{wrong}"), 422)
    plan = api.get("/plan?months=3&keep_daily=1&exact=true")
    assert (plan["machines"], len(plan["months"]), plan["change"]["freed_bytes"]) == (2, 3, 0)
    typed = api.get("/plan?months=2&machines=10&machine_bytes=1000000&keep_daily=7")
    assert (typed["machines"], typed["change"]) == (10, None)
    theirs = api.token_of(Role.VIEWER, grants=(Selector((Clause(image="shop"),)),))
    assert [each["name"] for each in api.get("/report?month=2026-11", token=theirs)["machines"]] == ["shop"]
    mine = api.get("/plan?months=1", token=theirs)
    assert ([each["name"] for each in mine["recoveries"]], mine["room"]["shared"]) == (["shop"], True)
    problem(api.ask("GET", "/plan?keep_daily=1&exact=true", token=theirs), 422)
    for wrong in ("exact=true", "machines=5", "months=121", "machines=5&machine_bytes=9&months=120&runs_a_day=96"):
        problem(api.ask("GET", f"/plan?{wrong}"), 422)


def test_the_audit_leaves_as_lines(api: Site) -> None:
    lines = api.post("/audit/export").text.splitlines()
    assert [json.loads(line)["number"] for line in lines] == list(range(1, len(lines) + 1))
    assert len(api.post(f"/audit/export?after={len(lines)}").text.splitlines()) == 1  # that it was exported


def test_what_there_is_can_be_seen(api: Site) -> None:
    overview = api.get("/overview")
    assert overview["standings"]["protected"] == 2
    assert overview["concerns"] == ["1 machine is not protected"]
    keys = [each["key"] for each in api.get("/machines?kind=image")["items"]]
    assert keys == ["image:office", "image:shop"]
    machine = api.get("/machines/image:office")
    assert (machine["row"]["policies"], machine["points"]) == (["nightly"], 1)
    (point,) = api.get("/points?machine=image:office")["items"]
    assert point["checked"]["damaged"] is False
    assert api.get(f"/points/{point['id'][:8]}")["holds"] == []
    (run,) = api.get("/runs?machine=image:office&state=succeeded&state=failed")["items"]
    assert api.get(f"/runs/{run['id']}") == run | {"alive": None, "progress": None}
    assert run["point"] == point["id"]
    assert [each["name"] for each in api.get("/policies")["items"]] == ["nightly"]
    assert [each["name"] for each in api.get("/hosts")["items"]] == ["tested"]
    assert [each["key"] for each in api.get("/search?q=off")["machines"]] == ["image:office"]


def test_nothing_leaves_that_is_nobody_s_business(api: Site) -> None:
    (recovery,) = api.get("/recoveries")["items"]
    assert api.get(f"/recoveries/{recovery['id']}") == recovery
    assert recovery["disks"][0]["overlay"] == "/overlays/0.qcow2"
    assert not {"definition_xml", "final_xml", "hold", "folder"} & recovery.keys()
    assert not {"socket", "host_socket"} & recovery["disks"][0].keys()


def test_no_list_of_recoveries_reads_more_of_them_than_a_page(api: Site) -> None:
    limited = api.token_of(Role.OPERATOR, grants=(OFFICE,))
    for token in (api.token, limited):
        for query in ("", "&active=true"):
            with counted(api.appliance.catalog) as statements:
                api.get(f"/recoveries?limit=2{query}", token=token)
            read = [each for each in statements if "recoveries.definition_xml" in each]
            assert len(read) == 1
            assert "LIMIT" in read[0]


def test_a_list_is_read_page_by_page(api: Site) -> None:
    every = [each["id"] for each in api.get("/points")["items"]]
    found, path = [], "/points?limit=1"
    while path:
        answer = api.ask("GET", path)
        assert answer.json is not None
        found += [each["id"] for each in answer.json["items"]]
        links = {rel: to for to, rel in (link.split("; rel=") for link in answer.headers["Link"].split(", "))}
        assert links['"first"'] == f"<{PREFIX}/points?limit=1>"
        path = links.get('"next"', "").strip("<>").removeprefix(PREFIX)
        assert bool(path) == (answer.json["next"] is not None)
    assert found == every
    assert len(every) == 2
    told = problem(api.ask("GET", "/points?after=nonsense"), 422)
    assert told["type"] == "urn:strongroom:error:PageRefused"
    assert problem(api.ask("GET", "/runs?limit=501"), 422)["errors"][0]["where"] == "limit"


# Runs


def new_run(api: Site, name: str) -> dict[str, Any]:
    return {"image": {"path": str(api.image), "format": "raw", "name": name}}


def test_what_is_asked_under_a_key_is_one_run_whatever_becomes_of_it(api: Site) -> None:
    key = {"Idempotency-Key": "tonight"}
    first = api.post("/runs", new_run(api, "asked"), headers=key)
    assert first.status_code == 201, first.text
    assert first.json is not None
    id = first.json["id"]
    assert first.headers["Location"] == f"{PREFIX}/runs/{id}"
    assert (first.json["new"], first.json["worker"]) == (True, False)
    assert api.post(f"/runs/{id}/cancel").json is not None
    again = api.post("/runs", new_run(api, "asked"), headers=key)
    assert again.status_code == 200
    assert again.json is not None
    assert (again.json["id"], again.json["state"], again.json["new"]) == (id, "cancelled", False)
    told = problem(api.post("/runs", new_run(api, "another"), headers=key), 422)
    assert told["type"].endswith(":KeyUsedOtherwise")
    other = api.post("/runs", new_run(api, "asked"), headers=key, token=api.token_of(Role.ADMIN))
    assert other.status_code == 201, "a key is of its actor"
    without = api.post("/runs", new_run(api, "asked"))
    assert (without.status_code, without.json) == (200, other.json | {"new": False} if other.json else None)


def test_a_run_is_cancelled_once_and_can_be_asked_for_again(api: Site) -> None:
    made = api.post("/runs", new_run(api, "cancelled"))
    assert made.json is not None
    id = made.json["id"]
    done = api.post(f"/runs/{id}/cancel")
    assert done.json is not None
    assert done.json["state"] == "cancelled"
    assert problem(api.post(f"/runs/{id}/cancel"), 409)["facts"]["state"] == "cancelled"
    again = api.post(f"/runs/{id}/retry")
    assert again.status_code == 201
    assert again.json is not None
    assert again.json["id"] != id


def test_the_repository_is_verified_and_collected_by_runs(api: Site) -> None:
    info = api.get("/repository")
    assert info["points"] >= 1
    assert info["damaged"] == []
    assert api.get("/repository/growth")["stored"]
    verify = api.post("/repository/verify", {"read_data": True}, headers={"Idempotency-Key": "v"})
    assert verify.status_code == 201, verify.text
    assert verify.json is not None
    assert (verify.json["kind"], verify.json["arguments"]["read_data"]) == ("verify", True)
    again = api.post("/repository/verify", {"read_data": True}, headers={"Idempotency-Key": "v"})
    assert (again.status_code, again.json) == (200, verify.json | {"new": False})
    problem(api.post("/repository/verify", {"every_days": 7}), 422)
    assert api.post("/repository/collect").status_code == 201
    for run in (verify.json, api.post("/repository/collect").json):
        assert run is not None
        assert api.post(f"/runs/{run['id']}/cancel").status_code == 200
    problem(api.post("/repository/copy", {"home": "/nowhere"}), 422)
    problem(api.post("/repository/copy", {"home": "/"}, token=api.token_of(Role.OPERATOR)), 422)
    problem(api.post("/repository/copy", {"home": "/srv"}, token=api.token_of(Role.OPERATOR)), 403)


def test_a_disk_is_restored_to_a_file_by_an_admin(api: Site) -> None:
    wanted = {"machine": "image:office", "target": str(api.image.parent / "restored.raw"), "format": "raw"}
    for target, why in ((api.image, "exists already"), ("/nowhere/at/all", "folder")):
        refused = problem(api.post("/restores/disk", wanted | {"target": str(target)}), 422)
        assert (refused["type"], refused["facts"]["part"]) == ("urn:strongroom:error:TargetRefused", "target")
        assert why in refused["detail"]
    once = {"headers": {"Idempotency-Key": "one-restore"}}
    made = api.post("/restores/disk", wanted, **once)
    assert made.status_code == 201, made.text
    assert made.json is not None
    Path(wanted["target"]).touch()  # as the run leaves it: asked for again it is that run, and nothing is in its way
    again = api.post("/restores/disk", wanted, **once)
    assert (again.status_code, again.json["id"] if again.json else "") == (200, made.json["id"])
    assert made.json["arguments"]["target"] == wanted["target"]
    assert api.post(f"/runs/{made.json['id']}/cancel").status_code == 200
    problem(api.post("/restores/disk", wanted, token=api.token_of(Role.OPERATOR)), 403)
    machine = {"machine": "image:office", "host": "tested"}
    assert problem(api.post("/restores/in-place", machine), 422)["type"].endswith(":NotAMachine")
    problem(api.post("/restores", machine | {"new_name": "a/b"}), 422)


def test_only_an_admin_names_files_of_the_appliance(api: Site) -> None:
    problem(api.post("/runs", new_run(api, "any"), token=api.token_of(Role.OPERATOR)), 403)
    problem(api.post("/runs", {"image": {"path": "/etc/none", "format": "raw", "name": "n"}}), 422)


@pytest.mark.parametrize("document", [{}, {"machine": "a", "image": {}}, {"machine": "a", "extra": 1}, {"machine": 1}])
def test_a_run_that_says_too_little_or_too_much_is_refused(api: Site, document: object) -> None:
    assert problem(api.post("/runs", document), 422)["errors"]


def test_a_machine_that_nobody_knows(api: Site) -> None:
    assert problem(api.post("/runs", {"machine": "nowhere"}), 404)["hint"]


# Policies, points, hosts


def test_a_policy_is_made_changed_by_one_at_a_time_and_removed(api: Site) -> None:
    document = api.get("/policies/nightly")["document"] | {"name": "weekly"}
    assert problem(api.post("/policies", document | {"schedule": {"cron": "x", "zone": "UTC"}}), 422)["detail"]
    made = api.post("/policies", document)
    assert made.status_code == 201, made.text
    problem(api.post("/policies", document), 409)
    preview = api.post("/policies/preview", document).json
    assert preview is not None
    assert {each["machine"]["name"] for each in preview["selected"]} >= {"office", "shop"}
    changed = api.ask("PUT", "/policies/weekly?if_version=1", json=document | {"per_host": 3})
    assert changed.json is not None
    assert changed.json["version"] == 2
    told = problem(api.ask("PUT", "/policies/weekly?if_version=1", json=document), 409)
    assert told["facts"] == {"name": "weekly", "seen": 1, "version": 2}
    paused = api.post("/policies/weekly/pause").json
    assert paused is not None
    assert paused["paused_utc"]
    assert api.ask("DELETE", "/policies/weekly").status_code == 204
    problem(api.ask("GET", "/policies/weekly"), 404)


def test_a_point_that_is_protected_stays(api: Site) -> None:
    (point,) = api.get("/points?machine=image:shop")["items"]
    held = api.ask("PUT", f"/points/{point['id']}/protection").json
    assert held is not None
    assert [hold["purpose"] for hold in held["holds"]] == ["protected"]
    assert problem(api.ask("DELETE", f"/points/{point['id']}"), 409)["hint"]
    assert api.ask("DELETE", f"/points/{point['id']}/protection").json == held | {"holds": []}
    assert api.ask("DELETE", f"/points/{point['id']}").status_code == 204
    problem(api.ask("GET", f"/points/{point['id']}"), 404)


def test_hosts_are_added_asked_and_forgotten(api: Site) -> None:
    made = api.post("/hosts", {"name": "second", "uri": "test:///default"})
    assert made.status_code == 201, made.text
    assert made.json is not None
    assert made.json["answered"]["machines"] == 1
    problem(api.post("/hosts", {"name": "second", "uri": "test:///default"}), 409)
    refused = problem(api.post("/hosts", {"name": "third", "uri": "qemu+ssh://h/system?command=/bin/sh"}), 422)
    assert refused["type"].endswith(":HostFieldRefused")
    assert api.post("/hosts/second/test").status_code == 200
    assert api.ask("DELETE", "/hosts/second").status_code == 204
    problem(api.post("/hosts/second/test"), 404)


def test_a_machine_is_paused_and_goes_on(api: Site) -> None:
    assert api.post("/pauses", {"machine": "image:office"}).status_code == 201
    assert [each["machine"] for each in api.get("/pauses")["items"]] == ["image:office"]
    assert api.ask("DELETE", "/pauses/image:office").status_code == 204
    assert api.get("/pauses")["items"] == []


# Who asks


def test_who_has_no_token_that_counts_is_told_how_to_ask(api: Site) -> None:
    for token in ("", "strongroom_guessed", "x"):
        answer = api.ask("GET", "/runs", token=token)
        problem(answer, 401)
        assert answer.headers["WWW-Authenticate"].startswith("Bearer ")
    basic = api.ask("GET", "/runs", token="", headers={"Authorization": "Basic eDp5"})
    problem(basic, 401)


def test_a_role_does_what_it_may_and_nothing_else(api: Site) -> None:
    viewer, auditor = api.token_of(Role.VIEWER), api.token_of(Role.AUDITOR)
    assert api.get("/runs", token=viewer)["items"]
    problem(api.post("/runs", {"machine": "test"}, token=viewer), 403)
    problem(api.ask("DELETE", "/hosts/tested", token=auditor), 403)
    told = problem(api.ask("DELETE", "/hosts/tested", token=api.token_of(Role.ADMIN)), 403)
    assert "host.remove" in told["hint"], "an act that loses something has to be named by the token"
    problem(api.ask("GET", "/runs", token=api.token_of(Role.ADMIN, (Act.HOST_SEE,))), 403)


def test_who_was_granted_some_machines_finds_no_others(api: Site) -> None:
    token = api.token_of(Role.OPERATOR, grants=(OFFICE,))
    assert [each["key"] for each in api.get("/machines", token=token)["items"]] == ["image:office"]
    assert {each["name"] for each in api.get("/runs", token=token)["items"]} == {"office"}
    assert {each["name"] for each in api.get("/points", token=token)["items"]} == {"office"}
    assert len(api.get("/recoveries", token=token)["items"]) == 1
    problem(api.ask("GET", "/machines/image:shop", token=token), 404)
    problem(api.ask("GET", "/hosts", token=token), 403)
    (run,) = api.get("/runs?machine=image:shop&state=succeeded")["items"]
    problem(api.ask("GET", f"/runs/{run['id']}", token=token), 404)
    problem(api.post(f"/runs/{run['id']}/retry", token=token), 404)
    problem(api.post("/runs", {"machine": "test"}, token=token), 404)


def test_every_act_and_every_refusal_is_written_down(api: Site) -> None:
    before = {entry.number for entry in api.appliance.catalog.audit.entries()}
    made = api.post("/runs", new_run(api, "audited"))
    assert made.json is not None
    problem(api.post(f"/runs/{made.json['id']}/cancel", token=api.token_of(Role.VIEWER)), 403)
    entries = [entry for entry in api.appliance.catalog.audit.entries() if entry.number not in before]
    told = [(entry.act, entry.result, entry.actor_kind, entry.via, entry.subject_kind) for entry in entries]
    assert ("run.start", "ok", "token", "api", "machine") in told
    assert ("run.cancel", "refused", "token", "api", "") in told
    started = next(entry for entry in entries if entry.act == "run.start")
    assert started.details["run"] == made.json["id"]


def test_what_changes_something_is_not_done_for_a_cookie_alone(api: Site) -> None:
    invited = UserService(api.appliance).add(local_actor({}), "cookie", Role.ADMIN)
    admin = _set_up(api.app, api.appliance, invited.link, "cookie")
    assert admin.send("GET", "/account").status_code == 200, "the session is good for pages"
    asked = {"json": {"machine": "test"}, "base_url": BASE}
    problem(admin.client.post(f"{PREFIX}/runs", headers={"Origin": BASE}, **asked), 401)
    problem(admin.client.get(f"{PREFIX}/runs", base_url=BASE), 401)
    problem(admin.client.post(f"{PREFIX}/runs", headers={"Origin": "https://evil"}, **asked), 403)


# Accounts


def test_users_and_tokens_are_made_without_showing_what_they_sign_in_with(api: Site) -> None:
    made = api.post("/users", {"name": "alice", "role": "operator"})
    assert made.status_code == 201, made.text
    assert made.json is not None
    assert made.json["path"].startswith("/set-up/")
    assert api.get("/users/alice") == {name: made.json[name] for name in made.json.keys() - {"path", "expires_utc"}}
    assert not [name for name in made.json if "hash" in name or "totp" in name]
    changed = api.ask("PATCH", "/users/alice", json={"role": "viewer"}).json
    assert changed is not None
    assert changed["role"] == "viewer"
    token = api.post("/tokens", {"name": "ci", "role": "viewer", "owner": "alice", "days": 7})
    assert token.status_code == 201, token.text
    assert token.json is not None
    assert api.get("/runs", token=token.json["secret"])
    assert "ci" in {each["name"] for each in api.get("/tokens")["items"]}
    assert "secret" not in api.get("/tokens")["items"][0]
    assert api.post("/users/alice/disable").status_code == 200
    assert "disabled" in problem(api.ask("GET", "/runs", token=token.json["secret"]), 401)["detail"]
    assert api.post("/users/alice/enable").status_code == 200
    assert api.ask("DELETE", f"/tokens/{token.json['id']}").status_code == 204
    problem(api.ask("GET", "/runs", token=token.json["secret"]), 401)
    assert api.ask("DELETE", "/users/alice").status_code == 204
    problem(api.post("/users", {"name": "No Name!", "role": "viewer"}), 422)
    problem(api.post("/users", {"name": "bob", "role": "king"}), 422)
    told = problem(api.post("/users", {"name": "bob", "role": "viewer", "grants": [{"include": "x"}]}), 422)
    assert "grants[0].include" in told["detail"]


def test_the_audit_is_read_page_by_page_and_checked(api: Site) -> None:
    api.post("/hosts/tested/test")
    page = api.get("/audit?limit=1")
    assert page["items"][0]["act"] == "host.test"
    following = api.get(f"/audit?limit=1&after={page['next']}")
    assert following["items"][0]["number"] == page["items"][0]["number"] - 1
    assert api.get("/audit?act=host.")["items"][0] == page["items"][0]
    assert api.get("/audit/verdict")["good"] is True
    problem(api.ask("GET", "/audit", token=api.token_of(Role.VIEWER)), 403)
    assert api.get("/audit", token=api.token_of(Role.AUDITOR))


# Bodies


@pytest.mark.parametrize(
    ("body", "kind", "status"),
    [
        (b"{", "application/json", 400),
        (b"[]", "application/json", 400),
        (b'"{}"', "application/json", 400),
        (b'{"machine": "\xff"}', "application/json", 400),
        ('{"machine": "a"}'.encode("utf-16"), "application/json", 400),
        (b'{"machine": "\\ud800"}', "application/json", 400),
        (b'{"limit_bytes_s": NaN}', "application/json", 400),
        (b'{"machine": ' + b"[" * 100_000, "application/json", 400),
        (b'{"machine": ' + b"[" * 100 + b"]" * 100 + b"}", "application/json", 422),
        (b'{"machine": "a\\u0000b"}', "application/json", 422),
        (b'{"a\\u0000b": 1}', "application/json", 422),
        (b'{"limit_bytes_s": 1' + b"0" * 30 + b"}", "application/json", 422),
        (b'{"limit_bytes_s": 1' + b"0" * 5000 + b"}", "application/json", 400),
        (b'{"limit_bytes_s": 1e999}', "application/json", 422),
        (b'{"machine": "a"}', "text/plain", 415),
        (b"machine=a", "application/x-www-form-urlencoded", 415),
        (b'{"machine": "' + b"a" * BODY_BYTES_MAX + b'"}', "application/json", 413),
        (b"", "application/json", 422),
    ],
)
def test_a_body_that_cannot_be_used_is_refused_in_words(api: Site, body: bytes, kind: str, status: int) -> None:
    problem(api.ask("POST", "/runs", data=body, content_type=kind), status)


@pytest.mark.parametrize("path", ["/search?q=%00", "/runs?%00=1", "/runs/%00", "/machines/a%00b", "/audit?actor=%00"])
def test_text_that_nothing_can_keep_is_refused_wherever_it_is(api: Site, path: str) -> None:
    problem(api.ask("GET", path), 422)


# Mistakes


def test_what_is_not_there_and_what_cannot_be_done_there(api: Site) -> None:
    problem(api.ask("GET", "/nothing"), 404)
    answer = api.ask("DELETE", "/runs")
    problem(answer, 405)
    assert {"GET", "POST"} <= set(answer.headers["Allow"].split(", "))
    problem(api.app.test_client().get("/api/v2/runs"), 404)


def test_a_mistake_of_ours_tells_an_id_and_nothing_else(
    api: Site, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise RuntimeError("the password is sesame")

    monkeypatch.setattr("appliance.services.browsing.BrowsingService.runs", fails)
    answer = api.ask("GET", "/runs")
    told = problem(answer, 500)
    assert "sesame" not in answer.text
    assert told["instance"].rpartition(":")[2] in caplog.text
    assert "sesame" in caplog.text


def test_a_view_that_asks_for_no_permission_gives_nothing(tmp_path_factory: pytest.TempPathFactory) -> None:
    with site(tmp_path_factory.mktemp("careless")) as made:
        careless = resource("careless", "Of a mistake.")

        @careless.get("/careless")
        @act(Act.RUN_SEE)
        def view() -> str:
            return "everything"

        made.app.register_blueprint(careless)
        answer = made.ask("GET", "/careless")
        problem(answer, 500)
        assert "everything" not in answer.text


def test_a_name_in_the_document_is_of_one_schema(api: Site) -> None:
    """They are gathered by name, and the last would take the place of the others."""
    named: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    waiting = [Out]
    while waiting:
        model = waiting.pop()
        waiting += model.__subclasses__()
        schema = model.model_json_schema(mode="serialization")
        for name, each in {**schema.pop("$defs", {}), model.__name__: schema}.items():
            named[name][json.dumps(each, sort_keys=True)].add(model.__name__)
    assert len(named) > 60
    assert {name: list(found.values()) for name, found in named.items() if len(found) > 1} == {}


def test_every_route_is_in_the_document_and_asks_for_a_token(api: Site) -> None:
    document = api.get("/openapi.json", token="")
    assert document["openapi"].startswith("3.1")
    routes = {
        (method, re.sub(r"<(?:\w+:)?(\w+)>", r"{\1}", rule.rule)): api.app.view_functions[rule.endpoint]
        for rule in api.app.url_map.iter_rules()
        if rule.rule.startswith("/api/")
        for method in rule.methods or ()
        if method not in ("HEAD", "OPTIONS")
    }
    described = {
        (method.upper(), path): operation
        for path, item in document["paths"].items()
        for method, operation in item.items()
    }
    assert routes.keys() == described.keys()
    for route, view in routes.items():
        public = stated(view) == PUBLIC
        assert ("security" in described[route]) is not public, route
        assert described[route]["summary"]
    assert [route for route, view in routes.items() if stated(view) == PUBLIC] == [("GET", f"{PREFIX}/openapi.json")]
