"""What the catalog keeps and the services pass around: plain frozen values.

The rule: no SQL object, no libvirt object and no bare dict crosses a module's edge; these do. Ids are 32 hex digits,
moments are aware and in UTC, sizes are in bytes. `appliance` is the id of the one that a record is of; "" in one that
is not in the catalog yet: whoever adds it.
"""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

from appliance.hypervisor.protocol import HostConfig

__all__ = [
    "ApplianceRecord",
    "CleanupAction",
    "CleanupRecord",
    "ExportKind",
    "ExportRecord",
    "HostConfig",
    "HostRecord",
    "MachineDisk",
    "MachineRecord",
    "MigrationMethod",
    "OwedThaw",
    "PointDisk",
    "PointRecord",
    "PointTime",
    "ReadKind",
    "RecoveryDisk",
    "RecoveryRecord",
    "RecoveryState",
    "RepositoryRecord",
    "RunArguments",
    "RunDisk",
    "RunDue",
    "RunKind",
    "RunRecord",
    "RunState",
    "machine_key",
    "new_id",
]

_KEY_CHARACTERS_MAX = 500


def new_id() -> str:
    """A random id, in the form that restore points have too."""
    return secrets.token_hex(16)


def machine_key(kind: str, uuid: str | None, name: str) -> str:
    """What tells a machine or image from all others, as `policy.selectors.Machine.key` has it; of a name that is longer
    than any index takes, its beginning and its hash."""
    id = uuid or name
    if len(id) > _KEY_CHARACTERS_MAX:
        id = f"{id[:_KEY_CHARACTERS_MAX]}…{hashlib.sha256(id.encode(errors='backslashreplace')).hexdigest()}"
    return f"{kind}:{id}"


@dataclass(frozen=True, slots=True)
class ApplianceRecord:
    """An appliance of the catalog: who it is in leases and holds, and where it was last seen."""

    id: str
    created_utc: datetime
    name: str = ""  # of its machine
    home: str = ""
    place: str = ""  # tells a copy of the home from the home
    seen_utc: datetime | None = None  # by its own clock


@dataclass(frozen=True, slots=True)
class RepositoryRecord:
    id: str
    location: str
    attached_utc: datetime


@dataclass(frozen=True, slots=True)
class HostRecord:
    config: HostConfig
    added_utc: datetime
    appliance: str = ""

    @property
    def name(self) -> str:
        return self.config.name


class ReadKind(StrEnum):
    """What a run read of a machine or a disk."""

    FULL = "full"
    INCREMENTAL = "incremental"
    SKIPPED = "skipped"


@dataclass(frozen=True, slots=True)
class MachineDisk:
    """A disk as the newest restore point has it: what the next run compares with to trust a checkpoint."""

    name: str
    source: str
    serial: str | None
    size_bytes: int
    checkpoint: str | None  # the checkpoint or bitmap that recorded since the point; None: the next read is full


@dataclass(frozen=True, slots=True)
class MachineRecord:
    """A protected machine or image: one series of restore points."""

    series: str
    kind: str  # "vm", "image"
    name: str
    uuid: str | None
    host: str | None
    last_point: str | None
    last_point_utc: datetime | None
    disks: tuple[MachineDisk, ...] = ()


@dataclass(frozen=True, slots=True)
class PointDisk:
    name: str
    size_bytes: int
    format: str
    read: ReadKind
    reason: str | None  # why it was read in full although an incremental was asked


@dataclass(frozen=True, slots=True)
class PointRecord:
    """The catalog's copy of what lists need of a manifest; the repository has the truth."""

    id: str
    manifest_name: str
    manifest_hash: str
    series: str
    generation: int
    machine_kind: str
    name: str
    uuid: str | None
    host: str | None
    created_utc: datetime
    kind: ReadKind
    consistency: str
    size_bytes: int
    read_bytes: int
    stored_bytes: int
    duration_ms: int
    checkpoint: str | None
    disks: tuple[PointDisk, ...]
    skipped: tuple[str, ...] = ()  # "vdb: a CD-ROM", one text per disk that the point does not have
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class PointTime:
    """Which point it is, and when it was made."""

    id: str
    generation: int
    created_utc: datetime


class RunKind(StrEnum):
    """What a run does. What of these may run at the same time, `catalog.queue` knows."""

    BACKUP = "backup"
    RESTORE = "restore"
    VERIFY = "verify"
    COLLECT = "collect"
    COPY = "copy"
    PRUNE = "prune"


