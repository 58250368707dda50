"""Undo what dead processes of this home left behind, and pay the thaws that are owed.

The rule: only what the catalog recorded of this appliance is touched; what its owner, alive, still uses is left alone;
a checkpoint that the newest restore point relies on is kept; what cannot be undone now stays recorded, with the reason,
and is tried again. Guests come first: what a host, a repository or the catalog refuses keeps nothing else from being
tried.
"""

from __future__ import annotations

import errno
import shutil
import socket
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack, suppress
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING, ParamSpec, Self

from appliance.errors import StrongroomError
from appliance.hypervisor import ssh_folder
from appliance.hypervisor.errors import MachineNotFound
from appliance.hypervisor.protocol import Hypervisor
from appliance.models import CleanupAction, CleanupRecord, OwedThaw, RunKind, RunRecord, RunState
from appliance.ownership import InUse, own, remove_unowned
from appliance.policy.retries import Ending, after
from appliance.services.points import PointService
from imaging.errors import HoldNotFound, ImagingError
from imaging.images import SOCKET_FOLDER_PREFIX
from imaging.pending import PENDING_FOLDER_PREFIX

if TYPE_CHECKING:
    from appliance.bootstrap import Appliance
    from imaging.points import Point

P = ParamSpec("P")
_STARTING_S = 60.0  # a server that was just started may not listen yet


def freezing(machine_uuid: str) -> str:
    """Whose lock is held by who freezes or thaws a machine: nobody thaws what another froze rightly."""
    return f"freeze-{machine_uuid}"


