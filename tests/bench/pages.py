"""How long each page of the console takes at the server, with 1,000 machines, 200,000 points and 1,000,000 runs.

`strongroom serve` runs for real, on either engine of the catalog; somebody who is signed in asks for each page, ten
times after a first one. What a page asks of the database is counted apart, in this process. With SQLite the home is
kept from one day to the next, below the folder of the benchmark: making it takes minutes.
"""

from __future__ import annotations

import re
import shutil
import statistics
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from flask.testing import FlaskClient
from sqlalchemy import event

from appliance import home as homes
from appliance.bootstrap import Appliance
from appliance.catalog import Catalog, schema
from appliance.catalog.database import Database
from appliance.identity import keep_id
from appliance.models import RunState
from appliance.policy.selectors import Kind
from appliance.services.browsing import BrowsingService, MachineFilter, MachineRow, PointFilter, RunFilter, Standing
from appliance.settings import load
from tests.bench import fleet
from tests.bench.measure import BenchError, say
from tests.bench.report import Goal, Part
from tests.bench.served import Account, Visitor, account, form_token, serving, signed_in
from tests.lab.postgres_server import PostgresServer
from web.app import create_app

_ASKED: Final = 10
_GOAL_MS: Final = 100.0
_FIRST_LOAD_BYTES: Final = 300_000
_KEPT_S: Final = 86_400.0
_DEEP: Final = 100
_NIGHTS: Final = 400
_BASE: Final = "https://localhost"
ANSWERS: Final = (200, 302)  # a point's address leads to its machine's page
# The hosts of the fleet are nowhere: they are looked for once. What policies want is not asked for.
_QUIET: Final = {"STRONGROOM_QUEUE_WORKERS": "0", "STRONGROOM_INVENTORY_REFRESH_S": "86400"}


@dataclass(frozen=True, slots=True)
class Asked:
    """A page, or the part of it that a script puts into `target`."""

    path: str
    target: str = ""

    @property
    def headers(self) -> dict[str, str]:
        return {"HX-Request": "true", "HX-Target": self.target} if self.target else {}


@dataclass(frozen=True, slots=True)
class _Site:
    """A home whose catalog is filled."""

    environment: Mapping[str, str]
    log: Path
    who: Account
    checker: Account
    pages: Mapping[str, Asked]


def measure_pages(work: Path, *, quick: bool, engine: str = "") -> Part:
    """`engine`: with this one alone."""
    size = fleet.SMALL if quick else fleet.FULL
    part = Part("pages", f"the console with {size.machines} machines, {size.points} points, {size.runs} runs")
    folder = work / "pages"
    folder.mkdir(parents=True, exist_ok=True)
    engines = (engine,) if engine else ("sqlite",) if quick else ("sqlite", "postgresql")
    for each in engines:
        with _site(each, folder, size) as site:
            part.figures[each] = _measure(site, 1 if quick else _ASKED)
    rows, slowest = [], 0.0
    for name, figures in part.figures[engines[0]]["pages"].items():
        every = [part.figures[engine]["pages"][name] for engine in engines]
        times = [each[what] for each in every for what in ("median_ms", "longest_ms")]
        slowest = max(slowest, *(each["median_ms"] for each in every))
        rows.append([name, *times, figures["statements"], figures["kb"]])
    columns = [column for engine in engines for column in (engine, "longest")]
    part.table(["ms", *columns, "statements", "kB"], rows)
    made = [
        [name, *(part.figures[each]["made_ms"][name] for each in engines)]
        for name in part.figures[engines[0]]["made_ms"]
    ]
    part.table(["ms", *engines], made, title="after a start, before anything is remembered, and again")
    part.goals.append(Goal("the slowest page (median)", slowest, _GOAL_MS, "ms", at_least=False))
    weight = part.figures[engines[0]]["first_load_bytes"] / 1000
    part.goals.append(Goal("the first load", weight, _FIRST_LOAD_BYTES / 1000, "kB", at_least=False))
    return part


def _measure(site: _Site, times: int) -> dict[str, Any]:
    counts = _statements(site)
    figures: dict[str, Any] = {"pages": {}}
    with serving(site.environment, site.log) as port, signed_in(port, site.who) as visitor:
        first = visitor.get("/")
        assets = [visitor.get(path) for path in _assets(first.text)]
        figures["first_load_bytes"] = first.bytes + sum(each.bytes for each in assets)
        figures["made_ms"] = _made_first(visitor)
        for name, asked in site.pages.items():
            answers = [visitor.get(asked.path, asked.headers) for _ in range(times + 1)][1:]
            if any(each.status not in ANSWERS for each in answers):
                raise BenchError(f"{asked.path} answers {answers[0].status}: {answers[0].text[:300]}")
            took = [each.ms for each in answers]
            figures["pages"][name] = {
                "median_ms": statistics.median(took), "longest_ms": max(took), "statements": counts[name],
                "kb": answers[0].bytes / 1000,
            }  # fmt: skip
    return figures


