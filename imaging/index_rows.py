"""Rows of packs turned into sorted entries of the index, in numpy: a 16-byte key and a 12-byte value each.

Rule: entries are sorted as LMDB compares them (bytes, most significant first), and none is there twice; so they can
be appended.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from imaging.places import ROW_BYTES

KEY_BYTES: Final = 16
VALUE_BYTES: Final = 12
ENTRY_BYTES: Final = KEY_BYTES + VALUE_BYTES
BATCH_ENTRIES: Final = 4096
"""More at once in one transaction makes the file more than twice as large (LMDB splits pages differently)."""

_SPILL_ENTRIES: Final = 2_000_000
_PARTITIONS: Final = 64

_ROW: Final = np.dtype([("high", ">u8"), ("low", ">u8"), ("rest", "V16"), ("place", "<u8")])
_ENTRY: Final = np.dtype([("high", ">u8"), ("low", ">u8"), ("number", ">u4"), ("place", ">u8")])
assert _ROW.itemsize == ROW_BYTES
assert _ENTRY.itemsize == ENTRY_BYTES

Entries = NDArray[Any]


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


def batches(entries: Entries) -> Iterator[list[tuple[bytes, bytes]]]:
    """(key, value) pairs, at most BATCH_ENTRIES at a time."""
    for start in range(0, len(entries), BATCH_ENTRIES):
        raw = entries[start : start + BATCH_ENTRIES].tobytes()
        yield [
            (raw[at : at + KEY_BYTES], raw[at + KEY_BYTES : at + ENTRY_BYTES]) for at in range(0, len(raw), ENTRY_BYTES)
        ]


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