class CleaningService:
    """Settles the debts of processes that died. Safe to run at any time, by several processes at once."""

    def __init__(self, appliance: Appliance) -> None:
        self._appliance = appliance

    def settle(self) -> tuple[str, ...]:
        """Undo what can be undone; returns what could not be, as sentences."""
        with _Connections(self._appliance) as connections:
            thaws = attempted("owed thaws", self._thaw, connections)
            undone = attempted("clean-ups", self._undo_all, connections)
        return (*thaws, *undone, *self.tidy())

    def settle_here(self) -> tuple[str, ...]:
        """The part that concerns this machine alone, holds of dead commands included: asks no host."""
        with _Connections(self._appliance) as connections:
            released = attempted("holds", self._undo_all, connections, CleanupAction.RELEASE_HOLD)
        return (*released, *self.tidy())

    def hurts_guests(self) -> bool:
        """Whether a debt is left that a guest may suffer from: it is frozen, or nobody watches its job's scratch."""
        catalog = self._appliance.catalog
        return bool(catalog.thaws.list()) or any(
            record.action is CleanupAction.END_BACKUP_JOB and not self._appliance.alive(record.owner)
            for record in catalog.cleanups.list()
        )

    def _undo_all(self, connections: _Connections, only: CleanupAction | None = None) -> list[str]:
        problems: list[str] = []
        for record in self._appliance.catalog.cleanups.list():
            if only in (None, record.action) and not self._appliance.alive(record.owner):
                about = f"{record.action} of {record.machine_name or record.owner}"
                problems += attempted(about, self._undo_once, record, connections)
        return problems

    def _undo_once(self, record: CleanupRecord, connections: _Connections) -> list[str]:
        """One process at a time for each owner: a second one, late, might end the job of a run that began since."""
        lock = self._appliance.settings.run_directory / f"settling-{record.owner}.lock"
        with own(lock, record.owner, wait=True):
            try:
                # Asked again once its owner is known to be gone: what that one, ending well, has dropped is wanted.
                return self._attempt(record, connections) if self._is_owed(record) else []
            finally:
                lock.unlink(missing_ok=True)

    def _is_owed(self, record: CleanupRecord) -> bool:
        return any(each.id == record.id for each in self._appliance.catalog.cleanups.list(record.owner))

    def tidy(self) -> tuple[str, ...]:
        """Runs and files of dead processes; returns what could not be done, as sentences."""
        return (
            *attempted("interrupted runs", self._mark_interrupted),
            *attempted("sockets of dead servers", self._remove_stale_sockets),
            *attempted("caches of dead runs", self._remove_stale_caches),
            *attempted("connections of dead processes", self._remove_stale_connections),
        )

    def settle_owner(self, owner: str, hypervisor: Hypervisor | None) -> tuple[str, ...]:
        """As settle, for one owner whose work has ended (the caller is that owner), over its own connection."""
        problems: list[str] = []
        with _Connections(self._appliance, hypervisor) as connections:
            for record in self._appliance.catalog.cleanups.list(owner):
                # Each for itself: what is to be undone does not wait for a catalog that went away meanwhile.
                problems += attempted(f"{record.action} of {record.owner}", self._attempt, record, connections)
        return tuple(problems)

    def _remove_stale_sockets(self) -> None:
        """Folders of qemu-nbd servers that died with the run they served: nobody listens there any more."""
        for folder in self._appliance.settings.run_directory.glob(f"{SOCKET_FOLDER_PREFIX}*"):
            with socket.socket(socket.AF_UNIX) as probe:
                probe.setblocking(False)  # a server that has all its clients would have us wait until one goes
                listening = probe.connect_ex(str(folder / "s")) in (0, errno.EAGAIN)
            with suppress(FileNotFoundError):  # its owner has just removed it
                if not listening and time.time() - folder.stat().st_mtime > _STARTING_S:
                    shutil.rmtree(folder, ignore_errors=True)

    def _remove_stale_connections(self) -> None:
        run_directory = self._appliance.settings.run_directory
        ssh_folder.remove_left(run_directory)
        for lock in run_directory.glob("restore-*.lock"):
            remove_unowned(lock)

    def _remove_stale_caches(self) -> None:
        """What large runs that were killed had set aside: nobody uses it once no run is alive."""
        appliance = self._appliance
        folders = list(appliance.settings.cache_directory.glob(f"{PENDING_FOLDER_PREFIX}*"))
        if folders and not appliance.catalog.runs.own_running():
            for folder in folders:
                shutil.rmtree(folder, ignore_errors=True)

    def _mark_interrupted(self) -> list[str]:
        catalog = self._appliance.catalog
        problems: list[str] = []
        for run in catalog.runs.own_running():
            if not self._appliance.alive(f"run-{run.id}") and catalog.runs.get(run.id).state is RunState.RUNNING:
                problems += attempted(f"how the run of {run.name} ended", self._mark, run)
        run_directory = self._appliance.settings.run_directory
        for lock in run_directory.glob("run-*.lock"):
            remove_unowned(lock)
        for told in (*run_directory.glob("run-*.progress"), *run_directory.glob("run-*.new")):
            if not self._appliance.alive(told.stem):
                told.unlink(missing_ok=True)
        return problems

    def _mark(self, run: RunRecord) -> None:
        """How the run of a process that died ended: with the point that it had committed, or without one; then it is
        queued again, if that is where it came from."""
        if not self.settle_made(run):
            now, rules = self._appliance.clock.now_utc(), self._appliance.settings.queue
            ended = after(run, Ending.DIED, "its process ended before the run did", now, rules)
            self._appliance.catalog.queue.settle(run, ended, now)

    def settle_made(self, run: RunRecord) -> bool:
        """If the run has committed a point, whatever came after that, it has succeeded. ImagingError, CatalogError."""
        point = self._made_by(run) if run.kind is RunKind.BACKUP else None
        if point is None:
            return False
        now = self._appliance.clock.now_utc()
        notes = point.manifest.notes
        state = RunState.PARTIAL if notes or point.manifest.skipped else RunState.SUCCEEDED
        made = replace(run, state=state, ended_utc=now, point=point.manifest.id, notes=notes, error=None)
        self._appliance.catalog.queue.settle(run, made, now)
        PointService(self._appliance).record(point)
        return True

    def _made_by(self, run: RunRecord) -> Point | None:
        repository = self._appliance.repository
        for point in reversed(repository.points(repository.series_of(run.machine_kind, run.uuid or run.name))):
            if point.manifest.run == run.id:
                return point
        return None

    def _attempt(self, record: CleanupRecord, connections: _Connections) -> list[str]:
        try:
            self._undo(record, connections)
        except (StrongroomError, ImagingError) as err:
            self._appliance.catalog.cleanups.failed(record.id, str(err))
            return [f"{record.action} {record.subject} of {record.machine_name or record.owner}: {err}"]
        self._appliance.catalog.cleanups.drop(record.id)
        return []

    def _undo(self, record: CleanupRecord, connections: _Connections) -> None:
        if record.action is CleanupAction.RELEASE_HOLD:
            try:
                self._appliance.repository.release(record.subject)
            except HoldNotFound:
                return  # released already: what was wanted
            return
        hypervisor = connections.to(record.host or "")
        machine = record.machine_uuid or ""
        try:
            match record.action:
                case CleanupAction.END_BACKUP_JOB:
                    hypervisor.backups.end(machine, record.paths[0], record.paths[1:])
                case CleanupAction.DELETE_CHECKPOINT:
                    if record.subject != self._wanted_checkpoint(machine):
                        _delete_checkpoint(hypervisor, record)
                case CleanupAction.REMOVE_BITMAP:
                    for path in record.paths:
                        hypervisor.bitmaps.remove(path, record.subject)
                case CleanupAction.REMOVE_FILES:
                    for path in record.paths:
                        hypervisor.files.remove(path)
                case CleanupAction.UNDEFINE_MACHINE:
                    hypervisor.machines.destroy(machine)
                    hypervisor.machines.undefine(machine)
        except MachineNotFound:
            return  # the machine is gone, and everything on it

    def _wanted_checkpoint(self, machine_uuid: str) -> str | None:
        """The checkpoint that the machine's newest restore point relies on."""
        repository = self._appliance.repository
        points = repository.points(repository.series_of("vm", machine_uuid))
        return points[-1].manifest.checkpoint if points else None

    def _thaw(self, connections: _Connections) -> list[str]:
        """Ask once for every thaw that is owed, but of no machine that a living run is just beginning to back up."""
        problems: list[str] = []
        for debt in self._appliance.catalog.thaws.list():
            problems += attempted(f"thaw of {debt.name}", self._thaw_unless_busy, debt, connections)
        return problems

    def _thaw_unless_busy(self, debt: OwedThaw, connections: _Connections) -> list[str]:
        try:
            with (
                self._appliance.own(freezing(debt.machine_uuid), f"the guest agent of {debt.name}"),
                self._appliance.catalog.database.exclusively(freezing(debt.machine_uuid)) as nobody_else,
            ):
                return self._thaw_one(debt, connections) if nobody_else else []
        except InUse:
            return []  # frozen rightly, or thawed by another process at this moment

    def _thaw_one(self, debt: OwedThaw, connections: _Connections) -> list[str]:
        thaws = self._appliance.catalog.thaws
        try:
            thaw = connections.to(debt.host).agents.thaw(
                debt.machine_uuid, self._appliance.settings.agent.thaw_timeout_s
            )
        except MachineNotFound:
            thaws.paid(debt.machine_uuid, debt.host)
            return []
        except StrongroomError as err:
            thaws.failed(debt.machine_uuid, debt.host, str(err))
            return [f"thaw of {debt.name}: {err}"]
        if thaw.confirmed:
            thaws.paid(debt.machine_uuid, debt.host)
            return []
        thaws.failed(debt.machine_uuid, debt.host, thaw.detail)
        return [f"thaw of {debt.name} is not confirmed: {thaw.detail}"]


