"""What can stand in the way of restoring a machine."""

from __future__ import annotations

from appliance.errors import StrongroomError


class NotAMachine(StrongroomError):
    def __init__(self, name: str) -> None:
        super().__init__(
            f"{name} is a disk image, not a machine",
            hint="Restore its disk to a file: strongroom restore NAME --point ID --to FILE.",
            name=name,
        )


class HostIsRemote(StrongroomError):
    def __init__(self, host: str) -> None:
        super().__init__(
            f"host {host} is reached over SSH, and disks are written on this machine's own host only",
            hint="Run strongroom on that host and adopt the repository there, or restore the disks to files.",
            host=host,
        )


class NameTaken(StrongroomError):
    def __init__(self, host: str, name: str) -> None:
        super().__init__(
            f"host {host} has another machine called {name!r}", hint="Choose another name with --as.", name=name
        )


class MachineRuns(StrongroomError):
    def __init__(self, host: str, name: str) -> None:
        super().__init__(
            f"{name} runs on host {host}, and its disks cannot be restored under it",
            hint="Shut it down first, or restore it under another name with --as.",
            name=name,
        )


class WouldOverwrite(StrongroomError):
    def __init__(self, what: str) -> None:
        super().__init__(
            f"{what} is there and would be overwritten",
            hint="Restore under another name with --as, or overwrite with --force.",
            what=what,
        )


class NoPlaceForDisk(StrongroomError):
    def __init__(self, disk: str, source: str) -> None:
        super().__init__(
            f"disk {disk} was on {source or 'a place that is not known'}, which cannot be written from here",
            hint="Restore under another name with --as; its disks then go to files.",
            disk=disk,
        )
