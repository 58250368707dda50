"""The chunk index: where every blob lies, cached in LMDB from the repository's index objects.

Rules: only what committed index objects list is ever known to deduplication, and only while its pack is live; a
reader is told every place there is, the best first. No transaction outlives a call (one kept open lets the file grow
ten times its size). What is here can be thrown away at any time: a location is a hint, and the blob's own
authentication decides.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final, Self

import lmdb

from imaging import index_tables as tables
from imaging.errors import ImagingError, IndexUnavailable
from imaging.index_access import Access, translated
from imaging.index_files import IndexFolder
from imaging.index_objects import decode_index, encode_index
from imaging.index_rows import BATCH_ENTRIES, KEY_BYTES, Sorter, batches, entries_of, sorted_entries
from imaging.index_tables import (
    BAD,
    CONDEMNED,
    DAMAGED,
    FLAGS,
    GONE,
    JUDGED,
    NUMBER,
    UNREADABLE,
    VALUE,
    IndexCounts,
    IndexedPack,
    Snapshot,
)
from imaging.pending import PendingIndex
from imaging.places import Location, PackRows, PackState, pack_place, unpack_place

__all__ = [
    "ChunkIndex",
    "IndexCounts",
    "IndexedPack",
    "Location",
    "PackRows",
    "PackState",
    "PendingIndex",
    "decode_index",
    "encode_index",
    "pack_place",
    "unpack_place",
]

_SCANNED_AT_ONCE: Final = 65_536


class ChunkIndex:
    """Thread-safe; one per process and folder, opened after any fork. Owns its environment until close()."""

    def __init__(self, files: IndexFolder, environment: lmdb.Environment) -> None:
        self._files = files
        self._where = str(files.folder)
        self._lock = threading.Lock()
        self._access = Access(files.folder, environment)
        self._tables = self._access.tables

    @classmethod
    def open(cls, folder: Path, repository_id: bytes, boot: str | None = None) -> ChunkIndex:
        """Opens the cache in `folder`, empty if it is new, of another repository, or not to be believed.
        IndexUnavailable, NoSpace."""
        files = IndexFolder(folder, boot)
        try:
            with translated(str(folder)):
                files.enter()
                index = cls._opened(files, repository_id)
                if index is None:
                    files.discard()
                    index = cls(files, tables.environment(files.database))
                    index._access.claim_for(repository_id)
                return index
        except ImagingError:
            files.leave(synced=False)
            raise

    @classmethod
    def _opened(cls, files: IndexFolder, repository_id: bytes) -> ChunkIndex | None:
        """What is there, if it is an index of this repository. Raises lmdb.Error."""
        try:
            index = cls(files, tables.environment(files.database))
        except UNREADABLE:
            return None
        with contextlib.suppress(*UNREADABLE):
            if index._access.belongs_to(repository_id):
                return index
        index._access.close(sync=False)
        return None

    def close(self) -> None:
        """Waits for what other threads are doing in it. What is not durable is thrown away if the machine goes down."""
        self._files.leave(self._access.close(sync=True))

    def discard(self) -> None:
        """Closes it and throws its content away; what it said is in the repository. IndexUnavailable."""
        self._access.close(sync=False)
        try:
            with translated(self._where):
                self._files.discard()
        finally:
            self._files.leave(synced=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # Reading

    def known(self, ids: Sequence[bytes]) -> list[bool]:
        """For each id, whether a live pack holds it: what deduplication may rely on."""
        if not ids:
            return []
        keys = [identity[:KEY_BYTES] for identity in ids]
        live: set[bytes] = set()
        with self._access.reading() as snapshot:
            for key, value in snapshot.transaction.cursor(db=self._tables.blobs).getmulti(keys, dupdata=True):
                if snapshot.pack(VALUE.unpack(value)[0]).state == PackState.LIVE:
                    live.add(bytes(key))
        return [key in live for key in keys]

    def locate(self, identity: bytes) -> list[Location]:
        """Every place, the most trustworthy first, and last those that seem to be gone; empty when unknown."""
        return self.locate_many([identity])[0]

    def locate_many(self, ids: Sequence[bytes]) -> list[list[Location]]:
        keys = [identity[:KEY_BYTES] for identity in ids]
        found: dict[bytes, list[Location]] = {key: [] for key in keys}
        if not found:
            return []
        with self._access.reading() as snapshot:
            for key, value in snapshot.transaction.cursor(db=self._tables.blobs).getmulti(list(found), dupdata=True):
                number, place = VALUE.unpack(value)
                pack = snapshot.pack(number)
                found[bytes(key)].append(Location(pack.pack, pack.salt, *unpack_place(place), pack.state))
        for places in found.values():
            places.sort(key=lambda location: location.state)
        return [list(found[key]) for key in keys]

    def size_of(self, pack: bytes) -> int | None:
        """How long a pack is, or None where it is not in here."""
        with self._access.reading() as snapshot:
            number = snapshot.transaction.get(pack, db=self._tables.numbers)
            return None if number is None else snapshot.pack(NUMBER.unpack(number)[0]).size_bytes

    def objects(self) -> set[str]:
        """The index objects that are in here."""
        with self._access.reading() as snapshot:
            return {bytes(key).decode() for key, _ in snapshot.transaction.cursor(db=self._tables.objects)}

    def packs(self) -> dict[bytes, IndexedPack]:
        """Every pack that is in here, by its hash."""
        with self._access.reading() as snapshot:
            return {pack.pack: pack for pack in snapshot.all_packs()}

    def damaged(self) -> frozenset[bytes]:
        """The packs in here of which it is known that something in them cannot be read."""
        with self._access.reading() as snapshot:
            return frozenset(pack.pack for _, pack in snapshot.marked(DAMAGED | JUDGED))

    def has_losses(self) -> bool:
        """Whether restore points may refer to packs that are damaged or gone."""
        with self._access.reading() as snapshot:
            return any(pack.is_loss for _, pack in snapshot.marked(BAD))

    def adrift(self) -> list[bytes]:
        """The packs that no index object lists, and of which nothing is said either, if they are more than a
        quarter."""
        with self._access.reading() as snapshot:
            found = [pack.pack for pack in snapshot.all_packs() if pack.state == PackState.UNLISTED]
            return found if _are_many(len(found), snapshot.entries(self._tables.packs)) else []

    def is_empty(self) -> bool:
        with self._access.reading() as snapshot:
            return not snapshot.entries(self._tables.blobs)

    def counts(self) -> IndexCounts:
        with self._access.reading() as snapshot:
            packs = dict.fromkeys(PackState, 0)
            for pack in snapshot.all_packs():
                packs[pack.state] += 1
            return IndexCounts(snapshot.entries(self._tables.blobs), snapshot.entries(self._tables.objects), packs)

    def check(self) -> None:
        """What can be checked at once of its agreement with itself. IndexUnavailable."""
        with self._access.reading() as snapshot:
            if snapshot.entries(self._tables.packs) != snapshot.entries(self._tables.numbers):
                raise IndexUnavailable(self._where, "its tables do not agree")

    # Writing

    def add_object(self, name: str, packs: Sequence[PackRows]) -> None:
        """Takes in a committed index object; repeating it changes nothing. Its blobs are known once all are in."""
        with self._taking_in():
            self._list(name, self._add(packs))

    def add_unlisted(self, packs: Sequence[PackRows]) -> None:
        """Takes in packs that no index object lists, from their own tables: for reading only."""
        with self._taking_in():
            self._add(packs)

    def build(
        self, objects: Iterable[tuple[str, Sequence[PackRows]]], present: Collection[bytes] | None = None
    ) -> bool:
        """As add_object for many: everything is sorted first, and appended. False, and nothing is done, if the index is
        not empty, or not any more: another process may have built it meanwhile, which is waited for.

        Packs that are not `present` are marked as gone.
        """
        with self._taking_in():
            if not self.is_empty():
                return False
            self._files.clear_temporary()
            sorter = Sorter(self._files.folder)
            try:
                listed: list[tuple[str, list[bytes]]] = []
                for name, packs in objects:
                    numbers = self._number(packs, present)
                    for pack, number in zip(packs, numbers, strict=True):
                        sorter.add(entries_of(pack.rows, NUMBER.unpack(number)[0]))
                    listed.append((name, numbers))
                for entries in sorter.sorted():
                    self._put(batches(entries), append=True)
                for name, numbers in listed:
                    self._list(name, numbers)
            finally:
                sorter.close()
            return True

    def drop_object(self, name: str) -> None:
        """Forgets an index object that is no longer listed; its packs stay readable, and known where others list
        them."""
        with self._access.writing() as transaction:
            numbers = transaction.pop(name.encode(), db=self._tables.objects) or b""
            for (number,) in NUMBER.iter_unpack(numbers):
                tables.count_lister(transaction, self._tables, self._where, NUMBER.pack(number), -1)

    def set_states(self, states: Mapping[bytes, PackState]) -> None:
        """Marks packs, also such as are not in here yet. LIVE takes back what is said of damage and loss; nothing takes
        back CONDEMNED."""
        with self._access.writing() as transaction:
            for pack, state in states.items():
                if state == PackState.LIVE:
                    self._mark(transaction, pack, clear=BAD)
                elif state in FLAGS:
                    self._mark(transaction, pack, mark=FLAGS[state])

    def returned(self, packs: Iterable[bytes]) -> None:
        """Packs that are there, whatever else is wrong with them: they are gone no more."""
        with self._access.writing() as transaction:
            for pack in packs:
                self._mark(transaction, pack, clear=GONE)

    def judged(self, packs: Iterable[bytes]) -> None:
        """Packs of which the repository says since now that they are damaged or missing."""
        with self._access.writing() as transaction:
            for pack in packs:
                self._mark(transaction, pack, mark=JUDGED)

    def judge(self, condemned: Collection[bytes], damaged: Collection[bytes]) -> bool:
        """What the repository says of packs, of those that are not in here yet as well: condemned for ever, damaged as
        long as it says so. Returns whether anything was new."""
        with self._access.reading() as snapshot:
            now = snapshot.marks()
        if not _judged(now, condemned, damaged):
            return False
        with self._access.writing() as transaction:
            now = Snapshot(self._where, self._tables, transaction).marks()
            for pack, marks in _judged(now, condemned, damaged).items():
                tables.set_marks(transaction, self._tables, pack, marks)
        return True

    def forget_outlived(self, keep_marks: Collection[bytes]) -> int:
        """Drops packs that nothing will ever need again, if they are more than a quarter; returns how many it dropped.
        What the repository still says of the packs in `keep_marks` stays marked."""
        with self._taking_in():
            with self._access.reading() as snapshot:
                outlived = {number: pack for number, pack in snapshot.marked(CONDEMNED | GONE) if pack.outlived}
                if not _are_many(len(outlived), snapshot.entries(self._tables.packs)):
                    return 0
            for rows in self._rows_of(outlived.keys()):
                for start in range(0, len(rows), BATCH_ENTRIES):
                    with self._access.writing() as transaction:
                        for key, value in rows[start : start + BATCH_ENTRIES]:
                            transaction.delete(key, value, db=self._tables.blobs)
            with self._access.writing() as transaction:
                for number, pack in outlived.items():
                    transaction.delete(number, db=self._tables.packs)
                    transaction.delete(pack.pack, db=self._tables.numbers)
                    if pack.pack not in keep_marks:
                        transaction.delete(pack.pack, db=self._tables.marks)
            return len(outlived)

    def _rows_of(self, numbers: Collection[bytes]) -> Iterator[list[tuple[bytes, bytes]]]:
        """The rows of these packs, in pieces, each from a short read that ends between two ids."""
        position: bytes | None = b""
        while position is not None:
            rows: list[tuple[bytes, bytes]] = []
            with self._access.reading() as snapshot:
                cursor = snapshot.transaction.cursor(db=self._tables.blobs)
                if not (cursor.set_range(position) if position else cursor.first()):
                    return
                position, last = None, b""
                for count, (key, value) in enumerate(cursor.iternext()):
                    if count >= _SCANNED_AT_ONCE and key != last:
                        position = bytes(key)
                        break
                    last = bytes(key)
                    if value[: NUMBER.size] in numbers:
                        rows.append((bytes(key), bytes(value)))
            yield rows

    def _add(self, packs: Sequence[PackRows]) -> list[bytes]:
        numbers = self._number(packs)
        entries = sorted_entries(
            entries_of(pack.rows, NUMBER.unpack(number)[0]) for pack, number in zip(packs, numbers, strict=True)
        )
        self._put(batches(entries), append=False)
        return numbers

    def _number(self, packs: Sequence[PackRows], present: Collection[bytes] | None = None) -> list[bytes]:
        """The numbers of packs, as they are stored, given to new ones."""
        numbers: list[bytes] = []
        with self._access.writing() as transaction:
            for pack in packs:
                number = transaction.get(pack.pack, db=self._tables.numbers)
                if number is None:
                    number = tables.add_pack(transaction, self._tables, pack)
                if present is not None and pack.pack not in present:
                    self._mark(transaction, pack.pack, mark=GONE)
                numbers.append(bytes(number))
        return numbers

    def _put(self, entries: Iterable[list[tuple[bytes, bytes]]], append: bool) -> None:
        for batch in entries:
            with self._access.writing() as transaction:
                cursor = transaction.cursor(db=self._tables.blobs)
                _, added = cursor.putmulti(batch, dupdata=False, overwrite=True, append=append)
                if append and added != len(batch):
                    raise IndexUnavailable(self._where, "it was not empty when it was built")

    def _list(self, name: str, numbers: Sequence[bytes]) -> None:
        with self._access.writing() as transaction:
            if transaction.get(name.encode(), db=self._tables.objects) is not None:
                return
            distinct = sorted(set(numbers))
            transaction.put(name.encode(), b"".join(distinct), db=self._tables.objects)
            for number in distinct:
                tables.count_lister(transaction, self._tables, self._where, number, 1)

    def _mark(self, transaction: lmdb.Transaction, pack: bytes, mark: int = 0, clear: int = 0) -> None:
        before = tables.marks_of(transaction, self._tables, pack)
        tables.set_marks(transaction, self._tables, pack, (before & ~clear) | mark)

    @contextlib.contextmanager
    def _taking_in(self) -> Iterator[None]:
        """For what takes packs in, or forgets them, in many transactions: one at a time, of all processes."""
        with self._lock, translated(self._where), self._files.writing():
            yield


def _are_many(packs: int, of: int) -> bool:
    return packs * 4 > of


def _judged(now: Mapping[bytes, int], condemned: Collection[bytes], damaged: Collection[bytes]) -> dict[bytes, int]:
    """The marks that differ from those that there are now."""
    wanted = dict.fromkeys(condemned, CONDEMNED)
    for pack in damaged:
        wanted[pack] = wanted.get(pack, 0) | JUDGED
    found = {pack: (now.get(pack, 0) & ~JUDGED) | wanted.get(pack, 0) for pack in now.keys() | wanted.keys()}
    return {pack: marks for pack, marks in found.items() if marks != now.get(pack, 0)}
