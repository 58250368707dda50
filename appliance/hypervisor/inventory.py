"""What a machine is, put together from its definition and a look at its disks.

The rule: pure decisions about disks (`judge_disk`) are apart from the asking; a disk that cannot be backed up says why
in words for an admin, and whatever could not be learned is None, never a guess.
"""

from __future__ import annotations

from collections.abc import Callable

import libvirt

from appliance.hypervisor.calls import Domain
from appliance.hypervisor.domain_xml import (
    DiskDefinition,
    MachineDefinition,
    is_plain_target,
    parse_machine,
    parse_xml,
    tags_of,
)
from appliance.hypervisor.errors import HostFileError, HypervisorError, StorageNotFound
from appliance.hypervisor.image_header import HEADER_BYTES, Qcow2Header, read_qcow2_header
from appliance.hypervisor.protocol import (
    DiskDevice,
    DiskInfo,
    DiskSource,
    HostFiles,
    MachineInfo,
    MachineState,
    SourceKind,
    StateInfo,
)

_PAUSED_STATES = frozenset({libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PMSUSPENDED})
_OFF_STATES = frozenset({libvirt.VIR_DOMAIN_SHUTOFF, libvirt.VIR_DOMAIN_NOSTATE})
_PAUSE_REASONS = {
    libvirt.VIR_DOMAIN_PAUSED_USER: "by a user",
    libvirt.VIR_DOMAIN_PAUSED_MIGRATION: "for a migration",
    libvirt.VIR_DOMAIN_PAUSED_SAVE: "while being saved",
    libvirt.VIR_DOMAIN_PAUSED_DUMP: "while being dumped",
    libvirt.VIR_DOMAIN_PAUSED_IOERROR: "by a disk error",
    libvirt.VIR_DOMAIN_PAUSED_WATCHDOG: "by its watchdog",
    libvirt.VIR_DOMAIN_PAUSED_SHUTTING_DOWN: "while shutting down",
    libvirt.VIR_DOMAIN_PAUSED_SNAPSHOT: "for a snapshot",
    libvirt.VIR_DOMAIN_PAUSED_CRASHED: "after a crash of its guest",
    libvirt.VIR_DOMAIN_PAUSED_STARTING_UP: "while starting",
}
_XML_LIVE = 0
# With what is secret in it (a VNC password): a restored machine without it would be open to anybody.
_XML_INACTIVE = libvirt.VIR_DOMAIN_XML_INACTIVE | libvirt.VIR_DOMAIN_XML_SECURE

VolumePath = Callable[[str, str], str]


def read_state(domain: Domain) -> StateInfo:
    state, reason = domain.state()
    if state in _OFF_STATES:
        off = reason if state == libvirt.VIR_DOMAIN_SHUTOFF else None
        shut_down, crashed = off == libvirt.VIR_DOMAIN_SHUTOFF_SHUTDOWN, off == libvirt.VIR_DOMAIN_SHUTOFF_CRASHED
        return StateInfo(MachineState.OFF, "", io_error=False, shut_down=shut_down, crashed=crashed)
    if state == libvirt.VIR_DOMAIN_CRASHED:
        # A crashed machine that still has a process (on_crash=preserve) holds its disks.
        kind = MachineState.PAUSED if domain.active() else MachineState.OFF
        return StateInfo(kind, "after a crash", io_error=False, run=_run(domain))
    if state in _PAUSED_STATES:
        failed = state == libvirt.VIR_DOMAIN_PAUSED and reason == libvirt.VIR_DOMAIN_PAUSED_IOERROR
        return StateInfo(MachineState.PAUSED, _PAUSE_REASONS.get(reason, ""), io_error=failed, run=_run(domain))
    return StateInfo(MachineState.RUNNING, "", io_error=False, run=_run(domain))


def _run(domain: Domain) -> int | None:
    id = domain.id()
    return id if id >= 0 else None


def read_machine(domain: Domain, files: HostFiles, volume_path: VolumePath) -> MachineInfo:
    state = read_state(domain)
    running = state.state is not MachineState.OFF
    live_xml = domain.xml(_XML_LIVE) if running else None
    inactive_xml = domain.xml(_XML_INACTIVE)
    definition = parse_machine(live_xml or inactive_xml)
    persistent = domain.persistent()
    return MachineInfo(
        uuid=definition.uuid,
        name=definition.name,
        state=state.state,
        state_reason=state.reason,
        persistent=persistent,
        autostart=persistent and domain.autostart(),
        domain_type=definition.domain_type,
        memory_bytes=definition.memory_bytes,
        vcpus=definition.vcpus,
        disks=tuple(_look_at(disk, domain, files, volume_path, running) for disk in definition.disks),
        nvram_path=definition.nvram_path,
        tpm_state_folder=tpm_folder(definition),
        agent_channel=definition.agent_channel,
        agent_connected=definition.agent_connected,
        live_xml=live_xml,
        inactive_xml=inactive_xml,
        memory_files=definition.memory_files,
        # Set on a running machine, they are in one of its definitions or in both, as its admin chose.
        tags=definition.tags | tags_of(parse_xml(inactive_xml)),
    )


