"""How a command ends when it is asked to: SIGTERM from a service manager, SIGHUP when its terminal goes.

The rule: both end it as Ctrl-C does, with everything that a command undoes on its way out, and the exit code names the
signal as a shell would. A second one does not cut that short. What was started to ignore them (`nohup`) does. Threads
that wait for their turn under a limit of bandwidth are woken, by Ctrl-C too.
"""

from __future__ import annotations

import os
import queue
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_ENDING = (signal.SIGTERM, signal.SIGHUP)
_SHELL = 128


def end_this_process() -> None:
    """Ask for it from another thread, as if SIGTERM had come: what the main thread waits for is interrupted."""
    main = threading.main_thread().ident
    assert main is not None
    signal.pthread_kill(main, signal.SIGTERM)


class Ending:
    """What the command was asked by to end, if it was."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._terminals = [descriptor for descriptor in (1, 2) if os.isatty(descriptor)]
        self._ended: queue.SimpleQueue[None] = queue.SimpleQueue()
        """Of all that wakes threads, this alone may be used in a handler whatever its thread was just doing."""

    @property
    def exit_code(self) -> int | None:
        return None if self.signal is None else _SHELL + self.signal

    def end(self, number: int, _frame: FrameType | None) -> None:
        if self.signal is not None:
            return
        self.signal = signal.Signals(number)
        self._ended.put(None)
        if self.signal is signal.SIGHUP:
            self._leave_terminal()
        raise KeyboardInterrupt(f"it was ended by {self.signal.name}")

    def interrupt(self, _number: int, _frame: FrameType | None) -> None:
        """Ctrl-C, and once more where that takes too long."""
        self._ended.put(None)
        raise KeyboardInterrupt

    def wait(self, seconds: float) -> bool:
        """For so long, in any thread; True as soon as the command is to end."""
        try:
            self._ended.get(timeout=min(seconds, threading.TIMEOUT_MAX))
        except queue.Empty:
            return False
        self._ended.put(None)  # for the next who waits
        return True

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
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            former[signal.SIGINT] = signal.signal(signal.SIGINT, ending.interrupt)
    try:
        yield ending
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
