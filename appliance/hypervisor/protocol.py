"""What the appliance asks of a hypervisor: values and protocols, nothing that acts.

The rule: everything above this package is written against this module only, so that any part can be replaced by a
fake that fails where a test wants it. Machines are named by UUID (what `MachineInfo.uuid` holds; a name works too),
disks by target ("vda"). Paths and sockets are paths *on the hypervisor's host*; `Hypervisor.files` makes them local.
Every method may raise `HostUnreachable` (retryable), `MachineNotFound` and plain `HypervisorError`;
docstrings name the rest.

A backup of a running machine, in short:

    with connect(host) as hv:
        machine = hv.machines.get("web-1")
        request = BackupRequest(machine.uuid, checkpoint=new_uuid, socket=..., disks=(DiskBackup("vda", scratch=...),))
        freeze = hv.agents.freeze(machine.uuid, timeout_s=10)
        try:
            job = hv.backups.begin(request)
        finally:
            if freeze.thaw_owed: ... hv.agents.thaw(machine.uuid, timeout_s=5) until it is `confirmed` ...
        with ScratchWatch(hv, job, limit_bytes) as watch, hv.files.carry(job.socket) as local_socket:
            ... read NBD export by export from local_socket; watch.check() now and then ...
        hv.backups.end(machine.uuid, job.socket)
"""

from __future__ import annotations

import socket
from collections.abc import Collection, Iterable
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from appliance.hypervisor.values import (
    Accelerator,
    Attached,
    BackupExport,
    BackupJob,
    BackupRequest,
    BackupUsage,
    BitmapInfo,
    BlockJob,
    BlockJobKind,
    CheckpointInfo,
    CopyTarget,
    DiskBackup,
    DiskDevice,
    DiskError,
    DiskInfo,
    DiskSource,
    FreezeOutcome,
    FreezeResult,
    HostConfig,
    HostFacts,
    MachineInfo,
    MachineState,
    PoolInfo,
    QemuIdentity,
    RunningBackup,
    Screenshot,
    SourceKind,
    StateInfo,
    ThawOutcome,
    ThawResult,
    Transport,
)

__all__ = [
    "Accelerator",
    "Agents",
    "Attached",
    "BackupExport",
    "BackupJob",
    "BackupRequest",
    "BackupUsage",
    "Backups",
    "BitmapInfo",
    "BlockJob",
    "BlockJobKind",
    "BlockJobs",
    "CheckpointInfo",
    "Checkpoints",
    "CopyTarget",
    "DiskBackup",
    "DiskDevice",
    "DiskError",
    "DiskInfo",
    "DiskSource",
    "FreezeOutcome",
    "FreezeResult",
    "HostConfig",
    "HostFacts",
    "HostFiles",
    "Hypervisor",
    "MachineInfo",
    "MachineState",
    "Machines",
    "OfflineBitmaps",
    "Overlays",
    "PoolInfo",
    "QemuIdentity",
    "RunningBackup",
    "Screenshot",
    "SourceKind",
    "StateInfo",
    "Storage",
    "ThawOutcome",
    "ThawResult",
    "Transport",
]


class Machines(Protocol):
    """Inventory and life cycle."""

    def list(self) -> tuple[MachineInfo, ...]: ...

    def get(self, machine: str) -> MachineInfo:
        """By UUID, else by name."""

    def exists(self, machine: str) -> bool: ...

    def state(self, machine: str) -> StateInfo: ...

    def define(self, xml: str) -> str:
        """Make it persistent (or redefine the one with this UUID); returns the UUID."""

    def undefine(self, machine: str, *, keep_nvram: bool = False) -> None:
        """With metadata of checkpoints and snapshots, managed save and, unless kept, NVRAM and TPM. Not there: fine.

        The disks stay.
        """

    def attached(self, machine: str) -> Attached:
        """What `undefine` takes along that is not known anywhere else."""

    def start(self, machine: str, *, paused: bool = False) -> None: ...

    def resume(self, machine: str) -> None: ...

    def suspend(self, machine: str) -> None: ...

    def shutdown(self, machine: str) -> None:
        """Ask the guest; returns at once."""

    def destroy(self, machine: str) -> None:
        """Switch off hard. Off already: fine."""

    def set_autostart(self, machine: str, autostart: bool) -> None: ...

    def disk_errors(self, machine: str) -> tuple[DiskError, ...]:
        """As QEMU remembers them: one that was healed stays until the machine restarts. `state().io_error` is now."""

    def screenshot(self, machine: str) -> Screenshot: ...

    def open_screen(self, machine: str) -> socket.socket:
        """A connected stream on which QEMU speaks RFB (VNC), past any password; the caller closes it.

        MachineInState (off), ScreenUnavailable (it has none, or its host is not this machine).
        """


