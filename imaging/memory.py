"""Memory for whole regions and packs: on a page boundary, of huge pages where the kernel gives them.

Why: what is read, hashed, compressed and sealed passes through a few such buffers; with pages of 2 MiB there are fewer
page faults and fewer misses of the processor's address cache (docs/decisions/0029).
"""

from __future__ import annotations

import mmap
from contextlib import suppress


def aligned_memory(size_bytes: int) -> memoryview:
    """Zeroed memory of this process alone. What is not written to costs nothing, but for the rest of a huge page."""
    found = mmap.mmap(-1, size_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(OSError):  # a kernel without huge pages
        found.madvise(mmap.MADV_HUGEPAGE)
    return memoryview(found)