def unreadable_machine(domain: Domain, reason: str) -> MachineInfo:
    """What libvirt tells of a machine whose definition cannot be read. HostUnreachable: it was not the machine."""
    state = read_state(domain)
    return MachineInfo(
        uuid=domain.uuid(), name=domain.name(), state=state.state, state_reason=state.reason, persistent=False,
        autostart=False, domain_type="", memory_bytes=0, vcpus=0, disks=(), nvram_path=None, tpm_state_folder=None,
        agent_channel=False, agent_connected=False, live_xml=None, inactive_xml="", unreadable=reason,
    )  # fmt: skip


def tpm_folder(definition: MachineDefinition) -> str | None:
    """Where libvirt keeps an emulated TPM of the system instance, unless the definition says otherwise."""
    if not definition.tpm_emulated:
        return None
    return definition.tpm_state_folder or f"/var/lib/libvirt/swtpm/{definition.uuid}"


def _look_at(
    disk: DiskDefinition, domain: Domain, files: HostFiles, volume_path: VolumePath, running: bool
) -> DiskInfo:
    source, missing = _located(disk, volume_path)
    header: Qcow2Header | None = None
    if disk.format == "qcow2" and source.path is not None:
        try:
            header = read_qcow2_header(files.head(source.path, HEADER_BYTES))
        except HostFileError as error:
            missing = missing or str(error)
    elif source.path is not None and not running and not files.exists(source.path):
        missing = missing or f"{source.path} is not there"
    return judge_disk(disk, source, _size(disk, domain, header, source), header, running, missing)


def _located(disk: DiskDefinition, volume_path: VolumePath) -> tuple[DiskSource, str]:
    """A volume's path is its pool's to tell; the second value says why it could not be told."""
    if disk.volume is None:
        return disk.source, ""
    try:
        path = volume_path(*disk.volume)
    except StorageNotFound as error:
        return disk.source, str(error)
    return DiskSource(disk.source.kind, path, disk.source.description), ""


def _size(disk: DiskDefinition, domain: Domain, header: Qcow2Header | None, source: DiskSource) -> int | None:
    if source.kind is SourceKind.NONE:
        return None
    if header is not None:
        # QEMU keeps it true while a machine runs. Asking a running QEMU 7.2 instead ends it, if another program's
        # backup of it is just beginning (docs/decisions, 30).
        return header.size_bytes
    try:
        return domain.disk_size(disk.target)
    except HypervisorError as error:
        if error.retryable:
            raise
        return None


def judge_disk(
    disk: DiskDefinition,
    source: DiskSource,
    size_bytes: int | None,
    header: Qcow2Header | None,
    running: bool,
    missing: str,
) -> DiskInfo:
    """What can be done with a disk. Pure. `missing`: why its file could not be looked at, "" when it could."""
    return DiskInfo(
        target=disk.target,
        device=disk.device,
        source=source,
        format=disk.format,
        serial=disk.serial,
        size_bytes=size_bytes,
        readonly=disk.readonly,
        shareable=disk.shareable,
        transient=disk.transient,
        can_hold_bitmap=(
            header is not None
            and header.can_hold_bitmap
            and not (disk.readonly or disk.transient or disk.shareable)
            and disk.device is DiskDevice.DISK
        ),
        skip_reason=_skip_reason(disk, source, running, missing),
        backing=disk.backing,
    )


def _skip_reason(disk: DiskDefinition, source: DiskSource, running: bool, missing: str) -> str | None:
    if not is_plain_target(disk.target):
        return "its target in the machine's definition is no plain name (letters, digits, dash and underscore)"
    if disk.device in (DiskDevice.CDROM, DiskDevice.FLOPPY):
        return f"it is a {disk.device} drive" + (" without a medium" if source.kind is SourceKind.NONE else "")
    if source.kind is SourceKind.NONE:
        return "it has no source"
    if source.kind is SourceKind.OTHER:
        return f"its source ({source.description}) is not a file, a block device or network storage"
    if disk.device is DiskDevice.LUN and running:
        return "it passes SCSI commands through, so the hypervisor does not see what is written"
    if running:
        return None
    if missing:
        return f"its file cannot be read: {missing}"
    if source.kind is SourceKind.NETWORK:
        return f"it is on network storage ({source.description}) and the machine is off"
    return None
