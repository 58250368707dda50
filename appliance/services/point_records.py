"""Restore points as the catalog keeps them, made from the repository's manifests."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import TYPE_CHECKING

from appliance.models import MachineDisk, MachineRecord, PointDisk, PointRecord, ReadKind

if TYPE_CHECKING:
    from imaging.manifest import Manifest
    from imaging.points import Point


def record_of(point: Point) -> PointRecord:
    manifest = point.manifest
    return PointRecord(
        id=manifest.id,
        manifest_name=point.name,
        manifest_hash=point.hash.hex(),
        series=manifest.series,
        generation=manifest.generation,
        machine_kind=manifest.machine.kind,
        name=manifest.machine.name,
        uuid=manifest.machine.uuid,
        host=manifest.machine.host,
        created_utc=manifest.created_utc,
        kind=ReadKind(manifest.kind),
        consistency=manifest.consistency,
        size_bytes=sum(disk.size_bytes for disk in manifest.disks),
        read_bytes=manifest.statistics.read_bytes,
        stored_bytes=manifest.statistics.stored_bytes,
        duration_ms=manifest.statistics.duration_ms,
        checkpoint=manifest.checkpoint,
        disks=tuple(
            PointDisk(disk.name, disk.size_bytes, disk.format, ReadKind(disk.read), disk.reason)
            for disk in manifest.disks
        ),
        skipped=tuple(f"{skipped.name}: {skipped.reason}" for skipped in manifest.skipped),
        notes=manifest.notes,
    )


def machines_of(points: Iterable[Point]) -> tuple[MachineRecord, ...]:
    """One record per series, as its newest point has it."""
    newest: dict[str, Manifest] = {}
    for point in points:
        held = newest.get(point.manifest.series)
        if held is None or held.generation < point.manifest.generation:
            newest[point.manifest.series] = point.manifest
    return tuple(_machine_record(manifest) for manifest in newest.values())


def _machine_record(manifest: Manifest) -> MachineRecord:
    return MachineRecord(
        series=manifest.series,
        kind=manifest.machine.kind,
        name=manifest.machine.name,
        uuid=manifest.machine.uuid,
        host=manifest.machine.host,
        last_point=manifest.id,
        last_point_utc=manifest.created_utc,
        disks=tuple(
            MachineDisk(
                disk.name,
                disk.source,
                disk.serial,
                disk.size_bytes,
                manifest.checkpoint if disk.checkpoint else None,
            )
            for disk in manifest.disks
        ),
    )


def oldest_first(records: Iterable[PointRecord]) -> tuple[PointRecord, ...]:
    """By time, but within a series by generation: a clock that went back does not make a new point an old one."""
    latest: dict[str, datetime] = {}
    keyed: list[tuple[datetime, str, int, PointRecord]] = []
    for record in sorted(records, key=lambda record: (record.series, record.generation)):
        moment = max(record.created_utc, latest.get(record.series, record.created_utc))
        latest[record.series] = moment
        keyed.append((moment, record.series, record.generation, record))
    return tuple(entry[3] for entry in sorted(keyed, key=lambda entry: entry[:3]))
