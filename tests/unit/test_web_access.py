"""Every route against every role, by HTTP: what each may reach is written down here, and nothing else is reached.

The table below is what an admin would say, by path; the test fails for a route that is not in it, and for one whose
answer is another than it says. So a route that loses its act, or a role that gains one, shows.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterator
from dataclasses import dataclass

import pyotp
import pytest
from flask import Flask
from flask.testing import FlaskClient
from werkzeug.routing import Rule
from werkzeug.test import TestResponse

from appliance.acts import TRAITS, Act, Role
from appliance.bootstrap import Appliance
from appliance.clock import SystemClock
from appliance.policy.selectors import Clause, Selector
from appliance.services.access import SYSTEM
from appliance.services.access.audits import AuditService
from appliance.services.accounts.setting_up import Link, SetUpService
from appliance.services.accounts.signing_in import Origin
from appliance.services.accounts.users import UserService
from appliance.settings import load
from web.acts import PUBLIC, stated
from web.app import create_app
from web.guarding import API
from web.sessions import COOKIE

BASE = "https://localhost"
PASSWORD = "three blind mice and a cat"
ADMIN, OPERATOR, RESTORER, VIEWER, AUDITOR = Role.ADMIN, Role.OPERATOR, Role.RESTORER, Role.VIEWER, Role.AUDITOR
EVERYBODY = frozenset(Role)
FILES = frozenset({ADMIN, OPERATOR, RESTORER})
LOOKS = EVERYBODY - {RESTORER}
WORKS = frozenset({ADMIN, OPERATOR})
AUDITS = frozenset({ADMIN, AUDITOR})
ADMINS = frozenset({ADMIN})
NOBODY_NEEDED = None  # public

MAY: dict[str, frozenset[Role] | None] = {
    "GET /alive": NOBODY_NEEDED,
    "GET /metrics": NOBODY_NEEDED,  # no session: a token, tests/unit/test_web_metrics.py
    "GET /static/<version>/<path:name>": NOBODY_NEEDED,
    "GET /sign-in": NOBODY_NEEDED,
    "POST /sign-in": NOBODY_NEEDED,
    "GET /set-up/<secret>": NOBODY_NEEDED,
    "POST /set-up/<secret>": NOBODY_NEEDED,
    "POST /sign-out": EVERYBODY,
    "GET /account": EVERYBODY,
    "POST /account/sessions/<id>/end": EVERYBODY,
    "POST /account/password": EVERYBODY,
    "POST /account/codes": EVERYBODY,
    "POST /account/second-factor": EVERYBODY,
    "POST /account/prove": EVERYBODY,
    "GET /": EVERYBODY,
    "GET /search": EVERYBODY,
    "GET /vms": EVERYBODY,
    "GET /vms/<path:key>": EVERYBODY,
    "GET /points/<id>": EVERYBODY,
    "GET /points/<id>/files": FILES,
    "GET /points/<id>/file": FILES,
    "POST /vms/<path:key>/back-up": WORKS,
    "GET /runs": LOOKS,
    "GET /runs/<id>": LOOKS,
    "GET /runs/<id>/events": LOOKS,
    "POST /runs/<id>/cancel": WORKS,
    "POST /runs/<id>/retry": WORKS,
    "POST /runs/<id>/dismiss": WORKS,
    "GET /recoveries": LOOKS,
    "GET /recoveries/<id>": LOOKS,
    "GET /recover": WORKS,
    "POST /recoveries": WORKS,
    "GET /recoveries/starting/<id>": WORKS,
    "GET /recoveries/<id>/console": WORKS,
    "GET /recoveries/<id>/screen": WORKS,
    "POST /recoveries/<id>/migrate": WORKS,
    "POST /recoveries/<id>/discard": WORKS,
    "GET /points/<id>/restore": WORKS,
    "GET /restore": WORKS,
    "POST /restores": WORKS,
    "POST /restores/in-place": WORKS,
    "POST /restores/disk": WORKS,
    "GET /policies": LOOKS,
    "GET /policies/<name>": LOOKS,
    "GET /policy/new": ADMINS,
    "GET /policies/<name>/edit": ADMINS,
    "GET /policy/preview": ADMINS,
    "POST /policies": ADMINS,
    "POST /policies/<name>/pause": ADMINS,
    "POST /policies/<name>/resume": ADMINS,
    "POST /policies/<name>/remove": ADMINS,
    "GET /hosts": LOOKS,
    "GET /host/new": ADMINS,
    "POST /hosts": ADMINS,
    "POST /hosts/look": WORKS,
    "POST /hosts/<name>/test": WORKS,
    "POST /hosts/<name>/remove": ADMINS,
    "GET /repository": LOOKS,
    "POST /repository/verify": WORKS,
    "POST /repository/collect": ADMINS,
    "GET /plan": LOOKS,
    "GET /repository/keys": LOOKS,
    "POST /repository/keys/<id>/remove": ADMINS,
    "GET /requests": LOOKS,
    "GET /requests/count": LOOKS,
    "GET /requests/new": ADMINS,
    "POST /requests": ADMINS,
    "GET /requests/<id>": LOOKS,
    "POST /requests/<id>/confirm": ADMINS,
    "POST /requests/<id>/refuse": LOOKS,
    "POST /requests/<id>/apply": ADMINS,
    "GET /points/<id>/delete": ADMINS,
    "POST /points/<id>/delete": ADMINS,
    "POST /points/<id>/protect": WORKS,
    "POST /points/<id>/unprotect": ADMINS,
    "GET /audit": AUDITS,
    "POST /audit/verify": AUDITS,
    "POST /audit/export": AUDITS,
    "GET /users": AUDITS,
    "POST /users": ADMINS,
    "POST /users/<id>": ADMINS,
    "POST /users/<id>/reset": ADMINS,
    "POST /users/<id>/disable": ADMINS,
    "POST /users/<id>/enable": ADMINS,
    "POST /users/<id>/remove": ADMINS,
    "POST /users/sessions/<id>/end": ADMINS,
    "GET /settings": AUDITS,
    "POST /settings/notices/<name>/test": ADMINS,
    "GET /report": LOOKS,
    "GET /report/file": LOOKS,
}


@dataclass
class Signed:
    client: FlaskClient
    name: str
    codes: list[str]

    def token(self) -> str:
        """What forms of the pages carry."""
        return token_in(self.client.get("/account", base_url=BASE))

    def send(self, method: str, path: str, **data: str) -> TestResponse:
        """The whole answer: what is left of a stream would have its request under way beside those that follow."""
        headers = {"Origin": BASE, "Referer": f"{BASE}/", **upgrade(path)}
        form = None if method == "GET" else {"csrf_token": self.token(), **data}
        return self.client.open(path, method=method, base_url=BASE, headers=headers, data=form, buffered=True)


def upgrade(path: str) -> dict[str, str]:
    """A screen is asked for as a websocket, or not at all."""
    return {"Connection": "Upgrade", "Upgrade": "websocket"} if path.endswith("/screen") else {}


def token_in(answer: TestResponse) -> str:
    found = re.search(r'name="csrf_token" value="([^"]+)"', answer.text)
    assert found is not None, answer.text[:300]
    return found[1]


@pytest.fixture(scope="module")
def appliance(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Appliance]:
    home = tmp_path_factory.mktemp("web") / "home"
    with Appliance(load({"STRONGROOM_HOME": str(home)})) as appliance:
        yield appliance


@pytest.fixture(scope="module")
def app(appliance: Appliance) -> Flask:
    return create_app(appliance)


@pytest.fixture(scope="module")
def people(app: Flask, appliance: Appliance) -> dict[Role, Signed]:
    return one_of_each_role(app, appliance)


def one_of_each_role(app: Flask, appliance: Appliance) -> dict[Role, Signed]:
    """Signed in by the forms; nobody has an account yet. A restorer is granted every machine, so that the role alone
    decides."""
    every = (Selector((Clause(),)),)
    found = {ADMIN: _set_up(app, appliance, SetUpService(appliance).first_link(), "admin")}
    for role in Role:
        if role is not ADMIN:
            made = UserService(appliance).add(SYSTEM, str(role), role, every if role is RESTORER else ())
            found[role] = _set_up(app, appliance, made.link, str(role))
    return found


@pytest.fixture
def fresh(app: Flask, appliance: Appliance, people: dict[Role, Signed]) -> Signed:
    """A viewer of this test alone, signed in."""
    name = f"viewer-{secrets.token_hex(4)}"
    return _set_up(app, appliance, UserService(appliance).add(SYSTEM, name, VIEWER).link, name)


def _set_up(app: Flask, appliance: Appliance, link: Link, name: str) -> Signed:
    secret = SetUpService(appliance).offer(link.secret).secret
    code = pyotp.TOTP(secret).at(SystemClock().now_utc())
    done = SetUpService(appliance).complete(link.secret, name, PASSWORD, code, Origin("127.0.0.1"))
    person = Signed(app.test_client(), done.user.name, list(done.recovery_codes))
    sign_in(person)
    return person


def sign_in(person: Signed) -> TestResponse:
    client = person.client
    token = token_in(client.get("/sign-in", base_url=BASE))
    answer = client.post(
        "/sign-in", base_url=BASE, headers={"Origin": BASE, "Referer": f"{BASE}/sign-in"},
        data={"csrf_token": token, "name": person.name, "password": PASSWORD, "code": person.codes.pop()},
    )  # fmt: skip
    assert answer.status_code == 302, answer.text
    return answer


def words(rule: Rule) -> list[str]:
    return [f"{method} {rule.rule}" for method in sorted((rule.methods or set()) - {"HEAD", "OPTIONS"})]


def routes() -> list[str]:
    return sorted(MAY)


def path_of(route: str) -> tuple[str, str]:
    """A route with something in its place that is not there."""
    method, rule = route.split(" ", 1)
    return method, re.sub(r"<[^>]+>", "0123456789abcdef0123456789abcdef", rule)


def pages(app: Flask) -> list[Rule]:
    """All but the API's, which goes by tokens: tests/unit/test_api_access.py."""
    return [rule for rule in app.url_map.iter_rules() if not rule.endpoint.startswith(API)]