class RunState(StrEnum):
    QUEUED = "queued"  # waits for a worker of its appliance, for the first time or to be tried again
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    PARTIAL = "partial"  # it was done (a point was made), but some disk is not in it or something needs an admin's eyes
    FAILED = "failed"
    INTERRUPTED = "interrupted"  # its process died; the next start cleaned up after it
    CANCELLED = "cancelled"  # by an admin, before it began or while it ran

    @property
    def ended(self) -> bool:
        return self not in (RunState.QUEUED, RunState.RUNNING)


@dataclass(frozen=True, slots=True)
class RunDisk:
    name: str
    read: ReadKind
    reason: str | None = None
    read_bytes: int = 0
    stored_bytes: int = 0


@dataclass(frozen=True, slots=True)
class RunArguments:
    """What a run that is no backup was asked to do: of its kind's fields, those that were given."""

    point: str | None = None  # restore
    disk: str | None = None
    target: str | None = None  # the file that this disk goes to; None: the whole machine, to the run's host
    image_format: str | None = None
    new_name: str | None = None
    storage: str | None = None
    force: bool = False
    read_data: bool = False  # verify
    every_days: int | None = None
    hashes_only: bool = False
    home: str | None = None  # copy: whose repository it goes to
    names: tuple[str, ...] = ()  # of the machines; none: all


@dataclass(frozen=True, slots=True)
class RunDue:
    """Why a policy wanted a run: `due_utc` is the newest due time that the run answers, `cause` says whether it stands
    for several ("catch-up") or for that one ("schedule")."""

    policy: str
    due_utc: datetime
    cause: str


@dataclass(frozen=True, slots=True)
class RunRecord:
    """A backup: one that was begun at once, or one from the queue, with what was asked and every attempt at it; or
    another kind of work, from the queue. Its process holds the lock `run/run-ID.lock` of the home while it lives."""

    id: str
    name: str  # of the machine or image; of the repository, if all of it is meant
    machine_kind: str  # "vm", "image", "repository"
    uuid: str | None
    host: str | None
    state: RunState
    started_utc: datetime  # of the last attempt; when it was asked for, as long as there was none
    ended_utc: datetime | None = None
    point: str | None = None
    error: str | None = None
    disks: tuple[RunDisk, ...] = ()
    notes: tuple[str, ...] = ()
    dismissed_utc: datetime | None = None  # when an admin said that it needs no eye any more
    appliance: str = ""
    asked_utc: datetime | None = None  # when it was queued; None: it was begun at once
    full_read: bool = False  # was asked for
    limit_bytes_s: int | None = None
    image_path: str | None = None
    image_format: str | None = None
    attempts: int = 0  # that were begun, of one from the queue; not those that found another run at work, or made way
    not_before_utc: datetime | None = None  # of one that is queued again
    cancel_requested_utc: datetime | None = None  # its process looks at this
    kind: RunKind = RunKind.BACKUP
    arguments: RunArguments | None = None
    result: str | None = None  # a sentence, of one that is no backup
    due: tuple[RunDue, ...] = ()  # the policies that wanted it; none: a person did
    quiesce: bool = True  # file systems are frozen meanwhile, where a guest agent can

    @property
    def from_queue(self) -> bool:
        return self.asked_utc is not None

    @property
    def machine(self) -> str:
        """What tells its history from others'."""
        key = machine_key(self.machine_kind, self.uuid, self.name)
        return key if self.kind is RunKind.BACKUP else f"{self.kind}:{key}"


# What says how a machine fares: not what only waits, or was called off.
TELLING = frozenset(RunState) - {RunState.QUEUED, RunState.CANCELLED}


class RecoveryState(StrEnum):
    SERVING = "serving"  # exports and domain are being made: nothing is promised yet
    RUNNING = "running"  # the machine runs on its overlays
    MIGRATING = "migrating"
    MIGRATED = "migrated"  # it needs no export any more: an end state
    DISCARDING = "discarding"  # decided, and carried on by whoever finds it so
    DISCARDED = "discarded"  # an end state
    FAILED = "failed"  # waits for an admin: resume or discard

    @property
    def ended(self) -> bool:
        return self in (RecoveryState.MIGRATED, RecoveryState.DISCARDED)

    def may_become(self, other: RecoveryState) -> bool:
        return other is self or other in _NEXT[self]


