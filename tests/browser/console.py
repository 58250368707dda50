"""What tests of the console share: a home, its console's process, a person who signs in, and a real Chromium.

The rule: everything goes the way a person goes: over TLS to the real server. What a test needs of the appliance's state
it makes through services or, for a large fleet, through tests/bench/fleet.py.
"""

from __future__ import annotations

import math
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import pyotp
from selenium import webdriver
from selenium.common.exceptions import (
    ElementNotInteractableException,
    NoSuchElementException,
    StaleElementReferenceException,
    TimeoutException,
)
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait

from appliance.acts import Role
from appliance.bootstrap import Appliance
from appliance.models import HostConfig, HostRecord, RunRecord
from appliance.services.access import SYSTEM
from appliance.services.accounts.setting_up import SetUpService
from appliance.services.accounts.signing_in import Origin
from appliance.services.accounts.users import UserService
from appliance.settings import load
from tests.lab.ports import free_port
from tests.unit.cli_runner import PROJECT

PASSWORD: Final = "three blind mice and a cat"
WIDE: Final = (1280, 900)
NARROW: Final = (360, 740)
PATIENCE_S: Final = 120.0
_AGAIN: Final = (NoSuchElementException, StaleElementReferenceException, ElementNotInteractableException)
"""What is said of a part of a page that is being replaced while it is looked at: then it is looked at again."""

_AXE: Final = PROJECT / "tests" / "browser" / "vendor" / "axe.min.js"

_FIND: Final = """
const done = arguments[0];
const rules = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"];
const told = (each) => `${each.id}: ${each.nodes.slice(0, 3).map((node) =>
  `${node.html.slice(0, 160)} ${node.any[0]?.message ?? ""}`).join(" | ")}`;
axe.run(document, { runOnly: rules }).then((found) => done(found.violations.map(told)));
"""


@dataclass
class Person:
    """Who has set up an account. `ahead`: how many codes from now on were used: a code counts once."""

    name: str
    secret: str = field(repr=False)
    recovery_codes: list[str] = field(default_factory=list, repr=False)

    def code(self) -> str:
        """A recovery code, each once: those by time would have to be waited for."""
        return self.recovery_codes.pop()


def set_up_admin(appliance: Appliance, name: str = "alice") -> Person:
    service = SetUpService(appliance)
    link = service.first_link()
    secret = service.offer(link.secret).secret
    done = service.complete(link.secret, name, PASSWORD, pyotp.TOTP(secret).now(), Origin("127.0.0.1"))
    return Person(name, secret, list(done.recovery_codes))


@dataclass
class Console:
    """A console that answers."""

    home: Path
    port: int

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.port}"


@contextmanager
def serving(home: Path, *words: str, log: Path | None = None) -> Iterator[Console]:
    """The console's process alone; with `words`, this command of strongroom, which shows one."""
    port = free_port()
    environment = {**os.environ, "STRONGROOM_HOME": str(home), "STRONGROOM_WEB_PORT": str(port)}
    reading, writing = os.pipe()
    command = ["-m", "appliance.cli", *words] if words else ["-m", "web", "--ready", str(writing)]
    with (log or home.parent / "console.log").open("wb") as said:
        process = subprocess.Popen(
            [sys.executable, *command], env=environment, cwd=PROJECT, pass_fds=(writing,), stdout=said, stderr=said
        )
    os.close(writing)
    try:
        if not words:
            assert os.read(reading, 1) == b"1", "the console did not start"
        yield Console(home, port)
    finally:
        os.close(reading)
        process.terminate()
        try:
            process.wait(PATIENCE_S)
        finally:
            process.kill()
            process.wait()


@contextmanager
def chromium(profile: Path) -> Iterator[webdriver.Chrome]:
    options = webdriver.ChromeOptions()
    for argument in (
        "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars",
        "--no-first-run", "--disable-background-networking", "--lang=en-GB", f"--user-data-dir={profile}",
    ):  # fmt: skip
        options.add_argument(argument)
    options.set_capability("acceptInsecureCerts", True)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    options.binary_location = "/usr/bin/chromium"
    driver = webdriver.Chrome(options=options, service=Service("/usr/bin/chromedriver"))
    try:
        driver.set_page_load_timeout(PATIENCE_S)
        driver.set_script_timeout(PATIENCE_S)
        yield driver
    finally:
        driver.quit()