def _made_first(visitor: Visitor) -> dict[str, float]:
    """What is remembered from then on, in ms; `report again`: with the audit looked at before."""
    answer, took = Asked("", "answer").headers, {}
    for name in ("report", "report again"):
        visitor.get("/report?anew=1")
        took[name] = visitor.get("/report/file").ms
    for name in ("plan", "plan again"):
        took[name] = visitor.get("/plan", answer).ms
    return took


def _assets(page: str) -> list[str]:
    """What the head of a page asks for."""
    return re.findall(r'(?:href|src)="(/static/[^"]+)"', page)


def _statements(site: _Site) -> dict[str, int]:
    """How many the second answer to each page costs."""
    with Appliance(load({**site.environment})) as appliance:
        client = client_of(appliance, site.checker)
        found = {}
        client.get("/report/file", base_url=_BASE)
        for name, asked in site.pages.items():
            client.get(asked.path, base_url=_BASE, headers=asked.headers)
            with counted(appliance.catalog) as statements:
                client.get(asked.path, base_url=_BASE, headers=asked.headers)
            found[name] = len(statements)
    return found


@contextmanager
def counted(catalog: Catalog) -> Iterator[list[str]]:
    """What is asked of the database meanwhile."""
    statements: list[str] = []

    def count(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        if statement != "BEGIN":
            statements.append(statement)

    event.listen(catalog.database.engine, "before_cursor_execute", count)
    try:
        yield statements
    finally:
        event.remove(catalog.database.engine, "before_cursor_execute", count)


def client_of(appliance: Appliance, who: Account) -> FlaskClient:
    client = create_app(appliance).test_client()
    form = {
        "csrf_token": form_token(client.get("/sign-in", base_url=_BASE).text),
        "name": who.name,
        "password": who.password,
        "code": who.code,
    }
    answer = client.post("/sign-in", base_url=_BASE, headers={"Origin": _BASE, "Referer": f"{_BASE}/"}, data=form)
    assert answer.status_code == 302, answer.text
    return client


@contextmanager
def _site(engine: str, folder: Path, size: fleet.Size) -> Iterator[_Site]:
    home = folder / f"home-{engine}"
    with ExitStack() as stack:
        environment = {**_QUIET, "STRONGROOM_HOME": str(home)}
        if engine == "postgresql":
            shutil.rmtree(home, ignore_errors=True)
            stack.callback(shutil.rmtree, home, ignore_errors=True)
            server = stack.enter_context(PostgresServer(Path("/var/tmp"), durable=True))
            environment["STRONGROOM_CATALOG_URL"] = server.fresh()
        elif not _is_fresh(home, size):
            shutil.rmtree(home, ignore_errors=True)
        settings = load(environment)
        if not settings.identity_file.exists():
            say(f"pages: a catalog in {engine}")
            homes.prepare(settings)
            keep_id(settings, fleet.ME)
            _seed(settings.catalog.url, home, size)
        with Appliance(settings) as appliance:
            site = _Site(
                environment, folder / f"{engine}.log", account(appliance), account(appliance), pages_of(appliance)
            )
        yield site


def _is_fresh(home: Path, size: fleet.Size) -> bool:
    made = home / _made(size)
    return made.exists() and time.time() - made.stat().st_mtime < _KEPT_S


def _made(size: fleet.Size) -> str:
    return f"made-{schema.HEAD}-{size.machines}-{size.points}-{size.runs}"


def _seed(url: str, home: Path, size: fleet.Size) -> None:
    database = Database.shared(url) if url else Database.at(home / "catalog.sqlite")
    with closing(Catalog.open(database, home / "run" / "seeding.lock", fleet.ME)) as catalog:
        now = datetime.now(UTC)
        fleet.seed(catalog, size, now_utc=now)
        fleet.look_after(catalog, _NIGHTS, size.points // 2, now_utc=now)
    (home / _made(size)).touch()


def pages_of(appliance: Appliance) -> dict[str, Asked]:
    """Every page for looking, by what it is: of something that is there, and of a list far down as well; and every part
    of a page that is asked for alone."""
    browsing = BrowsingService(appliance)
    protected = MachineFilter(kind=Kind.VM, standings=frozenset({Standing.PROTECTED}))
    row = browsing.machines(protected).items[0]
    over = browsing.runs(RunFilter(frozenset({RunState.SUCCEEDED})), limit=1).items[0]
    recovery = appliance.catalog.recoveries.list(ended=False)[0]
    point = row.last_point
    assert point is not None
    policy = appliance.catalog.policies.list()
    pages = {
        "overview": "/",
        "overview, alone": "/#now",
        "VMs": "/vms",
        "VMs, page 2": f"/vms?after={browsing.machines(limit=5).next}",
        "VMs by last point": "/vms?sort=last_point&falling=1",
        "VMs that no policy protects": "/vms?standing=unprotected",
        "VMs of a name, alone": "/vms?text=web#rows",
        "a VM": f"/vms/{row.key}",
        "a VM from a point on": f"/vms/{row.key}?from={_oldest(browsing, row)}",
        "a point's place": f"/points/{point}",
        "a point is restored": f"/points/{point}/restore",
        "runs": "/runs",
        f"runs, page {_DEEP}": f"/runs?after={_deep(browsing)}",
        "runs that failed": "/runs?state=failed",
        "runs of a VM, alone": f"/runs?machine={row.key}#rows",
        "runs of a host that failed": "/runs?host=rack00&state=failed",
        "a run": f"/runs/{over.id}",
        "a run, alone": f"/runs/{over.id}#now",
        "recoveries": "/recoveries",
        "a recovery": f"/recoveries/{recovery.id}",
        "a recovery, alone": f"/recoveries/{recovery.id}#now",
        "a recovery's console": f"/recoveries/{recovery.id}/console",
        "recover: what": "/recover",
        "recover: what, alone": "/recover?text=db#choices",
        "recover: when": f"/recover?machine={row.key}",
        "recover: where": f"/recover?machine={row.key}&point={point}",
        "restore: what": "/restore",
        "restore: when": f"/restore?machine={row.key}&what=whole",
        "restore: where": f"/restore?machine={row.key}&what=whole&point={point}",
        "policies": "/policies",
        "a new policy": "/policy/new",
        "what a policy would select": "/policy/preview?name=new&cron=0+22+*+*+*&daily=14&rpo=26#preview",
        "hosts": "/hosts",
        "a new host": "/host/new",
        "repository": "/repository",
        "search for a name": "/search?q=web-01",
        "search for a name, alone": "/search?q=web#found",
        "search for an id": f"/search?q={over.id[:6]}",
        "plan": "/plan",
        "plan, the answer alone": "/plan#answer",
        "plan, with another retention": "/plan?months=24&daily=7&monthly=6#answer",
        "report": "/report",
        "report, alone": "/report#report",
        "report as a file": "/report/file",
        "audit": "/audit",
        "audit of a name": "/audit?actor=alice&result=failed",
        "audit of a VM, far down": f"/audit?machine={row.key}&before=2000",
        "users": "/users",
        "settings": "/settings",
        "account": "/account",
        "sign in": "/sign-in",
        "alive": "/alive",
    }
    if policy:
        pages["a policy"] = f"/policies/{policy[0].name}"
        pages["a policy is changed"] = f"/policies/{policy[0].name}/edit"
    return {name: Asked(*text.partition("#")[::2]) for name, text in pages.items()}


# What `pages_of` leaves out, and why.
ELSEWHERE: Final = {
    "points.deleting": "it reads the repository, which is not there",
    "files.page": "it reads the repository",
    "files.download": "it reads the repository",
    "repository.keys": "it reads the repository",
    "requests.listing": "it reads the repository",
    "requests.page": "it reads the repository",
    "requests.new": "it reads the repository",
    "requests.count": "it reads the repository, every half minute",
    "recoveries.starting": "it is there while a recovery starts",
    "metrics.page": "it is for programs, by a token",
    "screens.screen": "a socket",
    "runs.events": "a stream",
    "sign_in.set_up": "its address counts once",
    "static": "a file",
}


def _oldest(browsing: BrowsingService, row: MachineRow) -> str:
    return browsing.points(PointFilter(row.series), limit=1, oldest_first=True).items[0].point.id


def _deep(browsing: BrowsingService) -> str:
    after = None
    for _ in range(_DEEP - 1):
        following = browsing.runs(after=after, limit=50).next
        if following is None:
            break
        after = following
    return after or ""
