"""How much of the repository each of several sets of restore points needs alone: what deleting it would free.

Rules: a row that one set needs belongs to it, one that two need belongs to none; what lies below a shared node is
shared. No chunk is read, and each node at most twice.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from imaging.diskmap import child_ids, chunk_ids, root_level
from imaging.holdings import Holdings, prefixes_of
from imaging.marking import FetchNodes, Tree, Unresolvable, batches
from imaging.places import ROW_BYTES

_NOBODY: Final = -1
_SHARED: Final = -2


class Attribution:
    """Gives rows to sets, which are numbered from 0. Borrows `holdings`."""

    def __init__(self, fetch: FetchNodes, holdings: Holdings) -> None:
        self._fetch = fetch
        self._holdings = holdings
        self._owner: NDArray[np.int32] = np.where(holdings.clashing, _SHARED, _NOBODY).astype(np.int32)

    def add(self, number: int, trees: Iterable[Tree], what: str) -> None:
        """What these need, for the set of this number. Unresolvable; what reading nodes raises."""
        for tree in trees:
            if tree.root is not None:
                self._walk(number, [tree.root], root_level(tree.size_bytes), what)

    def exclusive_bytes(self, sets: int) -> list[int]:
        """For each set, the stored bytes (with their rows in tables) that it alone needs."""
        lengths = self._holdings.stored_bytes.astype(np.int64) + ROW_BYTES
        mine = self._owner >= 0
        return [int(each) for each in np.bincount(self._owner[mine], weights=lengths[mine], minlength=sets)[:sets]]

    def unneeded_bytes(self) -> int:
        """What no set needs."""
        nobody = self._owner == _NOBODY
        return int(self._holdings.stored_bytes[nobody].sum(dtype=np.int64) + ROW_BYTES * np.count_nonzero(nobody))

    def _walk(self, number: int, ids: Sequence[bytes], level: int, what: str) -> None:
        for some in batches([ids[place] for place in self._give(number, b"".join(ids), what)]):
            for node, plain in zip(some, self._fetch(some), strict=True):
                name = f"map node {node.hex()}"
                if level == 0:
                    self._give(number, chunk_ids(plain, name), what)
                else:
                    self._walk(number, child_ids(plain, level, name), level - 1, what)

    def _give(self, number: int, ids: bytes, what: str) -> list[int]:
        """Returns which of the ids have to be gone into: new to this set, or shared from now on."""
        prefixes, first = np.unique(prefixes_of(ids), return_index=True)
        found = self._holdings.find(prefixes)
        lost = len(prefixes) - int(np.count_nonzero(found.there))
        if lost:
            raise Unresolvable(what, lost)
        owner = self._owner[found.rows]
        fresh = owner == _NOBODY
        taken = (owner >= 0) & (owner != number)
        self._owner[found.rows[fresh]] = number
        self._owner[found.rows[taken]] = _SHARED
        into = fresh | taken | self._holdings.clashing[found.rows]
        return sorted(int(place) for place in first[into])
