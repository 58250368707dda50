"""Catalog records for tests."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from appliance.models import MachineDisk, MachineRecord, PointDisk, PointRecord, ReadKind, new_id

NOW = datetime(2026, 11, 23, 13, 30, 15, 123456, tzinfo=UTC)


def machine_record(series: str = "5" * 32) -> MachineRecord:
    disks = (
        MachineDisk("vda", "/srv/web.qcow2", "S1", 1 << 30, "cp-1"),
        MachineDisk("vdb", "pool/b", None, 4096, None),
    )
    return MachineRecord(series, "vm", "web-1", "a-uuid", "here", "1" * 32, NOW, disks)


def point_record(series: str = "5" * 32, generation: int = 0, **changes: Any) -> PointRecord:
    record = PointRecord(
        id=new_id(),
        manifest_name=f"manifests/{series}/{generation:010}-{new_id()}",
        manifest_hash="ab" * 32,
        series=series,
        generation=generation,
        machine_kind="vm",
        name="web-1",
        uuid="a-uuid",
        host="here",
        created_utc=NOW + timedelta(hours=generation),
        kind=ReadKind.FULL,
        consistency="crash",
        size_bytes=1 << 41,
        read_bytes=3,
        stored_bytes=2,
        duration_ms=1,
        checkpoint=None,
        disks=(PointDisk("vda", 1 << 41, "qcow2", ReadKind.FULL, "first backup"),),
        skipped=("hdc: a CD-ROM",),
        notes=("mind the gap",),
    )
    return replace(record, **changes)
