"""The tables of the index cache in LMDB, what their values say, and the segments of entries that they list.

Rules: what is said of a pack (its marks) is kept by its hash and apart from what lists it, so that a mark may come
before its pack, and is there when somebody takes the pack in; a number that a pack had is never given to another; which
segments there are is changed together with the tables that rely on it.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import lmdb

from imaging.errors import IndexUnavailable
from imaging.index_segments import Listed, Segment, places_of
from imaging.places import ROW_BYTES, PackRows, PackState

SCHEMA: Final = b"4"
_MAP_BYTES: Final = 1 << 40
_READERS: Final = 1024
NUMBER: Final = struct.Struct(">I")
COUNTER: Final = struct.Struct(">Q")
_PACK: Final = struct.Struct(">32s32sIIIB")  # hash, salt, size, rows, index objects that list it, type
_MARKS: Final = struct.Struct(">B")

CONDEMNED: Final = 1
DAMAGED: Final = 2
"""Found here, and perhaps known to nobody else."""
GONE: Final = 4
JUDGED: Final = 8
"""The repository itself says that the pack is damaged or missing."""

BAD: Final = DAMAGED | GONE | JUDGED
FLAGS: Final = {PackState.CONDEMNED: CONDEMNED, PackState.DAMAGED: DAMAGED, PackState.GONE: GONE}

UNREADABLE: Final = (lmdb.CorruptedError, lmdb.InvalidError, lmdb.PageNotFoundError, lmdb.VersionMismatchError)
"""What LMDB says of a file that is no database (any more). Anything else may pass, or is somebody's open
environment."""


@dataclass(frozen=True, slots=True)
class IndexedPack:
    """`listed`: how many index objects list it."""

    pack: bytes
    salt: bytes
    size_bytes: int
    rows: int
    blob_type: int
    listed: int
    marks: int

    @property
    def state(self) -> PackState:
        if self.marks & GONE:
            return PackState.GONE
        if self.marks & (DAMAGED | JUDGED):
            return PackState.DAMAGED
        if self.marks & CONDEMNED:
            return PackState.CONDEMNED
        return PackState.LIVE if self.listed else PackState.UNLISTED

    @property
    def outlived(self) -> bool:
        """Whether nothing will ever need it again: no index object lists it, and it was condemned or is gone."""
        return not self.listed and bool(self.marks & (CONDEMNED | GONE))

    @property
    def is_loss(self) -> bool:
        """Whether a restore point may lack something by it. That what was condemned is gone is no loss."""
        if self.outlived or not self.marks & BAD:
            return False
        return not (self.marks & GONE and self.marks & CONDEMNED)


@dataclass(frozen=True, slots=True)
class IndexCounts:
    blobs: int
    objects: int
    packs: Mapping[PackState, int]


class Tables:
    """packs: number → pack · numbers: hash → number · objects: name → numbers · marks: hash → flags · segments: name →
    how many entries it has · meta."""

    def __init__(self, environment: lmdb.Environment) -> None:
        self.packs: Any = environment.open_db(b"packs")
        self.numbers: Any = environment.open_db(b"numbers")
        self.objects: Any = environment.open_db(b"objects")
        self.marks: Any = environment.open_db(b"marks")
        self.segments: Any = environment.open_db(b"segments")
        self.meta: Any = environment.open_db(b"meta")


@dataclass(frozen=True, slots=True)
class Met:
    """What reads between which nothing changed share: the segments, and the packs met so far, by their numbers."""

    change: int
    segments: tuple[Segment, ...]
    packs: dict[int, IndexedPack]


class Snapshot:
    """One short read transaction."""

    __slots__ = ("_where", "met", "tables", "transaction")

    def __init__(self, where: str, tables: Tables, transaction: lmdb.Transaction, met: Met) -> None:
        self._where = where
        self.tables = tables
        self.transaction = transaction
        self.met = met

    def entries(self, table: Any) -> int:
        return int(self.transaction.stat(table)["entries"])

    def blobs(self) -> int:
        return sum(segment.count for segment in self.met.segments)

    def places(self, ids: Sequence[bytes]) -> Iterator[tuple[int, int, int]]:
        """All that is known of these ids: which of them, the number of a pack, and a place in it."""
        return places_of(self.met.segments, ids)

    def pack(self, number: int) -> IndexedPack:
        found = self.met.packs.get(number)
        if found is None:
            value = self.transaction.get(NUMBER.pack(number), db=self.tables.packs)
            if value is None:
                raise unknown_number(self._where, number)
            pack = bytes(value[:32])
            found = self.met.packs[number] = _decode(value, marks_of(self.transaction, self.tables, pack))
        return found

    def all_packs(self) -> Iterator[IndexedPack]:
        marks = self.marks()
        for _, value in self.transaction.cursor(db=self.tables.packs):
            yield _decode(value, marks.get(bytes(value[:32]), 0))

    def marks(self) -> dict[bytes, int]:
        """Also of packs that are not in here."""
        return all_marks(self.transaction, self.tables)

    def marked(self, flags: int) -> Iterator[tuple[bytes, IndexedPack]]:
        """The packs in here that have one of these marks, by their numbers as they are stored."""
        for pack, value in self.transaction.cursor(db=self.tables.marks):
            if value[0] & flags:
                number = self.transaction.get(pack, db=self.tables.numbers)
                if number is not None:
                    yield bytes(number), self.pack(NUMBER.unpack(number)[0])


def changes(transaction: lmdb.Transaction, tables: Tables) -> int:
    found = transaction.get(b"change", db=tables.meta)
    return int(COUNTER.unpack(found)[0]) if found is not None else 0


def marks_of(transaction: lmdb.Transaction, tables: Tables, pack: bytes) -> int:
    found = transaction.get(pack, db=tables.marks)
    return int(found[0]) if found else 0


def set_marks(transaction: lmdb.Transaction, tables: Tables, pack: bytes, marks: int) -> None:
    if marks:
        transaction.put(pack, _MARKS.pack(marks), db=tables.marks)
    else:
        transaction.delete(pack, db=tables.marks)


def all_marks(transaction: lmdb.Transaction, tables: Tables) -> dict[bytes, int]:
    return {bytes(pack): value[0] for pack, value in transaction.cursor(db=tables.marks)}


def number_packs(transaction: lmdb.Transaction, tables: Tables, packs: Iterable[PackRows]) -> list[tuple[int, bool]]:
    """The number of each pack, and whether it is a new one, which is listed by nothing yet, so that its blobs are not
    known."""
    found = transaction.get(b"following", db=tables.meta)
    following = first = NUMBER.unpack(found)[0] if found is not None else 0
    numbered: list[tuple[int, bool]] = []
    for pack in packs:
        number = transaction.get(pack.pack, db=tables.numbers)
        if number is not None:
            numbered.append((NUMBER.unpack(number)[0], False))
            continue
        number = NUMBER.pack(following)
        value = _PACK.pack(pack.pack, pack.salt, pack.size_bytes, len(pack.rows) // ROW_BYTES, 0, pack.blob_type)
        transaction.put(number, value, db=tables.packs, append=True)
        transaction.put(pack.pack, number, db=tables.numbers)
        numbered.append((following, True))
        following += 1
    if following != first:
        transaction.put(b"following", NUMBER.pack(following), db=tables.meta)
    return numbered


def listed_segments(transaction: lmdb.Transaction, tables: Tables) -> list[Listed]:
    """The largest first."""
    found = [
        Listed(bytes(name).decode(), COUNTER.unpack(count)[0]) for name, count in transaction.cursor(db=tables.segments)
    ]
    return sorted(found, key=lambda each: -each.count)


def list_segments(transaction: lmdb.Transaction, tables: Tables, segments: Iterable[Listed]) -> None:
    """These, and no others."""
    transaction.drop(tables.segments, delete=False)
    for each in segments:
        transaction.put(each.name.encode(), COUNTER.pack(each.count), db=tables.segments)


def count_lister(transaction: lmdb.Transaction, tables: Tables, where: str, number: bytes, more: int) -> None:
    """One index object more, or less, lists the pack."""
    found = transaction.get(number, db=tables.packs)
    if found is None:
        raise unknown_number(where, NUMBER.unpack(number)[0])
    pack, salt, size, rows, listed, blob_type = _PACK.unpack(found)
    transaction.put(number, _PACK.pack(pack, salt, size, rows, max(0, listed + more), blob_type), db=tables.packs)


def unknown_number(where: str, number: int) -> IndexUnavailable:
    return IndexUnavailable(where, f"it names a pack {number} that it does not have")


def _decode(value: Any, marks: int) -> IndexedPack:
    pack, salt, size, rows, listed, blob_type = _PACK.unpack(value)
    return IndexedPack(pack, salt, size, rows, blob_type, listed, marks)


def environment(folder: Path) -> lmdb.Environment:
    options: dict[str, Any] = {
        "map_size": _MAP_BYTES,
        "max_dbs": 8,
        "max_readers": _READERS,
        "sync": False,
        "metasync": False,
        "readahead": False,
        "mode": 0o600,
    }
    opened = lmdb.open(str(folder), **options)
    opened.reader_check()
    return opened