@dataclass
class Browser:
    """A person in front of the console."""

    driver: webdriver.Chrome
    console: Console

    def go(self, path: str) -> None:
        self.driver.get(self.console.url + path)

    def size(self, size: tuple[int, int]) -> None:
        """Of the page: a window would not get as narrow as a phone."""
        self.driver.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": size[0], "height": size[1], "deviceScaleFactor": 1, "mobile": size[0] < 500},
        )

    def scheme(self, name: str) -> None:
        """Light or dark, as the system would ask for it."""
        features = [{"name": "prefers-color-scheme", "value": name}]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})

    def sign_in(self, person: Person) -> None:
        self.go("/sign-in")
        self.type("name", person.name)
        self.type("password", PASSWORD)
        self.type("code", person.code())
        self.press("Sign in")
        self.wait_for("h1", "Overview")

    def type(self, name: str, text: str) -> None:
        """Into the field of this name, until it has the text: a part of the page may be replaced meanwhile."""

        def typed(driver: webdriver.Chrome) -> bool:
            field = driver.find_element(By.CSS_SELECTOR, f"[name='{name}']")
            field.clear()
            field.send_keys(text)
            return field.get_property("value") == text

        self._until(typed, f"{name} does not take what is typed", PATIENCE_S)

    def find(self, selector: str) -> WebElement:
        return WebDriverWait(self.driver, PATIENCE_S).until(lambda d: d.find_element(By.CSS_SELECTOR, selector))

    def click(self, selector: str) -> None:
        """The first of these."""

        def clicked(driver: webdriver.Chrome) -> bool:
            driver.find_element(By.CSS_SELECTOR, selector).click()
            return True

        self._until(clicked, f"there is no {selector}", PATIENCE_S)

    def press(self, text: str) -> None:
        """The button or link of this text, in an open dialog if there is one."""
        wanted = f".//button[normalize-space()='{text}'] | .//a[normalize-space()='{text}']"

        def pressed(driver: webdriver.Chrome) -> bool:
            dialogs = driver.find_elements(By.CSS_SELECTOR, "dialog[open]")
            for each in (dialogs[0] if dialogs else driver).find_elements(By.XPATH, wanted):
                if each.is_displayed():
                    each.click()
                    return True
            return False

        self._until(pressed, f"there is no {text!r}", PATIENCE_S)

    def wait_for(self, selector: str, text: str, *, patience_s: float = PATIENCE_S) -> None:
        def there(driver: webdriver.Chrome) -> bool:
            texts = driver.execute_script(
                "return [...document.querySelectorAll(arguments[0])].map((each) => each.textContent)", selector
            )
            return any(text in each for each in texts)

        self._until(there, f"{text!r} is in no {selector}", patience_s)

    def wait(self, what: str, done: Callable[[], object], patience_s: float = PATIENCE_S) -> None:
        self._until(lambda _: bool(done()), f"in vain waited for {what}", patience_s)

    def _until(self, done: Callable[[webdriver.Chrome], bool], what: str, patience_s: float) -> None:
        try:
            WebDriverWait(self.driver, patience_s, ignored_exceptions=_AGAIN).until(done)
        except TimeoutException:
            raise AssertionError(f"{what}, at {self.driver.current_url}: {self.text()[:1500]}") from None

    def text(self) -> str:
        found = self.driver.execute_script("return document.body.innerText")
        assert isinstance(found, str)
        return found

    def violations(self) -> list[str]:
        """What axe-core finds on the page, by WCAG 2.2 A and AA."""
        # By the debugger's connection, which the page's policy does not bind.
        self.driver.execute_cdp_cmd("Runtime.evaluate", {"expression": _AXE.read_text()})
        found: Any = self.driver.execute_async_script(_FIND)
        assert isinstance(found, list)
        return found

    def complaints(self) -> list[str]:
        """What the browser itself complained of since the last time: a policy that was broken, a script that failed."""
        log: Any = self.driver.get_log("browser")  # type: ignore[no-untyped-call]
        return [each["message"] for each in log if each["level"] in ("SEVERE", "WARNING")]

    def overflow_px(self) -> int:
        """How much wider the page is than the screen."""
        found = self.driver.execute_script(
            "return document.documentElement.scrollWidth - document.documentElement.clientWidth"
        )
        assert isinstance(found, int)
        return found


