"""Watching the scratch of a backup, so that the guest never learns of it.

The rule: a scratch that runs full pauses the production machine, so the run is ended well before: at its limit, when it
would reach it within the next looks, or when the file system below comes down to its reserve. The guest comes first,
the backup can be run again.
"""

from __future__ import annotations

import os
import threading
import time
from types import TracebackType
from typing import Self

from appliance.hypervisor.errors import BackupJobLost, HostUnreachable, HypervisorError, ScratchFull
from appliance.hypervisor.protocol import BackupJob, Hypervisor

_LOOK_S = 0.25
_LOOKS_AHEAD = 4


def over_limit(used_bytes: int, before_bytes: int, limit_bytes: int) -> bool:
    """Whether the run has to end now: at the pace since the last look, the limit is only a few looks away. Pure."""
    return used_bytes + _LOOKS_AHEAD * max(0, used_bytes - before_bytes) >= limit_bytes


class ScratchWatch:
    """A thread beside the reading one; ends the job when its scratch gets too large. Borrows hypervisor and job.

    `check` raises what was found: ScratchFull, or BackupJobLost when the job is gone. Call it between reads, and first
    of all when a read fails, for then it knows the true reason. Leaving the context stops the watching, not the job.
    """

    def __init__(
        self, hypervisor: Hypervisor, job: BackupJob, limit_bytes: int, reserve_bytes: int = 0, look_s: float = _LOOK_S
    ) -> None:
        self._hypervisor = hypervisor
        self._job = job
        self._limit_bytes = limit_bytes
        self._reserve_bytes = reserve_bytes
        self._look_s = look_s
        self._stop = threading.Event()
        self._found: HypervisorError | None = None
        self._lock = threading.Lock()
        self._before_bytes = 0
        self._thread = threading.Thread(target=self._watch, name=f"scratch-{job.machine}", daemon=True)
        self.most_used_bytes = 0

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()

    def check(self, *, after_failure: bool = False) -> None:
        """`after_failure`: a read just failed; looks once more, as the thread may not have yet."""
        if after_failure:
            time.sleep(self._look_s)
            self._look()
        if self._found is not None:
            raise self._found

    def _watch(self) -> None:
        while not self._stop.wait(self._look_s):
            self._look()
            if self._found is not None:
                return

    def _look(self) -> None:
        with self._lock:
            if self._found is not None:
                return
            try:
                self._decide()
            except HostUnreachable:
                return  # libvirtd restarts: the job outlives it, and nothing could be done meanwhile
            except HypervisorError as error:
                self._found = error

    def _decide(self) -> None:
        machine = self._job.machine
        paused = self._hypervisor.machines.state(machine).io_error
        try:
            used = self._hypervisor.backups.usage(machine).scratch_used_bytes
        except BackupJobLost:
            if self._stop.is_set():
                return
            raise
        self.most_used_bytes = max(self.most_used_bytes, used)
        folder = os.path.dirname(self._job.exports[0].scratch)
        free = self._hypervisor.files.free_bytes(folder)
        crowded = free is not None and free < self._reserve_bytes
        if paused or crowded or over_limit(used, self._before_bytes, self._limit_bytes):
            scratches = [export.scratch for export in self._job.exports]
            resumed = self._hypervisor.backups.end(machine, self._job.socket, scratches)
            raise ScratchFull(machine, used, self._limit_bytes, folder, paused=resumed)
        self._before_bytes = used
