"""What the packs of a repository hold: every row of every pack that an index object which counts lists, and how good a
place it is.

Rules: the ledger says which rows there are and which have the same id; how far a pack can be trusted is asked anew each
time. What is needed is marked at the row that stands for an id, and then moved to the best of the id's places; where
even that is in a pack known to be damaged, all are kept, as any of them may be the one that still opens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from imaging.ledger import Ledger
from imaging.sorted_ids import Array

Flags = NDArray[np.bool_]
_Values = TypeVar("_Values", bound=NDArray[Any])
_ROWS_AT_ONCE: Final = 1_000_000


class Trust(IntEnum):
    """How good a place a pack is, best first. DOOMED: condemned, and damaged as well. OPEN: of a run that has not
    ended, and may yet come to nothing. UNLISTED: no index object lists it any more, so it counts for nothing."""

    WELL = 0
    CONDEMNED = 1
    DAMAGED = 2
    DOOMED = 3
    OPEN = 4
    MISSING = 5
    UNLISTED = 6


@dataclass(frozen=True, slots=True)
class HeldPack:
    """Its rows are `first_row` to `first_row + rows`."""

    pack: bytes
    size_bytes: int
    blob_type: int
    first_row: int
    rows: int
    trust: Trust

    @property
    def span(self) -> slice:
        return slice(self.first_row, self.first_row + self.rows)


class Holdings:
    """Immutable once it is made. Borrows the ledger, which must not be added to while this is used, but for nodes."""

    def __init__(self, ledger: Ledger, trust: NDArray[np.uint8]) -> None:
        """`trust` by the numbers of packs."""
        self.ledger = ledger
        self._trust = trust
        self.packs = _held(ledger, trust)
        self.nowhere = np.repeat(trust == Trust.UNLISTED, ledger.packs["rows"])
        """By row that stands for an id: whether no pack that is listed has it."""
        copies, copied = ledger.copies()
        standing = np.unique(copied)
        every, of = np.concatenate((standing, copies)), np.concatenate((standing, copied))
        trusted = trust[ledger.pack_of(every)]
        order = np.lexsort((every, trusted, of))
        every, of, trusted = every[order], of[order], trusted[order]
        begins = np.ones(len(of), np.bool_)
        begins[1:] = of[1:] != of[:-1]
        self._standing, self._best = of[begins], every[begins]
        best = trusted[begins]
        self.nowhere[self._standing] = best == Trust.UNLISTED
        group = np.cumsum(begins) - 1
        several = np.bincount(group, weights=trusted != Trust.UNLISTED) > 1
        doubtful = (several & ((best == Trust.DAMAGED) | (best == Trust.DOOMED)))[group]
        self.doubtful: Array = every[doubtful & (trusted < Trust.MISSING)]
        """Rows to be kept whatever is needed: ids of which every place is doubtful."""

    @property
    def row_count(self) -> int:
        return len(self.nowhere)

    def placed(self, values: _Values, nothing: Any, kept: Any) -> _Values:
        """Values by the rows that stand for ids, as values by the rows to read them from, in place; `nothing` at all
        others, and `kept` where it is doubtful which these are."""
        moved = values[self._standing]
        values[self._standing] = nothing
        values[self._best] = moved
        values[self.doubtful] = kept
        return values

    def usage(self, needed: Flags) -> list[tuple[int, int]]:
        """For each pack, the stored bytes of its rows that are needed, and how many these are. `needed` is placed."""
        bytes_of = self.sums(lambda span, stored: np.where(needed[span], stored, 0))
        rows_of = self.sums(lambda span, stored: needed[span])
        places = np.flatnonzero(self._trust != Trust.UNLISTED)
        return list(zip(bytes_of[places].tolist(), rows_of[places].tolist(), strict=True))

    def sums(self, values: Callable[[slice, Array], Array]) -> Array:
        """By the numbers of packs, the sums over their rows of what `values(span, stored bytes of these rows)` says."""
        packs = self.ledger.packs
        found = np.zeros(len(packs), np.int64)
        for low, high, span, stored in self._pieces():
            total = np.concatenate(([0], np.cumsum(values(span, stored), dtype=np.int64)))
            begins = packs["first"][low:high].astype(np.int64) - span.start
            found[low:high] = total[begins + packs["rows"][low:high]] - total[begins]
        return found

    def listed(self) -> Iterator[tuple[slice, Array, Flags]]:
        """All rows, a piece at a time: their span, their stored bytes, and whether an index object lists their pack."""
        for low, high, span, stored in self._pieces():
            yield span, stored, np.repeat(self._trust[low:high] != Trust.UNLISTED, self.ledger.packs["rows"][low:high])

    def _pieces(self) -> Iterator[tuple[int, int, slice, Array]]:
        """Packs from one number to another, with the span of their rows and the stored bytes of each."""
        firsts = self.ledger.packs["first"].astype(np.int64)
        ends = firsts + self.ledger.packs["rows"]
        for first_row, stored in self.ledger.stored():
            low, last = np.searchsorted(firsts, [first_row, first_row + len(stored)]).tolist()
            while low < last:
                high = min(max(int(np.searchsorted(firsts, firsts[low] + _ROWS_AT_ONCE)), low + 1), last)
                span = slice(int(firsts[low]), int(ends[high - 1]))
                yield low, high, span, stored[span.start - first_row : span.stop - first_row]
                low = high


def _held(ledger: Ledger, trust: NDArray[np.uint8]) -> tuple[HeldPack, ...]:
    trusts = list(Trust)
    return tuple(
        HeldPack(pack, size, blob_type, first, rows, trusts[each])
        for (pack, size, blob_type, first, rows), each in zip(ledger.packs.tolist(), trust.tolist(), strict=True)
        if each != Trust.UNLISTED
    )
