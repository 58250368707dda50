"""An appliance with machines of two owners, and one of them who tries every route on what is the other's.

The rule: the other's name is a word that is nowhere else; a page that has it has shown something. What has an address
of its own is answered as what is not there, to the letter, or anything at all could pass for a refusal.
"""

from __future__ import annotations

import json
import re
import threading
from dataclasses import dataclass, replace
from typing import Any, Final, cast

from flask import Flask
from werkzeug.test import TestResponse

from appliance.acts import TRAITS, Act, Role, Scope
from appliance.audit import Result
from appliance.bootstrap import Appliance
from appliance.catalog.audit import Filter
from appliance.hypervisor.protocol import MachineState
from appliance.inventory import SeenMachine
from appliance.models import RecoveryRecord, RecoveryState, RunRecord, RunState
from appliance.policy.selectors import Clause, Selector
from appliance.services.access import SYSTEM
from appliance.services.accounts.users import UserService
from tests.unit.api_site import Site
from tests.unit.records import NOW, machine_record, point_record
from tests.unit.test_web_access import BASE, Signed, _set_up, upgrade
from web.acts import PUBLIC, stated
from web.guarding import API

THEIRS: Final = "theirs-e3b1"
_PART: Final = "heirs-e3b"
_UUID: Final = "12345678-1234-4234-8234-123456789abc"
_API: Final = "/api/v1"
_MEANT: Final = f"GET {_API}/points/meant"

Asked = tuple[str, dict[str, Any]]
"""A path, and what is given with it."""
_NOTHING: Final[Asked] = ("", {})


@dataclass(frozen=True)
class Route:
    method: str
    rule: str
    endpoint: str
    act: str

    @property
    def name(self) -> str:
        return f"{self.method} {self.rule}"

    @property
    def of_api(self) -> bool:
        return self.endpoint.startswith(API)

    @property
    def roles(self) -> frozenset[Role]:
        return TRAITS[Act(self.act)].roles

    @property
    def of_machines(self) -> bool:
        return self.act != PUBLIC and TRAITS[Act(self.act)].scope is Scope.MACHINE


def routes_of(app: Flask) -> list[Route]:
    """In the order of their names."""
    found = [
        Route(method, rule.rule, rule.endpoint, str(stated(app.view_functions[rule.endpoint])))
        for rule in app.url_map.iter_rules()
        for method in sorted((rule.methods or set()) - {"HEAD", "OPTIONS"})
    ]
    return sorted(found, key=lambda route: route.name)


