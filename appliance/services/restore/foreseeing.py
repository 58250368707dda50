"""What a restore would do, for whoever is about to ask for one: where each disk goes, and what is lost by it.

The rule: it is decided by what the restore itself decides by, and nothing is touched. What stands in the way is told
with the part of the question that it is about, so that a form can show it there. What is true now may be otherwise by
the time that the restore begins: that looks again.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Final

from appliance.catalog.errors import RecordMissing
from appliance.errors import StrongroomError
from appliance.hypervisor.errors import HypervisorError, StorageNotFound
from appliance.hypervisor.protocol import Hypervisor, Transport
from appliance.models import HostRecord
from appliance.progress import SILENT
from appliance.services.choosing import choose_disk
from appliance.services.points import PointService
from appliance.services.restore.disks import DiskRestorer
from appliance.services.restore.errors import (
    Asked,
    HostIsRemote,
    NameInvalid,
    NameTaken,
    NotAMachine,
    NotPossible,
    PoolUnusable,
    WouldOverwrite,
)
from appliance.services.restore.in_place import InPlace
from appliance.services.restore.planning import MachinePlan, check_local, check_name, folder_in, plan_new
from imaging import convert
from imaging.errors import ImagingError, TargetRefused

if TYPE_CHECKING:
    from appliance.bootstrap import Appliance
    from imaging.points import Point

FORMATS: Final = convert.FORMATS
_NOBODY: Final = "foreseen"  # a plan has a place for the restore that it is of; this one is of none


class Fate(StrEnum):
    """What becomes of what is where a disk goes."""

    NEW = "new"  # nothing is there
    OVERWRITTEN = "overwritten"  # only what differs is written
    REPLACED = "replaced"  # it has another size: it is removed, and a new one is made


@dataclass(frozen=True, slots=True)
class ForeseenDisk:
    name: str
    size_bytes: int
    path: str
    format: str
    fate: Fate


@dataclass(frozen=True, slots=True)
class Tight:
    """Where there is less room than the disks can hold: it is enough only if they are not full."""

    folder: str
    free_bytes: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Foreseen:
    """`defined`: a machine whose definition is replaced; `snapshots`, `saved_state`: what goes with it. `notes`: what
    will be different from the original."""

    name: str
    disks: tuple[ForeseenDisk, ...]
    tight: tuple[Tight, ...]
    defined: bool = False
    snapshots: tuple[str, ...] = ()
    saved_state: bool = False
    notes: tuple[str, ...] = ()

    @property
    def size_bytes(self) -> int:
        return sum(disk.size_bytes for disk in self.disks)

    @property
    def lost(self) -> tuple[ForeseenDisk, ...]:
        """What is there now, and not afterwards."""
        return tuple(disk for disk in self.disks if disk.fate is not Fate.NEW)


class ForeseeingService:
    """Borrows the appliance. Points are named by their ids."""

    def __init__(self, appliance: Appliance) -> None:
        self._appliance = appliance

    def hosts(self) -> tuple[HostRecord, ...]:
        """Those that machines can be restored to, or recovered on: whose disks are written and served from here."""
        return tuple(each for each in self._appliance.catalog.hosts.list() if each.config.transport is Transport.LOCAL)

    def new(self, point: str, host: str, new_name: str, storage: str | None = None) -> Foreseen:
        """A machine beside the old one. NotPossible."""
        found = self._machine(point)
        with _telling(_OF_NEW):
            check_name(new_name)
            with self._connected(host) as hypervisor:
                plan = plan_beside(self._appliance, hypervisor, found, new_name, storage, _NOBODY)
                disks = tuple(
                    ForeseenDisk(disk.entry.name, disk.entry.size_bytes, disk.path, disk.format, Fate.NEW)
                    for disk in plan.disks
                )
            for disk in disks:
                _check_absent(Path(disk.path))
        return Foreseen(plan.name, disks, _tight(disks), notes=plan.notes)

    def in_place(self, point: str, host: str, *, force: bool = True) -> Foreseen:
        """The machine over itself; without `force`, over nothing that is there. NotPossible."""
        found = self._machine(point)
        with _telling(_OF_IN_PLACE), self._connected(host) as hypervisor:
            restorer = DiskRestorer(self._appliance, SILENT)
            ahead = InPlace(self._appliance, hypervisor, found, restorer, SILENT).look_ahead(force, _NOBODY)
        disks = tuple(
            ForeseenDisk(
                disk.entry.name, disk.entry.size_bytes, disk.path, disk.format,
                Fate.OVERWRITTEN if disk.path in ahead.stays else Fate.REPLACED if disk.path in ahead.there
                else Fate.NEW,
            )
            for disk in ahead.plan.disks
        )  # fmt: skip
        attached = ahead.attached
        return Foreseen(
            ahead.plan.name, disks, _tight(disks), defined=ahead.existing is not None,
            snapshots=() if attached is None else attached.snapshots,
            saved_state=attached is not None and attached.saved_state, notes=ahead.plan.notes,
        )  # fmt: skip

    def disk(self, point: str, disk: str | None, target: Path, image_format: str, *, force: bool = False) -> Foreseen:
        """One disk to a file of this machine: a new one, unless with `force`. NotPossible."""
        entry = choose_disk(PointService(self._appliance).resolve(point).manifest, disk)
        with _telling({TargetRefused: Asked.FORMAT}):
            convert.check_format(image_format, entry.size_bytes, target)
        with _telling({TargetRefused: Asked.TARGET}):
            if not force:
                _check_absent(target)
            _check_folder_of(target)
            disks = (ForeseenDisk(entry.name, entry.size_bytes, str(target), image_format, Fate.NEW),)
            tight = _tight(disks)
            if tight and image_format == "vpc":  # of that format the file has the size of the disk
                raise TargetRefused(
                    str(target), f"{tight[0].free_bytes} bytes are free there, and the disk has {entry.size_bytes}"
                )
        return Foreseen(entry.name, disks, tight)

    def _machine(self, point: str) -> Point:
        found = PointService(self._appliance).resolve(point)
        if found.manifest.machine.kind != "vm":
            raise NotAMachine(found.manifest.machine.name)
        return found

    @contextmanager
    def _connected(self, host: str) -> Iterator[Hypervisor]:
        check_local(self._appliance.catalog.hosts.get(host))
        with self._appliance.connect(host) as hypervisor:
            yield hypervisor


def plan_beside(
    appliance: Appliance, hypervisor: Hypervisor, found: Point, name: str, storage: str | None, owner: str
) -> MachinePlan:
    """A machine of this name, which takes no place that something has. NameTaken, PoolUnusable, WouldOverwrite."""
    if hypervisor.machines.exists(name):
        raise NameTaken(hypervisor.host.name, name)
    if storage is None:
        folder = str(appliance.settings.machines_directory / name)
    elif storage.startswith("/"):
        folder = str(Path(storage) / name)
    else:
        folder = folder_in(hypervisor.host.name, hypervisor.storage.pool(storage), name)
    plan = plan_new(found.manifest, name, folder, hypervisor.facts().accelerator, owner)
    for path in (*(disk.path for disk in plan.disks), *(file.path for file in plan.files)):
        if os.path.lexists(path):
            raise WouldOverwrite(path)
    return plan


_Parts = Mapping[type[Exception], Asked]
_OF_NEW: Final[_Parts] = {  # the first that fits
    NameInvalid: Asked.NAME,
    NameTaken: Asked.NAME,
    WouldOverwrite: Asked.NAME,
    PoolUnusable: Asked.STORAGE,
    StorageNotFound: Asked.STORAGE,
    TargetRefused: Asked.STORAGE,
    RecordMissing: Asked.HOST,
    HostIsRemote: Asked.HOST,
    HypervisorError: Asked.HOST,
}
_OF_IN_PLACE: Final[_Parts] = {
    RecordMissing: Asked.HOST,
    HostIsRemote: Asked.HOST,
    HypervisorError: Asked.HOST,
    ImagingError: Asked.PLACE,  # a disk that is in use, too small or not what it is said to be
    StrongroomError: Asked.PLACE,
}


@contextmanager
def _telling(parts: _Parts) -> Iterator[None]:
    try:
        yield
    except (StrongroomError, ImagingError) as err:
        part = next((part for kind, part in parts.items() if isinstance(err, kind)), None)
        if part is None:
            raise
        raise NotPossible(part, err) from err


def _check_folder_of(target: Path) -> None:
    """TargetRefused."""
    if not target.parent.is_dir():
        raise TargetRefused(str(target), "its folder does not exist", hint="choose a folder that exists")
    if not os.access(target.parent, os.W_OK | os.X_OK):
        raise TargetRefused(str(target), "its folder may not be written", hint="choose another folder")


def _check_absent(path: Path) -> None:
    """TargetRefused: also where nothing can be, as a name is too long, or what should be a folder is a file."""
    try:
        path.lstat()
    except FileNotFoundError:
        return
    except OSError as err:
        raise TargetRefused(str(path), err.strerror or str(err), hint="choose another place") from err
    raise TargetRefused(str(path), "it exists already", hint="choose another name")


def _tight(disks: Sequence[ForeseenDisk]) -> tuple[Tight, ...]:
    """By file system, of what is made anew; the folder that is named is the one that is there."""
    wanted: dict[int, tuple[Path, int]] = {}
    for disk in disks:
        if disk.fate is Fate.OVERWRITTEN:
            continue
        folder = next(each for each in Path(disk.path).parents if each.exists())
        device = folder.stat().st_dev
        there, size_bytes = wanted.get(device, (folder, 0))
        wanted[device] = (there, size_bytes + disk.size_bytes)
    found = []
    for folder, size_bytes in wanted.values():
        room = os.statvfs(folder)
        free_bytes = room.f_bavail * room.f_frsize
        if free_bytes < size_bytes:
            found.append(Tight(str(folder), free_bytes, size_bytes))
    return tuple(found)
