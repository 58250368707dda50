"""Which machine and which disk are meant."""

from __future__ import annotations

from dataclasses import replace

import pytest

from appliance.services.choosing import (
    DiskNotNamed,
    DiskNotOnPoint,
    NameAmbiguous,
    NotProtected,
    choose_disk,
    choose_machine,
    machines_named,
)
from imaging.manifest import DiskEntry, Machine, Manifest, Skipped, Statistics
from tests.unit.records import NOW, machine_record

WEB = replace(machine_record("1" * 32), name="web", uuid="uuid-1", host="here")
WEB_AGAIN = replace(machine_record("2" * 32), name="web", uuid="uuid-2", host="there")
IMAGE = replace(machine_record("3" * 32), kind="image", name="web", uuid=None, host=None)
DB = replace(machine_record("4" * 32), name="db", uuid="uuid-4")
ALL = (WEB, WEB_AGAIN, IMAGE, DB)


@pytest.mark.parametrize(
    ("name", "expected"),
    [("db", DB), ("uuid-2", WEB_AGAIN), ("image:web", IMAGE), ("1" * 32, WEB), ("vm:db", DB)],
)
def test_a_name_that_names_one(name: str, expected: object) -> None:
    assert choose_machine(name, ALL) == expected


def test_names_that_name_several_or_none() -> None:
    assert machines_named("web", ALL) == (WEB, WEB_AGAIN, IMAGE)
    with pytest.raises(NameAmbiguous, match=r"uuid-1 on here.*uuid-2 on there") as caught:
        choose_machine("web", ALL)
    assert "UUID" in caught.value.hint
    for nothing in ("nobody", "", "image:db", "vm:"):
        with pytest.raises(NotProtected):
            choose_machine(nothing, ALL)
    with pytest.raises(NotProtected) as empty:
        choose_machine("web", ())
    assert "strongroom backup" in empty.value.hint


def manifest(*disks: str) -> Manifest:
    return Manifest(
        id="a" * 32,
        series="1" * 32,
        generation=0,
        predecessor=None,
        lease="b" * 32,
        machine=Machine("vm", "web"),
        created_utc=NOW,
        kind="full",
        consistency="crash",
        disks=tuple(DiskEntry(name, 4096, None, f"/{name}", "raw", "full") for name in disks),
        statistics=Statistics(),
        skipped=(Skipped("hdc", "a CD-ROM"),),
    )


def test_disks() -> None:
    assert choose_disk(manifest("disk"), None).name == "disk"
    assert choose_disk(manifest("vda", "vdb"), "vdb").name == "vdb"
    with pytest.raises(DiskNotNamed, match="2 disks: vda, vdb") as caught:
        choose_disk(manifest("vda", "vdb"), None)
    assert caught.value.exit_code == 2
    with pytest.raises(DiskNotOnPoint, match="a CD-ROM"):
        choose_disk(manifest("vda"), "hdc")
    with pytest.raises(DiskNotOnPoint) as missing:
        choose_disk(manifest("vda"), "vdz")
    assert "vda" in missing.value.hint
