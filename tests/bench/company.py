"""Who else used the machine meanwhile: a wall clock is worth what the machine was free to give.

The rule: said beside every part, so that nobody compares seconds taken on a busy machine with those of an idle one.
"""

from __future__ import annotations

import os
import resource
import time
from dataclasses import dataclass
from pathlib import Path

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_BUSY = (0, 1, 2, 5, 6, 7)  # of /proc/stat's cpu line: user, nice, system, irq, softirq, steal


@dataclass(frozen=True, slots=True)
class Moment:
    wall_s: float
    machine_cpu_s: float
    own_cpu_s: float


def now() -> Moment:
    fields = Path("/proc/stat").read_text().splitlines()[0].split()[1:]
    machine_s = sum(int(fields[number]) for number in _BUSY) / _TICKS_PER_S
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return Moment(time.monotonic(), machine_s, sum(each.ru_utime + each.ru_stime for each in used))


def others_cores(since: Moment) -> float:
    """Cores that others kept busy on average since then; virtual machines and their daemon count as others."""
    here = now()
    others_s = (here.machine_cpu_s - since.machine_cpu_s) - (here.own_cpu_s - since.own_cpu_s)
    return max(0.0, others_s / max(here.wall_s - since.wall_s, 1e-3))
