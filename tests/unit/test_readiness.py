"""A process that is ready waits for its end in pieces."""

from __future__ import annotations

import threading

import pytest

from appliance.readiness import Readiness


@pytest.mark.parametrize("environment", [{}, {"WATCHDOG_USEC": "40000000"}], ids=["alone", "watched"])
def test_no_wait_is_without_an_end(environment: dict[str, str]) -> None:
    """A signal that came a moment too early to wake the main thread is handled when it looks again."""
    waits: list[float | None] = []

    class Stop(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            waits.append(timeout)
            return len(waits) == 3

    Readiness(environment).keep_telling("serving", Stop())
    assert len(waits) == 3
    assert all(each is not None and each <= 20 for each in waits)
