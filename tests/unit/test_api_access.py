"""Every route of the API against every role, by HTTP: which act each is, is written down here.

A route that is not in the table fails the test, as does one that is another act, or that lets a role in that may not do
it. What may be done by whom is in `appliance.acts`, and in the console's own table.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace

import pytest

from appliance.acts import TRAITS, Act, Role
from appliance.hypervisor.protocol import Transport
from appliance.models import HostConfig, HostRecord, RecoveryRecord, RecoveryState, RunArguments, RunKind
from appliance.policy.selectors import Clause, Selector
from tests.unit.api_site import Site, site
from tests.unit.records import NOW
from tests.unit.tenants import OF_NO_MACHINE, THEIRS, Asked, Tenants, routes_of, said, tenants
from web.acts import PUBLIC, stated
from web.current import parts_of
from web.guarding import API
from web.server import STREAMS_MAX

ACTS: dict[str, str] = {
    "GET /appliances": Act.OVERVIEW_SEE,
    "GET /audit": Act.AUDIT_SEE,
    "POST /audit/export": Act.AUDIT_EXPORT,
    "GET /audit/verdict": Act.AUDIT_SEE,
    "GET /hosts": Act.HOST_SEE,
    "POST /hosts": Act.HOST_ADD,
    "DELETE /hosts/<name>": Act.HOST_REMOVE,
    "POST /hosts/<name>/test": Act.HOST_TEST,
    "GET /inventory": Act.MACHINE_SEE,
    "POST /inventory/refresh": Act.INVENTORY_REFRESH,
    "GET /machines": Act.MACHINE_SEE,
    "GET /machines/<path:key>": Act.MACHINE_SEE,
    "GET /notices": Act.NOTICE_SEE,
    "GET /notices/targets": Act.NOTICE_SEE,
    "POST /notices/targets/<name>/test": Act.NOTICE_TEST,
    "GET /openapi.json": PUBLIC,
    "GET /overview": Act.OVERVIEW_SEE,
    "GET /pauses": Act.POLICY_SEE,
    "POST /pauses": Act.MACHINE_PAUSE,
    "DELETE /pauses/<path:key>": Act.MACHINE_RESUME,
    "GET /plan": Act.PLAN_SEE,
    "GET /points": Act.POINT_SEE,
    "DELETE /points/<id>": Act.POINT_DELETE,
    "GET /points/<id>": Act.POINT_SEE,
    "GET /points/meant": Act.POINT_SEE,
    "GET /points/<id>/file": Act.FILE_READ,
    "GET /points/<id>/files": Act.FILE_BROWSE,
    "GET /points/<id>/volumes": Act.FILE_BROWSE,
    "DELETE /points/<id>/protection": Act.POINT_UNPROTECT,
    "PUT /points/<id>/protection": Act.POINT_PROTECT,
    "GET /policies": Act.POLICY_SEE,
    "POST /policies": Act.POLICY_SAVE,
    "DELETE /policies/<name>": Act.POLICY_REMOVE,
    "GET /policies/<name>": Act.POLICY_SEE,
    "PUT /policies/<name>": Act.POLICY_SAVE,
    "GET /policies/<name>/losing": Act.POLICY_SEE,
    "POST /policies/<name>/losing": Act.POLICY_SEE,
    "POST /policies/<name>/pause": Act.POLICY_PAUSE,
    "POST /policies/<name>/resume": Act.POLICY_RESUME,
    "POST /policies/preview": Act.POLICY_SEE,
    "GET /recoveries": Act.RECOVERY_SEE,
    "POST /recoveries": Act.RECOVERY_START,
    "GET /recoveries/<id>": Act.RECOVERY_SEE,
    "POST /recoveries/<id>/discard": Act.RECOVERY_DISCARD,
    "POST /recoveries/<id>/migrate": Act.RECOVERY_MIGRATE,
    "GET /report": Act.REPORT_SEE,
    "GET /repository": Act.REPOSITORY_SEE,
    "POST /repository/collect": Act.REPOSITORY_COLLECT,
    "POST /repository/copy": Act.REPOSITORY_COPY,
    "GET /repository/growth": Act.REPOSITORY_SEE,
    "GET /keys": Act.REPOSITORY_SEE,
    "DELETE /keys/<id>": Act.KEY_REMOVE,
    "POST /repository/verify": Act.REPOSITORY_VERIFY,
    "GET /requests": Act.REQUEST_SEE,
    "POST /requests": Act.REQUEST_ASK,
    "GET /requests/<id>": Act.REQUEST_SEE,
    "POST /requests/<id>/apply": Act.REQUEST_APPLY,
    "POST /requests/<id>/refuse": Act.REQUEST_REFUSE,
    "POST /restores": Act.RESTORE_START,
    "POST /restores/disk": Act.RESTORE_START,
    "POST /restores/in-place": Act.RESTORE_OVERWRITE,
    "GET /runs": Act.RUN_SEE,
    "POST /runs": Act.RUN_START,
    "GET /runs/<id>": Act.RUN_SEE,
    "POST /runs/<id>/cancel": Act.RUN_CANCEL,
    "POST /runs/<id>/dismiss": Act.RUN_DISMISS,
    "GET /runs/<id>/log": Act.RUN_SEE,
    "POST /runs/<id>/retry": Act.RUN_RETRY,
    "GET /search": Act.OVERVIEW_SEE,
    "GET /sessions": Act.USER_SEE,
    "DELETE /sessions/<id>": Act.SESSION_REVOKE,
    "GET /settings": Act.SETTINGS_SEE,
    "GET /status": Act.APPLIANCE_SEE,
    "GET /tokens": Act.USER_SEE,
    "POST /tokens": Act.TOKEN_ADD,
    "DELETE /tokens/<id>": Act.TOKEN_REVOKE,
    "GET /users": Act.USER_SEE,
    "POST /users": Act.USER_SAVE,
    "DELETE /users/<name>": Act.USER_REMOVE,
    "GET /users/<name>": Act.USER_SEE,
    "PATCH /users/<name>": Act.USER_SAVE,
    "POST /users/<name>/disable": Act.USER_DISABLE,
    "POST /users/<name>/enable": Act.USER_ENABLE,
    "POST /users/<name>/reset": Act.USER_RESET,
}


WITHOUT: dict[str, str] = {
    Act.ACCOUNT_SEE: "a token is of no account of the console",
    Act.ACCOUNT_CHANGE: "one's own passphrase and second factor are changed by whoever proves to have them",
    Act.ACCOUNT_REAUTHENTICATE: "a token names the acts that it may do; nobody is there to prove it again",
    Act.SESSION_END: "a token has no session; those of others are ended by DELETE /sessions/ID",
    Act.CONSOLE_OPEN: "a screen is shown by a page, over its own connection",
    Act.REQUEST_CONFIRM: "a token is no person: whoever confirms gives a passphrase of their own, by their own account",
}
"""Acts of the console that the API has not, with the reason."""


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with site(tmp_path_factory.mktemp("api")) as made:
        yield made


@pytest.fixture(scope="module")
def tokens(api: Site) -> dict[Role, str]:
    return one_of_each_role(api)


@pytest.fixture(scope="module")
def owner(api: Site) -> Tenants:
    return tenants(api)


def one_of_each_role(api: Site) -> dict[Role, str]:
    """Each names every act that its role includes."""
    granted = (Selector((Clause(image="*"),)),)
    return {
        role: api.token_of(
            role, [act for act in Act if role in TRAITS[act].roles], granted if role is Role.RESTORER else ()
        )
        for role in Role
    }


def routes(api: Site) -> dict[str, str | None]:
    return {
        f"{method} {rule.rule.removeprefix('/api/v1')}": stated(api.app.view_functions[rule.endpoint])
        for rule in api.app.url_map.iter_rules()
        if rule.endpoint.startswith(API)
        for method in rule.methods or ()
        if method not in ("HEAD", "OPTIONS")
    }


def test_the_table_has_every_route_with_its_act(api: Site) -> None:
    assert routes(api) == ACTS


def test_what_the_console_does_the_api_does_too_or_there_is_a_reason(api: Site) -> None:
    """A page of a new act fails this, until the API has a route for it or it is said above why not."""
    console = {
        stated(api.app.view_functions[rule.endpoint])
        for rule in api.app.url_map.iter_rules()
        if not rule.endpoint.startswith(API)
    }
    assert len(console) > 30
    assert console - {*ACTS.values(), PUBLIC} == set(WITHOUT)


@pytest.mark.parametrize("route", sorted(ACTS))
def test_a_route_lets_in_who_may_do_its_act_and_nobody_else(api: Site, tokens: dict[Role, str], route: str) -> None:
    """Of what is not there: who may is told that it is not, or that the request says too little."""
    method, _, pattern = route.partition(" ")
    path = re.sub(r"<(?:\w+:)?\w+>", "0000", pattern)
    act = ACTS[route]
    if act == PUBLIC:
        assert api.ask(method, path, token="").status_code == 200
        return
    assert api.ask(method, path, token="").status_code == 401
    assert api.ask(method, path, token="strongroom_guessed").status_code == 401
    for role, token in tokens.items():
        status = api.ask(method, path, token=token).status_code
        assert (status == 403) is (role not in TRAITS[Act(act)].roles), (role, status)
        assert status in (200, 201, 204, 403, 404, 409, 422), (role, status)


def test_no_route_of_pages_or_of_the_api_leads_to_another_s_machine(api: Site, owner: Tenants) -> None:
    """An admin who was granted one image tries all on a machine, an image, a run and a recovery of somebody else."""
    tried = [route for route in routes_of(api.app) if route.of_machines and route.name not in OF_NO_MACHINE]
    assert len(tried) > 40
    assert [wrong for route in tried if (wrong := owner.reached(route))] == []


def test_another_s_machine_is_answered_as_none_and_the_refusal_is_audited(api: Site, owner: Tenants) -> None:
    tried = [route for route in routes_of(api.app) if owner.names_something(route)]
    assert len(tried) > 45
    assert sum(not route.of_api for route in tried) > 20
    assert [wrong for route in tried if (wrong := owner.told_apart(route))] == []


def test_no_other_way_to_name_another_s_machine_tells_that_it_is_there(api: Site, owner: Tenants) -> None:
    """Beginnings of ids, moments that are too old, a restore to run again that the token may not do, points of others
    under the name of one's own machine, and a name that two have of whom one was granted."""
    catalog = api.appliance.catalog
    shop, office = (next(each for each in catalog.points.list() if each.name == name) for name in ("shop", "office"))
    overwriting = replace(
        catalog.runs.get("2" * 32), id="6" * 32, kind=RunKind.RESTORE, arguments=RunArguments(force=True)
    )
    catalog.runs.save(overwriting)
    catalog.runs.save(replace(overwriting, id=f"{'6' * 31}7", kind=RunKind.VERIFY, machine_kind="repository"))
    few = api.token_of(Role.ADMIN, [Act.RUN_RETRY], (Selector((Clause(image="office"),)),))
    pairs: list[tuple[str, str, dict[str, str], str, dict[str, str], str]] = [
        ("GET", f"/points/{shop.id[:6]}", {}, "/points/000000", {}, owner.token),
        ("GET", "/runs/6666", {}, "/runs/0000", {}, owner.token),
        ("POST", f"/runs/{overwriting.id}/retry", {}, f"/runs/{'0' * 32}/retry", {}, few),
        ("POST", f"/runs/{'6' * 31}7/retry", {}, f"/runs/{'0' * 32}/retry", {}, few),
    ]
    for asked in ({"point": "1999-01-01T00:00:00Z"}, {"point": "never"}, {"point": office.id}):
        pairs.append(("GET", "/points/meant", {"machine": "shop", **asked}, "/points/meant",
                      {"machine": "none", **asked}, owner.token))  # fmt: skip
    pairs.append(("GET", "/points/meant", {"machine": "office", "point": shop.id}, "/points/meant",
                  {"machine": "office", "point": "0" * 32}, owner.token))  # fmt: skip
    for method, path, given, other_path, other_given, token in pairs:
        theirs = api.ask(method, path, token=token, query_string=given)
        nobodys = api.ask(method, other_path, token=token, query_string=other_given)
        assert said(theirs) == said(nobodys), (path, given)
        assert theirs.status_code == 404
    moment = {"machine": "office", "point": "1999-01-01T00:00:00Z"}
    told = api.ask("GET", "/points/meant", token=owner.token, query_string=moment)  # of one's own, what is the matter
    assert "its oldest is of" in said(told)["detail"]