class Checkpoints(Protocol):
    def list(self, machine: str) -> tuple[CheckpointInfo, ...]: ...

    def redefine(self, machine: str, name: str, disks: Iterable[str]) -> None:
        """Make libvirt know the checkpoint whose bitmaps are on these disks, and check them.

        BitmapUntrusted: missing, inconsistent, or the disk is not what it was. Ask disk by disk to learn which. A
        name known already is checked too. Off: the bitmap is checked in the file, by qemu-img.
        """

    def delete(self, machine: str, name: str, disks: Iterable[str] = ()) -> None:
        """Checkpoint and bitmaps, running or off; works on inconsistent ones. Not there: fine.

        `disks`: where to look for the bitmap when libvirt no longer knows the checkpoint.
        """

    def bitmaps(self, machine: str) -> tuple[BitmapInfo, ...]:
        """Persistent bitmaps in the machine's local qcow2 files, known as checkpoints or leaked."""

    def forget(self, machine: str, names: Collection[str] = (), *, others: bool = False) -> tuple[str, ...]:
        """Delete our checkpoints and bitmaps, so that internal snapshots can be reverted again; returns the names.

        Ours are checkpoints with our mark, and whatever has one of these `names`: a bitmap that libvirt has no
        checkpoint for tells nothing but its name. With `others`, every checkpoint, and every bitmap named by a UUID:
        the tools that made them then read everything too.
        """


class OfflineBitmaps(Protocol):
    """Checkpoints of a machine that is off: bitmaps in its qcow2 files, by qemu-img."""

    def list(self, path: str) -> tuple[BitmapInfo, ...]: ...

    def add(self, path: str, name: str) -> None: ...

    def remove(self, path: str, name: str) -> None:
        """Not there: fine."""

    def check(self, path: str, name: str, disk: str = "") -> None:
        """BitmapUntrusted unless the bitmap is there, recording and consistent."""


class Backups(Protocol):
    def begin(self, request: BackupRequest) -> BackupJob:
        """One consistent point of all disks named, and a new checkpoint on those that can hold one.

        Raises BackupBusy (before anything is touched), BitmapUntrusted (which disk, to retry that one in full),
        MachineInState (off), BackupRefused. Makes scratch folders ready and removes stale scratch files before.
        """

    def current(self, machine: str) -> RunningBackup | None: ...

    def usage(self, machine: str) -> BackupUsage:
        """BackupJobLost when there is no job."""

    def end(self, machine: str, socket: str, scratches: Iterable[str] = ()) -> bool:
        """End the job that owns this socket, then resume a guest that its full scratch paused, and remove what is left.

        Safe at any time and again: no job, another's job (left alone), machine off or gone. True when the guest had
        to be resumed. The new checkpoint stays: delete it by its name when the run failed. Gives `scratches` for
        files of a run whose job is gone. Waits for a restarting libvirtd, up to the host's time-out.
        """


class Agents(Protocol):
    def freeze(self, machine: str, timeout_s: int) -> FreezeResult:
        """Never raises for what an agent does or fails to do."""

    def thaw(self, machine: str, timeout_s: int) -> ThawResult: ...