def test_the_table_has_every_route_and_no_other(app: Flask) -> None:
    there = {each for rule in pages(app) for each in words(rule)}
    assert there == set(MAY)


def test_the_table_says_what_the_acts_say(app: Flask) -> None:
    """The table was written by hand; the acts are what the rest of the product goes by."""
    for rule in pages(app):
        which = stated(app.view_functions[rule.endpoint])
        for route in words(rule):
            expected = None if which == PUBLIC else TRAITS[Act(str(which))].roles
            assert MAY[route] == expected, route


@pytest.mark.parametrize("route", routes())
def test_nobody_reaches_anything_that_is_not_public(app: Flask, route: str) -> None:
    method, path = path_of(route)
    client = app.test_client()
    token = token_in(client.get("/sign-in", base_url=BASE))
    answer = client.open(path, method=method, base_url=BASE, data=None if method == "GET" else {"csrf_token": token},
                         headers={"Origin": BASE, "Referer": f"{BASE}/", **upgrade(path)})  # fmt: skip
    if MAY[route] is NOBODY_NEEDED:
        assert "/sign-in?" not in answer.headers.get("Location", "")
    else:
        assert answer.status_code == 302
        assert answer.headers["Location"].startswith("/sign-in")


def test_every_route_is_for_the_roles_that_the_table_names(people: dict[Role, Signed]) -> None:
    assert [wrong for route in MAY for wrong in wrong_for_roles(people, route)] == []