_NEXT: dict[RecoveryState, frozenset[RecoveryState]] = {
    RecoveryState.SERVING: frozenset({RecoveryState.RUNNING, RecoveryState.FAILED, RecoveryState.DISCARDING}),
    RecoveryState.RUNNING: frozenset({RecoveryState.MIGRATING, RecoveryState.FAILED, RecoveryState.DISCARDING}),
    RecoveryState.MIGRATING: frozenset(
        {RecoveryState.RUNNING, RecoveryState.MIGRATED, RecoveryState.FAILED, RecoveryState.DISCARDING}
    ),
    RecoveryState.MIGRATED: frozenset(),
    RecoveryState.DISCARDING: frozenset({RecoveryState.DISCARDED}),
    RecoveryState.DISCARDED: frozenset(),
    RecoveryState.FAILED: frozenset(
        {RecoveryState.SERVING, RecoveryState.RUNNING, RecoveryState.MIGRATING, RecoveryState.DISCARDING}
    ),
}


class MigrationMethod(StrEnum):
    PULL = "pull"
    COPY = "copy"


@dataclass(frozen=True, slots=True)
class RecoveryDisk:
    target: str
    size_bytes: int
    socket: str  # of the export, on this machine
    host_socket: str  # the same as QEMU sees it on the host
    overlay: str  # on the host
    destination: str | None = None  # where a copying migration puts it
    destination_format: str | None = None
    migrated: bool = False
    pulled_in: int | None = None  # in which run of its QEMU a pull was begun last (`StateInfo.run`)
    flushing: bool = False  # the machine is paused by us for a moment, or may be, and is to be resumed


@dataclass(frozen=True, slots=True)
class RecoveryRecord:
    """An instant recovery, with all that is needed to take it up again after any process died."""

    id: str
    state: RecoveryState
    point: str
    manifest_name: str
    source_name: str  # the machine that was protected
    host: str
    machine_name: str  # the machine that runs now
    machine_uuid: str
    network: str  # "none", "keep" or a network's name
    started_utc: datetime
    updated_utc: datetime
    hold: str | None = None  # on the point, in the repository
    disks: tuple[RecoveryDisk, ...] = ()
    definition_xml: str = ""  # what runs: overlays, error policies `stop`
    final_xml: str = ""  # as it was backed up: after a migration its disk settings hold again
    folder: str = ""  # on the host, holds overlays; removed in the end
    method: MigrationMethod | None = None
    start_ms: int | None = None  # from the request to the domain started
    error: str | None = None
    notes: tuple[str, ...] = field(default=())
    appliance: str = ""


class ExportKind(StrEnum):
    EXPORT = "export"
    MOUNT = "mount"


@dataclass(frozen=True, slots=True)
class ExportRecord:
    """A served or mounted point. Its process holds the lock `run/export-ID.lock` of the home while it lives."""

    id: str
    kind: ExportKind
    point: str
    manifest_name: str
    name: str  # the protected machine's
    disks: tuple[str, ...]
    started_utc: datetime
    hold: str | None = None
    address: str = ""  # an NBD URI, or the folder of a mount
    sockets: tuple[str, ...] = ()
    appliance: str = ""


@dataclass(frozen=True, slots=True)
class OwedThaw:
    """A freeze that may have happened, or still may, and was not confirmed to be over."""

    machine_uuid: str
    host: str
    name: str
    since_utc: datetime
    attempts: int = 0
    last_error: str | None = None
    appliance: str = ""


class CleanupAction(StrEnum):
    END_BACKUP_JOB = "end backup job"  # paths: the socket, then the scratch files
    DELETE_CHECKPOINT = "delete checkpoint"  # subject: its name; disks and paths: where its bitmaps are
    REMOVE_BITMAP = "remove bitmap"  # subject: its name; paths: the image files of a machine that was off
    REMOVE_FILES = "remove files"  # paths: files on the host, then their folders
    UNDEFINE_MACHINE = "undefine machine"  # subject: its uuid
    RELEASE_HOLD = "release hold"  # subject: its id


@dataclass(frozen=True, slots=True)
class CleanupRecord:
    """What must be undone if its owner dies, written before it is done; dropped once undone or no longer wanted."""

    id: str
    owner: str  # "run-ID", "recovery-ID", "export-ID": the name of its lock
    action: CleanupAction
    created_utc: datetime
    host: str | None = None
    machine_uuid: str | None = None
    machine_name: str | None = None
    subject: str = ""
    paths: tuple[str, ...] = ()
    disks: tuple[str, ...] = ()
    attempts: int = 0
    last_error: str | None = None
    appliance: str = ""
