"""What the packs of a repository hold, as arrays: every row of every pack that an index object which counts lists.

Rules: an id is found by its first 8 bytes, which keeps 16 bytes a row in memory; where two ids share them (their next
4 bytes tell) both rows are kept for ever, so that a clash costs space and never data. Of several places of one id the
best is the one that is needed; where even that is in a pack known to be damaged, all are kept, as any of them may be
the one that still opens.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from imaging.places import ROW_BYTES, PackRows

_ROW: Final = np.dtype([("prefix", ">u8"), ("check", ">u4"), ("rest", "V20"), ("place", "<u8")])
assert _ROW.itemsize == ROW_BYTES
_STORED_SHIFT: Final = np.uint64(25)
_STORED_MASK: Final = np.uint64((1 << 19) - 1)
_PARTS: Final = 16

Prefixes = NDArray[np.uint64]
Flags = NDArray[np.bool_]


class Trust(IntEnum):
    """How good a place a pack is, best first. DOOMED: condemned, and damaged as well. OPEN: of a run that has not
    ended, and may yet come to nothing."""

    WELL = 0
    CONDEMNED = 1
    DAMAGED = 2
    DOOMED = 3
    OPEN = 4
    MISSING = 5


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


@dataclass(frozen=True, slots=True)
class Found:
    """For each id asked for, its best row; where `there` is false no pack has it, and the row means nothing."""

    rows: NDArray[np.intp]
    there: Flags


class Holdings:
    """Immutable once it is made."""

    def __init__(self, packs: tuple[HeldPack, ...], stored_bytes: NDArray[np.uint32], prefixes: Prefixes,
                 rows: NDArray[np.uint32], clashing: Flags) -> None:  # fmt: skip
        """Use `gather`. `prefixes` is sorted, and `rows` says which row each is of; `stored_bytes` and `clashing` are
        by row."""
        self.packs = packs
        self.stored_bytes = stored_bytes
        self.clashing = clashing
        self._prefixes = prefixes
        self._rows = rows

    @property
    def row_count(self) -> int:
        return len(self.stored_bytes)

    def find(self, wanted: Prefixes) -> Found:
        """Looks up ids by their prefixes, fastest when these are sorted."""
        if not len(self._prefixes):
            return Found(np.zeros(len(wanted), np.intp), np.zeros(len(wanted), np.bool_))
        at = np.searchsorted(self._prefixes, wanted)
        np.minimum(at, len(self._prefixes) - 1, out=at)
        return Found(self._rows[at].astype(np.intp), self._prefixes[at] == wanted)

    def usage(self, needed: Flags) -> list[tuple[int, int]]:
        """For each pack, the stored bytes of its rows that are needed, and how many these are."""
        found = []
        for pack in self.packs:
            wanted = needed[pack.span]
            used = int(np.dot(self.stored_bytes[pack.span].astype(np.int64), wanted))
            found.append((used, int(np.count_nonzero(wanted))))
        return found


def prefixes_of(ids: bytes | memoryview) -> Prefixes:
    """Of ids of 32 bytes that follow one another, in the same order."""
    return np.frombuffer(ids, ">u8").reshape(-1, 4)[:, 0].astype(np.uint64)


def gather(packs: Iterable[tuple[PackRows, Trust]]) -> Holdings:
    """Reads all packs once; one that several index objects list counts once, as well as the first of them says."""
    held: list[HeldPack] = []
    known: set[bytes] = set()
    prefixes: list[NDArray[Any]] = []
    checks: list[NDArray[Any]] = []
    stored: list[NDArray[Any]] = []
    following = 0
    for entry, trust_in_it in packs:
        if entry.pack in known:
            continue
        known.add(entry.pack)
        source = np.frombuffer(entry.rows, _ROW)
        prefixes.append(source["prefix"].astype(np.uint64))
        checks.append(source["check"].astype(np.uint32))
        stored.append((source["place"] >> _STORED_SHIFT & _STORED_MASK).astype(np.uint32))
        held.append(HeldPack(entry.pack, entry.size_bytes, entry.blob_type, following, len(source), trust_in_it))
        following += len(source)
    stored_bytes = _joined(stored, np.uint32)
    every_prefix, every_check = _joined(prefixes, np.uint64), _joined(checks, np.uint32)
    ordered, rows = _sorted(every_prefix)
    del every_prefix
    trust = np.repeat(np.array([pack.trust for pack in held], np.uint8), np.array([pack.rows for pack in held], int))
    clashing = _settle_equals(ordered, rows, every_check, trust)
    return Holdings(tuple(held), stored_bytes, ordered, rows, clashing)


def _joined(parts: list[NDArray[Any]], kind: Any) -> NDArray[Any]:
    """As np.concatenate, giving each part up as it is copied: a repository's rows fill most of the memory there is."""
    whole = np.empty(sum(len(part) for part in parts), kind)
    at = 0
    for number, part in enumerate(parts):
        whole[at : at + len(part)] = part
        at += len(part)
        parts[number] = np.empty(0, kind)
    return whole


def _sorted(prefixes: Prefixes) -> tuple[Prefixes, NDArray[np.uint32]]:
    """The prefixes in order, and the row of each; in sixteen parts, as argsort takes 8 bytes for each of a part."""
    ordered = np.empty(len(prefixes), np.uint64)
    rows = np.empty(len(prefixes), np.uint32)
    part_of = (prefixes >> np.uint64(60)).astype(np.uint8)
    at = 0
    for part in range(_PARTS):
        mine = np.flatnonzero(part_of == part)
        values = prefixes[mine]
        order = np.argsort(values, kind="stable")
        ordered[at : at + len(mine)] = values[order]
        rows[at : at + len(mine)] = mine[order]
        at += len(mine)
    return ordered, rows


def _settle_equals(
    ordered: Prefixes, rows: NDArray[np.uint32], checks: NDArray[np.uint32], trust: NDArray[np.uint8]
) -> Flags:
    """Puts the best row of each id first among its equals, in place; returns the rows to be kept whatever is needed: of
    ids that only seem equal, and of those that are nowhere but in doubtful packs."""
    clashing = np.zeros(len(rows), np.bool_)
    same = ordered[1:] == ordered[:-1]
    places = np.flatnonzero(np.concatenate((same, [False])) | np.concatenate(([False], same)))
    if not len(places):
        return clashing
    mine, prefixes = rows[places], ordered[places]
    rows[places] = best_first = mine[np.lexsort((mine, trust[mine], prefixes))]
    begins = np.concatenate(([True], prefixes[1:] != prefixes[:-1]))
    best = trust[best_first][begins][np.cumsum(begins) - 1]
    doubtful = (best == Trust.DAMAGED) | (best == Trust.DOOMED)
    clashing[best_first[doubtful & (trust[best_first] != Trust.MISSING)]] = True
    by_check = mine[np.lexsort((checks[mine], prefixes))]  # the prefixes are in order already, and stay where they are
    differs = (prefixes[1:] == prefixes[:-1]) & (checks[by_check][1:] != checks[by_check][:-1])
    if differs.any():
        clashing[mine[np.isin(prefixes, prefixes[1:][differs])]] = True
    return clashing