def seed_home(home: Path) -> tuple[Person, dict[str, str]]:
    """A home with a small fleet, policies and an admin; returns them, and the pages that have something of it."""
    from appliance import home as homes
    from appliance.identity import keep_id
    from appliance.policy.policies import read_policy
    from appliance.services.policies import PolicyService
    from tests.bench.fleet import ME, SMALL, look_after, seed

    settings = load({**os.environ, "STRONGROOM_HOME": str(home)})
    homes.prepare(settings)
    keep_id(settings, ME)
    with Appliance(settings) as appliance:
        seed(appliance.catalog, SMALL, now_utc=datetime.now(UTC))
        look_after(appliance.catalog, 60, 200, now_utc=datetime.now(UTC))
        appliance.catalog.hosts.add(HostRecord(HostConfig("here"), datetime.now(UTC)))  # what is recovered runs on it
        person = set_up_admin(appliance)
        for document in _POLICIES:
            appliance.catalog.policies.add(_stored(read_policy(document)))
        assert PolicyService(appliance).list().readable
        from appliance.models import RunState
        from appliance.services.browsing import BrowsingService, RunFilter

        rows = BrowsingService(appliance).fleet().rows
        row = next(each for each in rows if each.last_point and each.machine.host)
        browsing = BrowsingService(appliance)
        runs = browsing.runs(limit=1).items
        over = browsing.runs(RunFilter(frozenset({RunState.SUCCEEDED})), limit=1).items[0]
        _say(appliance, over)
        recovery = appliance.catalog.recoveries.list(ended=False)[0]
        invited = UserService(appliance).add(SYSTEM, "bob", Role.OPERATOR)
    return person, {
        "vm": f"/vms/{row.key}", "run": f"/runs/{runs[0].id}", "run-over": f"/runs/{over.id}",
        "recover-when": f"/recover?machine={row.key}",
        "recover-where": f"/recover?machine={row.key}&point={row.last_point}",
        "recover-review": f"/recover?machine={row.key}&point={row.last_point}&step=review&host=here"
        f"&name={row.machine.name}-recovered",
        "recovery": f"/recoveries/{recovery.id}", "set-up": invited.link.path,
        "restore-what": f"/restore?machine={row.key}",
        "restore-where": f"/restore?machine={row.key}&what=whole&point={row.last_point}",
    }  # fmt: skip


@contextmanager
def at_work(home: Path) -> Iterator[None]:
    """As while workers take runs: those that are under way live, and tell how far they are."""
    from appliance.models import RunState
    from appliance.progress import SILENT
    from appliance.services.backup.watching import living, watched
    from appliance.services.spawning import WORKERS

    over = threading.Event()
    with Appliance(load({**os.environ, "STRONGROOM_HOME": str(home)})) as appliance, ExitStack() as stack:
        stack.enter_context(appliance.own(WORKERS, "the queue of this home"))
        told = []
        for run in appliance.catalog.runs.list(state=RunState.RUNNING):
            stack.enter_context(living(appliance, run.id))
            told.append(stack.enter_context(watched(appliance, run.id, lambda: None, SILENT)))
            told[-1].start("vda", 48 << 30)

        def read() -> None:
            while not over.wait(0.5):
                for number, progress in enumerate(told):
                    progress.advance((number + 3) << 25)

        reading = threading.Thread(target=read, daemon=True)
        reading.start()
        try:
            yield
        finally:
            over.set()
            reading.join()


def _say(appliance: Appliance, run: RunRecord) -> None:
    """What a run leaves in its log: its reads, and how fast they were."""
    from appliance.services.runlogs import RunLogWriter
    from appliance.throughput import Sample

    log = RunLogWriter(appliance.settings, run.id, lambda: run.started_utc)
    for text in ("it begins", "vda (incremental): 1.0 GiB"):
        log.say(text)
    log.say("put packs/5e1f…: the store answered 503; tried again in 2 s", "warning")
    log.say("it is done")
    done, samples = 0, [Sample(0.0, 0)]
    for second in range(1, 121):
        stalls = 70 < second < 76
        done += 2_000_000 if stalls else int(95e6 + 30e6 * math.sin(second / 11) + second * 7919 % 9 * 1e6)
        samples.append(Sample(float(second), done))
    log.samples(samples)


def _stored(policy: Any) -> Any:
    from appliance.policy.stored import StoredPolicy

    then = datetime.now(UTC) - timedelta(days=40)
    return StoredPolicy(policy.name, policy.to_json(), 1, then, then)


_POLICIES: Final[tuple[dict[str, Any], ...]] = (
    {
        "version": 1, "name": "nightly", "select": {"include": [{"tag": "prod"}], "exclude": [{"name": "build-*"}]},
        "schedule": {"cron": "0 22 * * *", "zone": "Europe/Berlin"}, "retention": {"daily": 14, "weekly": 8},
        "rpo_minutes": 26 * 60, "window": [{"from": "20:00", "to": "06:00"}], "verify_every_days": 30,
    },
    {
        "version": 1, "name": "hourly-db", "select": {"include": [{"name": "db-*"}], "exclude": []},
        "schedule": {"cron": "15 * * * *", "zone": "UTC"}, "retention": {"hourly": 48, "daily": 30},
    },
)  # fmt: skip


def still(browser: Browser) -> None:
    """Settled, and so it stays: no part of it is asked for again by itself while it is looked at."""
    settled(browser)
    browser.driver.execute_script(
        "document.addEventListener('htmx:beforeRequest', (event) => event.preventDefault(), true)"
    )
    settled(browser)


def settled(browser: Browser) -> None:
    """Until fonts, scripts and parts are there, those too that are made while one waits."""
    WebDriverWait(browser.driver, PATIENCE_S).until(
        lambda driver: driver.execute_script(
            "return document.readyState === 'complete'"
            " && !document.querySelector('.htmx-request, [hx-trigger=\"every 500ms\"]')"
        )
    )
