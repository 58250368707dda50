"""Whether something comes by a descriptor.

The rule: nobody asks by `select`, which refuses descriptors from 1,024 on: a process that serves many may have more.
"""

from __future__ import annotations

import select
from typing import Protocol


class HasDescriptor(Protocol):
    def fileno(self) -> int: ...


def readable(what: int | HasDescriptor, timeout_s: float) -> bool:
    """Of a pipe, a socket or a pidfd: whether there is something to read, or its end, within this time."""
    poll = select.poll()
    poll.register(what, select.POLLIN)
    return bool(poll.poll(timeout_s * 1000))
