"""Runs one command and accounts for everything that it starts, whoever waits for it.

The rule: CPU is that of all processes that the command started, as the kernel counts it. The meter makes itself the
reaper of orphans (PR_SET_CHILD_SUBREAPER), so that a server which the command detached is still counted when it ends;
one that is still running when the command has ended is named, with the CPU it used so far added.

Used as a program of its own, with nothing but the standard library, so that it costs the measured command nothing:
    python meter.py RESULT.json COMMAND [ARGUMENT...]
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import FrameType

_PR_SET_CHILD_SUBREAPER = 36
_SAMPLE_S = 0.05
_GRACE_S = 1.0
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


def _stat(pid: int) -> tuple[int, str, float] | None:
    """Parent, name and CPU seconds (its own and its reaped children's) of a process; None when it has gone."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    name, _, rest = text.partition(" (")[2].rpartition(")")
    fields = rest.split()
    if fields[0] == "Z":
        return None
    return int(fields[1]), name, sum(map(int, fields[11:15])) / _TICKS_PER_S


def cpu_of(pid: int) -> float:
    """CPU seconds of a living process so far."""
    found = _stat(pid)
    return 0.0 if found is None else found[2]


def descendants(ancestor: int) -> dict[int, tuple[str, float]]:
    """Name and CPU seconds of each living process below one, by id."""
    children: dict[int, list[int]] = {}
    facts: dict[int, tuple[str, float]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit() and (found := _stat(int(entry))) is not None:
            children.setdefault(found[0], []).append(int(entry))
            facts[int(entry)] = found[1], found[2]
    below: dict[int, tuple[str, float]] = {}
    waiting = [ancestor]
    while waiting:
        for child in children.get(waiting.pop(), []):
            below[child] = facts[child]
            waiting.append(child)
    return below


def anonymous_kib(pid: int) -> int:
    """Anonymous memory that a process has resident; 0 when it has gone."""
    try:
        with open(f"/proc/{pid}/status") as status:
            for line in status:
                if line.startswith("RssAnon:"):
                    return int(line.split()[1])
    except (FileNotFoundError, ProcessLookupError):
        pass
    return 0


class _Sampler(threading.Thread):
    """Watches the anonymous memory of the command and all below it."""

    def __init__(self, command: int) -> None:
        super().__init__(daemon=True)
        self._command = command
        self._ended = threading.Event()
        self.peak_all_kib = 0
        self.peak_command_kib = 0

    def run(self) -> None:
        while not self._ended.wait(_SAMPLE_S):
            each = {pid: anonymous_kib(pid) for pid in descendants(os.getpid())}
            self.peak_all_kib = max(self.peak_all_kib, sum(each.values()))
            self.peak_command_kib = max(self.peak_command_kib, each.get(self._command, 0))

    def finish(self) -> None:
        self._ended.set()
        self.join()


def main(arguments: list[str]) -> int:
    result, command = Path(arguments[0]), arguments[1:]
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")
    start = time.perf_counter()
    process = subprocess.Popen(command)

    def forward(number: int, _frame: FrameType | None) -> None:
        os.kill(process.pid, number)

    signal.signal(signal.SIGTERM, forward)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to the command as well
    sampler = _Sampler(process.pid)
    sampler.start()
    cpu_s, rss_kib, blocks, status, seconds = 0.0, 0, 0, 0, 0.0
    deadline: float | None = None
    while True:
        try:
            pid, ended, usage = os.wait4(-1, 0 if deadline is None else os.WNOHANG)
        except ChildProcessError:
            break
        if pid == 0:
            if deadline is not None and time.perf_counter() > deadline:
                break
            time.sleep(0.005)
            continue
        cpu_s += usage.ru_utime + usage.ru_stime
        rss_kib = max(rss_kib, usage.ru_maxrss)
        blocks += usage.ru_inblock
        if pid == process.pid:
            seconds = time.perf_counter() - start
            status = process.returncode = os.waitstatus_to_exitcode(ended)
            deadline = time.perf_counter() + _GRACE_S
    sampler.finish()
    left = descendants(os.getpid())
    cpu_s += sum(used for _, used in left.values())
    report = {
        "seconds": seconds,
        "cpu_s": cpu_s,
        "disk_read_mib": blocks * 512 / (1 << 20),
        "peak_rss_mib": rss_kib / 1024,
        "peak_anonymous_mib": sampler.peak_all_kib / 1024,
        "command_anonymous_mib": sampler.peak_command_kib / 1024,
        "left_running": sorted(name for name, _ in left.values()),
    }
    result.write_text(json.dumps(report))
    return status if status >= 0 else 128 - status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
