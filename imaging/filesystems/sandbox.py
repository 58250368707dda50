"""How a process gives up everything before it looks at a guest's data. Linux only.

The rule: called once, with one thread, after all modules are loaded. Afterwards there is nothing to open: no file, no
socket, no process; memory and processor time have ends. As root it is another user in an empty folder besides; as
anybody else it stays who it is, and has all other limits.
"""

from __future__ import annotations

import ctypes
import os
import resource
import time
from typing import Final

MEMORY_BYTES: Final = 1 << 30
CPU_S: Final = 60
_NOBODY: Final = 65534
_PR_SET_DUMPABLE: Final = 4  # linux/prctl.h
_PR_SET_NO_NEW_PRIVS: Final = 38


def enter(descriptors: int, empty_folder: str) -> None:
    """Keeps the descriptors below `descriptors` and never gets another. Raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    allow()
    if os.geteuid() == 0:
        os.chroot(empty_folder)
        os.chdir("/")
        os.setgroups([])
        os.setresgid(_NOBODY, _NOBODY, _NOBODY)
        os.setresuid(_NOBODY, _NOBODY, _NOBODY)
    resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))
    for option, value in ((_PR_SET_NO_NEW_PRIVS, 1), (_PR_SET_DUMPABLE, 0)):
        if libc.prctl(option, value, 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), f"prctl({option}) failed")
    os.closerange(descriptors, resource.getrlimit(resource.RLIMIT_NOFILE)[0])
    resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors, descriptors))


def allow() -> None:
    """So much processor time from now on: who does not come to ask again is in a loop, and is ended."""
    _, hard_s = resource.getrlimit(resource.RLIMIT_CPU)
    until_s = int(time.process_time()) + CPU_S
    resource.setrlimit(resource.RLIMIT_CPU, (until_s if hard_s < 0 else min(until_s, hard_s), hard_s))
