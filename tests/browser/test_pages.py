"""Every page in a real Chromium: readable for everybody, on every screen, within what the policy allows."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.browser.console import NARROW, WIDE, Browser, Person, chromium, seed_home, serving, settled
from tests.browser.screenshots import PAGES

FIRST_LOAD_BYTES_MAX = 300_000
_SHIFT = """
const done = arguments[0]; let sum = 0;
new PerformanceObserver((list) => { for (const each of list.getEntries()) sum += each.value; })
  .observe({ type: "layout-shift", buffered: true });
requestAnimationFrame(() => requestAnimationFrame(() => done(sum)));
"""


@pytest.fixture(scope="module")
def seeded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Person, dict[str, str]]:
    home = tmp_path_factory.mktemp("pages") / "home"
    person, found = seed_home(home)
    return (
        home,
        person,
        {**PAGES, "vm": found["vm"], "run": found["run"], "run-over": found["run-over"], "recover-when": found["when"]},
    )


@pytest.fixture(scope="module")
def browser(seeded: tuple[Path, Person, dict[str, str]]) -> Iterator[Browser]:
    home, person, _ = seeded
    with serving(home) as console, chromium(home.parent / "profile") as driver:
        browser = Browser(driver, console)
        browser.size(WIDE)
        browser.sign_in(person)
        yield browser


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_page_is_closed_to_anybody(
    browser: Browser, seeded: tuple[Path, Person, dict[str, str]], scheme: str
) -> None:
    """axe-core: contrast, labels, order; at both widths, in the dark too."""
    browser.scheme(scheme)
    found = {}
    for size in (WIDE, NARROW):
        browser.size(size)
        for name, path in seeded[2].items():
            browser.go(path)
            settled(browser)
            violations = browser.violations()
            if browser.overflow_px() > 0:
                violations.append(f"it is {browser.overflow_px()} px too wide")
            if violations:
                found[f"{name} {size[0]}"] = violations
    assert found == {}


def test_what_is_closed_to_somebody_would_be_told(browser: Browser) -> None:
    """The test above can fail."""
    browser.go("/account")
    settled(browser)
    browser.driver.execute_script("document.querySelector('label').remove()")
    assert any(each.startswith("label") for each in browser.violations())


def test_the_browser_has_nothing_to_complain_of(browser: Browser, seeded: tuple[Path, Person, dict[str, str]]) -> None:
    """No script fails, and nothing on any page breaks the policy that is sent with it."""
    browser.size(WIDE)
    browser.complaints()
    told = {}
    for name, path in seeded[2].items():
        browser.go(path)
        settled(browser)
        if complaints := browser.complaints():
            told[name] = complaints
    assert told == {}


def test_what_breaks_the_policy_would_be_told(browser: Browser) -> None:
    """The test above can fail: a script without an address does not run, and the browser says so."""
    browser.go("/")
    settled(browser)
    browser.complaints()
    browser.driver.execute_script(
        "const added = document.createElement('script'); added.textContent = 'window.ran = true';"
        "document.body.append(added)"
    )
    assert browser.driver.execute_script("return window.ran") is None
    assert any("Content Security Policy" in each for each in browser.complaints())


def test_the_first_load_is_light_and_nothing_moves(browser: Browser) -> None:
    browser.size(WIDE)
    browser.driver.execute_cdp_cmd("Network.clearBrowserCache", {})
    browser.go("/")
    settled(browser)
    weight = browser.driver.execute_script(
        "return [...performance.getEntriesByType('navigation'), ...performance.getEntriesByType('resource')]"
        ".reduce((sum, each) => sum + each.transferSize, 0)"
    )
    assert 10_000 < weight < FIRST_LOAD_BYTES_MAX
    assert browser.driver.execute_async_script(_SHIFT) < 0.01


def test_it_is_used_by_keys(browser: Browser) -> None:
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    browser.size(WIDE)
    browser.go("/")
    body = browser.driver.find_element(By.TAG_NAME, "body")
    body.send_keys("?")
    browser.find("dialog[open]")
    browser.press("Close")
    body.send_keys("g", "v")
    browser.wait_for("h1", "VMs")
    browser.driver.find_element(By.TAG_NAME, "body").send_keys("j")
    active = browser.driver.switch_to.active_element
    assert active.tag_name == "a"
    active.send_keys(Keys.ENTER)
    browser.wait_for("h2", "Restore points by day")
    browser.driver.find_element(By.TAG_NAME, "body").send_keys("/")
    browser.wait_for("h1", "Search")


def test_lists_are_narrowed_while_typing_and_the_address_keeps_it(browser: Browser) -> None:
    browser.go("/vms")
    browser.type("text", "db-")
    browser.wait_for("#rows", "db-")
    from selenium.webdriver.support.ui import WebDriverWait

    WebDriverWait(browser.driver, 30).until(lambda driver: "text=db-" in driver.current_url)
    names = browser.driver.execute_script(
        "return [...document.querySelectorAll('#rows tbody td:first-child a')].map((each) => each.textContent)"
    )
    assert names
    assert all("db-" in each for each in names)


def test_a_policy_is_told_in_words_while_it_is_typed(browser: Browser) -> None:
    browser.go("/policy/new")
    browser.type("cron", "30 3 * * 7")
    browser.wait_for("#preview", "At 03:30")
    browser.type("cron", "61 3 * * *")
    browser.wait_for("#preview", "no cron expression")
