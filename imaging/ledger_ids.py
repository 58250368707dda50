"""Finding ids in the ledger, and which rows of new packs have the same one."""

from __future__ import annotations

import numpy as np

from imaging.ledger_segments import Array, Segment


class Finder:
    """Finds ids in one segment. As they are spread evenly, their first bits say nearly where: a table of those leaves a
    few steps of what would be a search through memory that is far apart."""

    def __init__(self, segment: Segment) -> None:
        self._segment = segment
        bits = max(1, len(segment.prefixes).bit_length() - 4)
        self._shift = np.uint64(64 - bits)
        edges = np.arange(1 << bits, dtype=np.uint64) << self._shift
        self._begins = np.append(np.searchsorted(segment.prefixes, edges), len(segment.prefixes))
        self._steps = int(np.diff(self._begins).max()).bit_length()

    def find(self, prefixes: Array, checks: Array) -> Array:
        """As Ledger._find, in this segment."""
        segment = self._segment
        begins = (prefixes >> self._shift).astype(np.int64)
        low, high = self._begins[begins], self._begins[begins + 1]
        last = len(segment.prefixes) - 1
        for _ in range(self._steps):
            middle = (low + high) >> 1
            below = (segment.prefixes[np.minimum(middle, last)] < prefixes) & (low < high)
            low = np.where(below, middle + 1, low)
            high = np.where(below, high, middle)
        at = np.minimum(low, last)
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
