"""The thread that runs libvirt's events must not outlive the interpreter: it crashed commands that had succeeded."""

from __future__ import annotations

import subprocess
import sys

import pytest

SCRIPT = """
import ctypes, sys, time
from appliance.hypervisor.libvirt_driver import connect
from appliance.hypervisor.protocol import HostConfig
with connect(HostConfig("here", timeout_s=60)) as hypervisor:
    hypervisor.machines.list()
time.sleep(0.3)  # the thread waits in the loop again
process = ctypes.CDLL(None)
process.on_exit(process.sleep, None)  # two seconds (the exit status) between the interpreter's end and the process's
sys.exit(2)
"""


@pytest.mark.integration
@pytest.mark.faults
def test_no_event_is_handled_after_the_interpreter_has_gone() -> None:
    ended = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=False, timeout=120)
    assert (ended.returncode, ended.stderr) == (2, "")