@dataclass
class Tenants:
    """`owner` is an admin, so that nothing but the machine is in the way; `token` is theirs, and names every act."""

    app: Flask
    appliance: Appliance
    owner: Signed
    token: str
    places: dict[str, str]
    given: dict[str, dict[str, Any]]

    def reached(self, route: Route) -> str:
        """What of the other's machine they get by a route that is about machines; "": nothing."""
        for thread in threading.enumerate():
            if thread.name.startswith("job-"):  # what was begun without a check ends first: its act is not this one's
                thread.join(60)
        _put(self.appliance)
        path, names = self._path(route)
        before = self._done()
        answer = self.ask(route, path, self.given.get(route.name, {}))
        if self._done() - before:  # the newest ones alone are listed: old ones leave the list
            return f"{route.name} does something to it: {answer.status_code}"
        if THEIRS in answer.text:
            return f"{route.name} shows it: {answer.status_code}"
        if names and answer.status_code != _REFUSED:
            return f"{route.name} answers {answer.status_code} and not {_REFUSED}: {answer.text[-300:]}"
        return ""

    def _done(self) -> set[int]:
        """What the audit has of acts on the machine that were not refused."""
        newest = self.appliance.catalog.audit.newest(Filter(machine=f"vm:{_UUID}"))
        return {entry.number for entry in newest if entry.result != Result.REFUSED}

    def _path(self, route: Route) -> tuple[str, bool]:
        """With what is the other's in its place, and whether it is no list: that answers as it likes."""
        if "<" not in route.rule:
            if route.method == "GET":
                return route.rule, False
            assert route.name in self.given, f"say in tests/unit/tenants.py what of another's is sent to {route.name}"
            return route.rule, True
        for begin, place in _PLACES.items():
            if route.rule.removeprefix(_API).startswith(begin):
                filled = route.rule
                while "<" in filled:
                    filled = filled[: filled.index("<")] + self.places[place] + filled[filled.index(">") + 1 :]
                return filled, True
        raise AssertionError(f"say in tests/unit/tenants.py what of another's stands in {route.name}")

    def ask(self, route: Route, path: str, given: dict[str, Any], *, part: bool = False) -> TestResponse:
        """`part`: as a script of a page does, which puts the answer into it."""
        looks = route.method == "GET"
        if route.of_api:
            return self.app.test_client().open(
                path, method=route.method, headers={"Authorization": f"Bearer {self.token}"}, buffered=True,
                query_string=given if looks else None, json=None if looks else given,
            )  # fmt: skip
        headers = {"Origin": BASE, "Referer": f"{BASE}/", **upgrade(path), **({"HX-Request": "true"} if part else {})}
        return self.owner.client.open(
            path, method=route.method, base_url=BASE, headers=headers, buffered=True,
            query_string=given if looks else None, data=None if looks else {"csrf_token": self.owner.token(), **given},
        )  # fmt: skip

    def told_apart(self, route: Route) -> str:
        """How a route answers otherwise of the other's than of what is not there, or does not write down that it has
        refused; "": in no way."""
        path, given = self._path(route)[0], self.given.get(route.name, {})
        nobodys = _nowhere(path), {name: _nowhere(value) for name, value in given.items()}
        return self.differs(route, (path, given), nobodys)

    def differs(self, route: Route, theirs: Asked, nobodys: Asked) -> str:
        """As `told_apart`, by what is asked. Of pages, whole ones and parts."""
        for part in (False,) if route.of_api else (False, True):
            _put(self.appliance)
            before = self._refusals()
            of_theirs = self.ask(route, *theirs, part=part)
            if self._refusals() == before:
                return f"{route.name} is not in the audit: {of_theirs.status_code}"
            one, other = said(of_theirs, theirs, nobodys), said(self.ask(route, *nobodys, part=part))
            if one != other or one["status"] != _REFUSED:
                return f"{route.name}: {one} and {other}"
        return ""

    def names_something(self, route: Route) -> bool:
        """A route that is asked for a machine, point, run or recovery, and is no list."""
        if not route.of_machines or route.name in OF_NO_MACHINE:
            return False
        return self._path(route)[1] or route.name == _MEANT

    def signed_in(self, name: str, role: Role, grants: tuple[Selector, ...]) -> Signed:
        return _set_up(self.app, self.appliance, UserService(self.appliance).add(SYSTEM, name, role, grants).link, name)

    def _refusals(self) -> int:
        newest = self.appliance.catalog.audit.newest(Filter(result=Result.REFUSED), limit=1)
        return newest[0].number if newest else 0


def _nowhere(text: str) -> str:
    """With names and ids that nothing has in place of the other's."""
    return re.sub("shop", "none", re.sub("[0-9a-f]{8}-[0-9a-f-]{27}|[0-9a-f]{32}", lambda id: "0" * len(id[0]), text))


def said(answer: TestResponse, asked: Asked = _NOTHING, instead: Asked = _NOTHING) -> dict[str, Any]:
    """A problem, or a page as it was sent, but for which request it was, the token of its forms, and how long ago a
    moment is; with what was asked for as it is `instead`."""
    text = answer.text.replace(answer.headers["X-Request-Id"], "…")
    for varying in ('(name="csrf_token" value=")[^"]+', '("X-CSRFToken": ")[^"]+', "(<time [^>]+>)[^<]+"):
        text = re.sub(varying, r"\1", text)
    pairs = [*zip(asked[0].split("/"), instead[0].split("/"), strict=True),
             *((value, instead[1][name]) for name, value in asked[1].items())]  # fmt: skip
    for one, other in pairs:
        text = text.replace(one, other) if one != other else text
    if answer.is_json:
        return cast(dict[str, Any], json.loads(text))
    headers = {name: value for name, value in answer.headers if name not in _OF_ONE_ANSWER}
    return {"status": answer.status_code, "page": text, "headers": headers}


