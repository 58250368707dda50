"""How a process gives up everything before it looks at a guest's data. Linux only.

The rule: called once, with one thread, after all modules are loaded. Afterwards there is nothing to open and nobody to
act upon: no file, no socket, no process, not even one of the same user; memory and processor time have ends. As root it
is a user that nobody else is, in an empty folder; as anybody else it stays who it is, and has all other limits.
"""

from __future__ import annotations

import ctypes
import errno
import os
import resource
import time
from typing import Final

MEMORY_BYTES: Final = 1 << 30
CPU_S: Final = 60
_FIRST_ID: Final = 1_879_048_192
"""From here to 2,147,483,647 ids are given to nobody (systemd.io/UIDS-GIDS); with the process's own id added no other
one has it, which a common `nobody` could kill and trace."""
_NOBODY: Final = 65534
_PR_SET_DUMPABLE: Final = 4  # linux/prctl.h
_PR_SET_NO_NEW_PRIVS: Final = 38

_LIBRARY: Final = "libseccomp.so.2"
_ALLOW: Final = 0x7FFF0000  # SCMP_ACT_ALLOW, seccomp.h
_UNKNOWN: Final = 0x00050000 | errno.ENOSYS  # SCMP_ACT_ERRNO: as of a kernel that has no such call
_EQUAL: Final = 4  # SCMP_CMP_EQ
_RAW_ERRORS: Final = 9  # SCMP_FLTATR_API_SYSRAWRC: what the kernel said, where 2.5 says ECANCELED of anything
_CALLS: Final = (
    "read", "write", "recvfrom", "sendto", "recvmsg", "sendmsg", "lseek", "fstat", "close",
    "brk", "mmap", "munmap", "mremap", "mprotect", "madvise", "membarrier",
    "futex", "sched_yield", "sched_getaffinity", "restart_syscall",
    "rt_sigaction", "rt_sigprocmask", "rt_sigreturn", "sigaltstack",
    "clock_gettime", "clock_getres", "gettimeofday", "time", "getrusage", "times", "getrandom",
    "getpid", "gettid", "getuid", "geteuid", "getgid", "getegid", "getrlimit", "setrlimit",
    "exit", "exit_group",
)  # fmt: skip
"""What a parser needs that computes and asks for bytes over a socket. Nothing else can be called: neither what acts on
other processes nor what leaves something behind (shared memory, keys, namespaces)."""


class _Argument(ctypes.Structure):
    """scmp_arg_cmp."""

    _fields_ = (("arg", ctypes.c_uint), ("op", ctypes.c_int), ("a", ctypes.c_uint64), ("b", ctypes.c_uint64))


def enter(descriptors: int, empty_folder: str) -> None:
    """Keeps the descriptors below `descriptors` and never gets another. Raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    filters = _library()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    allow()
    if os.geteuid() == 0:
        os.chroot(empty_folder)
        os.chdir("/")
        _become_another()
    resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))
    for option, value in ((_PR_SET_NO_NEW_PRIVS, 1), (_PR_SET_DUMPABLE, 0)):
        if libc.prctl(option, value, 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), f"prctl({option}) failed")
    os.closerange(descriptors, resource.getrlimit(resource.RLIMIT_NOFILE)[0])
    resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors, descriptors))
    if filters is not None:
        _filter_calls(filters)


def allow() -> None:
    """So much processor time from now on: who does not come to ask again is in a loop, and is ended."""
    _, hard_s = resource.getrlimit(resource.RLIMIT_CPU)
    until_s = int(time.process_time()) + CPU_S
    resource.setrlimit(resource.RLIMIT_CPU, (until_s if hard_s < 0 else min(until_s, hard_s), hard_s))


def _become_another() -> None:
    os.setgroups([])
    own = _FIRST_ID + os.getpid()
    try:
        os.setresgid(own, own, own)
        os.setresuid(own, own, own)
    except OSError as err:
        if err.errno != errno.EINVAL:
            raise
        os.setresgid(_NOBODY, _NOBODY, _NOBODY)  # a container that has fewer ids
        os.setresuid(_NOBODY, _NOBODY, _NOBODY)


def _library() -> ctypes.CDLL | None:
    """None: this machine has none, and what it would refuse is not refused."""
    try:
        library = ctypes.CDLL(_LIBRARY)
    except OSError:
        return None
    library.seccomp_init.restype = ctypes.c_void_p
    library.seccomp_init.argtypes = [ctypes.c_uint32]
    library.seccomp_syscall_resolve_name.argtypes = [ctypes.c_char_p]
    library.seccomp_rule_add_array.argtypes = [
        ctypes.c_void_p, ctypes.c_uint32, ctypes.c_int, ctypes.c_uint, ctypes.POINTER(_Argument),
    ]  # fmt: skip
    library.seccomp_attr_set.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_uint32]
    library.seccomp_load.argtypes = [ctypes.c_void_p]
    return library


def _filter_calls(library: ctypes.CDLL) -> None:
    """OSError; a kernel that has no such filters is left alone."""
    context = library.seccomp_init(_UNKNOWN)
    library.seccomp_attr_set(context, _RAW_ERRORS, 1)  # before 2.5 there is no such thing, and no need of it
    itself = _Argument(0, _EQUAL, 0, 0)
    for name in (*_CALLS, "prlimit64"):
        number = library.seccomp_syscall_resolve_name(name.encode())
        if number < 0:
            continue  # not of this machine's architecture
        only = (1, ctypes.byref(itself)) if name == "prlimit64" else (0, None)  # its own limits, nobody else's
        if (code := library.seccomp_rule_add_array(context, _ALLOW, number, *only)) != 0:
            raise OSError(-code, f"seccomp: {name}")
    code = library.seccomp_load(context)
    if code not in (0, -errno.EINVAL, -errno.ENOSYS, -errno.EOPNOTSUPP):
        raise OSError(-code, "seccomp_load failed")
