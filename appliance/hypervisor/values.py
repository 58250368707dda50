"""What callers and hypervisors tell each other: frozen values, nothing that acts.

The rule: machines are named by UUID, disks by target ("vda"), paths are paths on the hypervisor's host, and every
number says its unit. Import them from `protocol`, which is the one door to this package.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Transport(StrEnum):
    LOCAL = "local"
    SSH = "ssh"
    TEST = "test"  # libvirt's own mock driver: inventory and life cycle without a hypervisor


class Accelerator(StrEnum):
    """How guests run. AUTO takes KVM where the host offers it; an admin states TCG where KVM is there but broken."""

    AUTO = "auto"
    KVM = "kvm"
    TCG = "tcg"


@dataclass(frozen=True, slots=True)
class HostConfig:
    """How to reach a host, in checked fields (`uri.check_host`); never a URI that somebody typed."""

    name: str
    transport: Transport = Transport.LOCAL
    hostname: str = ""  # ssh only
    user: str = ""
    port: int = 22
    keyfile: str = ""
    known_hosts: str = ""
    socket: str = ""  # libvirtd's socket on the host, where it is not the usual one
    session: bool = False  # the per-user instance instead of the system's
    accelerator: Accelerator = Accelerator.AUTO
    timeout_s: float = 10.0


@dataclass(frozen=True, slots=True)
class HostFacts:
    hostname: str
    libvirt_version: str
    hypervisor: str  # "QEMU"
    hypervisor_version: str
    architecture: str
    kvm: bool  # the host offers KVM guests; that they work is not promised
    tcg: bool
    accelerator: Accelerator  # what a machine started now would use: KVM or TCG, never AUTO


class MachineState(StrEnum):
    RUNNING = "running"
    PAUSED = "paused"
    OFF = "off"


class DiskDevice(StrEnum):
    DISK = "disk"
    CDROM = "cdrom"
    FLOPPY = "floppy"
    LUN = "lun"


class SourceKind(StrEnum):
    FILE = "file"
    BLOCK = "block"
    NETWORK = "network"
    VOLUME = "volume"
    OTHER = "other"  # dir, nvme, vhostuser …
    NONE = "none"  # an empty drive


@dataclass(frozen=True, slots=True)
class DiskSource:
    kind: SourceKind
    path: str | None  # the file or block device on the host; a volume's is looked up
    description: str  # identity for people and comparisons: "/path", "pool/volume", "nbd:unix:/path", "rbd:pool/image"


@dataclass(frozen=True, slots=True)
class DiskInfo:
    target: str
    device: DiskDevice
    source: DiskSource
    format: str  # the driver's type; "raw" where the definition says nothing, as libvirt has it
    serial: str | None
    size_bytes: int | None  # what the guest sees; None where it cannot be learned
    readonly: bool
    shareable: bool
    transient: bool
    can_hold_bitmap: bool  # qcow2 version 3, writable: a checkpoint can live in it
    skip_reason: str | None  # why it cannot be backed up at all; None: it can
    backing: tuple[str, ...]  # descriptions of the backing chain below the source, nearest first


@dataclass(frozen=True, slots=True)
class MachineInfo:
    uuid: str
    name: str
    state: MachineState
    state_reason: str  # "io error", "user", "" …
    persistent: bool
    autostart: bool
    domain_type: str  # "kvm", "qemu", "test"
    memory_bytes: int
    vcpus: int
    disks: tuple[DiskInfo, ...]
    nvram_path: str | None
    tpm_state_folder: str | None
    agent_channel: bool
    agent_connected: bool
    live_xml: str | None  # None when off
    inactive_xml: str  # what the next start would use; of a transient machine, the live one in inactive form
    memory_files: tuple[str, ...] = ()  # of persistent memory (NVDIMM, virtio-pmem): no backup reads them
    tags: frozenset[str] = frozenset()  # of its metadata, the live and the inactive one's
    unreadable: str | None = None  # why nothing but its name, UUID and state is known

    @property
    def running(self) -> bool:
        """Whether a hypervisor process holds the disks (paused included)."""
        return self.state is not MachineState.OFF

    def disk(self, target: str) -> DiskInfo | None:
        return next((disk for disk in self.disks if disk.target == target), None)


@dataclass(frozen=True, slots=True)
class StateInfo:
    state: MachineState
    reason: str
    io_error: bool  # paused because a disk (or a backup's scratch) failed or is full
    shut_down: bool = False  # off because its guest shut it down, not because it was killed or its host went away
    run: int | None = None  # which run of a QEMU this is, as the host counts since its boot; None: off
    crashed: bool = False  # off because its QEMU died; so is one whose guest crashed, if it is to be off then


@dataclass(frozen=True, slots=True)
class Attached:
    """What libvirt keeps beside a definition, and forgets with it."""

    snapshots: tuple[str, ...]
    saved_state: bool  # memory of a machine that was saved to be started again (managed save)


@dataclass(frozen=True, slots=True)
class DiskError:
    target: str
    no_space: bool  # else: an I/O error


@dataclass(frozen=True, slots=True)
class Screenshot:
    mime_type: str
    data: bytes


@dataclass(frozen=True, slots=True)
class CheckpointInfo:
    name: str
    disks: tuple[str, ...]  # targets with a bitmap
    ours: bool  # it carries our mark; one that was made before there was a mark does not


@dataclass(frozen=True, slots=True)
class BitmapInfo:
    """A persistent bitmap as the qcow2 file tells. Of a running machine, `in_use` says nothing (QEMU has it open)."""

    disk: str  # target, or the path where a file was asked
    name: str
    granularity_bytes: int
    recording: bool
    in_use: bool  # powered off: left behind by a killed QEMU, its content worthless


@dataclass(frozen=True, slots=True)
class DiskBackup:
    target: str
    scratch: str  # file that will hold what the guest overwrites during the run; made by libvirt
    incremental_from: str | None = None  # a checkpoint's name, redefined before; None: full


@dataclass(frozen=True, slots=True)
class BackupRequest:
    machine: str
    checkpoint: str  # name of the new one: a UUID
    socket: str  # made by QEMU, in a folder that its user may write (`files.prepare_folder`)
    disks: tuple[DiskBackup, ...]


@dataclass(frozen=True, slots=True)
class BackupExport:
    target: str
    export: str  # NBD export name
    dirty_context: str | None  # NBD metadata context of what changed; None: a full read
    checkpointed: bool  # the new checkpoint records on this disk, so the next run may be incremental
    scratch: str


@dataclass(frozen=True, slots=True)
class BackupJob:
    machine: str
    checkpoint: str | None  # None when no disk can hold a bitmap
    socket: str
    exports: tuple[BackupExport, ...]


@dataclass(frozen=True, slots=True)
class RunningBackup:
    """A backup job that was found, ours or not: the paths tell."""

    socket: str | None  # None: a push job, or one over TCP
    scratches: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class BackupUsage:
    scratch_used_bytes: int
    scratch_total_bytes: int


class FreezeOutcome(StrEnum):
    FROZEN = "frozen"
    NO_AGENT = "no agent"
    TIMED_OUT = "timed out"
    REFUSED = "refused"  # the agent said no (a file system busy, frozen already, the command disabled)


@dataclass(frozen=True, slots=True)
class FreezeResult:
    outcome: FreezeOutcome
    detail: str  # the agent's or libvirt's words, "" when frozen
    filesystems: int = 0

    @property
    def thaw_owed(self) -> bool:
        """A freeze that timed out may still happen later; one that was refused may have been frozen half."""
        return self.outcome is not FreezeOutcome.NO_AGENT


class ThawOutcome(StrEnum):
    THAWED = "thawed"  # the agent confirmed
    MOOT = "moot"  # the machine is off: a freeze does not outlive that
    NOT_CONFIRMED = "not confirmed"  # still owed


@dataclass(frozen=True, slots=True)
class ThawResult:
    outcome: ThawOutcome
    detail: str

    @property
    def confirmed(self) -> bool:
        return self.outcome is not ThawOutcome.NOT_CONFIRMED


class BlockJobKind(StrEnum):
    PULL = "pull"
    COPY = "copy"
    COMMIT = "commit"
    BACKUP = "backup"
    OTHER = "other"


@dataclass(frozen=True, slots=True)
class BlockJob:
    kind: BlockJobKind
    current_bytes: int
    end_bytes: int
    bandwidth_bytes_s: int  # 0: unlimited
    ready: bool = (
        False  # of a copy: all is there and new writes are mirrored, so it can pivot (also while they come in)
    )


@dataclass(frozen=True, slots=True)
class CopyTarget:
    """Where a block copy goes. A file is made by libvirt unless `reuse`; a block device always is reused."""

    path: str
    format: str  # "qcow2", "raw"
    block_device: bool = False
    reuse: bool = False


@dataclass(frozen=True, slots=True)
class QemuIdentity:
    """Who QEMU runs as, and so who must be able to reach sockets, overlays and scratch."""

    uid: int
    gid: int


@dataclass(frozen=True, slots=True)
class PoolInfo:
    name: str
    kind: str  # "dir", "logical" …
    path: str | None
    active: bool
    available_bytes: int
