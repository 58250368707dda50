"""Rows of packs turned into sorted entries of the index, in numpy.

Rules: entries are sorted by the first 16 bytes of their ids, and none is there twice. However many there are, a bounded
number is in memory.
"""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from imaging.places import ROW_BYTES
from imaging.sorted_ids import Array

KEY_BYTES: Final = 16
"""Of an id, in the index: never fewer, as deduplication relies on them."""

_SPILL_ENTRIES: Final = 2_000_000
_PARTITIONS: Final = 64

_ROW: Final = np.dtype([("high", ">u8"), ("low", ">u8"), ("rest", "V16"), ("place", "<u8")])
_KEY: Final = np.dtype([("high", ">u8"), ("low", ">u8")])
_FIELDS: Final[list[tuple[str, Any]]] = [("low", np.uint64), ("number", np.uint32), ("place", np.uint64)]
REST: Final = np.dtype(_FIELDS)
ENTRY: Final = np.dtype([("high", np.uint64), *_FIELDS])
"""Numbers as this machine has them: a cache is for one machine."""
_AS_BYTES: Final = np.dtype((np.void, ENTRY.itemsize))
assert _ROW.itemsize == ROW_BYTES
assert _KEY.itemsize == KEY_BYTES
assert ENTRY.itemsize == KEY_BYTES + 12


def entries_of(rows: Sequence[bytes], numbers: Sequence[int]) -> Array:
    """The entries of packs by their rows, which are called by these numbers; not sorted."""
    source = np.frombuffer(b"".join(rows), dtype=_ROW)
    entries = np.empty(len(source), dtype=ENTRY)
    entries["high"], entries["low"], entries["place"] = source["high"], source["low"], source["place"]
    entries["number"] = np.repeat(np.array(numbers, np.uint32), [len(each) // ROW_BYTES for each in rows])
    return entries


def entries_of_keys(keys: Collection[bytes]) -> Array:
    """Sorted entries of nothing but the first bytes of ids."""
    source = np.frombuffer(b"".join(keys), dtype=_KEY)
    entries = np.zeros(len(source), dtype=ENTRY)
    entries["high"], entries["low"] = source["high"], source["low"]
    return sorted_entries(entries)


def sorted_entries(entries: Array) -> Array:
    """All entries in order, each once."""
    high = np.ascontiguousarray(entries["high"])
    order = np.argsort(high)
    high, entries = high[order], entries.view(_AS_BYTES)[order].view(ENTRY)
    same = high[1:] == high[:-1]
    if not same.any():
        return entries
    # Few share their first 8 bytes, and most of these are one id in several packs.
    places = np.flatnonzero(np.concatenate((same, [False])) | np.concatenate(([False], same)))
    some = entries[places]
    some = some[np.lexsort([some[field] for field in ("place", "number", "low", "high")])]
    entries[places] = some
    repeated = some[1:].view(_AS_BYTES) == some[:-1].view(_AS_BYTES)
    left: Array = np.delete(entries.view(_AS_BYTES), places[1:][repeated]).view(ENTRY)
    return left


class Sorter:
    """Sorts any number of entries in bounded memory: beyond two million they are parted by their first bits into files.

    Owns a temporary folder inside `folder` until close().
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._parts: list[Array] = []
        self._held = 0
        self._spilled: tempfile.TemporaryDirectory[str] | None = None
        self.count = 0

    def add(self, entries: Array) -> None:
        self._parts.append(entries.view(_AS_BYTES))
        self._held += len(entries)
        self.count += len(entries)
        if self._held >= _SPILL_ENTRIES:
            self._spill()

    def _spill(self) -> None:
        if self._spilled is None:
            self._spilled = tempfile.TemporaryDirectory(dir=self._folder, prefix="sorting-", ignore_cleanup_errors=True)
        entries = self._joined()
        partition = (entries.view(ENTRY)["high"] >> np.uint64(58)).astype(np.uint8)
        order = np.argsort(partition, kind="stable")
        bounds = np.searchsorted(partition[order], np.arange(_PARTITIONS + 1)).tolist()
        for number in range(_PARTITIONS):
            with (Path(self._spilled.name) / str(number)).open("ab") as file:
                file.write(entries[order[bounds[number] : bounds[number + 1]]].tobytes())

    def _joined(self) -> Array:
        entries = np.concatenate([np.empty(0, _AS_BYTES), *self._parts])
        self._parts, self._held = [], 0
        return entries

    def sorted(self) -> Iterator[Array]:
        """Arrays of sorted entries, which follow one another in order. Once."""
        if self._spilled is None:
            yield sorted_entries(self._joined().view(ENTRY))
            return
        self._spill()
        for number in range(_PARTITIONS):
            path = Path(self._spilled.name) / str(number)
            entries = sorted_entries(np.fromfile(path, dtype=ENTRY))
            path.unlink()  # so that what is sorted takes its place on the disk
            yield entries

    def close(self) -> None:
        if self._spilled is not None:
            self._spilled.cleanup()
            self._spilled = None
