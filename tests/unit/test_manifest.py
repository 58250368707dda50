from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imaging import canonical, manifest
from imaging.errors import Damaged, WrongVersion
from imaging.manifest import DiskEntry, FileEntry, Machine, Manifest, ManifestName, Skipped, Statistics

TEXT = st.text(st.characters(codec="utf-8"), max_size=30)
OPTIONAL = st.none() | TEXT
ROOT = st.none() | st.binary(min_size=32, max_size=32)
SIZE = st.integers(0, 2**63 - 1)
ID = st.binary(min_size=16, max_size=16).map(bytes.hex)
READ = st.sampled_from(manifest.KINDS)

DISKS = st.lists(
    st.builds(DiskEntry, TEXT, SIZE, ROOT, TEXT, TEXT, READ, OPTIONAL, OPTIONAL, st.booleans()),
    max_size=4,
    unique_by=lambda disk: disk.name,
).map(tuple)

MANIFESTS = st.builds(
    Manifest,
    machine=st.builds(Machine, st.sampled_from(manifest.MACHINE_KINDS), TEXT, OPTIONAL, OPTIONAL),
    created_utc=st.datetimes(datetime(1970, 1, 1), datetime(9999, 1, 1), timezones=st.just(UTC)).map(  # noqa: DTZ001
        lambda moment: moment.replace(microsecond=0)
    ),
    kind=READ,
    consistency=st.sampled_from(manifest.CONSISTENCIES),
    disks=DISKS,
    statistics=st.builds(Statistics, SIZE, SIZE, SIZE, SIZE, SIZE, SIZE),
    files=st.lists(st.builds(FileEntry, TEXT, TEXT, SIZE, ROOT), max_size=3).map(tuple),
    skipped=st.lists(st.builds(Skipped, TEXT, TEXT), max_size=3).map(tuple),
    domain_xml=OPTIONAL,
    checkpoint=OPTIONAL,
    policy=OPTIONAL,
    run=OPTIONAL,
    notes=st.lists(TEXT, max_size=3).map(tuple),
    id=ID,
    series=ID,
    generation=st.integers(0, 9_999_999_999),
    predecessor=ROOT,
    lease=ID,
)

EXAMPLE = Manifest(
    machine=Machine("vm", "web01", "5a8e5b1c-0000-4000-8000-000000000001", "hv1"),
    created_utc=datetime(2026, 3, 1, 12, tzinfo=UTC),
    kind="incremental",
    consistency="application",
    disks=(DiskEntry("vda", 1 << 30, b"r" * 32, "/images/a.qcow2", "qcow2", "incremental", "serial", None, True),),
    statistics=Statistics(1, 2, 3, 4, 5, 6),
    id="11" * 16,
    series="22" * 16,
    generation=7,
    predecessor=b"p" * 32,
    lease="33" * 16,
)


@settings(max_examples=80, deadline=None)
@given(MANIFESTS)
def test_a_manifest_comes_back(made: Manifest) -> None:
    body = manifest.encode(made)
    assert manifest.decode(body, made.name) == made


def test_it_has_every_field_that_the_format_names_and_no_other() -> None:
    values: Any = canonical.decode(manifest.encode(EXAMPLE), "x")
    expected = (
        "version id series generation predecessor lease machine created_utc kind consistency disks files skipped "
        "domain_xml checkpoint policy run notes statistics"
    )
    assert sorted(values) == sorted(expected.split(" "))
    assert values["predecessor"] == "70" * 32
    assert values["created_utc"] == "2026-03-01T12:00:00Z"
    assert values["machine"] == {"host": "hv1", "kind": "vm", "name": "web01", "uuid": EXAMPLE.machine.uuid}
    assert values["disks"] == [
        {
            "checkpoint": True,
            "format": "qcow2",
            "name": "vda",
            "read": "incremental",
            "reason": None,
            "root": "72" * 32,
            "serial": "serial",
            "size_bytes": 1 << 30,
            "source": "/images/a.qcow2",
        }
    ]
    assert values["statistics"] == {
        "read_bytes": 1,
        "stored_bytes": 2,
        "chunks": 3,
        "new_chunks": 4,
        "duration_ms": 5,
        "sampled_chunks": 6,
    }


