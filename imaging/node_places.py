"""Where map nodes are, for a walk over many of them: by what index objects were just read to say, before the index is
asked, whose look-ups each read a page from the disk where it is not in the page cache.

Rule: a place is a hint, as those of the index are; whoever does not find a node there asks the index, brought up to
date.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import Final

from imaging.blobs import LocateMany
from imaging.ids import ID_BYTES
from imaging.ledger import Ledger
from imaging.places import ROW_BYTES, Location, PackState, unpack_place

_PLACE: Final = struct.Struct("<Q")


class NodePlaces:
    """Borrows everything. Not thread-safe, as the ledger is not."""

    def __init__(self, ledger: Ledger, of_index: LocateMany, refresh_index: Callable[[], None]) -> None:
        self._ledger = ledger
        self._of_index = of_index
        self._refresh_index = refresh_index
        self._missed = False

    def locate_many(self, ids: Sequence[bytes]) -> list[list[Location]]:
        if self._missed or not ids:
            return self._of_index(ids)
        rows = self._ledger.rows_of(b"".join(ids)).tolist()
        found = [self._of_row(row) for row in rows]
        rest = [each for each, place in zip(ids, found, strict=True) if place is None]
        asked = iter(self._of_index(rest) if rest else ())
        return [next(asked) if place is None else [place] for place in found]

    def refresh(self) -> None:
        """A node was not where it should be: it may have been moved."""
        self._missed = True
        self._refresh_index()

    def _of_row(self, row: int) -> Location | None:
        held = self._ledger.map_pack(row) if row >= 0 else None
        if held is None:
            return None
        pack, number = held
        (place,) = _PLACE.unpack_from(pack.rows, number * ROW_BYTES + ID_BYTES)
        return Location(pack.pack, pack.salt, *unpack_place(place), PackState.LIVE)
