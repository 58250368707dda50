"""Waiting for something that may hang, and for no longer than was said.

The rule: what is waited for in vain goes on in a thread that nobody joins, so it may be done later, or cut off
anywhere by the end of the process: only for what may be done twice, or left half done.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import TypeVar

T = TypeVar("T")


class StillWaiting(Exception):
    """The work goes on."""


def within(seconds: float, work: Callable[[], T], name: str) -> T:
    """What the work returns, or raises. StillWaiting. `name`: of the thread."""
    answers: SimpleQueue[tuple[T | None, BaseException | None]] = SimpleQueue()

    def working() -> None:
        try:
            answers.put((work(), None))
        except BaseException as err:  # noqa: BLE001  (whoever waits raises it; nobody is left who could otherwise)
            answers.put((None, err))

    threading.Thread(target=working, name=name, daemon=True).start()
    try:
        result, error = answers.get(timeout=seconds)
    except Empty:
        raise StillWaiting from None
    if error is not None:
        raise error
    return result  # type: ignore[return-value]
