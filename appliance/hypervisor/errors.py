"""What can go wrong between the appliance and a hypervisor.

The rule: libvirt's codes never leave this package; each is translated into one of these, with the facts that a caller
decides by. `retryable` means: the same call may succeed later with nothing changed by a person.
"""

from __future__ import annotations

from typing import ClassVar

from appliance.errors import StrongroomError


class HypervisorError(StrongroomError):
    """A hypervisor refused or failed; the sentence ends with its own words."""


class HostFieldRefused(HypervisorError):
    """A field of a host's configuration is not what it may be, so that no URI was built from it."""

    exit_code: ClassVar[int] = 2

    def __init__(self, field: str, value: str, rule: str) -> None:
        super().__init__(
            f"host {field} {value[:80]!r} is refused: {rule}",
            hint=f"Give {field} in the form that the sentence tells.",
            field=field,
            value=value[:80],
        )
        self.field = field


class HostUnreachable(HypervisorError):
    """The host does not answer, or the connection broke."""

    retryable: ClassVar[bool] = True

    def __init__(self, host: str, reason: str) -> None:
        super().__init__(
            f"host {host} does not answer: {reason}",
            hint=f"Check that libvirtd runs there and is reachable, then try: strongroom host test {host}",
            host=host,
            reason=reason,
        )
        self.host = host


class MachineNotFound(HypervisorError):
    def __init__(self, host: str, machine: str) -> None:
        super().__init__(
            f"host {host} has no virtual machine {machine!r}",
            hint=f"strongroom vm list --host {host} shows those it has.",
            host=host,
            machine=machine,
        )


class MachineInState(HypervisorError):
    """The machine is not in the state that the operation needs."""

    def __init__(self, machine: str, operation: str, detail: str) -> None:
        super().__init__(
            f"virtual machine {machine}: {operation} is not possible now: {detail}",
            hint="Bring the machine into the state named, then try again.",
            machine=machine,
            operation=operation,
        )


class MachineBusy(HypervisorError):
    """Another job (block job, migration, save) holds the machine."""

    retryable: ClassVar[bool] = True

    def __init__(self, machine: str, doing: str) -> None:
        super().__init__(
            f"virtual machine {machine} is busy: {doing}",
            hint="Wait until that is over, or end it, then try again.",
            machine=machine,
            doing=doing,
        )


class ScreenUnavailable(HypervisorError):
    def __init__(self, machine: str, reason: str) -> None:
        super().__init__(
            f"virtual machine {machine} has no screen that can be shown here: {reason}",
            hint="Look at it with the tools of its host, such as 'virsh console'.",
            machine=machine,
        )


class BackupBusy(MachineBusy):
    """A backup job runs already. `socket` says whose: the one who started it chose the path. None: not a backup."""

    def __init__(self, machine: str, doing: str, socket: str | None = None) -> None:
        super().__init__(machine, doing)
        self.facts["socket"] = socket
        self.socket = socket


class BackupRefused(HypervisorError):
    """The hypervisor did not begin the backup, for a reason that is not one disk's bitmap."""

    def __init__(self, machine: str, reason: str, hint: str = "") -> None:
        super().__init__(
            f"backup of {machine} was not begun: {reason}", hint=hint or "The machine is unchanged.", machine=machine
        )


class BitmapUntrusted(HypervisorError):
    """What changed on this disk since the checkpoint cannot be known: read it in full.

    `disk` is "" when the hypervisor did not say which one of those asked about.
    """

    def __init__(self, disk: str, checkpoint: str, reason: str) -> None:
        super().__init__(
            f"the changes of disk {disk or '(not told which)'} since checkpoint {checkpoint} are not known: {reason}",
            hint="The disk is to be read in full once; what is known already is not stored again.",
            disk=disk,
            checkpoint=checkpoint,
            reason=reason,
        )
        self.disk = disk
        self.checkpoint = checkpoint
        self.reason = reason


class BackupJobLost(HypervisorError):
    """The backup job is gone although nobody ended it here (the machine was switched off, or it was aborted)."""

    retryable: ClassVar[bool] = True

    def __init__(self, machine: str, reason: str) -> None:
        super().__init__(
            f"the backup job of {machine} is gone: {reason}", hint="Run the backup again.", machine=machine
        )


class ScratchFull(HypervisorError):
    """The guest overwrote more than the scratch may hold, so the run was ended before the guest could be paused."""

    def __init__(self, machine: str, used_bytes: int, limit_bytes: int, folder: str, paused: bool = False) -> None:
        happened = "the guest was paused by it and has been resumed" if paused else "the guest was not disturbed"
        super().__init__(
            f"backup of {machine} was ended: its scratch in {folder} reached {used_bytes} of {limit_bytes} bytes"
            f" ({happened})",
            hint="Give the scratch folder more room or a higher limit, or back up when the guest writes less.",
            machine=machine,
            used_bytes=used_bytes,
            limit_bytes=limit_bytes,
            folder=folder,
        )


class AgentUnavailable(HypervisorError):
    """The guest agent is not there, or does not answer."""

    retryable: ClassVar[bool] = True

    def __init__(self, machine: str, reason: str) -> None:
        super().__init__(
            f"the guest agent of {machine} does not answer: {reason}",
            hint="Check that qemu-guest-agent runs in the guest.",
            machine=machine,
        )


class StorageNotFound(HypervisorError):
    def __init__(self, host: str, what: str) -> None:
        super().__init__(
            f"host {host} has no {what}",
            hint="virsh pool-list --all and vol-list POOL show what there is.",
            host=host,
            what=what,
        )


class HostFileError(HypervisorError):
    """A file or folder on the hypervisor's host cannot be used as asked."""

    def __init__(self, path: str, reason: str, hint: str = "") -> None:
        super().__init__(f"{path} on the host: {reason}", hint=hint or "Choose another folder.", path=path)


class ImageToolFailed(HypervisorError):
    """qemu-img said no, took too long, or needed more than it may."""

    def __init__(self, tool: str, path: str, reason: str) -> None:
        super().__init__(
            f"{tool} failed on {path}: {reason}",
            hint="Check that the file is there, is of the format stated, and is not in use.",
            tool=tool,
            path=path,
        )


class DomainXmlInvalid(HypervisorError):
    """A machine's definition does not parse, or lacks what a definition must have."""

    def __init__(self, reason: str) -> None:
        super().__init__(
            f"the machine's definition cannot be used: {reason}",
            hint="The definition is kept on the restore point as it was; restore single disks instead.",
        )
