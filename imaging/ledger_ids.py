"""Finding ids in the ledger, and which rows of new packs have the same one."""

from __future__ import annotations

from typing import Final

import numpy as np

from imaging.ledger_segments import Segment
from imaging.sorted_ids import Array, begins_of, bits_for, first_at_least

_IDS_IN_PIECE: Final = 16


class Finder:
    """Finds ids in one segment. As they are spread evenly, their first bits say nearly where: a table of those leaves a
    few steps of what would be a search through memory that is far apart."""

    def __init__(self, segment: Segment) -> None:
        self._segment = segment
        self._begins = begins_of(segment.prefixes, bits_for(len(segment.prefixes), _IDS_IN_PIECE))
        self._longest = int(np.diff(self._begins).max())

    def find(self, prefixes: Array, checks: Array) -> Array:
        """As Ledger._find, in this segment."""
        segment = self._segment
        low = first_at_least(segment.prefixes, self._begins, self._longest, prefixes)
        at = np.minimum(low, len(segment.prefixes) - 1)
        same = segment.prefixes[at] == prefixes
        good = same & (segment.checks[at] == checks)
        found = np.where(good, segment.originals[at].astype(np.int64), -1)
        for number in np.flatnonzero(same & ~good).tolist():  # ids that share eight bytes lie beside each other
            found[number] = self._among_equals(int(at[number]), int(prefixes[number]), int(checks[number]))
        return found

    def _among_equals(self, place: int, prefix: int, check: int) -> int:
        segment = self._segment
        while place < len(segment.prefixes) and int(segment.prefixes[place]) == prefix:
            if int(segment.checks[place]) == check:
                return int(segment.originals[place])
            place += 1
        return -1


def first_of_equals(order: Array, prefixes: Array, checks: Array) -> tuple[Array, Array, Array]:
    """Of rows sorted by prefix, and those of equal ids by row: the first of each id, the others, and for each of these
    the first."""
    ordered = prefixes[order]
    same = ordered[1:] == ordered[:-1]
    places = np.flatnonzero(np.concatenate((same, [False])) | np.concatenate(([False], same)))
    if not len(places):
        return order, places, places
    mine = order[places]
    by_id = mine[np.lexsort((mine, checks[mine], prefixes[mine]))]
    equal = (prefixes[by_id][1:] == prefixes[by_id][:-1]) & (checks[by_id][1:] == checks[by_id][:-1])
    begins = np.concatenate(([True], ~equal))
    firsts = by_id[begins][np.cumsum(begins) - 1]
    others = by_id[~begins]
    return order[~np.isin(order, others)], others, firsts[~begins]
