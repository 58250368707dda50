"""Instant recovery: how long a lost machine takes from the request until it runs, whatever its disk's size.

Each machine is backed up while off, then lost with its disk. "Started" is when the hypervisor says that the new machine
runs, asked every 5 ms; "returned" is when the command has ended.
"""

from __future__ import annotations

import json
import os
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

from tests.bench.images import MIB
from tests.bench.incremental import HOST, Scale, sparse_machine
from tests.bench.machines import Lab, lab
from tests.bench.measure import BenchError, CommandFailed, say
from tests.bench.report import Goal, Part
from tests.bench.strongroom import COMMAND, Appliance, appliance

_DATA_BYTES = 256 * MIB
FULL = tuple(Scale(size, _DATA_BYTES, 4 * MIB, (), 0) for size in (1 << 30, 100 << 30, 2 << 40))
QUICK = (Scale(1 << 30, 16 * MIB, 4 * MIB, (), 0),)
_ASK_S = 0.005
_PATIENCE_S = 60.0
_PARTLY = 3


def measure_recovery(work: Path, content: Path, *, quick: bool) -> Part:
    part = Part("recovery", "instant recovery of a lost machine")
    rows = []
    root = work / "recovery"
    with appliance(root, settle=not quick) as strongroom, lab() as machines:
        strongroom.call("host", "add", HOST, "qemu:///system", "--accelerator", "tcg")
        for number, scale in enumerate(QUICK if quick else FULL):
            machine = sparse_machine(machines, f"recovery{number}", root, scale, content)
            say(f"recovery: a disk of {scale.size_bytes >> 30} GiB")
            strongroom.backup(machine.name, "--host", HOST)
            machines.forget(machine)
            figures = _recover(strongroom, machines, machine.name)
            label = f"{scale.size_bytes >> 30} GiB"
            part.figures[label] = figures
            rows.append([label, figures["started_s"], figures["returned_s"]])
            part.goals.append(Goal(f"request to started, {label}", figures["started_s"], 2, "s", at_least=False))
    part.table(["disk", "started, s", "returned, s"], rows)
    return part


def _recover(strongroom: Appliance, machines: Lab, name: str) -> dict[str, Any]:
    new = f"{name}-recovered"
    command = [COMMAND, "recovery", "start", name, "--point", "latest", "--host", HOST, "--as", new, "--json"]
    if strongroom.settle:
        os.sync()
    watch = _Watch(machines, new)
    began = time.perf_counter()
    process = subprocess.Popen(
        command,
        env={**os.environ, **strongroom.environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    watch.start()
    out, err = process.communicate()
    returned_s = time.perf_counter() - began
    if process.returncode not in (0, _PARTLY):
        watch.stop()
        raise CommandFailed(command, process.returncode, err or out)
    watch.join(_PATIENCE_S)
    watch.stop()
    if watch.seen is None:
        raise BenchError(f"{new} does not run although the recovery was said to have started")
    record = json.loads(out)
    strongroom.call("recovery", "discard", record["id"], "--yes")
    if machines.running(new):
        raise BenchError(f"{new} still runs although its recovery was discarded")
    return {
        "started_s": round(watch.seen - began, 3),
        "returned_s": round(returned_s, 3),
        "start_ms": record["start_ms"],
    }


class _Watch(threading.Thread):
    """Asks the hypervisor until a machine runs."""

    def __init__(self, machines: Lab, name: str) -> None:
        super().__init__(daemon=True)
        self._machines = machines
        self._name = name
        self._stopped = threading.Event()
        self.seen: float | None = None

    def run(self) -> None:
        while not self._stopped.wait(_ASK_S):
            if self._machines.running(self._name):
                self.seen = time.perf_counter()
                return

    def stop(self) -> None:
        self._stopped.set()
