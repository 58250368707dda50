"""One restore point, as the bytes of its manifest say it (docs/format.md section 10).

Rule: a manifest is hostile input until every field was checked; what a writer states is checked by reading it back
before it is sealed. Fields of later versions are ignored.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

from imaging import canonical
from imaging.canonical import INTEGER_MAX, Fields
from imaging.errors import Damaged, WrongVersion

VERSION: Final = 1
KINDS: Final = ("full", "incremental")
CONSISTENCIES: Final = ("application", "crash", "offline")
MACHINE_KINDS: Final = ("vm", "image")
DISKS_MAX: Final = 1024
DOMAIN_XML_CHARACTERS_MAX: Final = 4 << 20
ROOT_BYTES: Final = 32
GENERATION_MAX: Final = 9_999_999_999
_PATH_CHARACTERS_MAX: Final = 4096
_NOTES_MAX: Final = 1000
_NAME: Final = re.compile(r"manifests/([0-9a-f]{32})/(\d{10})-([0-9a-f]{32})")


@dataclass(frozen=True, slots=True)
class Machine:
    """What was protected: kind "vm" or "image"."""

    kind: str
    name: str
    uuid: str | None = None
    host: str | None = None


@dataclass(frozen=True, slots=True)
class DiskEntry:
    """One disk: `root` is its map's root, None for a disk of holes only; `reason` why it was read in full."""

    name: str
    size_bytes: int
    root: bytes | None
    source: str
    format: str
    read: str
    serial: str | None = None
    reason: str | None = None
    checkpoint: bool = False


@dataclass(frozen=True, slots=True)
class FileEntry:
    """NVRAM or TPM state, kept as a disk map."""

    name: str
    path: str
    size_bytes: int
    root: bytes | None


@dataclass(frozen=True, slots=True)
class Skipped:
    """A disk that is not on the point, and why."""

    name: str
    reason: str


@dataclass(frozen=True, slots=True)
class Statistics:
    read_bytes: int = 0
    stored_bytes: int = 0
    chunks: int = 0
    new_chunks: int = 0
    duration_ms: int = 0
    sampled_chunks: int = 0


@dataclass(frozen=True, slots=True)
class ManifestDraft:
    """What a run knows of its point; the repository adds its place in the series."""

    machine: Machine
    created_utc: datetime
    kind: str
    consistency: str
    disks: tuple[DiskEntry, ...]
    statistics: Statistics
    files: tuple[FileEntry, ...] = ()
    skipped: tuple[Skipped, ...] = ()
    domain_xml: str | None = field(default=None, repr=False)
    checkpoint: str | None = None
    policy: str | None = None
    run: str | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Manifest(ManifestDraft):
    """A draft with its place: which point of which series, after which, written under which lease."""

    id: str = field(kw_only=True)
    series: str = field(kw_only=True)
    generation: int = field(kw_only=True)
    predecessor: bytes | None = field(kw_only=True)
    lease: str = field(kw_only=True)

    @property
    def name(self) -> str:
        return manifest_name(self.series, self.generation, self.id)

    def disk(self, name: str) -> DiskEntry | None:
        return next((disk for disk in self.disks if disk.name == name), None)


@dataclass(frozen=True, slots=True)
class ManifestName:
    """The parts of `manifests/SERIES/GENERATION-ID`; tombstones have the same below their own prefix."""

    series: str
    generation: int
    id: str

    @classmethod
    def parse(cls, name: str) -> ManifestName | None:
        """None for a name that is no manifest's: ignored, and never deleted."""
        found = _NAME.fullmatch(name)
        return cls(found[1], int(found[2]), found[3]) if found else None


def manifest_name(series: str, generation: int, point_id: str) -> str:
    return f"manifests/{series}/{generation:010}-{point_id}"


def tombstone_name(manifest: str) -> str:
    """The name of the tombstone of a manifest's name."""
    return "tombstones/" + manifest.removeprefix("manifests/")


def encode(manifest: Manifest) -> bytes:
    """The body. Raises ValueError when the manifest would not be readable: a mistake of the run's, found before it
    counts."""
    body = canonical.encode(_values(manifest))
    try:
        again = decode(body, manifest.name)
    except Damaged as error:
        raise ValueError(f"a manifest that nobody could read: {error}") from error
    if canonical.encode(_values(again)) != body:
        raise ValueError("a manifest that reads back differently")
    return body


