"""Make ready what a recovered machine stands on: hold, exports, overlays, definition, firmware's memory.

The rule: the machine is never started before its recovery is recorded as running, so of one that is still `serving`
nothing can have been written: everything here may be done again from the beginning, and is, when its starter was
killed.
"""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from appliance.hypervisor.errors import HostFileError, HypervisorError
from appliance.hypervisor.protocol import Hypervisor
from appliance.models import RecoveryRecord
from appliance.services.recovery.errors import NameTaken
from appliance.services.recovery.exporting import RecoveryExports
from appliance.services.recovery.planning import NVRAM, TPM
from imaging.reader import DiskReader

if TYPE_CHECKING:
    from appliance.bootstrap import Appliance
    from imaging.manifest import FileEntry
    from imaging.repository import Point


def hold_point(appliance: Appliance, point: Point, record: RecoveryRecord) -> str:
    """Keep the point as long as the recovery needs it; found again if a dead starter placed the hold. Its id."""
    owner = f"recovery-{record.id}"
    for hold in appliance.repository.holds():
        if hold.owner == owner:
            return hold.id
    return appliance.repository.hold(point, "recovery", owner).id


def prepare(appliance: Appliance, hypervisor: Hypervisor, point: Point, record: RecoveryRecord) -> None:
    """From nothing, or from wherever it was left, to a defined machine. NameTaken, ExportFailed, HypervisorError."""
    hypervisor.files.prepare_folder(record.folder)
    exports = RecoveryExports(appliance, record)
    exports.launch()  # they take a moment to come up: the rest is done meanwhile
    for disk in record.disks:
        hypervisor.overlays.create(disk.overlay, disk.host_socket, disk.size_bytes)
    nvram = next((file for file in point.manifest.files if file.name == NVRAM), None)
    if nvram is not None:
        hypervisor.files.write(f"{record.folder}/{NVRAM}", _content(appliance, nvram))
    _define(hypervisor, record)
    _put_tpm(appliance, hypervisor, point, record)
    exports.ensure()


def _define(hypervisor: Hypervisor, record: RecoveryRecord) -> None:
    try:
        hypervisor.machines.define(record.definition_xml)
    except HypervisorError as err:
        # Somebody may have taken the name since it was looked for.
        if not hypervisor.machines.exists(record.machine_uuid) and hypervisor.machines.exists(record.machine_name):
            raise NameTaken(record.host, record.machine_name) from err
        raise


def _put_tpm(appliance: Appliance, hypervisor: Hypervisor, point: Point, record: RecoveryRecord) -> None:
    """Where the host keeps the TPM of the new machine, never where it kept the old one's."""
    kept = [file for file in point.manifest.files if file.name.startswith(TPM)]
    folder = hypervisor.machines.get(record.machine_uuid).tpm_state_folder if kept else None
    if folder is None:  # its definition has no emulated TPM any more
        return
    for file in kept:
        relative = PurePosixPath(file.name.removeprefix(TPM))
        if relative.is_absolute() or ".." in relative.parts:
            raise HostFileError(file.name, "is not the name of a file of a TPM's state")
        path = PurePosixPath(folder) / relative
        hypervisor.files.prepare_folder(str(path.parent))
        hypervisor.files.write(str(path), _content(appliance, file))


def _content(appliance: Appliance, file: FileEntry) -> bytes:
    return DiskReader(appliance.repository.blobs, file.root, file.size_bytes).pread(0, file.size_bytes)
