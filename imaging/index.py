"""The chunk index: where every blob lies, cached from the repository's index objects: entries of blobs in sorted
segments, all else in LMDB.

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
from typing import Self

import lmdb

from imaging import index_tables as tables
from imaging.errors import ImagingError, IndexUnavailable
from imaging.index_access import Access, translated
from imaging.index_files import IndexFolder
from imaging.index_objects import decode_index, encode_index
from imaging.index_rows import Sorter, entries_of, sorted_entries
from imaging.index_segments import Listed, SegmentBroken, SegmentFolder, absent, columns_of
from imaging.index_tables import (
    BAD,
    CONDEMNED,
    DAMAGED,
    FLAGS,
    GONE,
    JUDGED,
    NUMBER,
    UNREADABLE,
    IndexCounts,
    IndexedPack,
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


class ChunkIndex:
    """Thread-safe; one per process and folder, opened after any fork. Owns its environment until close()."""

    def __init__(self, files: IndexFolder, environment: lmdb.Environment) -> None:
        self._files = files
        self._where = str(files.folder)
        self._lock = threading.Lock()
        self._made = files.made()
        self._segments = SegmentFolder(files.database)
        self._access = Access(files.folder, environment, self._segments)
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
            files.leave()
            raise

    @classmethod
    def _opened(cls, files: IndexFolder, repository_id: bytes) -> ChunkIndex | None:
        """What is there, if it is an index of this repository. Raises lmdb.Error, OSError."""
        try:
            index = cls(files, tables.environment(files.database))
        except UNREADABLE:
            return None
        with contextlib.suppress(SegmentBroken, *UNREADABLE):
            if index._access.belongs_to(repository_id):
                return index
        index._access.close()
        return None

    def close(self) -> None:
        """Waits for what other threads are doing in it. What is not durable is thrown away if the machine goes down."""
        self._access.finish()
        try:
            self._files.leave(lambda: self._is_current() and self._access.sync())
        finally:
            self._access.close()

    def discard(self) -> None:
        """Closes it and throws its content away, unless somebody did and has a new one there; what it said is in the
        repository. IndexUnavailable."""
        self._access.close()
        current = self._is_current()
        try:
            if current:
                with translated(self._where):
                    self._files.discard()
        finally:
            self._files.leave()

    def _is_current(self) -> bool:
        """Whether what this one has open is what others find in the folder."""
        with contextlib.suppress(OSError):
            return self._made is not None and self._files.made() == self._made
        return False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # Reading

    def known(self, ids: Sequence[bytes]) -> list[bool]:
        """For each id, whether a live pack holds it: what deduplication may rely on."""
        live: dict[int, bool] = {}
        known = [False] * len(ids)
        with self._access.reading() as snapshot:
            for at, number, _ in snapshot.places(ids):
                if number not in live:
                    live[number] = snapshot.pack(number).state == PackState.LIVE
                known[at] |= live[number]
        return known

    def locate(self, identity: bytes) -> list[Location]:
        """Every place, the most trustworthy first, and last those that seem to be gone; empty when unknown."""
        return self.locate_many([identity])[0]

    def locate_many(self, ids: Sequence[bytes]) -> list[list[Location]]:
        found: list[list[Location]] = [[] for _ in ids]
        with self._access.reading() as snapshot:
            for at, number, place in snapshot.places(ids):
                pack = snapshot.pack(number)
                found[at].append(Location(pack.pack, pack.salt, *unpack_place(place), pack.state))
        for places in found:
            if len(places) > 1:
                places.sort(key=lambda location: location.state)
        return found

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
            return not snapshot.blobs()

    def counts(self) -> IndexCounts:
        with self._access.reading() as snapshot:
            packs = dict.fromkeys(PackState, 0)
            for pack in snapshot.all_packs():
                packs[pack.state] += 1
            return IndexCounts(snapshot.blobs(), snapshot.entries(self._tables.objects), packs)

    def check(self) -> None:
        """What can be checked at once of its agreement with itself. IndexUnavailable."""
        with self._access.reading() as snapshot:
            if snapshot.entries(self._tables.packs) != snapshot.entries(self._tables.numbers):
                raise IndexUnavailable(self._where, "its tables do not agree")

    # Writing

    def add_object(self, name: str, packs: Sequence[PackRows]) -> None:
        """Takes in a committed index object; repeating it changes nothing. Its blobs are known once all are in."""
        with self._taking_in():
            self._add(packs, name)

    def add_unlisted(self, packs: Sequence[PackRows]) -> None:
        """Takes in packs that no index object lists, from their own tables: for reading only."""
        with self._taking_in():
            self._add(packs)

    def build(
        self, objects: Iterable[tuple[str, Sequence[PackRows]]], present: Collection[bytes] | None = None
    ) -> bool:
        """As add_object for many: everything is sorted first. False, and nothing is done, if the index is not empty, or
        not any more: another process may have built it meanwhile, which is waited for.

        Packs that are not `present` are marked as gone.
        """
        with self._taking_in():
            if not self.is_empty():
                return False
            self._files.clear_temporary()
            self._segments.tidy([])
            sorter = Sorter(self._files.folder)
            try:
                listed: list[tuple[str, list[int]]] = []
                for name, packs in objects:
                    numbers = [number for number, _ in self._number(packs, present)]
                    sorter.add(entries_of([pack.rows for pack in packs], numbers))
                    listed.append((name, numbers))
                with self._relisted(self._segments.write(sorter.count, map(columns_of, sorter.sorted()))):
                    pass
                for name, numbers in listed:
                    with self._access.writing() as transaction:
                        self._list(transaction, name, numbers)
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
            now = tables.all_marks(transaction, self._tables)
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
                listed = [segment.listed for segment in snapshot.met.segments]
            left = self._segments.without(listed, [NUMBER.unpack(number)[0] for number in outlived])
            with self._relisted(left) as transaction:
                for number, pack in outlived.items():
                    transaction.delete(number, db=self._tables.packs)
                    transaction.delete(pack.pack, db=self._tables.numbers)
                    if pack.pack not in keep_marks:
                        transaction.delete(pack.pack, db=self._tables.marks)
            return len(outlived)

    def _add(self, packs: Sequence[PackRows], name: str | None = None) -> None:
        numbered = self._number(packs)
        numbers = [number for number, _ in numbered]
        entries = sorted_entries(entries_of([pack.rows for pack in packs], numbers))
        with self._access.reading() as snapshot:
            segments = snapshot.met.segments
        if not all(new for _, new in numbered):
            entries = absent(entries, segments)
        left = self._segments.with_more([segment.listed for segment in segments], columns_of(entries))
        with self._relisted(left) as transaction:
            if name is not None:
                self._list(transaction, name, numbers)

    @contextlib.contextmanager
    def _relisted(self, segments: Sequence[Listed]) -> Iterator[lmdb.Transaction]:
        """A transaction from which on these are the segments; the others go after it."""
        with self._access.writing() as transaction:
            tables.list_segments(transaction, self._tables, segments)
            yield transaction
        self._segments.tidy(segments)

    def _number(self, packs: Sequence[PackRows], present: Collection[bytes] | None = None) -> list[tuple[int, bool]]:
        with self._access.writing() as transaction:
            if present is not None:
                for pack in packs:
                    if pack.pack not in present:
                        self._mark(transaction, pack.pack, mark=GONE)
            return tables.number_packs(transaction, self._tables, packs)

    def _list(self, transaction: lmdb.Transaction, name: str, numbers: Iterable[int]) -> None:
        if transaction.get(name.encode(), db=self._tables.objects) is not None:
            return
        distinct = [NUMBER.pack(number) for number in sorted(set(numbers))]
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
            if not self._is_current():
                raise IndexUnavailable(self._where, "it was thrown away meanwhile")
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
