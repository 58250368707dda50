"""What can stand in the way of restoring a machine."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path

from appliance.errors import StrongroomError
from imaging.damage import Damage, told

_HEALING = (
    "'strongroom repository verify --read-data' finds all that is damaged, and 'strongroom repository repair --from"
    " HOME' takes it out of a copy."
)


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


class NameInvalid(StrongroomError):
    exit_code = 2

    def __init__(self, name: str) -> None:
        super().__init__(
            f"no machine can be called {name[:80]!r}",
            hint="Give --as a name of at most 128 bytes, without slashes and control characters, and not '.' or '..'.",
            name=name[:80],
        )


class PoolUnusable(StrongroomError):
    def __init__(self, host: str, pool: str, reason: str) -> None:
        super().__init__(
            f"storage pool {pool} of host {host} cannot take the disks: {reason}",
            hint="Give --storage a pool that is a mounted folder ('virsh pool-list'), or the path of a folder.",
            host=host,
            pool=pool,
        )


class PointDamaged(StrongroomError):
    """Found before anything was touched. `kept`: the definition that an earlier attempt, which failed, has left."""

    def __init__(self, point: str, machine: str, damage: Sequence[Damage], kept: Path | None = None) -> None:
        super().__init__(
            f"restore point {point} of {machine} cannot be restored whole: data is damaged or missing in the"
            f" repository ({told(damage)}); nothing was touched",
            hint=f"Choose another point ('strongroom point list {machine}'); {_HEALING}"
            + (f" The machine's definition from before an attempt that failed is in {kept}." if kept else ""),
            point=point,
            damage=[each.facts() for each in damage],
        )


class PartDamaged(StrongroomError):
    """Met while a disk or file was written. What is damaged and was not met yet is not told."""

    def __init__(self, damage: Damage) -> None:
        super().__init__(
            f"{damage.disk} cannot be restored whole, as data of it is damaged or missing in the repository;"
            f" known to be so: {damage}",
            hint=f"Choose another point ('strongroom point list'); {_HEALING}",
            damage=damage.facts(),
        )


class LeftUndefined(StrongroomError):
    """A restore in place ended early: the machine is no longer defined, and its disks are half old and half new."""

    def __init__(self, name: str, host: str, kept: Path, cause: BaseException, lost: Sequence[str] = ()) -> None:
        what = str(cause) or type(cause).__name__
        first = getattr(cause, "hint", "")
        super().__init__(
            "; ".join(
                [f"{name} is not restored: {what}", f"until it is, host {host} has no machine {name} any more", *lost]
            ),
            hint=f"{first.rstrip('.')}{'. ' if first else ''}Then run it again, with this or another restore point: it"
            f" goes on, and only what differs is written. The machine's definition as it was before is in {kept}"
            f" (virsh define {kept}).",
            name=name,
            host=host,
            kept=str(kept),
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


class Asked(StrEnum):
    """A part of the question."""

    HOST = "host"
    NAME = "name"
    STORAGE = "storage"
    PLACE = "place"  # that it shall be in place
    TARGET = "target"
    FORMAT = "format"


class NotPossible(StrongroomError):
    """Such a restore would be refused. `part`: what of the question has to be another; the cause says why."""

    def __init__(self, part: Asked, why: Exception) -> None:
        super().__init__(str(why), hint=getattr(why, "hint", ""), part=part.value)
        self.part, self.why = part, why
