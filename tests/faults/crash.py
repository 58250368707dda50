"""Runs the command line, and dies by SIGKILL, or is told to end by another signal, at one exact place in it.

    python -m tests.faults.crash PLACE WHEN NTH ARGUMENTS…

PLACE is `module:Class.method` or `module:function`, or `state:NAME`, the moment in which a recovery is recorded as
such; WHEN is `before` or `after` the NTH call, and may name another signal: `before-SIGTERM`; one that is suspended
there (`before-SIGSTOP`) goes on when it is told to. With `before-hang` nothing dies: that call never comes back, as
from a store that is away, and says so. A command that gets to its end ends with its own exit code, by which a test sees
that the place was never reached.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any

from appliance.cli import main

_UPDATE = "appliance.services.recovery.lifecycle:Recovery.update"


def crash_at(place: str, when: str, nth: int) -> None:
    state = ""
    if place.startswith("state:"):
        place, state = _UPDATE, place.removeprefix("state:")
    when, _, name_of_signal = when.partition("-")
    number = None if name_of_signal == "hang" else signal.Signals[name_of_signal or "SIGKILL"]
    if number not in (None, signal.SIGKILL, signal.SIGSTOP):
        usual = signal.default_int_handler if number is signal.SIGINT else signal.SIG_DFL
        signal.signal(number, usual)  # tests may be run by what ignores it
    module_name, path = place.split(":")
    owner: Any = importlib.import_module(module_name)
    *outer, name = path.split(".")
    for part in outer:
        owner = getattr(owner, part)
    real: Callable[..., Any] = getattr(owner, name)
    calls = 0

    def strike() -> None:
        if number is not None:
            os.kill(os.getpid(), number)
            return
        print(f"{place} hangs", file=sys.stderr, flush=True)
        threading.Event().wait()

    def watched(*arguments: Any, **named: Any) -> Any:
        nonlocal calls
        if state and named.get("state") != state:
            return real(*arguments, **named)
        calls += 1
        wanted = calls == nth  # of this call: other threads may be in the same place
        if wanted and when == "before":
            strike()
        result = real(*arguments, **named)
        if wanted and when == "after":
            strike()
        return result

    setattr(owner, name, watched)


if __name__ == "__main__":
    crash_at(sys.argv[1], sys.argv[2], int(sys.argv[3]))
    sys.exit(main(sys.argv[4:]))
