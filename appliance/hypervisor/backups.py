"""Backup jobs of running machines: pull mode over a UNIX socket.

The rule: whose job it is, its socket path tells; another's job is never ended. A begin that fails leaves nothing: no
job, no checkpoint, no scratch. Ending is safe at any time and again, and ends with the guest running if it was only our
scratch that stopped it.
"""

from __future__ import annotations

import os
import posixpath
import time
from collections.abc import Iterable

import libvirt

from appliance.hypervisor.backup_xml import backup_xml, checkpoint_xml, dirty_context, running_backup
from appliance.hypervisor.blank_images import blank_qcow2
from appliance.hypervisor.calls import Domain, Refused
from appliance.hypervisor.connection import Connection
from appliance.hypervisor.errors import (
    BackupBusy,
    BackupJobLost,
    BackupRefused,
    BitmapUntrusted,
    HostFileError,
    HostUnreachable,
    HypervisorError,
    MachineBusy,
    MachineInState,
    MachineNotFound,
)
from appliance.hypervisor.inventory import read_state
from appliance.hypervisor.protocol import (
    BackupExport,
    BackupJob,
    BackupRequest,
    BackupUsage,
    DiskInfo,
    HostFiles,
    Machines,
    RunningBackup,
)

_ABORT_PATIENCE_S = 30.0
_BEGIN_PATIENCE_S = 10.0
_POLL_S = 0.05
_GONE = frozenset({libvirt.VIR_ERR_NO_DOMAIN_BACKUP, libvirt.VIR_ERR_OPERATION_INVALID})


class LibvirtBackups:
    """Implements protocol.Backups. Borrows all it is given."""

    def __init__(self, connection: Connection, machines: Machines, files: HostFiles) -> None:
        self._connection = connection
        self._machines = machines
        self._files = files

    def begin(self, request: BackupRequest) -> BackupJob:
        machine = self._machines.get(request.machine)
        if not machine.running:
            raise MachineInState(machine.name, "a live backup", "it is off")
        disks = {disk.target: disk for disk in machine.disks}
        self._check(request, machine.name, disks)
        domain = self._connection.domain(request.machine)
        self._refuse_when_busy(domain, machine.name, disks)
        self._prepare(request)
        checkpointed = {
            target: disk.can_hold_bitmap and any(wanted.target == target for wanted in request.disks)
            for target, disk in disks.items()
        }
        checkpoint = checkpoint_xml(request.checkpoint, checkpointed) if any(checkpointed.values()) else None
        try:
            self._make_scratches(request, machine.name, disks)
            domain.backup_begin(backup_xml(request, disks), checkpoint)
        except HostUnreachable:
            raise  # the begin may outlive the connection, and its scratch with it: `end` sees to both
        except HypervisorError as error:
            for disk in request.disks:
                self._files.remove(disk.scratch)
            if isinstance(error, Refused):
                raise _begin_failed(error, request, machine.name) from error
            raise
        return BackupJob(
            machine=request.machine,
            checkpoint=request.checkpoint if checkpoint else None,
            socket=request.socket,
            exports=tuple(
                BackupExport(
                    disk.target,
                    export=disk.target,
                    dirty_context=dirty_context(disk.target) if disk.incremental_from else None,
                    checkpointed=checkpointed[disk.target],
                    scratch=disk.scratch,
                )
                for disk in request.disks
            ),
        )

    def _check(self, request: BackupRequest, name: str, disks: dict[str, DiskInfo]) -> None:
        if not request.disks:
            raise BackupRefused(name, "no disk was named")
        for wanted in request.disks:
            disk = disks.get(wanted.target)
            if disk is None:
                raise BackupRefused(name, f"it has no disk {wanted.target} any more", "Look at its disks again.")
            if disk.skip_reason is not None:
                raise BackupRefused(name, f"disk {wanted.target} cannot be backed up: {disk.skip_reason}")

    def _refuse_when_busy(self, domain: Domain, name: str, disks: Iterable[str]) -> None:
        """Looked at before, as libvirt's own answer is a lock time-out after 30 s."""
        if domain.job_type() != libvirt.VIR_DOMAIN_JOB_NONE:
            running = _running(domain)
            if running is None:
                raise BackupBusy(name, "a migration, save or dump is under way")
            raise BackupBusy(name, f"a backup job is under way (socket {running.socket})", running.socket)
        for target in disks:
            if domain.block_job_info(target, 0):
                raise MachineBusy(name, f"a block job is under way on disk {target}")

    def _prepare(self, request: BackupRequest) -> None:
        paths = [request.socket, *(disk.scratch for disk in request.disks)]
        for path in paths:
            # Folders are given to QEMU's user and files removed here, as root: only where the caller plainly meant it.
            if not posixpath.isabs(path) or posixpath.normpath(path) != path:
                raise HostFileError(path, "is no plain absolute path, so nothing was made or removed there")
        for folder in sorted({os.path.dirname(path) for path in paths}):
            self._files.prepare_folder(folder)
        for path in paths:
            self._files.remove(path)  # of a run that was killed: libvirt refuses to begin over its socket

    def _make_scratches(self, request: BackupRequest, name: str, disks: dict[str, DiskInfo]) -> None:
        """Of exactly the disks' sizes: of another, QEMU refuses, and libvirtd 9.0 dies of that refusal."""
        blanks: dict[int, bytes] = {}
        for wanted in request.disks:
            size_bytes = disks[wanted.target].size_bytes
            if size_bytes is None:
                raise BackupRefused(name, f"how large disk {wanted.target} is could not be learned")
            if size_bytes not in blanks:
                blanks[size_bytes] = blank_qcow2(size_bytes)
            self._files.write(wanted.scratch, blanks[size_bytes])

    def current(self, machine: str) -> RunningBackup | None:
        return self._connection.patiently(lambda: _running(self._connection.domain(machine)))

    def usage(self, machine: str) -> BackupUsage:
        try:
            stats = self._connection.domain(machine).job_stats()
        except (Refused, MachineNotFound) as error:
            raise BackupJobLost(machine, str(error)) from error
        if stats.get("operation") != libvirt.VIR_DOMAIN_JOB_OPERATION_BACKUP:
            raise BackupJobLost(machine, "libvirt has no backup job of it (was it switched off, or the job aborted?)")
        return BackupUsage(stats.get("disk_temp_used", 0), stats.get("disk_temp_total", 0))

    def end(self, machine: str, socket: str, scratches: Iterable[str] = ()) -> bool:
        leftovers = {socket, *scratches}
        try:
            # Looked up anew in each attempt: a machine found on a broken connection stays on it.
            running = self._connection.patiently(lambda: _running_or_beginning(self._connection.domain(machine)))
            if running is not None and running.socket != socket:
                # Another's job: ours is long gone, and so are its files unless that job uses them.
                leftovers -= {running.socket, *running.scratches}
                resumed = False
            else:
                leftovers |= set(running.scratches) if running is not None else set()
                resumed = self._connection.patiently(lambda: self._end_own(machine, socket))
        except MachineNotFound:
            resumed = False
        for path in sorted(leftovers):
            self._files.remove(path)
        return resumed

    def _end_own(self, machine: str, socket: str) -> bool:
        domain = self._connection.domain(machine)
        _abort(domain, machine, socket)
        # Aborting first: while the job lives, the guest would run into the full scratch again. Without a job, a guest
        # that stands on an I/O error of ours is one whose appliance was killed between aborting and resuming.
        if not read_state(domain).io_error:
            return False
        domain.resume()
        return True


