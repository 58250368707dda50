"""What a restored machine will consist of, decided before anything is touched."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import PurePosixPath
from uuid import uuid4

from appliance.hypervisor.domain_rewriting import Changes, RestoredDisk, rewrite
from appliance.hypervisor.domain_xml import MachineDefinition, is_plain_target, parse_machine
from appliance.hypervisor.protocol import Accelerator, MachineInfo, PoolInfo, SourceKind, Transport
from appliance.models import HostRecord
from appliance.services.restore.errors import HostIsRemote, NameInvalid, NoPlaceForDisk, NotAMachine, PoolUnusable
from imaging.manifest import DiskEntry, Manifest

NVRAM = "nvram"
_TPM = "tpm/"
_WRITABLE_FORMATS = ("qcow2", "raw")
_NAME_BYTES_MAX = 128  # libvirt makes names of files out of it, with more before and behind
_POOLS_OF_FILES = ("dir", "fs", "netfs", "vstorage")

VolumePath = Callable[[str, str], str]


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
    existing: MachineInfo | MachineDefinition | None,
    accelerator: Accelerator,
    volume_path: VolumePath,
    made_by: str,
) -> MachinePlan:
    """The same machine where it was, its disks where they are now. NoPlaceForDisk.

    `existing`: the machine, or the definition that an earlier attempt kept; None: the host knows nothing of it.
    """
    definition = _definition(manifest)
    disks = tuple(_where_it_was(entry, definition, existing, volume_path) for entry in manifest.disks)
    files = tuple(
        PlannedFile(file.name, file.path) for file in manifest.files if file.name == NVRAM or file.name.startswith(_TPM)
    )
    return _finish(manifest, definition.name, definition.uuid, None, disks, files, accelerator, made_by)


def check_local(host: HostRecord) -> None:
    """HostIsRemote."""
    if host.config.transport is not Transport.LOCAL:
        raise HostIsRemote(host.name)


def check_name(name: str) -> None:
    """NameInvalid: it names a folder here and files of libvirt's."""
    plain = name.strip() and "/" not in name and all(character.isprintable() for character in name)
    if not plain or name in (".", "..") or len(name.encode("utf-8", "replace")) > _NAME_BYTES_MAX:
        raise NameInvalid(name)


def folder_in(host: str, pool: PoolInfo, name: str) -> str:
    """Where a machine's disks go in a pool. PoolUnusable."""
    if pool.path is None or pool.kind not in _POOLS_OF_FILES:
        raise PoolUnusable(host, pool.name, f"it is {pool.kind or 'something'}, no folder")
    if not pool.active:
        raise PoolUnusable(host, pool.name, "it is not active, so its folder may not be mounted")
    return str(PurePosixPath(pool.path) / name)


def _definition(manifest: Manifest) -> MachineDefinition:
    if manifest.machine.kind != "vm" or manifest.domain_xml is None:
        raise NotAMachine(manifest.machine.name)
    return parse_machine(manifest.domain_xml)


def _where_it_was(
    entry: DiskEntry,
    definition: MachineDefinition,
    existing: MachineInfo | MachineDefinition | None,
    volume_path: VolumePath,
) -> PlannedDisk:
    now = _in_machine(entry, existing) if isinstance(existing, MachineInfo) else None
    if isinstance(existing, MachineDefinition):
        now = _in_definition(entry, existing, volume_path)
    found = now or _in_definition(entry, definition, volume_path)
    if found is None:
        raise NoPlaceForDisk(entry.name, entry.source)
    return found


def _in_machine(entry: DiskEntry, machine: MachineInfo) -> PlannedDisk | None:
    disk = machine.disk(entry.name)
    if disk is None or disk.source.path is None or disk.format not in _WRITABLE_FORMATS:
        return None
    return PlannedDisk(entry, disk.source.path, disk.format, disk.source.kind is SourceKind.BLOCK)


def _in_definition(entry: DiskEntry, definition: MachineDefinition, volume_path: VolumePath) -> PlannedDisk | None:
    disk = next((disk for disk in definition.disks if disk.target == entry.name), None)
    if disk is None or disk.format not in _WRITABLE_FORMATS:
        return None
    path = volume_path(*disk.volume) if disk.volume is not None else disk.source.path
    return None if path is None else PlannedDisk(entry, path, disk.format, disk.source.kind is SourceKind.BLOCK)


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
