"""What an instant recovery will consist of, decided before anything is made: names, paths, sockets, definitions."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path, PurePosixPath
from uuid import uuid4

from appliance.hypervisor.domain_rewriting import Changes, OverlayDisk, rewrite
from appliance.hypervisor.protocol import Accelerator
from appliance.models import RecoveryDisk, RecoveryRecord, RecoveryState, new_id
from appliance.services.recovery.errors import NotAMachine
from imaging.repository import Point

NVRAM = "nvram"
TPM = "tpm/"


@dataclass(frozen=True, slots=True)
class Request:
    """What an admin asked for, with defaults filled in."""

    host: str
    machine_name: str
    network: str
    memory_bytes: int | None
    vcpus: int | None


def plan_recovery(point: Point, request: Request, accelerator: Accelerator, *, overlays: Path, run: Path,
                  now_utc: datetime) -> RecoveryRecord:  # fmt: skip
    """The record of a recovery that is about to begin. NotAMachine, DomainXmlInvalid."""
    manifest = point.manifest
    if manifest.domain_xml is None:
        raise NotAMachine(manifest.machine.name)
    id, uuid = new_id(), str(uuid4())
    folder = PurePosixPath(overlays) / id[:12]
    disks = tuple(
        RecoveryDisk(
            target=disk.name,
            size_bytes=disk.size_bytes,
            socket=str(run / f"r{id[:12]}.{number}"),
            host_socket=str(run / f"r{id[:12]}.{number}"),
            overlay=str(folder / f"{number}.qcow2"),
        )
        for number, disk in enumerate(manifest.disks)
    )
    changes = Changes(
        name=request.machine_name,
        uuid=uuid,
        disks={disk.target: OverlayDisk(disk.overlay, disk.host_socket) for disk in disks},
        network=request.network,
        kvm_available=accelerator is Accelerator.KVM,
        memory_bytes=request.memory_bytes,
        vcpus=request.vcpus,
        nvram_path=str(folder / NVRAM) if any(file.name == NVRAM for file in manifest.files) else None,
        console_folder=str(folder),
        screen=True,
        made_by=f"recovery-{id}",
    )
    rewritten = rewrite(manifest.domain_xml, changes)
    return RecoveryRecord(
        id=id,
        state=RecoveryState.SERVING,
        point=point.id,
        manifest_name=point.name,
        source_name=manifest.machine.name,
        host=request.host,
        machine_name=request.machine_name,
        machine_uuid=uuid,
        network=request.network,
        started_utc=now_utc,
        updated_utc=now_utc,
        disks=disks,
        definition_xml=rewritten.xml,
        final_xml=manifest.domain_xml,
        folder=str(folder),
        notes=rewritten.warnings,
    )