def wrong_for_roles(people: dict[Role, Signed], route: str) -> list[str]:
    """Allowed is: anything but a refusal. A thing that is not there is told to those alone who may ask for it."""
    roles, wrong = MAY[route], []
    if roles is NOBODY_NEEDED or route in ("POST /sign-out",):
        return []
    for role, person in people.items():
        method, path = path_of(route)
        answer = person.send(method, path)
        refused = answer.status_code == 403 and "may not do this" in answer.text
        if refused is (role in roles):
            wrong.append(f"{route} by {role}: {answer.status_code}")
        if answer.status_code == 500:
            wrong.append(f"{route} by {role}: failed")
    return wrong


def test_a_refusal_is_in_the_audit(people: dict[Role, Signed], appliance: Appliance) -> None:
    people[VIEWER].send("POST", "/hosts/look")
    newest = AuditService(appliance).newest(limit=1)[0]
    assert (newest.act, newest.result, newest.actor_name, newest.via) == (
        "inventory.refresh", "refused", "viewer", "console"
    )  # fmt: skip


@pytest.mark.parametrize("route", [each for each in routes() if each.startswith("POST")])
def test_no_form_works_without_its_token(people: dict[Role, Signed], app: Flask, route: str) -> None:
    """Also not from the right origin, and not with the token of somebody else's form."""
    _, path = path_of(route)
    headers = {"Origin": BASE, "Referer": f"{BASE}/"}
    client = people[ADMIN].client
    assert client.post(path, base_url=BASE, headers=headers).status_code == 400
    others = token_in(app.test_client().get("/sign-in", base_url=BASE))
    assert client.post(path, base_url=BASE, headers=headers, data={"csrf_token": others}).status_code == 400
    # With the token, but from elsewhere.
    theirs = {"Origin": "https://evil.example", "Referer": "https://evil.example/"}
    data = {"csrf_token": people[ADMIN].token()}
    assert client.post(path, base_url=BASE, headers=theirs, data=data).status_code in (400, 403)


