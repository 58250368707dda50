"""Every page in a real Chromium: readable for everybody, on every screen, within what the policy allows."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

from tests.browser.console import (
    NARROW,
    PATIENCE_S,
    WIDE,
    Browser,
    Person,
    chromium,
    seed_home,
    serving,
    settled,
    still,
)
from tests.browser.screenshots import PAGES
from tests.browser.vault import FIRST_DAY, guard, protect, seed_vault

FIRST_LOAD_BYTES_MAX = 300_000
_SHIFT = """
const done = arguments[0]; const moved = [];
const told = ({ node, previousRect: was, currentRect: is }) =>
  `${(node?.outerHTML ?? node?.textContent ?? "?").slice(0, 80)}: ${was.x},${was.y} to ${is.x},${is.y}`;
const keep = (entries) => {
  for (const each of entries) moved.push(`${each.value.toFixed(4)}: ${each.sources.map(told).join("; ")}`);
};
// A busy browser draws before it tells an observer: what it has not told yet is taken from it.
const observer = new PerformanceObserver((list) => keep(list.getEntries()));
observer.observe({ type: "layout-shift", buffered: true });
requestAnimationFrame(() => requestAnimationFrame(() => { keep(observer.takeRecords()); done(moved); }));
"""
# What can be worked with, as somebody sees it; of a group of radio buttons, the Tab key reaches the chosen one.
_WORKED_WITH = """
const seen = (each) => each.checkVisibility({ checkVisibilityCSS: true }) && !each.closest("dialog:not([open])");
const found = [...document.querySelectorAll("a[href], button, input, select, textarea, summary, [tabindex='0']")]
  .filter((each) => seen(each) && !each.disabled && each.type !== "hidden")
  .filter((each) => each.type !== "radio" || each.checked);
