"""Waiting for what a hypervisor or a guest does in its own time."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from appliance.hypervisor.protocol import HostConfig

HERE: Final = HostConfig("here", timeout_s=60)
"""This machine's libvirtd, which has the time that it needs."""


def wait_until(holds: Callable[[], bool], timeout_s: float = 120.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not holds():
        if time.monotonic() >= deadline:
            raise AssertionError(f"did not come true within {timeout_s:g} s")
        time.sleep(0.1)
