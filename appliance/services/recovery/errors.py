"""What can stand in the way of an instant recovery."""

from __future__ import annotations

from appliance.errors import StrongroomError


class NotAMachine(StrongroomError):
    """The point is of an image: there is no machine to start."""

    def __init__(self, name: str) -> None:
        super().__init__(
            f"{name} is a disk image, not a machine, so there is nothing to start",
            hint="Restore its disk to a file, mount it, or serve it: strongroom restore | mount | export serve.",
            name=name,
        )


class NameTaken(StrongroomError):
    def __init__(self, host: str, name: str) -> None:
        super().__init__(
            f"host {host} has a machine {name!r} already",
            hint="Give the recovered one another name (--as).",
            name=name,
        )


class HostNotNamed(StrongroomError):
    """No host was asked for, and the one that the point was made on is not known here."""

    exit_code = 2

    def __init__(self, name: str, recorded: str | None, known: list[str]) -> None:
        made_on = f"host {recorded!r}, which is not known here" if recorded else "an unknown host"
        super().__init__(
            f"it is not clear where {name} shall run: its restore point was made on {made_on}",
            hint=f"Name one with --host: {', '.join(known)}." if known else "Add one: strongroom host add --help.",
            name=name,
        )


class HostIsRemote(StrongroomError):
    def __init__(self, host: str) -> None:
        super().__init__(
            f"host {host} is reached over SSH, and machines run out of the repository on this machine's own host only",
            hint="Run strongroom on that host and adopt the repository there, or use 'strongroom restore'.",
            host=host,
        )


class MachineIsOff(StrongroomError):
    def __init__(self, name: str) -> None:
        super().__init__(
            f"{name} is off, and a disk is moved only while its machine runs",
            hint=f"Start it (virsh start {name}), then migrate again.",
            name=name,
        )


class PullNotWritten(StrongroomError):
    def __init__(self, name: str, target: str) -> None:
        super().__init__(
            f"{name} was started anew before what was pulled into its disk {target} had been written out: parts of that"
            " disk may be missing",
            hint="Switch it off and run 'strongroom recovery resume', which puts the restore point below the disk again"
            " and starts the machine; then migrate again.",
            name=name,
            disk=target,
        )


class RecoveryEnded(StrongroomError):
    def __init__(self, id: str, state: str) -> None:
        super().__init__(
            f"recovery {id} is {state}: there is nothing left to do with it",
            hint="See 'strongroom recovery list'.",
            id=id,
        )


class RecoveryNotRunning(StrongroomError):
    """It has not come up, or is being removed."""

    def __init__(self, id: str, state: str) -> None:
        super().__init__(
            f"recovery {id} is {state}, so that there is nothing to migrate",
            hint="Take it up again with 'strongroom recovery resume', or remove it with 'recovery discard'.",
            id=id,
        )


class MigrationGoesElsewhere(StrongroomError):
    """Another destination was asked for while disks are on their way."""

    exit_code = 2

    def __init__(self, id: str, method: str) -> None:
        super().__init__(
            f"recovery {id} is migrating already, by {method}, and cannot change where its disks go",
            hint="Let it go on: strongroom recovery migrate without --to.",
            id=id,
        )


class DestinationUnusable(StrongroomError):
    """Where a copying migration should put a disk."""

    exit_code = 2

    def __init__(self, where: str, reason: str, hint: str) -> None:
        super().__init__(f"disks cannot be moved to {where}: {reason}", hint=hint, where=where)


class DestinationTaken(StrongroomError):
    def __init__(self, path: str) -> None:
        super().__init__(
            f"{path} exists already, and a migration overwrites nothing",
            hint="Move it away, or give another folder with --to.",
            path=path,
        )


class MigrationStuck(StrongroomError):
    """A block job ended again and again without finishing."""

    def __init__(self, name: str, target: str, attempts: int, free_bytes: int | None, folder: str) -> None:
        room = "" if free_bytes is None else f"; {folder} has {free_bytes >> 20} MiB free"
        super().__init__(
            f"disk {target} of {name} was not moved: its job ended {attempts} times before it was done{room}",
            hint="See QEMU's log of the machine. It runs on, and 'recovery migrate' can be tried again.",
            name=name,
            disk=target,
        )


class MachineGone(StrongroomError):
    """Somebody else undefined the recovered machine: nothing that is done here can bring it back."""

    def __init__(self, host: str, name: str, folder: str) -> None:
        super().__init__(
            f"the recovered machine {name} is no longer defined on host {host}",
            hint=f"What it wrote is in {folder}. Remove all of it with 'strongroom recovery discard'.",
            host=host,
            name=name,
        )


class OverlayGone(StrongroomError):
    """The file that holds what the recovered machine wrote is not there."""

    def __init__(self, name: str, path: str) -> None:
        super().__init__(
            f"the overlay {path} of {name} is gone, and with it what the machine wrote there",
            hint="Put it back (is its file system mounted?) and resume, or remove all with 'recovery discard'.",
            name=name,
            path=path,
        )


class OverlayFull(StrongroomError):
    """The machine is paused because what it writes finds no room."""

    retryable = True

    def __init__(self, name: str, folder: str, free_bytes: int) -> None:
        super().__init__(
            f"{name} is paused: {folder} has no room left for what it writes ({free_bytes >> 20} MiB free)",
            hint="Make room on that file system; the machine then goes on by itself.",
            name=name,
            folder=folder,
        )


class KeepsPausing(StrongroomError):
    """Its exports live, and yet it cannot read its disks."""

    retryable = True

    def __init__(self, name: str, words: str) -> None:
        super().__init__(
            f"{name} is paused again whenever it is resumed: {words or 'QEMU cannot read or write one of its disks'}",
            hint="Check the repository with 'strongroom repository verify'; QEMU's log of the machine tells more.",
            name=name,
        )