def _running(domain: Domain) -> RunningBackup | None:
    try:
        return running_backup(domain.backup_xml())
    except Refused as error:
        if error.code in _GONE:
            return None
        raise


def _running_or_beginning(domain: Domain) -> RunningBackup | None:
    """A begin outlives the client that asked for it: until it is through, libvirt has a job and does not say whose."""
    deadline = time.monotonic() + _BEGIN_PATIENCE_S
    while True:
        running = _running(domain)
        if running is not None or not _has_backup_job(domain):
            return running
        if time.monotonic() >= deadline:
            raise HypervisorError(
                f"{domain.name()} has a backup job that has been beginning for {_BEGIN_PATIENCE_S:g} s",
                hint="It is ended once libvirt tells whose it is; see the log of libvirtd if that does not happen.",
            )
        time.sleep(_POLL_S)


def _has_backup_job(domain: Domain) -> bool:
    try:
        return bool(domain.job_stats().get("operation") == libvirt.VIR_DOMAIN_JOB_OPERATION_BACKUP)
    except Refused as error:
        return bool(error.code == libvirt.VIR_ERR_INTERNAL_ERROR)  # "backup job data missing": it is just beginning


def _abort(domain: Domain, machine: str, socket: str) -> None:
    """End the job with this socket. When it has ended, another process may begin one at once: that is left alone."""
    deadline = time.monotonic() + _ABORT_PATIENCE_S
    asked = False
    while (running := _running(domain)) is not None and running.socket == socket:
        if not asked:
            try:
                domain.abort_job()
            except Refused as error:
                if error.code != libvirt.VIR_ERR_OPERATION_INVALID:
                    raise
                # it ended by itself in between: looked at again
            asked = True
        if time.monotonic() >= deadline:
            raise HypervisorError(
                f"the backup job of {machine} does not end within {_ABORT_PATIENCE_S:g} s",
                hint=f"virsh domjobabort {machine} ends it; the machine itself is not affected.",
            )
        time.sleep(_POLL_S)


def _begin_failed(error: Refused, request: BackupRequest, name: str) -> HypervisorError:
    if error.code == libvirt.VIR_ERR_OPERATION_TIMEOUT:
        return BackupBusy(name, error.words)
    if error.code in (libvirt.VIR_ERR_CHECKPOINT_INCONSISTENT, libvirt.VIR_ERR_NO_DOMAIN_CHECKPOINT):
        suspects = [disk for disk in request.disks if disk.incremental_from is not None]
        named = [disk for disk in suspects if f"'{disk.target}'" in error.words] or suspects
        if len(named) == 1:
            return BitmapUntrusted(named[0].target, named[0].incremental_from or "", error.words)
        return BitmapUntrusted("", ", ".join(sorted({disk.incremental_from or "" for disk in named})), error.words)
    if error.code == libvirt.VIR_ERR_OPERATION_INVALID:
        return MachineInState(name, "a live backup", error.words)
    return BackupRefused(name, error.words)
