"""The nbdkit plugin: one read-only disk of a restore point. Run as `nbdkit python …/export_plugin.py key=value …`.

Rule: nothing but the translation between nbdkit's calls and `imaging.serving`; the parameters are those of
`ServedDisk`, and no secret is among them. The repository is opened in after_fork, so that a key or a point that is
not there ends the server before it accepts. nbdkit's Python API, version 2: nbdkit-python-plugin(3).
"""

from __future__ import annotations

import ctypes
import errno
import gc
import sys
from collections.abc import Iterator
from typing import Any

import nbdkit

from imaging.serving import DiskService, ServedDisk, open_disk

API_VERSION = 2

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_PREFERRED_BYTES = 64 << 10
_MAXIMUM_BYTES = 32 << 20

_given: dict[str, str] = {}
_serving: list[DiskService] = []


def config(key: str, value: str) -> None:
    _given[key] = value


def config_complete() -> None:
    if _given.pop("outlives_caller", "") == "true":
        _outlive_caller()
    ServedDisk.parse(_given)


def _outlive_caller() -> None:
    """nbdkit 1.32 asks the kernel for a signal at its parent's death even without --exit-with-parent: take that
    back.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, 0, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl failed")


def thread_model() -> int:
    return int(nbdkit.THREAD_MODEL_PARALLEL)


def after_fork() -> None:
    try:
        _serving.append(open_disk(ServedDisk.parse(_given)))
        # Leaves and chunks come and go by the thousand and hold no cycles: what is there by now is never looked at
        # again, the rest seldom. A collection in the middle of a read showed as its 99th percentile.
        gc.collect()
        gc.freeze()
        gc.set_threshold(100_000, 50, 50)
    except Exception as err:
        sys.stderr.write(f"strongroom export: cannot serve disk {_given['disk']} of {_given['point']}: {err}\n")
        sys.stderr.flush()
        raise


def open(readonly: bool) -> DiskService:
    return _serving[0]


def get_size(served: DiskService) -> int:
    return served.size_bytes


def block_size(served: DiskService) -> tuple[int, int, int]:
    return 1, _PREFERRED_BYTES, _MAXIMUM_BYTES


def can_write(served: DiskService) -> bool:
    return False


def can_multi_conn(served: DiskService) -> bool:
    return True


def can_extents(served: DiskService) -> bool:
    return True


def can_cache(served: DiskService) -> int:
    return int(nbdkit.CACHE_NONE)


def is_rotational(served: DiskService) -> bool:
    return False


def pread(served: DiskService, buffer: Any, offset: int, flags: int) -> None:
    try:
        served.read_into(offset, memoryview(buffer))
    except OSError:
        nbdkit.set_error(errno.EIO)
        raise


def extents(served: DiskService, count: int, offset: int, flags: int) -> Iterator[tuple[int, int, int]]:
    try:
        found = served.extents(offset, count, bool(flags & nbdkit.FLAG_REQ_ONE))
    except OSError:
        nbdkit.set_error(errno.EIO)
        raise
    hole = nbdkit.EXTENT_HOLE | nbdkit.EXTENT_ZERO
    return iter([(start, length, hole if zero else 0) for start, length, zero in found])
