"""From a fresh home to a machine that was lost, recovered, typed into and moved to its own storage: by a browser."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path

import pyotp
import pytest
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from appliance.bootstrap import Appliance
from appliance.services.access.audits import AuditService
from appliance.settings import load
from tests.browser.console import PASSWORD, WIDE, Browser, Person, chromium, serving
from tests.lab import Lab
from tests.unit.cli_runner import PROJECT

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]
_LONG_S = 240.0
_STROKE_S = 0.05


def screen(domain: ET.Element) -> None:
    devices = domain.find("devices")
    assert devices is not None
    ET.SubElement(ET.SubElement(devices, "video"), "model", type="vga")
    ET.SubElement(ET.SubElement(devices, "graphics", type="vnc"), "listen", type="none")


def test_from_a_fresh_home_to_a_machine_that_was_saved(lab: Lab, strongroom_home: Path) -> None:
    guest = lab.machine("kept", edit=screen)
    guest.start()
    guest.write("/mnt/vda/note", "written before the loss")
    guest.sync()
    subprocess.run([sys.executable, "-m", "appliance.cli", "init"], check=True, capture_output=True, cwd=PROJECT)
    log = strongroom_home.parent / "serve.log"
    profile = strongroom_home.parent / "profile"
    with serving(strongroom_home, "serve", log=log) as console, chromium(profile) as driver:
        browser = Browser(driver, console)
        browser.size(WIDE)
        _set_up(browser, log)
        _protect(browser, guest.name)
        _back_up(browser)
        guest.remove()
        recovered = f"{guest.name}-recovered"
        saved = lab.adopt(recovered)
        _recover(browser, guest.name, recovered)
        saved.wait_ready()
        assert saved.read("/mnt/vda/note") == "written before the loss"
        _type(browser, "touch /mnt/vda/typed", lambda: "typed" in saved.run("ls /mnt/vda"))
        _migrate(browser)
        assert saved.running
        assert saved.read("/mnt/vda/note") == "written before the loss"
        _audited(strongroom_home)


def _set_up(browser: Browser, log: Path) -> None:
    """By the link that serve prints; then in with a recovery code."""
    browser.wait("the link", lambda: "/set-up/" in log.read_text())
    browser.wait("the console", lambda: "the console answers" in log.read_text())
    browser.go(re.findall(r"/set-up/[\w-]+", log.read_text())[0])
    browser.type("name", "alice")
    browser.type("password", PASSWORD)
    browser.type("again", PASSWORD)
    assert browser.find(".qr svg").is_displayed()
    secret = browser.find("[data-secret]").text
    browser.type("code", pyotp.TOTP(secret).now())
    browser.press("Set it up")
    browser.wait_for("h1", "Recovery codes of alice")
    codes = [each.text for each in browser.driver.find_elements(By.CSS_SELECTOR, "ul.codes code")]
    assert len(codes) == 10
    browser.press("I have them: sign in")
    browser.sign_in(Person("alice", secret, codes))


def _protect(browser: Browser, name: str) -> None:
    browser.wait_for(".verdict", "Nothing is protected yet")
    browser.press("Add a host")
    browser.type("name", "here")
    browser.driver.execute_script("document.getElementById('accelerator').value = 'tcg'")
    browser.press("Add it")
    browser.wait_for(".note.good", "Host here is added")
    browser.go("/vms")
    # What is typed narrows the list, and the address keeps it: read anew, it is the list of that alone.
    browser.type("text", name)
    browser.wait("the address", lambda: f"text={name}" in browser.driver.current_url)
    browser.go(f"/vms?text={name}")
    browser.press(name)
    browser.wait_for(".lead", "unprotected")
    browser.press("Protect by a policy")
    browser.wait_for("#preview", name)
    browser.press("Save")
    browser.wait_for(".note.good", "is saved")


def _back_up(browser: Browser) -> None:
    browser.go("/vms")
    name = browser.driver.execute_script("return document.querySelector('.tag').textContent")
    browser.go(f"/vms?policy={name}")
    browser.click("#rows tbody a")
    browser.press("Back up now")
    browser.wait_for("h1", "Run of")
    browser.wait_for(".lead", "succeeded", patience_s=_LONG_S)  # by itself, as events tell it
    browser.press("The machine")
    browser.wait_for(".lead", "protected")


def _recover(browser: Browser, name: str, recovered: str) -> None:
    browser.go("/recover")
    browser.wait_for("#choices", name)
    browser.click("#choices a")
    browser.press("Next: where")
    browser.wait_for("h2", "Where")
    browser.press("Next: review")
    browser.wait_for("dd", recovered)
    browser.press("Start it now")
    browser.wait_for("h1", recovered, patience_s=_LONG_S)
    browser.wait_for(".badge", "running", patience_s=_LONG_S)


def _type(browser: Browser, line: str, arrived: Callable[[], bool]) -> None:
    browser.press("Console")
    browser.wait("the screen", lambda: browser.find("#screen-state").text == "connected")
    canvas = browser.find("#screen canvas")
    browser.wait("a picture", lambda: canvas.size["width"] > 100)
    canvas.click()

    def typed() -> bool:
        """A guest that a busy machine lets wait misses strokes: then the line is typed again."""
        typing = ActionChains(browser.driver)
        for key in (*line, Keys.ENTER):
            typing.send_keys(key).pause(_STROKE_S)  # no faster than the machine's keyboard takes it
        typing.perform()
        soon = time.monotonic() + 10
        while time.monotonic() < soon:
            if arrived():
                return True
        return False

    browser.wait("what was typed", typed)
    browser.press("Back")


def _migrate(browser: Browser) -> None:
    browser.press("Migrate")
    browser.press("Migrate it")
    browser.wait_for(".note.good", "It stands on its own storage now", patience_s=_LONG_S)


def _audited(home: Path) -> None:
    with Appliance(load({**os.environ, "STRONGROOM_HOME": str(home)})) as appliance:
        done = [(each.act, each.result) for each in AuditService(appliance).newest() if each.via == "console"]
        assert AuditService(appliance).verify().good
    acts = {act for act, result in done if result == "ok"}
    wanted = {
        "account.set-up", "session.start", "host.add", "policy.save", "run.start", "recovery.start", "console.open",
        "recovery.migrate",
    }  # fmt: skip
    assert wanted <= acts, done
