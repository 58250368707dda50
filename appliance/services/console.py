"""Keeps the console's process alive beside `strongroom serve`.

The rule: the console is a process of its own, so that nothing that happens to it (a full memory, a request that hangs)
reaches recovered machines and runs. It ends with its parent, however that ends. A console that cannot start (its port
is taken) is told once, and tried again.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from appliance.readable import readable
from appliance.services.spawning import without_secrets

if TYPE_CHECKING:
    from appliance.bootstrap import Appliance

_LOOK_S = 0.2
_FIRST_WAIT_S, _LONGEST_WAIT_S = 1.0, 60.0
_END_S = 10.0
MODULE = "web"  # which this layer cannot import


class ConsoleService:
    """Borrows the appliance."""

    def __init__(self, appliance: Appliance) -> None:
        self._settings = appliance.settings
        self._tried = threading.Event()

    @property
    def wanted(self) -> bool:
        return self._settings.web.port != 0

    def wait_until_tried(self, stop: threading.Event) -> None:
        """Until the console answers, or could not be started at first, or `stop`."""
        while not stop.is_set() and not self._tried.wait(_LOOK_S):
            pass

    def keep(self, stop: threading.Event, tell: Callable[[str], None]) -> None:
        """Until `stop`; `tell` gets what an admin should know."""
        wait_s = _FIRST_WAIT_S
        told = ""
        while not stop.is_set():
            process, ready = self._start(stop)
            if ready:
                wait_s, told = _FIRST_WAIT_S, ""
            self._tried.set()
            while process.poll() is None and not stop.wait(_LOOK_S):
                pass
            code = self._end(process)
            if stop.is_set():
                return
            sentence = f"the console ended with {code}; it is started again"
            if sentence != told:
                tell(sentence)
                told = sentence
            stop.wait(wait_s)
            wait_s = min(2 * wait_s, _LONGEST_WAIT_S)

    def _start(self, stop: threading.Event) -> tuple[subprocess.Popen[bytes], bool]:
        """A process, and whether it said that it answers before it ended."""
        reading, writing = os.pipe()
        try:
            words = [sys.executable, "-P", "-m", MODULE, "--ready", str(writing), "--parent", str(os.getpid())]
            environment = {**without_secrets(os.environ), "STRONGROOM_HOME": str(self._settings.home)}
            process = subprocess.Popen(
                words, stdin=subprocess.DEVNULL, cwd=Path("/"), env=environment, pass_fds=(writing,),
                start_new_session=True,
            )  # fmt: skip
        except BaseException:
            os.close(reading)
            raise
        finally:
            os.close(writing)
        try:
            while not stop.is_set():
                if readable(reading, _LOOK_S):
                    return process, os.read(reading, 1) != b""  # nothing: it ended, and with it its end of the pipe
            return process, False
        finally:
            os.close(reading)

    @staticmethod
    def _end(process: subprocess.Popen[bytes]) -> int:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(_END_S)
            except subprocess.TimeoutExpired:
                process.kill()
        return process.wait()