def _values(manifest: Manifest) -> dict[str, object]:
    return {
        "version": VERSION,
        "id": manifest.id,
        "series": manifest.series,
        "generation": manifest.generation,
        "predecessor": _hex(manifest.predecessor),
        "lease": manifest.lease,
        "machine": {
            "host": manifest.machine.host,
            "kind": manifest.machine.kind,
            "name": manifest.machine.name,
            "uuid": manifest.machine.uuid,
        },
        "created_utc": canonical.utc_text(manifest.created_utc),
        "kind": manifest.kind,
        "consistency": manifest.consistency,
        "disks": [_disk_values(disk) for disk in manifest.disks],
        "files": [
            {"name": file.name, "path": file.path, "root": _hex(file.root), "size_bytes": file.size_bytes}
            for file in manifest.files
        ],
        "skipped": [{"name": skipped.name, "reason": skipped.reason} for skipped in manifest.skipped],
        "domain_xml": manifest.domain_xml,
        "checkpoint": manifest.checkpoint,
        "policy": manifest.policy,
        "run": manifest.run,
        "notes": list(manifest.notes),
        "statistics": {name: getattr(manifest.statistics, name) for name in Statistics.__slots__},
    }


def _disk_values(disk: DiskEntry) -> Mapping[str, object]:
    return {
        "checkpoint": disk.checkpoint,
        "format": disk.format,
        "name": disk.name,
        "read": disk.read,
        "reason": disk.reason,
        "root": _hex(disk.root),
        "serial": disk.serial,
        "size_bytes": disk.size_bytes,
        "source": disk.source,
    }


def _hex(value: bytes | None) -> str | None:
    return None if value is None else value.hex()


def decode(body: bytes, name: str) -> Manifest:
    """The manifest in object `name`, whose place must be the one that it states. Raises Damaged, WrongVersion."""
    fields = Fields.parse(body, name)
    version = fields.integer("version")
    if version != VERSION:
        raise WrongVersion(name, version)
    manifest = Manifest(
        id=fields.hex("id", 16).hex(),
        series=fields.hex("series", 16).hex(),
        generation=fields.integer("generation", 0, GENERATION_MAX),
        predecessor=fields.optional_hex("predecessor", 32),
        lease=fields.hex("lease", 16).hex(),
        machine=_machine(fields.record("machine")),
        created_utc=fields.utc("created_utc"),
        kind=fields.one_of("kind", KINDS),
        consistency=fields.one_of("consistency", CONSISTENCIES),
        disks=tuple(_disk(each) for each in fields.records("disks", DISKS_MAX)),
        files=tuple(_file(each) for each in fields.records("files", DISKS_MAX)),
        skipped=tuple(Skipped(each.text("name"), each.text("reason")) for each in fields.records("skipped", DISKS_MAX)),
        domain_xml=fields.optional_text("domain_xml", DOMAIN_XML_CHARACTERS_MAX),
        checkpoint=fields.optional_text("checkpoint"),
        policy=fields.optional_text("policy"),
        run=fields.optional_text("run"),
        notes=fields.texts("notes", _NOTES_MAX),
        statistics=_statistics(fields.record("statistics")),
    )
    if manifest.name != name:
        raise Damaged(name, f"it says to be {manifest.name}")
    names = [disk.name for disk in manifest.disks]
    if len(set(names)) != len(names):
        raise Damaged(name, "two of its disks have the same name")
    return manifest


def _machine(fields: Fields) -> Machine:
    return Machine(
        kind=fields.one_of("kind", MACHINE_KINDS),
        name=fields.text("name"),
        uuid=fields.optional_text("uuid"),
        host=fields.optional_text("host"),
    )


def _disk(fields: Fields) -> DiskEntry:
    return DiskEntry(
        name=fields.text("name"),
        size_bytes=fields.integer("size_bytes"),
        root=fields.optional_hex("root", ROOT_BYTES),
        source=fields.text("source", _PATH_CHARACTERS_MAX),
        format=fields.text("format"),
        read=fields.one_of("read", KINDS),
        serial=fields.optional_text("serial"),
        reason=fields.optional_text("reason"),
        checkpoint=fields.boolean("checkpoint"),
    )


def _file(fields: Fields) -> FileEntry:
    return FileEntry(
        name=fields.text("name"),
        path=fields.text("path", _PATH_CHARACTERS_MAX),
        size_bytes=fields.integer("size_bytes"),
        root=fields.optional_hex("root", ROOT_BYTES),
    )


def _statistics(fields: Fields) -> Statistics:
    return Statistics(**{name: fields.integer(name, 0, INTEGER_MAX) for name in Statistics.__slots__})