found.forEach((each, number) => { each.dataset.number = number; });
return found.map((each) => each.outerHTML.slice(0, 120));
"""
_FOCUSED = """
const style = getComputedStyle(document.activeElement);
return [document.activeElement.dataset.number ?? "", style.outlineStyle, parseFloat(style.outlineWidth)];
"""


@pytest.fixture(scope="module")
def seeded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Person, dict[str, str]]:
    home = tmp_path_factory.mktemp("pages") / "home"
    person, found = seed_home(home)
    return home, person, {**PAGES, **found}


@pytest.fixture(scope="module")
def browser(seeded: tuple[Path, Person, dict[str, str]]) -> Iterator[Browser]:
    """Signed in."""
    home, person, _ = seeded
    with serving(home) as console, chromium(home.parent / "profile") as driver:
        browser = Browser(driver, console)
        for scheme in ("light", "dark"):
            browser.scheme(scheme)
            for size in (WIDE, NARROW):
                browser.size(size)
                assert wrong_with(browser, "/sign-in") == []
        browser.size(WIDE)
        browser.sign_in(person)
        yield browser


def wrong_with(browser: Browser, path: str) -> list[str]:
    """Whom a page is closed to, what moves while it comes, what is beside the screen, and what the browser says."""
    browser.complaints()
    browser.go(path)
    still(browser)
    found = browser.complaints()
    if moved := browser.driver.execute_async_script(_SHIFT):
        found.append(f"its parts move while it is loaded: {' | '.join(moved)}")
    if (wider := browser.overflow_px()) > 0:
        found.append(f"it is {wider} px too wide")
    return found + browser.violations()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_page_is_closed_to_anybody_and_none_moves(
    browser: Browser, seeded: tuple[Path, Person, dict[str, str]], scheme: str
) -> None:
    """axe-core: contrast, labels, order; at both widths, in the dark too. No script fails, and nothing breaks the
    policy that is sent with a page."""
    browser.scheme(scheme)
    found = {}
    for size in (WIDE, NARROW):
        browser.size(size)
        for name, path in seeded[2].items():
            if wrong := wrong_with(browser, path):
                found[f"{name} {size[0]}"] = wrong
    assert found == {}


def test_files_and_requests_are_closed_to_nobody(tmp_path_factory: pytest.TempPathFactory) -> None:
    """As above, of the pages that ask a real repository: with nothing in it, without a guard, and with one."""
    home = tmp_path_factory.mktemp("vault") / "home"
    person = seed_vault(home)
    found = {}
    with serving(home) as console, chromium(home.parent / "profile") as driver:
        browser = Browser(driver, console)
        browser.size(WIDE)
        browser.sign_in(person)
        stages: list[Callable[[Path], dict[str, str]]] = [lambda _: FIRST_DAY, protect, guard]
        for stage in stages:
            shown = stage(home)
            for scheme, size in itertools.product(("light", "dark"), (WIDE, NARROW)):
                browser.scheme(scheme)
                browser.size(size)
                for name, path in shown.items():
                    if wrong := wrong_with(browser, path):
                        found[f"{name} {size[0]} {scheme}"] = wrong
    assert found == {}


def test_what_is_closed_to_somebody_would_be_told(browser: Browser) -> None:
    """The test above can fail."""
    browser.go("/account")
    settled(browser)
    browser.driver.execute_script("document.querySelector('label').remove()")
    assert any(each.startswith("label") for each in browser.violations())


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
    browser.wait("what it says", lambda: any("Content Security Policy" in each for each in browser.complaints()))


def test_what_moves_would_be_told(browser: Browser) -> None:
    browser.size(WIDE)
    browser.go("/")
    settled(browser)
    browser.driver.execute_script(
        "const added = document.createElement('p'); added.textContent = 'late';"
        "document.querySelector('main').prepend(added)"
    )
    browser.wait("what moved", lambda: browser.driver.execute_async_script(_SHIFT))


def test_the_first_load_is_light(browser: Browser) -> None:
    browser.size(WIDE)
    browser.driver.execute_cdp_cmd("Network.clearBrowserCache", {})
    browser.go("/")
    settled(browser)
    weight = browser.driver.execute_script(
        "return [...performance.getEntriesByType('navigation'), ...performance.getEntriesByType('resource')]"
        ".reduce((sum, each) => sum + each.transferSize, 0)"
    )
    assert 10_000 < weight < FIRST_LOAD_BYTES_MAX


@pytest.mark.parametrize("path", ["/", "/policies/nightly/edit"])
def test_everything_is_reached_by_tab_and_seen_to_be(browser: Browser, path: str) -> None:
    browser.size(WIDE)
    browser.go(path)
    still(browser)
    wanted = browser.driver.execute_script(_WORKED_WITH)
    assert len(wanted) > 15
    browser.driver.execute_script("document.activeElement.blur()")
    reached, seen = set(), set()
    for _ in range(2 * len(wanted)):  # a field of a time has several stops
        ActionChains(browser.driver).send_keys(Keys.TAB).perform()
        number, style, width = browser.driver.execute_script(_FOCUSED)
        if number != "":
            reached.add(int(number))
            if style != "none" and width >= 2:
                seen.add(int(number))
    assert [each for number, each in enumerate(wanted) if number not in reached] == []
    # The button within a field of a time is a stop of its own, which the browser draws.
    assert [each for number, each in enumerate(wanted) if number not in seen] == []


def test_it_is_used_by_keys(browser: Browser) -> None:
    browser.size(WIDE)
    browser.go("/")
    settled(browser)
    body = browser.driver.find_element(By.TAG_NAME, "body")
    body.send_keys("?")
    browser.find("dialog[open]")
    browser.press("Close")
    body.send_keys("g", "v")
    browser.wait_for("h1", "VMs")
    settled(browser)
    browser.driver.find_element(By.TAG_NAME, "body").send_keys("j")
    active = browser.driver.switch_to.active_element
    assert active.tag_name == "a"
    active.send_keys(Keys.ENTER)
    browser.wait_for("h2", "Restore points by day")
    settled(browser)
    browser.driver.find_element(By.TAG_NAME, "body").send_keys("/")
    browser.wait_for("h1", "Search")
    settled(browser)
    # A page is drawn before its field is given the focus.
    browser.wait("the field", lambda: browser.driver.switch_to.active_element.get_attribute("name") == "q")


def test_lists_are_narrowed_while_typing_and_the_address_keeps_it(browser: Browser) -> None:
    browser.go("/vms")
    browser.type("text", "db-")
    browser.wait_for("#rows", "db-")
    WebDriverWait(browser.driver, PATIENCE_S).until(lambda driver: "text=db-" in driver.current_url)
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