def test_nor_do_pages_tell_by_another_way_to_name_it(api: Site, owner: Tenants) -> None:
    """Beginnings of ids; what is wrong with the rest of the question; a machine as an answer of a form; and as many
    downloads as may be."""
    shop = owner.places["point"]
    routes = {route.name: route for route in routes_of(api.app)}

    def differs(name: str, theirs: Asked, nobodys: Asked) -> str:
        return owner.differs(routes[name], theirs, nobodys)

    nobody = "0" * 32
    for name, one, other in (
        ("GET /runs/<id>", "/runs/222222", "/runs/000000"),
        ("POST /runs/<id>/cancel", "/runs/222222/cancel", "/runs/000000/cancel"),
        ("GET /recoveries/<id>", "/recoveries/333333", "/recoveries/000000"),
        ("GET /points/<id>/delete", f"/points/{shop[:6]}/delete", "/points/000000/delete"),
    ):
        assert differs(name, (one, {}), (other, {})) == ""
    for given in ({"offset": "many"}, {"place": "nowhere"}):
        page = routes["GET /points/<id>/files"]
        answers = [owner.ask(page, f"/points/{id}/files", given) for id in (shop, nobody)]
        assert said(answers[0]) == said(answers[1]), given
    every = {"what": "whole", "step": "review", "place": "new", "host": "nowhere", "name": "copy"}
    for name in ("GET /recover", "GET /restore"):
        theirs, nobodys = (
            (routes[name].rule, {"machine": machine, "point": point, **every})
            for machine, point in (("image:shop", shop), ("image:none", nobody))
        )
        assert differs(name, theirs, nobodys) == ""
    search = routes["GET /search"]
    nothing = said(owner.ask(search, "/search", {"q": nobody[:6]}))
    for text in (shop[:6], "222222", owner.places["key"], THEIRS[:-1]):
        found = owner.ask(search, "/search", {"q": text})
        assert said(found, ("", {"q": text}), ("", {"q": nobody[:6]})) == nothing, text
    with ExitStack() as carried:
        streams = parts_of(api.app).streams
        for _ in range(STREAMS_MAX):
            carried.enter_context(streams.one())
        for name in ("GET /points/<id>/file", "GET /api/v1/points/<id>/file"):
            assert owner.told_apart(routes[name]) == ""


