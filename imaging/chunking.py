"""Where a region is cut into chunks and holes: docs/format.md, section 6.

The result is a pure function of the region's bytes and the keys, so that two ways to reach the same content
(a full read, an incremental one) give the same chunks.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray

from imaging.extents import PAGE_BYTES, ByteRange

CHUNK_PAGES_MIN = 4
CHUNK_PAGES_MAX = 64
CUT_MODULUS = 13
HOLE_PAGES_MIN = 16

_WORDS = PAGE_BYTES // 8  # the two 32-bit words of each 64-bit one are multiplied together, see PageHash
_PAGES_A_PASS = 64  # 256 KiB and as much scratch: stays in the second-level cache (measured: 10 GB/s, 4 at 16 pages)

Bools = NDArray[np.bool_]
Words = NDArray[np.uint64]


class Record(NamedTuple):
    """A chunk or a hole of a region, in pages from the region's start."""

    start: int
    stop: int
    data: bool


class PageHash:
    """Tells which pages are cut pages.

    The multilinear hash alone would let a guest that writes chosen pages, with an observer of the cut points, recover
    the multipliers; so its top half goes through AES before the modulus.
    """

    def __init__(self, multipliers: bytes, permutation: bytes) -> None:
        """`multipliers`: 1,024 u64 and a constant, little-endian (8,200 bytes). `permutation`: an AES-256 key."""
        numbers = np.frombuffer(multipliers, dtype="<u8")
        if len(numbers) != 2 * _WORDS + 1:
            raise ValueError(f"{len(multipliers)} bytes of multipliers, not {(2 * _WORDS + 1) * 8}")
        low, high = numbers[0:-1:2], numbers[1:-1:2]
        # With w = a + 2^32 b, m·a + n·b = m·w + (n - 2^32 m)·b modulo 2^64: one pass over the words as they are, one
        # over their upper halves, and no third one to mask the lower.
        self._whole: Words = low.copy()
        self._upper: Words = high - (low << np.uint64(32))
        self._constant = numbers[-1]
        self._cipher = Cipher(algorithms.AES256(permutation), modes.ECB())  # noqa: S305 - a permutation of one block

    def cut_pages(self, pages: Words) -> Bools:
        """For an array of (n, 512) u64, one page a row: which of the n are cut pages."""
        count = len(pages)
        sums = np.empty(count, np.uint64)
        upper = np.empty((min(count, _PAGES_A_PASS), _WORDS), np.uint64)
        for start in range(0, count, _PAGES_A_PASS):
            part = pages[start : start + _PAGES_A_PASS]
            half = upper[: len(part)]
            np.right_shift(part, np.uint64(32), out=half)
            sums[start : start + len(part)] = np.einsum("pw,w->p", part, self._whole)
            sums[start : start + len(part)] += np.einsum("pw,w->p", half, self._upper)
        sums += self._constant
        blocks = np.zeros((count, 2), "<u8")
        blocks[:, 0] = sums >> np.uint64(32)
        encrypted = self._cipher.encryptor().update(blocks.tobytes())
        hashes = np.frombuffer(encrypted, "<u8")[::2]
        flags: Bools = hashes % CUT_MODULUS == 0
        return flags


def zero_pages(pages: Words) -> Bools:
    """For an array of (n, 512) u64: which rows are all zero."""
    zero: Bools = (pages[:, 0] | pages[:, _WORDS // 2]) == 0  # few pages of data look like that; the rest is not read
    for a, b in runs(zero):
        zero[a:b] = np.bitwise_or.reduce(pages[a:b], axis=1) == 0
    return zero


def runs(flags: Bools) -> list[tuple[int, int]]:
    """The maximal runs of True, as half-open pairs."""
    fenced = np.zeros(len(flags) + 2, np.bool_)
    fenced[1:-1] = flags
    edges = np.flatnonzero(fenced[1:] != fenced[:-1]).tolist()
    return list(zip(edges[::2], edges[1::2], strict=True))


def page_flags(page_hash: PageHash, pages: Words) -> tuple[Bools, Bools]:
    """For an array of (n, 512) u64: which pages are zero, and which are cut pages."""
    zero = zero_pages(pages)
    cut = np.zeros(len(zero), np.bool_)
    for a, b in runs(~zero):
        cut[a:b] = page_hash.cut_pages(pages[a:b])
    return zero, cut


def covered_pages(ranges: Iterable[ByteRange], start: int, pages: int) -> Bools:
    """Flags of the pages that page-aligned byte ranges cover; `start` is the region's first byte."""
    flags = np.zeros(pages, np.bool_)
    for item in ranges:
        flags[(item.start - start) // PAGE_BYTES : -(-(item.stop - start) // PAGE_BYTES)] = True
    return flags


def holes(zero: Bools) -> list[tuple[int, int]]:
    """The runs of zero pages that are holes: long enough, or at the region's end."""
    return [(a, b) for a, b in runs(zero) if b - a >= HOLE_PAGES_MIN or b == len(zero)]


def next_cut(start: int, stop: int, cuts: list[int]) -> int:
    """Where the chunk that starts at `start`, in data that ends at `stop`, ends. `cuts`: sorted cut pages."""
    last = min(start + CHUNK_PAGES_MAX, stop)
    at = bisect_left(cuts, start + CHUNK_PAGES_MIN - 1)
    if at < len(cuts) and cuts[at] < last:
        return cuts[at] + 1
    return last


def cut_region(zero: Bools, cut: Bools) -> list[Record]:
    """Cut a region whose pages are all known. `zero`, `cut`: one flag per page."""
    cuts = [int(page) for page in np.flatnonzero(cut)]
    records: list[Record] = []

    def data(start: int, stop: int) -> None:
        while start < stop:
            end = next_cut(start, stop, cuts)
            records.append(Record(start, end, data=True))
            start = end

    position = 0
    for start, stop in holes(zero):
        data(position, start)
        records.append(Record(start, stop, data=False))
        position = stop
    data(position, len(zero))
    return records
