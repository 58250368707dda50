"""Keep recovered machines alive: exports up, paused machines resumed.

The rule: a machine that lost its export is paused, not broken; it is resumed again and again until it stays up. What
an admin paused or switched off is left as it is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from appliance.hypervisor.errors import MachineInState, MachineNotFound
from appliance.hypervisor.protocol import Hypervisor, StateInfo
from appliance.models import RecoveryRecord
from appliance.services.recovery.errors import MachineGone, OverlayFull, OverlayGone
from appliance.services.recovery.exporting import RecoveryExports

if TYPE_CHECKING:
    from appliance.bootstrap import Appliance

_ROOM_BYTES = 8 << 20


def tend(appliance: Appliance, hypervisor: Hypervisor, record: RecoveryRecord) -> tuple[str, ...]:
    """One look at one recovery; returns what was done.

    MachineGone, OverlayGone, OverlayFull, ExportFailed, HypervisorError.
    """
    done = []
    restarted = RecoveryExports(appliance, record).ensure()
    if restarted:
        done.append(f"{restarted} exports of {record.machine_name} were started again")
    state = check(hypervisor, record)
    if state.io_error:
        _check_room(hypervisor, record)
        try:
            hypervisor.machines.resume(record.machine_uuid)
        except MachineInState:
            return tuple(done)  # it went on, or off, in this very moment: the next look tells
        done.append(f"{record.machine_name} was paused by a disk error and is resumed")
    return tuple(done)


def check(hypervisor: Hypervisor, record: RecoveryRecord) -> StateInfo:
    """That what only others can take away is still there; how the machine stands. MachineGone, OverlayGone."""
    try:
        state = hypervisor.machines.state(record.machine_uuid)
    except MachineNotFound as err:
        raise MachineGone(record.host, record.machine_name, record.folder) from err
    for disk in record.disks:
        if not disk.migrated and not hypervisor.files.exists(disk.overlay):
            raise OverlayGone(record.machine_name, disk.overlay)
    return state


def _check_room(hypervisor: Hypervisor, record: RecoveryRecord) -> None:
    """Resuming a machine whose writes find no room would only pause it again."""
    if any(error.no_space for error in hypervisor.machines.disk_errors(record.machine_uuid)):
        free_bytes = hypervisor.files.free_bytes(record.folder)
        if free_bytes is not None and free_bytes < _ROOM_BYTES:
            raise OverlayFull(record.machine_name, record.folder, free_bytes)