class BlockJobs(Protocol):
    def pull(self, machine: str, target: str, bandwidth_bytes_s: int = 0) -> None:
        """Copy the whole backing chain into the disk's top file."""

    def copy(self, machine: str, target: str, destination: CopyTarget, bandwidth_bytes_s: int = 0) -> None:
        """Mirror the disk to another place, until `pivot` or `abort`."""

    def pivot(self, machine: str, target: str) -> None: ...

    def abort(self, machine: str, target: str) -> None:
        """No job: fine."""

    def info(self, machine: str, target: str) -> BlockJob | None: ...

    def set_bandwidth(self, machine: str, target: str, bandwidth_bytes_s: int) -> None: ...

    def depends_on(self, machine: str, target: str, socket: str | None = None) -> bool:
        """Whether the disk's chain, live or for the next start, still has an NBD server in it (this one, if given)."""


class Overlays(Protocol):
    """Files that a recovered machine writes to, above an export."""

    def create(self, path: str, socket: str, size_bytes: int) -> None:
        """A qcow2 of this size whose backing is the NBD server at `socket`, which need not answer yet."""

    def put_below(self, path: str, socket: str) -> None:
        """Make the NBD server its backing again; what it holds itself still counts. No QEMU may have it open."""

    def sync(self, path: str) -> None:
        """What QEMU has written to it reaches the medium; what QEMU still has in its own memory does not."""


class Storage(Protocol):
    def pools(self) -> tuple[PoolInfo, ...]: ...

    def pool(self, name: str) -> PoolInfo:
        """StorageNotFound."""

    def volume_path(self, pool: str, volume: str) -> str: ...

    def create_volume(self, pool: str, volume: str, size_bytes: int, format: str) -> str:
        """Returns its path. Refused when it exists."""

    def delete_volume(self, pool: str, volume: str) -> None: ...


class HostFiles(Protocol):
    """Files and sockets of the hypervisor's host, seen from here."""

    @property
    def local(self) -> bool:
        """Whether paths on the host are paths here."""

    def qemu(self) -> QemuIdentity: ...

    def prepare_folder(self, path: str) -> None:
        """Make it, QEMU's own, and see that QEMU's user gets there: HostFileError says which parent bars the way."""

    def give_to_qemu(self, path: str) -> None: ...

    def head(self, path: str, length_bytes: int) -> bytes:
        """The first bytes of a file or block device."""

    def free_bytes(self, path: str) -> int | None:
        """Room left where this folder is; None where it cannot be known."""

    def read(self, path: str, limit_bytes: int) -> bytes:
        """A small file (NVRAM); HostFileError when it is larger than the limit."""

    def write(self, path: str, data: bytes) -> None:
        """A small file, whole or not at all, QEMU's own, mode 0600."""

    def read_folder(self, path: str, limit_bytes: int) -> tuple[tuple[str, bytes], ...]:
        """Every regular file below (TPM state), as relative names and contents; no link is followed."""

    def remove(self, path: str) -> None:
        """A file, with what a killed write of it left, or an empty folder. Not there: fine."""

    def remove_folder(self, path: str) -> None:
        """A folder of ours and the files in it; a folder inside it is an error. Not there: fine."""

    def exists(self, path: str) -> bool: ...

    def carry(self, socket: str) -> AbstractContextManager[Path]:
        """A socket of the host as a local one, for as long as the context lasts."""

    def offer(self, local_socket: Path, socket: str) -> AbstractContextManager[str]:
        """A local socket as one of the host, connectable by QEMU; yields the path to put into the definition."""


class Hypervisor(Protocol):
    """A connected host. Owns its connection (and, remote, its SSH master); opens it again after libvirtd restarted."""

    @property
    def host(self) -> HostConfig: ...
    @property
    def machines(self) -> Machines: ...
    @property
    def checkpoints(self) -> Checkpoints: ...
    @property
    def bitmaps(self) -> OfflineBitmaps: ...
    @property
    def backups(self) -> Backups: ...
    @property
    def agents(self) -> Agents: ...
    @property
    def block_jobs(self) -> BlockJobs: ...
    @property
    def overlays(self) -> Overlays: ...
    @property
    def storage(self) -> Storage: ...
    @property
    def files(self) -> HostFiles: ...

    def facts(self) -> HostFacts: ...

    def close(self) -> None: ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...