def test_signing_in_makes_a_session_of_its_own(app: Flask, fresh: Signed) -> None:
    """Fixation: what the browser had before is worth nothing afterwards."""
    person = Signed(app.test_client(), fresh.name, fresh.codes)
    person.client.set_cookie(COOKIE, "chosen-by-somebody-else", domain="localhost", secure=True)
    before = token_in(person.client.get("/sign-in", base_url=BASE))
    answer = sign_in(person)
    cookie = next(each for each in answer.headers.getlist("Set-Cookie") if each.startswith(f"{COOKIE}="))
    assert "chosen-by-somebody-else" not in cookie
    for attribute in ("Secure", "HttpOnly", "Path=/", "SameSite=Lax"):
        assert attribute in cookie
    assert "Domain" not in cookie
    assert person.token() != before
    assert person.client.post("/sign-out", base_url=BASE, headers={"Origin": BASE, "Referer": f"{BASE}/"},
                              data={"csrf_token": before}).status_code == 400  # fmt: skip


def test_a_session_is_worth_nothing_after_signing_out(app: Flask, fresh: Signed) -> None:
    person = Signed(app.test_client(), fresh.name, fresh.codes)
    sign_in(person)
    held = person.client.get_cookie(COOKIE, domain="localhost")
    assert held is not None
    assert person.send("GET", "/runs").status_code == 200
    assert person.send("POST", "/sign-out").status_code == 302
    replayed = app.test_client()
    replayed.set_cookie(COOKIE, held.value, domain="localhost", secure=True)
    assert replayed.get("/runs", base_url=BASE).headers["Location"].startswith("/sign-in")


def test_a_code_counts_once(app: Flask, fresh: Signed) -> None:
    code = fresh.codes.pop()
    answers = []
    for _ in range(2):
        client = app.test_client()
        token = token_in(client.get("/sign-in", base_url=BASE))
        answer = client.post(
            "/sign-in", base_url=BASE, headers={"Origin": BASE, "Referer": f"{BASE}/sign-in"},
            data={"csrf_token": token, "name": fresh.name, "password": PASSWORD, "code": code},
        )  # fmt: skip
        answers.append(answer.status_code)
    assert answers == [302, 403]


@pytest.mark.parametrize("next", ["https://evil.example/", "//evil.example", "/\\evil.example", "javascript:alert(1)"])
def test_signing_in_leads_nowhere_else(app: Flask, next: str) -> None:
    page = app.test_client().get("/sign-in", base_url=BASE, query_string={"next": next})
    assert 'name="next" value=""' in page.text


@pytest.mark.parametrize("link", ["x", "0" * 43, "../sign-in"])
def test_a_link_that_is_none_is_not_there(app: Flask, link: str) -> None:
    assert app.test_client().get(f"/set-up/{link}", base_url=BASE).status_code in (302, 404)


def test_a_link_with_a_nul_is_no_address(app: Flask) -> None:
    assert app.test_client().get("/set-up/%00", base_url=BASE).status_code == 400