def test_whose_role_is_not_for_it_is_told_so_whatever_it_is_about(api: Site, owner: Tenants) -> None:
    """Before it is looked for; and who may see all is told what is the matter with it."""
    office = (Selector((Clause(image="office"),)),)
    viewer = owner.signed_in("viewer", Role.VIEWER, office)
    for id in (owner.places["run"], "0" * 32):
        answer = viewer.send("POST", f"/runs/{id}/cancel")
        assert answer.status_code == 403
        assert "the role viewer does not include it" in answer.text
    admin = owner.signed_in("admin", Role.ADMIN, ())
    answer = admin.send("GET", f"/runs/{'0' * 32}")
    assert answer.status_code == 404
    assert f"run {'0' * 32}" in answer.text
    assert "granted" not in answer.text
    assert admin.send("GET", f"/runs/{owner.places['run']}").status_code == 200


def test_of_one_s_own_it_is_told_what_is_the_matter(api: Site, owner: Tenants) -> None:
    """Also what could be said of a look for another's: here, that a host is not there any more."""
    point = next(each for each in api.appliance.catalog.points.list() if each.name == "office")
    running = RecoveryRecord(
        "8" * 32, RecoveryState.RUNNING, point.id, point.manifest_name, "office", "gone", "office-again", "9" * 32,
        "none", NOW, NOW, appliance=api.appliance.catalog.me,
    )  # fmt: skip
    api.appliance.catalog.recoveries.add(running)
    path = f"/recoveries/{running.id}/discard"
    for answer in (owner.owner.send("POST", path), api.ask("POST", path, token=owner.token)):
        assert answer.status_code == 404
        assert "there is no host gone" in answer.text.lower()


def test_nor_does_a_host_that_does_not_answer(api: Site, owner: Tenants) -> None:
    """A machine that nobody has seen is looked for there, and what is known to be another's is not."""
    config = HostConfig("away", Transport.SSH, hostname="127.0.0.1", port=1)
    api.appliance.catalog.hosts.add(HostRecord(config, NOW))
    asked = [api.ask("POST", "/runs", token=owner.token, json={"machine": name}) for name in (THEIRS, "none-b7")]
    assert api.ask("POST", "/runs", json={"machine": "none-b7"}).status_code == 503
    api.appliance.catalog.hosts.remove("away")
    assert said(asked[0]) == said(asked[1])
    assert asked[0].status_code == 404