def test_fields_of_a_later_version_are_ignored() -> None:
    values: Any = canonical.decode(manifest.encode(EXAMPLE), "x")
    values["later"] = {"unknown": [1]}
    values["disks"][0]["later"] = "x"
    assert manifest.decode(canonical.encode(values), EXAMPLE.name) == EXAMPLE


def paths(value: object, prefix: tuple[object, ...] = ()) -> list[tuple[object, ...]]:
    found = [prefix] if prefix else []
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return found + [path for key, item in items for path in paths(item, (*prefix, key))]


OPTIONAL_FIELDS = {
    "predecessor",
    "uuid",
    "host",
    "serial",
    "reason",
    "root",
    "domain_xml",
    "checkpoint",
    "policy",
    "run",
}
FREE_TEXTS = {
    "uuid",
    "host",
    "serial",
    "reason",
    "domain_xml",
    "checkpoint",
    "policy",
    "run",
    "name",
    "source",
    "format",
}


def changed(body: bytes, path: tuple[object, ...], value: object = None, delete: bool = False) -> bytes:
    values: Any = canonical.decode(body, "x")
    target = values
    for step in path[:-1]:
        target = target[step]
    if delete:
        del target[path[-1]]
    else:
        target[path[-1]] = value
    return canonical.encode(values)


def fits(path: tuple[object, ...], value: object) -> bool:
    """Whether the field may have this value."""
    disk_flag = path[0] == "disks" and path[-1] == "checkpoint"
    if disk_flag:
        return isinstance(value, bool)
    return (path[-1] in FREE_TEXTS and isinstance(value, str)) or (path[-1] == "notes" and value == ["x"])


def test_any_field_that_is_missing_or_of_another_type_is_damage() -> None:
    body = manifest.encode(EXAMPLE)
    every = paths(canonical.decode(body, "x"))
    assert len(every) > 35
    for path in every:
        for wrong in (-1, "no such", ["x"], {"x": 1}, True, 10**19 - 1):
            if not fits(path, wrong):
                with pytest.raises((Damaged, WrongVersion)):
                    manifest.decode(changed(body, path, wrong), EXAMPLE.name)
        if isinstance(path[-1], str) and path[-1] not in OPTIONAL_FIELDS:
            with pytest.raises(Damaged):
                manifest.decode(changed(body, path, delete=True), EXAMPLE.name)


def test_it_must_be_where_it_says() -> None:
    with pytest.raises(Damaged, match="says to be"):
        manifest.decode(manifest.encode(EXAMPLE), manifest.manifest_name(EXAMPLE.series, 8, EXAMPLE.id))


def test_another_version_says_so() -> None:
    values: Any = canonical.decode(manifest.encode(EXAMPLE), "x")
    values["version"] = 2
    with pytest.raises(WrongVersion):
        manifest.decode(canonical.encode(values), EXAMPLE.name)


@pytest.mark.parametrize(
    "wrong",
    [
        replace(EXAMPLE, kind="differential"),
        replace(EXAMPLE, disks=EXAMPLE.disks * 2),
        replace(EXAMPLE, disks=(replace(EXAMPLE.disks[0], size_bytes=-1),)),
        replace(EXAMPLE, disks=(replace(EXAMPLE.disks[0], root=b"short"),)),
        replace(EXAMPLE, generation=10**10),
        replace(EXAMPLE, domain_xml="x" * (4 << 20) + "x"),
        replace(EXAMPLE, created_utc=datetime(2026, 3, 1, tzinfo=UTC).replace(tzinfo=None)),
    ],
)
def test_a_run_cannot_write_what_nobody_could_read(wrong: Manifest) -> None:
    with pytest.raises(ValueError, match=r"manifest that nobody could read|without a zone"):
        manifest.encode(wrong)


def test_names() -> None:
    name = EXAMPLE.name
    assert name == "manifests/" + "22" * 16 + "/0000000007-" + "11" * 16
    assert ManifestName.parse(name) == ManifestName("22" * 16, 7, "11" * 16)
    assert manifest.tombstone_name(name) == "tombstones/" + "22" * 16 + "/0000000007-" + "11" * 16
    for other in ("manifests/x", name + "0", name.upper(), "tombstones/" + name[10:], name.replace("-", "/")):
        assert ManifestName.parse(other) is None
