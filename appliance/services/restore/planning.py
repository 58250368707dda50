"""What a restored machine will consist of, decided before anything is touched."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import PurePosixPath
from uuid import uuid4

from appliance.hypervisor.domain_rewriting import Changes, RestoredDisk, rewrite
from appliance.hypervisor.domain_xml import MachineDefinition, is_plain_target, parse_machine
from appliance.hypervisor.protocol import Accelerator, MachineInfo, SourceKind
from appliance.services.restore.errors import NoPlaceForDisk, NotAMachine
from imaging.manifest import DiskEntry, Manifest

NVRAM = "nvram"
_TPM = "tpm/"
_WRITABLE_FORMATS = ("qcow2", "raw")


@dataclass(frozen=True, slots=True)
class PlannedDisk:
    entry: DiskEntry
    path: str
    format: str
    block_device: bool


@dataclass(frozen=True, slots=True)
class PlannedFile:
    """NVRAM or a file of the TPM's state: `name` as the manifest has it, `path` where it goes."""

    name: str
    path: str


@dataclass(frozen=True, slots=True)
class MachinePlan:
    name: str
    uuid: str
    in_place: bool
    folder: str | None  # made for new disks; None: every disk goes where it was
    disks: tuple[PlannedDisk, ...]
    files: tuple[PlannedFile, ...]
    xml: str
    notes: tuple[str, ...]


def plan_new(manifest: Manifest, name: str, folder: str, accelerator: Accelerator, made_by: str) -> MachinePlan:
    """A machine of another name beside the old one. NotAMachine, DomainXmlInvalid."""
    definition = _definition(manifest)
    uuid = str(uuid4())
    disks = tuple(
        PlannedDisk(entry, str(PurePosixPath(folder) / f"{_file_name(entry.name)}.{kind}"), kind, block_device=False)
        for entry in manifest.disks
        for kind in [entry.format if entry.format in _WRITABLE_FORMATS else "qcow2"]
    )
    files = tuple(
        PlannedFile(file.name, str(PurePosixPath(folder) / NVRAM))
        if file.name == NVRAM
        else PlannedFile(file.name, _tpm_path(file.path, definition.uuid, uuid))
        for file in manifest.files
        # a TPM state that the admin had placed elsewhere is the old machine's: the new one gets an empty TPM
        if file.name == NVRAM or (file.name.startswith(_TPM) and definition.uuid in file.path)
    )
    return _finish(manifest, name, uuid, folder, disks, files, accelerator, made_by)


def plan_in_place(
    manifest: Manifest,
    existing: MachineInfo | None,
    accelerator: Accelerator,
    volume_path: Callable[[str, str], str],
    made_by: str,
) -> MachinePlan:
    """The same machine where it was, its disks where they are now if it is still defined. NoPlaceForDisk."""
    definition = _definition(manifest)
    disks = tuple(_where_it_was(entry, definition, existing, volume_path) for entry in manifest.disks)
    files = tuple(
        PlannedFile(file.name, file.path) for file in manifest.files if file.name == NVRAM or file.name.startswith(_TPM)
    )
    return _finish(manifest, definition.name, definition.uuid, None, disks, files, accelerator, made_by)


def _definition(manifest: Manifest) -> MachineDefinition:
    if manifest.machine.kind != "vm" or manifest.domain_xml is None:
        raise NotAMachine(manifest.machine.name)
    return parse_machine(manifest.domain_xml)


def _where_it_was(
    entry: DiskEntry,
    definition: MachineDefinition,
    existing: MachineInfo | None,
    volume_path: Callable[[str, str], str],
) -> PlannedDisk:
    now = None if existing is None else existing.disk(entry.name)
    if now is not None and now.source.path is not None and now.format in _WRITABLE_FORMATS:
        return PlannedDisk(entry, now.source.path, now.format, now.source.kind is SourceKind.BLOCK)
    before = next((disk for disk in definition.disks if disk.target == entry.name), None)
    if before is None or before.format not in _WRITABLE_FORMATS:
        raise NoPlaceForDisk(entry.name, entry.source)
    path = volume_path(*before.volume) if before.volume is not None else before.source.path
    if path is None:
        raise NoPlaceForDisk(entry.name, entry.source)
    return PlannedDisk(entry, path, before.format, before.source.kind is SourceKind.BLOCK)


def _finish(
    manifest: Manifest,
    name: str,
    uuid: str,
    folder: str | None,
    disks: tuple[PlannedDisk, ...],
    files: tuple[PlannedFile, ...],
    accelerator: Accelerator,
    made_by: str,
) -> MachinePlan:
    in_place = folder is None
    nvram = next((file.path for file in files if file.name == NVRAM), None)
    changes = Changes(
        name=name,
        uuid=uuid,
        disks={disk.entry.name: RestoredDisk(disk.path, disk.format, disk.block_device) for disk in disks},
        new_macs=not in_place,
        kvm_available=accelerator is Accelerator.KVM,
        nvram_path=nvram,
        console_folder=None,  # it is there to stay: nobody would look for its console in a file
        in_place=in_place,
        made_by="" if in_place else made_by,
    )
    rewritten = rewrite(manifest.domain_xml or "", changes)
    return MachinePlan(name, uuid, in_place, folder, disks, files, rewritten.xml, rewritten.warnings)


def _file_name(disk: str) -> str:
    """A disk's name comes out of a manifest: it names a file below the folder and nothing else."""
    if not is_plain_target(disk):
        raise NoPlaceForDisk(disk, "")
    return disk


def _tpm_path(path: str, old_uuid: str, new_uuid: str) -> str:
    """libvirt keeps TPM state in a folder named by the machine's UUID."""
    return path.replace(old_uuid, new_uuid)
