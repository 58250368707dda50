"""The inventory in every engine of the catalog: what hosts tell is kept as they tell it, each machine in one place."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timedelta

import pytest
from sqlalchemy import event

from appliance.catalog import Catalog
from appliance.catalog.errors import RecordMissing
from appliance.hypervisor.protocol import MachineState
from appliance.inventory import HostLook, SeenDisk, SeenMachine
from appliance.models import ApplianceRecord, HostConfig, HostRecord, RecoveryRecord, RecoveryState, new_id
from tests.contract.catalogs import ME, OTHER, Place
from tests.unit.records import NOW, machine_record, point_record

LATER, MUCH_LATER = NOW + timedelta(minutes=1), NOW + timedelta(hours=1)
RUNNING, OFF = MachineState.RUNNING, MachineState.OFF


@pytest.fixture
def catalog(place: Place) -> Iterator[Catalog]:
    """With three hosts."""
    with place.open() as catalog:
        for name in ("here", "rack1", "rack2"):
            catalog.hosts.add(HostRecord(HostConfig(name), NOW))
        yield catalog


def machine(host: str = "here", uuid: str = "u-1", state: MachineState = RUNNING, known: datetime = NOW) -> SeenMachine:
    disks = (
        SeenDisk("vda", "disk", "/srv/web.qcow2", "qcow2", 1 << 41, True),
        SeenDisk("hdc", "cdrom", "", "raw", None, False, "it is a cdrom drive without a medium"),
    )
    return SeenMachine(
        host, uuid, f"name of {uuid}", state, "", 1 << 33, 4, True, 1 << 41, disks, ("backup=daily", "web"), known
    )


def placed(catalog: Catalog) -> dict[str, str]:
    return {each.seen.uuid: each.seen.host for each in catalog.inventory.machines()}


def test_machines_come_back_as_they_were_seen(catalog: Catalog) -> None:
    first, second = machine(), machine(uuid="u-2", state=OFF)
    catalog.inventory.answered("here", [second, first], NOW, LATER)
    assert [each.seen for each in catalog.inventory.machines()] == [first, second]
    assert {each.seen_utc for each in catalog.inventory.machines()} == {LATER}
    assert catalog.inventory.looks() == (HostLook("here", NOW, LATER, appliance=ME),)
    renamed = replace(first, name="renamed", known_utc=LATER)
    catalog.inventory.answered("here", [renamed], LATER, MUCH_LATER)
    (left,) = catalog.inventory.machines()
    assert left.seen == replace(renamed, known_utc=NOW), "since when it is known stays"
    assert left.seen_utc == MUCH_LATER
    unreadable = replace(first, state=OFF, memory_bytes=0, size_bytes=0, disks=(), tags=(), unreadable="it is odd")
    catalog.inventory.answered("here", [unreadable], LATER, MUCH_LATER)
    (left,) = catalog.inventory.machines()
    assert left.seen == replace(first, state=OFF, unreadable="it is odd"), "so policies find it by its tags"
    catalog.inventory.answered("here", [first], LATER, MUCH_LATER)
    assert catalog.inventory.machines()[0].seen == first
    catalog.inventory.answered("here", [], LATER, MUCH_LATER)
    assert catalog.inventory.machines() == ()


def test_looking_again_writes_no_machine_that_is_as_it_was(catalog: Catalog) -> None:
    machines = [machine(uuid=f"u-{number}") for number in range(50)]
    catalog.inventory.answered("here", machines, NOW, NOW)
    statements: list[str] = []

    def count(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        statements.append(statement)

    event.listen(catalog.database.engine, "before_cursor_execute", count)
    catalog.inventory.answered("here", [replace(each, known_utc=LATER) for each in machines], LATER, LATER)
    assert any("UPDATE host_looks" in statement for statement in statements)
    assert len(statements) < 12
    assert {each.seen_utc for each in catalog.inventory.machines()} == {LATER}


def test_a_host_that_is_away_keeps_what_was_seen_and_says_since_when(catalog: Catalog) -> None:
    catalog.inventory.answered("here", [machine()], NOW, NOW)
    catalog.inventory.failed("here", "no route to it", "Check the cable.", LATER)
    catalog.inventory.failed("here", "still no route", "Check it again.", MUCH_LATER)
    assert catalog.inventory.look("here") == HostLook(
        "here", MUCH_LATER, NOW, LATER, "still no route", "Check it again.", ME
    )
    (left,) = catalog.inventory.machines()
    assert (left.seen, left.seen_utc) == (machine(), NOW)
    catalog.inventory.answered("here", [machine()], MUCH_LATER, MUCH_LATER)
    assert catalog.inventory.look("here") == HostLook("here", MUCH_LATER, MUCH_LATER, appliance=ME)
    catalog.inventory.failed("rack1", "never was there", "", NOW)
    assert catalog.inventory.look("rack1") == HostLook("rack1", NOW, None, NOW, "never was there", "", ME)
    with pytest.raises(RecordMissing):
        catalog.inventory.look("rack2")


@pytest.mark.parametrize("order", [("rack1", "rack2"), ("rack2", "rack1")])
def test_a_machine_that_moved_is_where_it_runs(catalog: Catalog, order: tuple[str, str]) -> None:
    """The definition stays behind on rack1, whichever host is looked at first."""
    catalog.inventory.answered("rack1", [machine("rack1")], NOW, NOW)
    after = {"rack1": machine("rack1", state=OFF, known=LATER), "rack2": machine("rack2", known=LATER)}
    for host in order:
        catalog.inventory.answered(host, [after[host]], LATER, LATER)
    (found,) = catalog.inventory.machines()
    assert (found.seen.host, found.seen.known_utc) == ("rack2", NOW)
    assert catalog.inventory.hosts_of("u-1") == ("rack1", "rack2")
    catalog.inventory.answered("rack2", [], MUCH_LATER, MUCH_LATER)
    assert placed(catalog) == {"u-1": "rack1"}, "only the definition is left"


def test_of_two_hosts_where_it_is_off_the_first_keeps_it(catalog: Catalog) -> None:
    for host in ("rack2", "rack1", "rack2", "rack1"):
        catalog.inventory.answered(host, [machine(host, state=OFF)], NOW, NOW)
        assert placed(catalog) == {"u-1": "rack2"}
    catalog.inventory.failed("rack2", "away", "", LATER)
    assert placed(catalog) == {"u-1": "rack1"}, "it can be backed up there"


def test_a_machine_seen_running_on_a_host_that_is_away_is_still_there(catalog: Catalog) -> None:
    """Its disks may be in use: the definition on another host is no reason to read them."""
    catalog.inventory.answered("rack1", [machine("rack1")], NOW, NOW)
    catalog.inventory.failed("rack1", "away", "", LATER)
    catalog.inventory.answered("rack2", [machine("rack2", state=OFF)], LATER, LATER)
    assert placed(catalog) == {"u-1": "rack1"}
    catalog.inventory.answered("rack2", [machine("rack2")], LATER, LATER)
    assert placed(catalog) == {"u-1": "rack2"}, "it was started there"


def test_protection_and_recovery_are_told_beside_it(catalog: Catalog) -> None:
    point = point_record()
    catalog.inventory.answered(
        "here", [machine(uuid="a-uuid"), machine(uuid="b-uuid"), machine(uuid="c-uuid")], NOW, NOW
    )
    catalog.points.add(replace(machine_record(), last_point=point.id, last_point_utc=point.created_utc), point)
    record = RecoveryRecord(
        new_id(), RecoveryState.RUNNING, point.id, "m", "web-1", "here", "web-r", "b-uuid", "none", NOW, NOW
    )
    record = catalog.recoveries.add(record)
    first, second, third = catalog.inventory.machines()
    assert (first.series, first.last_point, first.last_point_utc) == ("5" * 32, point.id, point.created_utc)
    assert (first.protected, first.recovered) == (True, False)
    assert (second.protected, second.recovered) == (False, True)
    assert (third.protected, third.recovered) == (False, False)
    assert catalog.inventory.machine("a-uuid") == first
    assert catalog.inventory.machine("nobody") is None
    for state in (RecoveryState.MIGRATING, RecoveryState.MIGRATED):
        record = catalog.recoveries.update(record, now_utc=NOW, state=state)
    assert not catalog.inventory.machines()[1].recovered, "it stands alone now, as any other"


def test_a_host_that_was_removed_takes_its_machines_along(catalog: Catalog) -> None:
    catalog.inventory.answered("rack1", [machine("rack1")], NOW, NOW)
    catalog.inventory.answered("rack2", [machine("rack2", state=OFF), machine("rack2", "u-2")], NOW, NOW)
    catalog.hosts.remove("rack1")
    assert placed(catalog) == {"u-1": "rack2", "u-2": "rack2"}
    assert [look.host for look in catalog.inventory.looks()] == ["rack2"]
    catalog.inventory.answered("rack1", [machine("rack1")], LATER, LATER)
    catalog.inventory.failed("rack1", "away", "", LATER)
    assert placed(catalog) == {"u-1": "rack2", "u-2": "rack2"}, "a look that was under way brings nothing back"


def test_appliances_see_all_and_have_their_own(place: Place, catalog: Catalog) -> None:
    ssh = HostConfig("shared", hostname="h")
    with place.open(OTHER) as other:
        if place.shared:
            other.appliances.join(ApplianceRecord(OTHER, NOW, "hv", "/home", "p", NOW), "file")
        other.hosts.add(HostRecord(replace(ssh, name="theirs"), NOW))
        other.inventory.answered("theirs", [machine("theirs")], NOW, NOW)
        catalog.inventory.failed("here", "away", "", NOW)
        assert placed(other) == {"u-1": "theirs"}
        assert placed(catalog) == {}
        assert [each.seen.host for each in catalog.inventory.machines(own=False)] == ["theirs"]
        assert [look.host for look in other.inventory.looks()] == ["theirs"]
        assert [look.host for look in catalog.inventory.looks()] == ["here"]
        other.inventory.answered("here", [machine("here")], NOW, NOW)
        assert catalog.inventory.machines(own=False)[0].seen.host == "theirs", "a host that it does not have"
    if place.shared:
        catalog.appliances.take_over(OTHER)
        assert placed(catalog) == {"u-1": "theirs"}
