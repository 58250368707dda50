"""The parts of a machine, put where a plan says: disks, NVRAM and TPM state."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from appliance.hypervisor.protocol import Hypervisor
from appliance.services.restore.damaged import telling_damage
from appliance.services.restore.disks import DiskRestorer
from appliance.services.restore.planning import MachinePlan, PlannedDisk
from imaging.reader import DiskReader
from imaging.restoring import Restored

if TYPE_CHECKING:
    from imaging.points import Point
    from imaging.repository import Repository


@dataclass(frozen=True, slots=True)
class RestoredDisk:
    """`kept_bytes` were right already and not written."""

    target: str
    path: str
    format: str
    size_bytes: int
    written_bytes: int
    kept_bytes: int


class MachineParts:
    """Of one restore point, on one host. Borrows all it is given."""

    def __init__(self, hypervisor: Hypervisor, repository: Repository, point: Point, disks: DiskRestorer) -> None:
        self._hypervisor = hypervisor
        self._repository = repository
        self._point = point
        self._disks = disks

    def put_new_disk(self, disk: PlannedDisk, *, force: bool = False) -> RestoredDisk:
        restored = self._disks.to(self._point, disk.entry, Path(disk.path), disk.format, force=force)
        self._hypervisor.files.give_to_qemu(disk.path)
        return _told(disk, restored)

    def put_disk_over(self, disk: PlannedDisk) -> RestoredDisk:
        """Only what differs is written."""
        if disk.format == "qcow2":
            # What its bitmaps recorded is not what is going to be written: the next backup reads the disk in full.
            for bitmap in self._hypervisor.bitmaps.list(disk.path):
                self._hypervisor.bitmaps.remove(disk.path, bitmap.name)
        return _told(disk, self._disks.over(disk.entry, Path(disk.path), disk.format))

    def put_files(self, plan: MachinePlan) -> None:
        for planned in plan.files:
            file = next(each for each in self._point.manifest.files if each.name == planned.name)
            reader = DiskReader(self._repository.blobs, file.root, file.size_bytes)
            folder = os.path.dirname(planned.path)
            if not os.path.isdir(folder):
                self._hypervisor.files.prepare_folder(folder)
            with telling_damage(self._repository, file):
                content = reader.pread(0, file.size_bytes)
            self._hypervisor.files.write(planned.path, content)


def _told(disk: PlannedDisk, restored: Restored) -> RestoredDisk:
    written = restored.written_bytes + restored.zeroed_bytes
    return RestoredDisk(disk.entry.name, disk.path, disk.format, disk.entry.size_bytes, written, restored.kept_bytes)
