"""What is being taken into the ledger: rows and packs that no segment has yet."""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from imaging.ids import NODE
from imaging.ledger_segments import OBJECT, PACK
from imaging.places import ROW_BYTES, PackRows
from imaging.sorted_ids import Array

_ROW: Final = np.dtype([("prefix", ">u8"), ("check", ">u4"), ("rest", "V20"), ("place", "<u8")])
assert _ROW.itemsize == ROW_BYTES
_STORED_SHIFT: Final = np.uint64(25)
_STORED_MASK: Final = np.uint64((1 << 19) - 1)
_PARSED_AT_ONCE: Final = 65_536


class Intake:
    """Rows and packs that no segment has yet."""

    def __init__(self, first_row: int, first_pack: int) -> None:
        self._following_row = first_row
        self._first_pack = first_pack
        self.packs: list[tuple[Any, ...]] = []
        self.objects: list[tuple[str, int, Array]] = []
        self.maps: list[tuple[int, PackRows]] = []
        """Packs of map nodes, each with its first row."""
        self.held = 0
        self._raw: list[bytes] = []
        self._raw_rows = 0
        self._parsed: list[tuple[Array, Array, Array]] = []

    @property
    def is_empty(self) -> bool:
        return not self.objects

    def add(self, pack: PackRows) -> int:
        rows = len(pack.rows) // ROW_BYTES
        if pack.blob_type == NODE:
            self.maps.append((self._following_row, pack))
        self.packs.append((pack.pack, pack.size_bytes, pack.blob_type, self._following_row, rows))
        self._following_row += rows
        self.held += rows
        self._raw.append(pack.rows)
        self._raw_rows += rows
        if self._raw_rows >= _PARSED_AT_ONCE:
            self._parse()
        return self._first_pack + len(self.packs) - 1

    def _parse(self) -> None:
        """Of 40 bytes a row, 16 are needed."""
        source = np.frombuffer(b"".join(self._raw), _ROW)
        stored = (source["place"] >> _STORED_SHIFT & _STORED_MASK).astype("<u4")
        self._parsed.append((source["prefix"].astype("<u8"), source["check"].astype("<u4"), stored))
        self._raw, self._raw_rows = [], 0

    def columns(self) -> list[Array]:
        """Prefixes, checks and stored lengths of all rows."""
        self._parse()
        parts, self._parsed = self._parsed, []
        columns: list[list[Array]] = [list(column) for column in zip(*parts, strict=True)]
        del parts
        return [np.concatenate(columns.pop(0)) for _ in range(3)]

    def pack_records(self) -> Array:
        return np.array(self.packs, PACK)

    def object_records(self) -> dict[str, Array]:
        ends = np.cumsum([len(each[2]) for each in self.objects]).tolist()
        records = [
            (name.encode(), size, end - len(listed), len(listed))
            for (name, size, listed), end in zip(self.objects, ends, strict=True)
        ]
        return {"objects": np.array(records, OBJECT), "listed": np.concatenate([each[2] for each in self.objects])}
