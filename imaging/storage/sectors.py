"""Bad sectors, told from a disk that does not answer for a moment: both are EIO to whoever reads.

Rule: a file is bad for good where the same page fails again and again, past the page cache, while another page of the
same file can be read that way in between. Where that cannot be shown (a file of one page, a file system that has no
O_DIRECT, a disk that gives nothing at all) nothing is concluded.
"""

from __future__ import annotations

import errno
import os
from typing import Final

from imaging.direct import read_direct
from imaging.extents import PAGE_BYTES, ByteRange

_STEP_PAGES: Final = 256
_TRIES: Final = 2
_FROM_IT_PAGES: Final = (1, 16, 256, 4096)
"""How far from the bad page a good one is looked for: sectors go bad in clusters."""


def bad_for_good(descriptor: int, offset: int, length: int) -> ByteRange | None:
    """The first page of a range of an open file that cannot be read for good; None if that cannot be shown."""
    pages = -(-os.fstat(descriptor).st_size // PAGE_BYTES)
    bad = _first_bad(descriptor, offset // PAGE_BYTES, min(-(-(offset + length) // PAGE_BYTES), pages))
    if bad is None:
        return None
    good = _good(descriptor, bad, pages)
    if good is None:
        return None
    for _ in range(_TRIES):
        if _reads(descriptor, bad, 1) is not False or not _reads(descriptor, good, 1):
            return None
    return ByteRange(bad * PAGE_BYTES, min((bad + 1) * PAGE_BYTES, os.fstat(descriptor).st_size))


def _first_bad(descriptor: int, first: int, stop: int) -> int | None:
    for start in range(first, stop, _STEP_PAGES):
        end = min(start + _STEP_PAGES, stop)
        if _reads(descriptor, start, end - start) is False:
            return next((page for page in range(start, end) if _reads(descriptor, page, 1) is False), None)
    return None


def _good(descriptor: int, bad: int, pages: int) -> int | None:
    near = (page for far in _FROM_IT_PAGES for page in (bad - far, bad + far))
    return next((page for page in (*near, 0, pages - 1) if 0 <= page < pages and _reads(descriptor, page, 1)), None)


def _reads(descriptor: int, page: int, count: int) -> bool | None:
    """Whether pages can be read now, past the page cache; None where they cannot be read that way at all, or fail
    otherwise."""
    try:
        return True if read_direct(descriptor, page * PAGE_BYTES, count * PAGE_BYTES) else None
    except OSError as error:
        return False if error.errno == errno.EIO else None