def attempted(what: str, step: Callable[P, Iterable[str] | None], *args: P.args, **kwargs: P.kwargs) -> tuple[str, ...]:
    """The problems that the step tells, or the one that ended it: as sentences, as there is more to be tried."""
    try:
        return tuple(step(*args, **kwargs) or ())
    except (StrongroomError, ImagingError, OSError) as err:
        return (f"{what}: {err}",)


def _delete_checkpoint(hypervisor: Hypervisor, record: CleanupRecord) -> None:
    """From the machine; from its files, if the machine is gone: a transient one may be made of them again."""
    machine = record.machine_uuid or ""
    if hypervisor.machines.exists(machine):
        hypervisor.checkpoints.delete(machine, record.subject, record.disks)
        return
    for path in record.paths:
        if hypervisor.files.exists(path):
            hypervisor.bitmaps.remove(path, record.subject)


class _Connections:
    """One connection to each host, for as long as debts are settled; a host that did not answer is not waited for
    again. Owns those that it made; borrows the one given."""

    def __init__(self, appliance: Appliance, given: Hypervisor | None = None) -> None:
        self._appliance = appliance
        self._open = {} if given is None else {given.host.name: given}
        self._failed: dict[str, StrongroomError] = {}
        self._closing = ExitStack()

    def to(self, host: str) -> Hypervisor:
        if host in self._failed:
            raise self._failed[host]
        if host not in self._open:
            try:
                self._open[host] = self._closing.enter_context(self._appliance.connect(host))
            except StrongroomError as err:
                self._failed[host] = err
                raise
        return self._open[host]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing.close()
