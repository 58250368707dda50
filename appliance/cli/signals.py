"""How a command ends when it is asked to: SIGTERM from a service manager, SIGHUP when its terminal goes.

The rule: both end it as Ctrl-C does, with everything that a command undoes on its way out, and the exit code names the
signal as a shell would. A second one does not cut that short. What was started to ignore them (`nohup`) does.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_ENDING = (signal.SIGTERM, signal.SIGHUP)
_SHELL = 128


class Ending:
    """What the command was asked by to end, if it was."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._terminals = [descriptor for descriptor in (1, 2) if os.isatty(descriptor)]

    @property
    def exit_code(self) -> int | None:
        return None if self.signal is None else _SHELL + self.signal

    def end(self, number: int, _frame: FrameType | None) -> None:
        if self.signal is not None:
            return
        self.signal = signal.Signals(number)
        if self.signal is signal.SIGHUP:
            self._leave_terminal()
        raise KeyboardInterrupt(f"it was ended by {self.signal.name}")

    def _leave_terminal(self) -> None:
        """A terminal that is gone fails whoever writes to it, and would fail the clean-up."""
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for descriptor in self._terminals:
            os.dup2(nowhere, descriptor)
        os.close(nowhere)


@contextmanager
def ending_in_order() -> Iterator[Ending]:
    """Signals are handled so in the body. In threads other than the main one nothing is changed."""
    ending = Ending()
    former = {}
    if threading.current_thread() is threading.main_thread():
        for number in _ENDING:
            if signal.getsignal(number) == signal.SIG_DFL:
                former[number] = signal.signal(number, ending.end)
    try:
        yield ending
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
