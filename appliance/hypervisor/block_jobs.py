"""Block jobs: moving a running machine's disk while it runs.

The rule: a job that vanished proves nothing. Whether a disk stands alone is read off its chain, live and for the next
start (`depends_on`); whether a copy may pivot, off what libvirt says of its mirror.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET

import libvirt

from appliance.hypervisor.calls import Domain, Refused
from appliance.hypervisor.connection import Connection
from appliance.hypervisor.domain_xml import mirror_ready, parse_machine
from appliance.hypervisor.errors import MachineBusy, MachineInState, MachineNotFound
from appliance.hypervisor.protocol import BlockJob, BlockJobKind, CopyTarget

_KINDS = {
    libvirt.VIR_DOMAIN_BLOCK_JOB_TYPE_PULL: BlockJobKind.PULL,
    libvirt.VIR_DOMAIN_BLOCK_JOB_TYPE_COPY: BlockJobKind.COPY,
    libvirt.VIR_DOMAIN_BLOCK_JOB_TYPE_COMMIT: BlockJobKind.COMMIT,
    libvirt.VIR_DOMAIN_BLOCK_JOB_TYPE_ACTIVE_COMMIT: BlockJobKind.COMMIT,
    libvirt.VIR_DOMAIN_BLOCK_JOB_TYPE_BACKUP: BlockJobKind.BACKUP,
}
_NO_JOB = frozenset({libvirt.VIR_ERR_OPERATION_INVALID, libvirt.VIR_ERR_INVALID_ARG})


class LibvirtBlockJobs:
    """Implements protocol.BlockJobs. Borrows the connection."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def pull(self, machine: str, target: str, bandwidth_bytes_s: int = 0) -> None:
        domain = self._connection.domain(machine)
        try:
            domain.block_pull(target, bandwidth_bytes_s, libvirt.VIR_DOMAIN_BLOCK_PULL_BANDWIDTH_BYTES)
        except Refused as error:
            raise _not_now(error, domain, machine, target, "pulling its disk") from error

    def copy(self, machine: str, target: str, destination: CopyTarget, bandwidth_bytes_s: int = 0) -> None:
        kind, attribute = ("block", "dev") if destination.block_device else ("file", "file")
        disk = ET.Element("disk", type=kind)
        ET.SubElement(disk, "driver", type=destination.format)
        ET.SubElement(disk, "source").set(attribute, destination.path)
        # A persistent machine is only copied so: a restart of QEMU would lose the mirror, and says so by this flag.
        flags = libvirt.VIR_DOMAIN_BLOCK_COPY_TRANSIENT_JOB
        if destination.reuse or destination.block_device:
            flags |= libvirt.VIR_DOMAIN_BLOCK_COPY_REUSE_EXT
        parameters = {libvirt.VIR_DOMAIN_BLOCK_COPY_BANDWIDTH: bandwidth_bytes_s} if bandwidth_bytes_s else {}
        domain = self._connection.domain(machine)
        try:
            domain.block_copy(target, ET.tostring(disk, encoding="unicode"), parameters, flags)
        except Refused as error:
            raise _not_now(error, domain, machine, target, "copying its disk") from error

    def pivot(self, machine: str, target: str) -> None:
        try:
            self._connection.domain(machine).block_job_abort(target, libvirt.VIR_DOMAIN_BLOCK_JOB_ABORT_PIVOT)
        except Refused as error:
            if error.code not in (libvirt.VIR_ERR_BLOCK_COPY_ACTIVE, *_NO_JOB):
                raise
            reason = f"its copy is not complete, or there is none ({error.words})"
            raise MachineInState(machine, f"moving disk {target} over", reason) from error

    def abort(self, machine: str, target: str) -> None:
        try:
            self._connection.domain(machine).block_job_abort(target, 0)
        except MachineNotFound:
            return
        except Refused as error:
            if error.code not in _NO_JOB:
                raise

    def info(self, machine: str, target: str) -> BlockJob | None:
        return self._connection.patiently(lambda: self._look(machine, target))

    def _look(self, machine: str, target: str) -> BlockJob | None:
        domain = self._connection.domain(machine)
        found = _info(domain, target) if domain.active() else {}
        if not found:
            return None
        kind = _KINDS.get(found["type"], BlockJobKind.OTHER)
        return BlockJob(
            kind=kind,
            # Not current == end: each write of the guest moves the end away for a moment.
            ready=kind is BlockJobKind.COPY and mirror_ready(domain.xml(0), target),
            current_bytes=found["cur"],
            end_bytes=found["end"],
            bandwidth_bytes_s=found["bandwidth"],
        )

    def set_bandwidth(self, machine: str, target: str, bandwidth_bytes_s: int) -> None:
        flags = libvirt.VIR_DOMAIN_BLOCK_JOB_SPEED_BANDWIDTH_BYTES
        self._connection.domain(machine).block_job_speed(target, bandwidth_bytes_s, flags)

    def depends_on(self, machine: str, target: str, socket: str | None = None) -> bool:
        definitions = self._connection.patiently(lambda: _definitions(self._connection.domain(machine)))
        for xml in definitions:
            for disk in parse_machine(xml).disks:
                if disk.target == target and disk.nbd_sockets and (socket is None or socket in disk.nbd_sockets):
                    return True
        return False


def _info(domain: Domain, target: str) -> dict[str, int]:
    return domain.block_job_info(target, libvirt.VIR_DOMAIN_BLOCK_JOB_INFO_BANDWIDTH_BYTES)


def _definitions(domain: Domain) -> tuple[str, ...]:
    inactive = domain.xml(libvirt.VIR_DOMAIN_XML_INACTIVE)
    return (domain.xml(0), inactive) if domain.active() else (inactive,)


def _not_now(error: Refused, domain: Domain, machine: str, target: str, operation: str) -> Exception:
    if domain.active() and (domain.job_type() != libvirt.VIR_DOMAIN_JOB_NONE or _info(domain, target)):
        return MachineBusy(machine, f"{operation} has to wait for another job: {error.words}")
    if error.code == libvirt.VIR_ERR_OPERATION_INVALID:
        return MachineInState(machine, operation, error.words)
    return error
