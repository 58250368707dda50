"""`python -m tests.browser.screenshots`: every page, wide and narrow, into docs/screenshots."""

from __future__ import annotations

import argparse
import base64
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from tests.browser.console import NARROW, WIDE, Browser, Person, at_work, chromium, seed_home, serving, settled
from tests.browser.vault import FIRST_DAY, NAMES, guard, protect, seed_vault
from tests.unit.cli_runner import PROJECT

FOLDER = PROJECT / "docs" / "screenshots"
PAGES = {
    "overview": "/", "vms": "/vms", "runs": "/runs", "recoveries": "/recoveries", "recover-what": "/recover",
    "policies": "/policies", "policy": "/policies/nightly", "policy-edit": "/policies/nightly/edit", "hosts": "/hosts",
    "host-new": "/host/new", "repository": "/repository", "search": "/search?q=db", "plan": "/plan",
    "plan-typed": "/plan?machines=200&size=100&daily=14&monthly=12&window=8", "report": "/report", "audit": "/audit",
    "users": "/users", "settings": "/settings", "account": "/account",
}  # fmt: skip
_HEIGHT_PX_MAX = 2600


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.browser.screenshots", description=__doc__)
    parser.add_argument("--only", action="append", metavar="PAGE", help="this page (several times)")
    parser.add_argument("--dark", action="store_true", help="in the dark, into files of other names")
    parser.add_argument("--into", type=Path, default=FOLDER, metavar="FOLDER")
    given = parser.parse_args(arguments)
    given.into.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="strongroom-shots-") as work:
        _of_vault(Path(work) / "home", given)
    os.environ["STRONGROOM_REPOSITORY_PATH"] = "/srv/repository"  # nothing is there, and nothing is asked of it
    with tempfile.TemporaryDirectory(prefix="strongroom-shots-") as work:
        person, found = seed_home(Path(work) / "home")
        pages = {**PAGES, **found}
        with (
            at_work(Path(work) / "home"),
            serving(Path(work) / "home") as console,
            chromium(Path(work) / "profile") as driver,
        ):
            browser = Browser(driver, console)
            browser.scheme("dark" if given.dark else "light")
            if not given.only or "sign-in" in given.only:
                _shoot(browser, given.into, "sign-in", "/sign-in", dark=given.dark)
            _shoot_all(browser, person, given, lambda: pages)
    return 0


def _of_vault(home: Path, given: argparse.Namespace) -> None:
    """Pages that ask a real repository."""
    if given.only and not {*NAMES} & {*given.only}:
        return
    person = seed_vault(home)
    with serving(home) as console, chromium(home.parent / "profile") as driver:
        browser = Browser(driver, console)
        browser.scheme("dark" if given.dark else "light")
        _shoot_all(browser, person, given, lambda: FIRST_DAY, lambda: protect(home), lambda: guard(home))


def _shoot_all(
    browser: Browser, person: Person, given: argparse.Namespace, *some: Callable[[], dict[str, str]]
) -> None:
    browser.size(WIDE)
    browser.sign_in(person)
    for pages in some:
        for name, path in pages().items():
            if not given.only or name in given.only:
                _shoot(browser, given.into, name, path, dark=given.dark)


def _shoot(browser: Browser, folder: Path, name: str, path: str, *, dark: bool) -> None:
    for size in (WIDE, NARROW):
        browser.size(size)
        browser.go(path)
        settled(browser)
        height = browser.driver.execute_script("return document.documentElement.scrollHeight")
        browser.size((size[0], max(size[1], min(int(height), _HEIGHT_PX_MAX))))
        shown = browser.driver.execute_cdp_cmd("Page.captureScreenshot", {"format": "png"})
        file = folder / f"{name}-{size[0]}{'-dark' if dark else ''}.png"
        file.write_bytes(base64.b64decode(shown["data"]))
        # A page has few colours: a palette of them takes a third of the bytes.
        subprocess.run(["pngquant", "--strip", "--speed=1", "--force", f"--output={file}", file], check=True)
        print(file)


if __name__ == "__main__":
    sys.exit(main())
