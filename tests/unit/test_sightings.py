"""Looking at hosts: several at a time, each kept as it answers, and none hidden by another."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from appliance.bootstrap import Appliance
from appliance.hypervisor.errors import HostUnreachable
from appliance.hypervisor.libvirt_driver import connect
from appliance.hypervisor.protocol import HostConfig, Hypervisor, Transport
from appliance.models import HostRecord
from appliance.services.inventory import InventoryService
from appliance.services.sightings import SightingService
from appliance.settings import load
from tests.unit.cli_runner import CommandLine

NOW = datetime(2026, 11, 23, 14, 0, tzinfo=UTC)
HANG_S = 60


class Hosts:
    """libvirt's own test driver behind each name, unless something happens before it is connected to."""

    def __init__(self) -> None:
        self.before: Callable[[str], None] = lambda _: None

    def connect(self, config: HostConfig) -> Hypervisor:
        self.before(config.name)
        return connect(HostConfig(config.name, Transport.TEST))


@pytest.fixture
def hosts() -> Hosts:
    return Hosts()


@pytest.fixture
def appliance(tmp_path: Path, hosts: Hosts) -> Iterator[Appliance]:
    settings = load({"STRONGROOM_HOME": str(tmp_path), "STRONGROOM_INVENTORY_REFRESH_S": "5"})
    with Appliance(settings, connector=hosts.connect) as made:
        for name in ("away", "slow", "up"):
            made.catalog.hosts.add(HostRecord(HostConfig(name), NOW))
        yield made


def away(name: str) -> None:
    if name == "away":
        raise HostUnreachable(name, "no route to it")


def test_what_could_not_be_asked_is_told_beside_what_could(appliance: Appliance, hosts: Hosts) -> None:
    hosts.before = away
    found = InventoryService(appliance).list_machines()
    assert [problem.host for problem in found.problems] == ["away"]
    assert sorted(item.host for item in found.machines) == ["slow", "up"]
    known = InventoryService(appliance).known()
    (machine,) = known.machines  # the driver gives its machine the same UUID everywhere
    assert (machine.seen.name, machine.seen.state, machine.seen.memory_bytes) == ("test", "running", 8 << 30)
    assert [look.host for look in known.away] == ["away"]
    assert "no route to it" in (known.away[0].error or "")
    with pytest.raises(HostUnreachable):
        InventoryService(appliance).list_machines("away")


def test_a_host_that_hangs_holds_up_no_other(appliance: Appliance, hosts: Hosts) -> None:
    kept, hung = threading.Event(), threading.Event()

    def before(name: str) -> None:
        if name == "slow":
            hung.set()
            assert kept.wait(HANG_S), "the others are kept while it hangs"

    hosts.before = before
    done: list[int] = []
    looking = threading.Thread(target=lambda: done.append(len(SightingService(appliance).refresh())))
    looking.start()
    assert hung.wait(HANG_S)
    while {look.host for look in appliance.catalog.inventory.looks()} != {"away", "up"}:
        assert looking.is_alive()
    kept.set()
    looking.join(HANG_S)
    assert done == [3]
    assert [look.host for look in appliance.catalog.inventory.looks()] == ["away", "slow", "up"]


def test_it_goes_on_until_it_is_told_to_end(
    appliance: Appliance, hosts: Hosts, caplog: pytest.LogCaptureFixture
) -> None:
    """A catalog or a host that fails is told once, and is looked at again."""

    class Stop(threading.Event):
        """Waits no time, and ends after a few rounds."""

        rounds = 0

        def wait(self, timeout: float | None = None) -> bool:
            assert timeout is not None
            assert timeout >= 5
            Stop.rounds += 1
            if Stop.rounds == 3:
                self.set()
            return self.is_set()

    hosts.before = away
    with caplog.at_level(logging.WARNING):
        SightingService(appliance).keep_looking(Stop())
    assert Stop.rounds == 3
    assert [record.message for record in caplog.records] == [
        "inventory: host away does not answer: no route to it",
    ]
    assert appliance.catalog.inventory.look("up").failing_since_utc is None


def test_a_mistake_of_ours_is_not_taken_for_a_host_that_is_away(appliance: Appliance, hosts: Hosts) -> None:
    def broken(name: str) -> None:
        if name == "up":
            raise LookupError(name)

    hosts.before = broken
    with pytest.raises(LookupError):
        SightingService(appliance).refresh()


def test_what_was_seen_is_shown_without_asking(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    strongroom = CommandLine(tmp_path, capsys)
    strongroom.init()
    assert "no host is known" in strongroom("vm", "list", "--known").error()
    assert strongroom("vm", "list", "--known", "--json").json() == []
    assert strongroom("host", "add", "mock", "test:///default").code == 0
    (machine,) = strongroom("vm", "list", "--known", "--json").json()
    assert (machine["name"], machine["host"], machine["state"]) == ("test", "mock", "running")
    assert machine["seen_utc"] >= machine["known_utc"]
    with Appliance(load(strongroom.environment)) as appliance:
        appliance.catalog.inventory.failed("mock", "no route \x1b[31m to it", "", NOW)
    done = strongroom("vm", "list", "--known")
    assert "never" in done.out
    assert done.code == 1
    assert "no route \\x1b[31m to it (since 2026-11-23 14:00:00 UTC)" in done.err
    assert strongroom("vm", "list").code == 0
    assert strongroom("vm", "list", "--known", "--host", "mock").code == 0
    assert "no host" in strongroom("vm", "list", "--known", "--host", "other").error()
