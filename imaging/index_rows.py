"""Rows of packs turned into sorted entries of the index, in numpy: a 16-byte key and a 12-byte value each.

Rules: entries are sorted as LMDB compares them (bytes, most significant first), and none is there twice; so they can
be appended. They are in parts by their first bits, no two parts being of one size: ids come evenly, so all pages of a
tree fill up and are halved at the same time, and right after that the file is twice as large as right before. Trees of
different sizes take turns, and so do those that were appended full: of each, another share is left out at first, and
put in between afterwards. So an entry takes about 55 bytes at any time, and not 40 to 76.
"""

from __future__ import annotations

import tempfile
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from imaging.places import ROW_BYTES

KEY_BYTES: Final = 16
VALUE_BYTES: Final = 12
ENTRY_BYTES: Final = KEY_BYTES + VALUE_BYTES
BATCH_ENTRIES: Final = 4096
"""More at once in one transaction makes the file more than twice as large (LMDB splits pages differently)."""

PARTS: Final = 8
_GROWTH: Final = 2 ** (1 / PARTS)
"""Each part is so much larger than the one before."""

_SPILL_ENTRIES: Final = 2_000_000
_PARTITIONS: Final = 64

_ROW: Final = np.dtype([("high", ">u8"), ("low", ">u8"), ("rest", "V16"), ("place", "<u8")])
_ENTRY: Final = np.dtype([("high", ">u8"), ("low", ">u8"), ("number", ">u4"), ("place", ">u8")])
assert _ROW.itemsize == ROW_BYTES
assert _ENTRY.itemsize == ENTRY_BYTES

Entries = NDArray[Any]
_Item = TypeVar("_Item")


def entries_of(rows: bytes, number: int) -> Entries:
    """The entries of one pack, which is called `number`; not sorted."""
    source = np.frombuffer(rows, dtype=_ROW)
    entries = np.empty(len(source), dtype=_ENTRY)
    entries["high"], entries["low"], entries["place"] = source["high"], source["low"], source["place"]
    entries["number"] = number
    return entries


def sorted_entries(parts: Iterable[Entries]) -> Entries:
    """All entries in LMDB's order, each once."""
    entries = _joined(list(parts))
    native = [
        entries[field].astype(entries[field].dtype.newbyteorder("=")) for field in ("place", "number", "low", "high")
    ]
    entries = entries[np.lexsort(native)]
    if len(entries) > 1:
        as_bytes = entries.view(np.dtype((np.void, ENTRY_BYTES)))
        entries = entries[np.concatenate(([True], as_bytes[1:] != as_bytes[:-1]))]
    return entries


def _joined(parts: list[Entries]) -> Entries:
    """As np.concatenate, which would turn the fields round into this machine's byte order."""
    entries = np.empty(sum(len(part) for part in parts), dtype=_ENTRY)
    at = 0
    for part in parts:
        entries[at : at + len(part)] = part
        at += len(part)
    return entries


def _borders() -> tuple[bytes, ...]:
    """The first key of each part but the first."""
    whole = _GROWTH**PARTS - 1
    return tuple(int((1 << 32) * (_GROWTH**part - 1) / whole).to_bytes(4, "big") for part in range(1, PARTS))


_BORDERS: Final = _borders()


def part_of(key: bytes) -> int:
    return bisect_right(_BORDERS, key)


def parted(items: Iterable[_Item], key_of: Callable[[_Item], bytes]) -> list[tuple[int, list[_Item]]]:
    """Items by the parts that their keys are in, in their order."""
    found: dict[int, list[_Item]] = {}
    for item in items:
        found.setdefault(bisect_right(_BORDERS, key_of(item)), []).append(item)
    return list(found.items())


def batches(entries: Entries) -> Iterator[tuple[int, list[tuple[bytes, bytes]]]]:
    """(key, value) pairs with the part that they are in, in order, at most BATCH_ENTRIES at a time."""
    high = entries["high"].astype(np.uint64)
    bounds = [0, *np.searchsorted(high, [int.from_bytes(each) << 32 for each in _BORDERS]).tolist(), len(entries)]
    for part in range(PARTS):
        for start in range(bounds[part], bounds[part + 1], BATCH_ENTRIES):
            raw = entries[start : min(start + BATCH_ENTRIES, bounds[part + 1])].tobytes()
            yield (
                part,
                [
                    (raw[at : at + KEY_BYTES], raw[at + KEY_BYTES : at + ENTRY_BYTES])
                    for at in range(0, len(raw), ENTRY_BYTES)
                ],
            )


def appended_first(entries: Entries) -> NDArray[np.bool_]:
    """Of sorted entries of a new index, those that are to be appended before the others are put between them: so many
    that a part's pages, full when they are appended and halved by what follows, end as full as is its turn."""
    high = entries["high"].astype(np.uint64)
    parts = np.searchsorted(np.array([int.from_bytes(each) << 32 for each in _BORDERS], np.uint64), high, "right")
    shares = np.array([_GROWTH ** -(part + 0.5) for part in range(PARTS)])
    return entries["low"].astype(np.uint64) < (shares * 2.0**63).astype(np.uint64)[parts] * np.uint64(2)


class Sorter:
    """Sorts any number of entries in bounded memory: beyond two million they are parted by their first bits into files.

    Owns a temporary folder inside `folder` until close().
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._parts: list[Entries] = []
        self._held = 0
        self._spilled: tempfile.TemporaryDirectory[str] | None = None

    def add(self, entries: Entries) -> None:
        self._parts.append(entries)
        self._held += len(entries)
        if self._held >= _SPILL_ENTRIES:
            self._spill()

    def _spill(self) -> None:
        if self._spilled is None:
            self._spilled = tempfile.TemporaryDirectory(dir=self._folder, prefix="sorting-", ignore_cleanup_errors=True)
        entries = _joined(self._parts)
        partition = (entries["high"].astype("=u8") >> np.uint64(58)).astype(np.uint8)
        order = np.argsort(partition, kind="stable")
        entries = entries[order]
        bounds = np.searchsorted(partition[order], np.arange(_PARTITIONS + 1))
        for number in range(_PARTITIONS):
            with (Path(self._spilled.name) / str(number)).open("ab") as file:
                file.write(entries[bounds[number] : bounds[number + 1]].tobytes())
        self._parts, self._held = [], 0

    def sorted(self) -> Iterator[Entries]:
        """Arrays of sorted entries, which follow one another in order."""
        if self._spilled is None:
            yield sorted_entries(self._parts)
            return
        self._spill()
        for number in range(_PARTITIONS):
            yield sorted_entries([np.fromfile(Path(self._spilled.name) / str(number), dtype=_ENTRY)])

    def close(self) -> None:
        if self._spilled is not None:
            self._spilled.cleanup()
            self._spilled = None
