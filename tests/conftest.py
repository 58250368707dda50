"""What tests share: a lab, guests in it, and a home of their own."""

from __future__ import annotations

import contextlib
import gc
import os
import re
import secrets
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from tests.lab import Lab, LabGuest
from tests.lab.machines import sweep
from tests.lab.owned import home_folder
from tests.quick import quick_homes

# How long an example takes says how busy the machine is, and nothing of the code. The examples are the same each time,
# so that whoever sees a test fail has made it fail; --hypothesis-profile=search looks for others, for ever new ones.
hypothesis.settings.register_profile("search", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.register_profile("strongroom", hypothesis.settings.get_profile("search"), derandomize=True)
hypothesis.settings.load_profile("strongroom")

# `strongroom serve` of tests that are not about it shows no console: its port is one for the whole machine.
os.environ.setdefault("STRONGROOM_WEB_PORT", "0")

_ENDING_S = 20.0
_DESCRIPTORS_CALM = 300
_PASSED = pytest.StashKey[bool]()
_UMASK = os.umask(0o022)
os.umask(_UMASK)


@pytest.fixture(scope="session", autouse=True)
def _quick_homes() -> Iterator[None]:
    with quick_homes():
        yield


@pytest.fixture(autouse=True)
def _umask_stays() -> Iterator[None]:
    """A command that runs in this process takes a umask for its own: libvirt and QEMU, started by a later test, would
    inherit it and read none of their files."""
    yield
    left = os.umask(_UMASK)
    assert left == _UMASK, f"the test left umask {left:04o}"


@pytest.fixture(autouse=True)
def _no_run_goes_on() -> Iterator[None]:
    """The lease of a run that a test did not end is renewed for as long as this process lives: in a folder that is
    gone, into the logs of later tests, and while they fork."""
    before = set(threading.enumerate())
    yield
    left = [each for each in threading.enumerate() if each.name.startswith("lease-") and each not in before]
    for heart in left:
        heart.join(_ENDING_S)  # one that was told to end may just be at it
    assert not any(heart.is_alive() for heart in left), f"the test left runs that nobody ends: {left}"


@pytest.fixture(autouse=True)
def _descriptors_are_given_back() -> Iterator[None]:
    """What a test opened and left to the collector is closed when that comes by: after a thousand, a machine's usual
    limit, later tests would fail of it."""
    yield
    if len(os.listdir("/proc/self/fd")) > _DESCRIPTORS_CALM:
        gc.collect()


@pytest.fixture
def tmp_path(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """As pytest's own, with a shorter name: homes lie below it, the paths of their sockets may have 107 bytes, and a
    worker's folder is longer than that of a single process. Of a test that passed, it goes at once."""
    path = tmp_path_factory.mktemp(re.sub(r"\W", "_", request.node.name)[:16])
    yield path
    if request.node.stash.get(_PASSED, False):
        shutil.rmtree(path, ignore_errors=True)  # a test may have left what even root cannot remove, as a mount


@pytest.fixture
def lab() -> Iterator[Lab]:
    """A lab on the machine's own libvirtd: lab.machine(...) makes guests, all removed after the test."""
    with Lab() as lab:
        yield lab


@pytest.fixture
def guest(lab: Lab) -> LabGuest:
    """A running guest with one data disk of 256 MiB, mounted at /mnt/vda."""
    guest = lab.machine()
    guest.start()
    return guest


@pytest.fixture
def agent_guest(lab: Lab) -> LabGuest:
    """A running guest with one data disk, whose agent answers."""
    guest = lab.machine("agent", agent=True)
    guest.start()
    guest.wait_agent()
    return guest


@pytest.fixture
def strongroom_home(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A home that does not exist yet, named by STRONGROOM_HOME, with a passphrase in STRONGROOM_PASSPHRASE.

    It lies where QEMU's user can reach scratch files, overlays and sockets in it, which pytest's tmp_path is not.
    """
    with home_folder() as parent:
        monkeypatch.setenv("STRONGROOM_HOME", str(parent / "home"))
        monkeypatch.setenv("STRONGROOM_PASSPHRASE", secrets.token_urlsafe(16))
        monkeypatch.setenv("STRONGROOM_LIMITS_HOST_TIMEOUT_S", "60")  # a busy machine's libvirtd may answer late
        yield parent / "home"


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """What workers that were killed have left: once all have ended, and by who is none."""
    if not hasattr(session.config, "workerinput"):
        sweep()


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """With a failure, show what the test's guests said last, on their consoles and as QEMU."""
    outcome: Any = yield
    report = outcome.get_result()
    if report.when == "call":
        item.stash[_PASSED] = report.passed
    lab = getattr(item, "funcargs", {}).get("lab")
    if report.when == "call" and report.failed and isinstance(lab, Lab):
        for guest in lab.guests:
            # The guest may be gone by now, which is not what the test failed of.
            with contextlib.suppress(Exception):
                report.sections.append((f"console of {guest.name}", guest.console()[-3000:]))
            with contextlib.suppress(OSError):
                log = Path(f"/var/log/libvirt/qemu/{guest.name}.log").read_text(errors="replace")
                report.sections.append((f"QEMU of {guest.name}", log[-1000:]))
