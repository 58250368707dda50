"""How much of the repository each of several sets of restore points needs alone: what deleting it would free.

Rules: a row that one set needs belongs to it, one that two need belongs to none; what lies below a shared node is
shared. No chunk is read, and each node gone into at most twice.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import numpy as np
from numpy.typing import NDArray

from imaging.holdings import Holdings
from imaging.marking import FetchNodes, Tree, Walk
from imaging.places import ROW_BYTES
from imaging.sorted_ids import Array

_NOBODY: Final = -1
_SHARED: Final = -2


class Attribution:
    """Gives rows to sets, which are numbered from 0. Borrows everything."""

    def __init__(self, fetch: FetchNodes, holdings: Holdings) -> None:
        self._holdings = holdings
        self._walk = Walk(fetch, holdings, self._claim)
        self._owner: NDArray[np.int32] = np.full(holdings.row_count, _NOBODY, np.int32)
        self._number = _NOBODY

    def add(self, number: int, trees: Iterable[Tree], what: str) -> None:
        """What these need, for the set of this number. Unresolvable; what reading nodes raises."""
        self._number = number
        self._walk.go(trees, what)

    def exclusive_bytes(self, sets: int) -> tuple[list[int], int]:
        """For each set, the stored bytes (with their rows in tables) that it alone needs; and those that none needs.
        Nothing can be added any more."""
        owner = self._holdings.placed(self._owner, nothing=_NOBODY, kept=_SHARED)
        found = np.zeros(sets + 1)
        for span, stored, listed in self._holdings.listed():
            sizes = np.where(listed & (owner[span] != _SHARED), stored.astype(np.int64) + ROW_BYTES, 0)
            whose = np.where(owner[span] >= 0, owner[span], sets)
            found += np.bincount(whose, weights=sizes, minlength=sets + 1)
        return [int(each) for each in found[:sets]], int(found[sets])

    def _claim(self, rows: Array) -> Array:
        """Those that are new to this set, or shared from now on."""
        owner = self._owner[rows]
        fresh = owner == _NOBODY
        taken = (owner >= 0) & (owner != self._number)
        self._owner[rows[fresh]] = self._number
        self._owner[rows[taken]] = _SHARED
        found: Array = rows[fresh | taken]
        return found