_OF_ONE_ANSWER: Final = ("X-Request-Id", "Set-Cookie", "Content-Length")
_REFUSED: Final = 404  # what is another's is not there
# What begins so, as a page or in the API, has this in its place.
_PLACES: Final = {
    "/vms/": "key", "/machines/": "key", "/pauses/": "key", "/points/": "point", "/runs/": "run",
    "/recoveries/": "recovery",
}  # fmt: skip
# What this browser itself has begun, by an id that nobody else is given; and appliances, with nothing of machines.
OF_NO_MACHINE: Final = frozenset({"GET /recoveries/starting/<id>", f"GET {_API}/appliances"})


def tenants(made: Site) -> Tenants:
    """On a site, whose image `office` is theirs who tries. The other has its image `shop`, and a machine."""
    app, appliance = made.app, made.appliance
    grants = (Selector((Clause(image="office"),)),)
    owner = _set_up(app, appliance, UserService(appliance).add(SYSTEM, "owner", Role.ADMIN, grants).link, "owner")
    run, recovery = _put(appliance)
    point = next(each.id for each in appliance.catalog.points.list() if each.name == "shop")
    key = f"vm:{_UUID}"
    image = {"machine": "image:shop", "point": point}
    given = {
        "GET /search": {"q": _PART}, f"GET {_API}/search": {"q": _PART}, "GET /recover": {"text": _PART},
        "GET /restore": {"text": _PART}, "GET /plan": {"months": "12"},  # else the page comes without its answer
        "POST /restores": image | {"what": "whole", "host": "tested", "name": "copy"},
        "POST /restores/in-place": image | {"what": "whole", "host": "tested", "typed": "shop"},
        "POST /restores/disk": image | {"what": "disk:disk", "target": "/nowhere/copy.qcow2", "format": "raw"},
        "POST /recoveries": {"machine": key, "point": point, "host": "tested", "name": "copy"},
        _MEANT: {"machine": THEIRS},
        f"GET {_API}/points/<id>/file": {"place": "/"}, f"GET {_API}/points/<id>/files": {"place": "/"},
        f"POST {_API}/recoveries": image,
        f"POST {_API}/runs": {"machine": _UUID},
        f"POST {_API}/restores": image | {"host": "tested", "new_name": "copy"},
        f"POST {_API}/restores/in-place": image | {"host": "tested"},
        f"POST {_API}/restores/disk": image | {"target": "/nowhere/copy.qcow2"},
        f"POST {_API}/pauses": {"machine": _UUID},
    }  # fmt: skip
    return Tenants(
        app, appliance, owner, made.token_of(Role.ADMIN, list(Act), grants),
        {"key": key, "point": point, "run": run, "recovery": recovery}, given,
    )  # fmt: skip


def _put(appliance: Appliance) -> tuple[str, str]:
    """The other's machine with all that is known of it, whatever became of it before; the ids of its run and of its
    recovery."""
    catalog, series, host = appliance.catalog, "5" * 32, "tested"
    seen = SeenMachine(host, _UUID, THEIRS, MachineState.RUNNING, "", 1 << 30, 1, True, 1 << 30, (), (), NOW)
    catalog.inventory.answered(host, [seen], NOW, NOW)
    point = replace(point_record(series, id="1" * 32), name=THEIRS, uuid=_UUID, host=host)
    catalog.points.add(replace(machine_record(series), name=THEIRS, uuid=_UUID, host=host), point)
    run = RunRecord(
        "2" * 32, THEIRS, "vm", _UUID, host, RunState.FAILED, NOW, NOW, None, "it failed", appliance=catalog.me
    )
    catalog.runs.save(run)
    recovery = RecoveryRecord(
        "3" * 32, RecoveryState.RUNNING, point.id, point.manifest_name, THEIRS, host, f"{THEIRS}-recovered",
        "4" * 32, "none", NOW, NOW, appliance=catalog.me,
    )  # fmt: skip
    if recovery.id not in {each.id for each in catalog.recoveries.list(ended=True, everyones=True)}:
        catalog.recoveries.add(recovery)
    return run.id, recovery.id
