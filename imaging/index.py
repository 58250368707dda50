"""The chunk index: where every blob lies, cached in LMDB from the repository's index objects.

Rules: only what committed index objects list is ever known to deduplication, and only while its pack is live; a
reader is told every place that is left. No transaction outlives a call (one kept open lets the file grow ten times
its size). What is here can be thrown away at any time: a location is a hint, and the blob's own authentication
decides.
"""

from __future__ import annotations

import contextlib
import errno
import os
import struct
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

import lmdb

from imaging.errors import IndexUnavailable, NoSpace
from imaging.index_files import IndexFolder
from imaging.index_objects import decode_index, encode_index
from imaging.index_rows import KEY_BYTES, Sorter, batches, entries_of, sorted_entries
from imaging.pending import PendingIndex
from imaging.places import ROW_BYTES, Location, PackRows, PackState, pack_place, unpack_place

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

_SCHEMA: Final = b"1"
_MAP_BYTES: Final = 1 << 40
_READERS: Final = 1024
_NUMBER: Final = struct.Struct(">I")
_PACK: Final = struct.Struct(">32s32sIIIBB")  # hash, salt, size, rows, index objects that list it, type, flags
_VALUE: Final = struct.Struct(">IQ")
_COUNTER: Final = struct.Struct(">Q")

_CONDEMNED: Final = 1
_DAMAGED: Final = 2
_GONE: Final = 4


@dataclass(frozen=True, slots=True)
class IndexedPack:
    pack: bytes
    salt: bytes
    size_bytes: int
    rows: int
    blob_type: int
    state: PackState


@dataclass(frozen=True, slots=True)
class IndexCounts:
    blobs: int
    objects: int
    packs: Mapping[PackState, int]


class _Snapshot:
    """One short read transaction, with the packs met so far. The packs are shared by reads between which nothing
    changed."""

    __slots__ = ("_table", "_where", "change", "packs", "transaction")

    def __init__(self, where: str, table: Any, transaction: lmdb.Transaction, change: int) -> None:
        self._where = where
        self._table = table
        self.transaction = transaction
        self.change = change
        self.packs: dict[int, IndexedPack] = {}

    def pack(self, number: int) -> IndexedPack:
        found = self.packs.get(number)
        if found is None:
            value = self.transaction.get(_NUMBER.pack(number), db=self._table)
            if value is None:
                raise IndexUnavailable(self._where, f"it names a pack {number} that it does not have")
            found = self.packs[number] = _decode_pack(bytes(value))
        return found


class ChunkIndex:
    """Thread-safe; one per process and folder, opened after any fork. Owns its environment until close()."""

    def __init__(self, files: IndexFolder, environment: lmdb.Environment) -> None:
        self._files = files
        self._environment = environment
        self._process = os.getpid()
        self._lock = threading.Lock()
        self._packs: tuple[int, dict[int, IndexedPack]] = (-1, {})
        self._blobs = environment.open_db(b"blobs", dupsort=True, dupfixed=True)
        self._table = environment.open_db(b"packs")
        self._numbers = environment.open_db(b"numbers")
        self._objects = environment.open_db(b"objects")
        self._meta = environment.open_db(b"meta")

    @classmethod
    def open(cls, folder: Path, repository_id: bytes, boot: str | None = None) -> ChunkIndex:
        """Opens the cache in `folder`, empty if it is new, of another repository, or not to be believed.
        IndexUnavailable."""
        files = IndexFolder(folder, boot)
        try:
            files.enter()
        except OSError as error:
            raise IndexUnavailable(str(folder), error.strerror or str(error)) from error
        try:
            with contextlib.suppress(*_UNREADABLE):
                index = cls(files, _environment(files.database))
                if index._belongs_to(repository_id):
                    return index
                index._environment.close()
            files.discard()
            index = cls(files, _environment(files.database))
            index._claim_for(repository_id)
            return index
        except (lmdb.Error, OSError) as error:
            files.leave(synced=False)
            raise IndexUnavailable(str(folder), str(error)) from error

    def _belongs_to(self, repository_id: bytes) -> bool:
        with self._environment.begin() as transaction:
            return (
                transaction.get(b"schema", db=self._meta) == _SCHEMA
                and transaction.get(b"repository", db=self._meta) == repository_id
            )

    def _claim_for(self, repository_id: bytes) -> None:
        with self._environment.begin(write=True) as transaction:
            transaction.put(b"schema", _SCHEMA, db=self._meta)
            transaction.put(b"repository", repository_id, db=self._meta)

    def close(self) -> None:
        synced = False
        try:
            self._environment.sync(True)
            synced = True
        except lmdb.Error:
            pass  # the mark stays, so the next to open throws this cache away if the machine goes down
        finally:
            self._environment.close()
            self._files.leave(synced)

    def discard(self) -> None:
        """Closes it and throws its content away; what it said is in the repository."""
        self._environment.close()
        self._files.discard()
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
        with self._reading() as snapshot:
            for key, value in snapshot.transaction.cursor(db=self._blobs).getmulti(keys, dupdata=True):
                if snapshot.pack(_VALUE.unpack(value)[0]).state == PackState.LIVE:
                    live.add(bytes(key))
        return [key in live for key in keys]

    def locate(self, identity: bytes) -> list[Location]:
        """Every place that is not gone, the most trustworthy first; empty when unknown."""
        return self.locate_many([identity])[0]

    def locate_many(self, ids: Sequence[bytes]) -> list[list[Location]]:
        keys = [identity[:KEY_BYTES] for identity in ids]
        found: dict[bytes, list[Location]] = {key: [] for key in keys}
        if not found:
            return []
        with self._reading() as snapshot:
            for key, value in snapshot.transaction.cursor(db=self._blobs).getmulti(list(found), dupdata=True):
                number, place = _VALUE.unpack(value)
                pack = snapshot.pack(number)
                if pack.state != PackState.GONE:
                    found[bytes(key)].append(Location(pack.pack, pack.salt, *unpack_place(place), pack.state))
        for places in found.values():
            places.sort(key=lambda location: location.state)
        return [list(found[key]) for key in keys]

    def objects(self) -> set[str]:
        """The index objects that are in here."""
        with self._reading() as snapshot:
            return {bytes(key).decode() for key, _ in snapshot.transaction.cursor(db=self._objects)}

    def packs(self) -> dict[bytes, IndexedPack]:
        """Every pack that was ever listed here, by its hash."""
        with self._reading() as snapshot:
            found = (_decode_pack(bytes(value)) for _, value in snapshot.transaction.cursor(db=self._table))
            return {pack.pack: pack for pack in found}

    def counts(self) -> IndexCounts:
        with self._reading() as snapshot:
            packs = dict.fromkeys(PackState, 0)
            for _, value in snapshot.transaction.cursor(db=self._table):
                packs[_decode_pack(bytes(value)).state] += 1
            stat = snapshot.transaction.stat
            return IndexCounts(stat(self._blobs)["entries"], stat(self._objects)["entries"], packs)

    def check(self) -> None:
        """What can be checked at once of its agreement with itself. IndexUnavailable."""
        with self._reading() as snapshot:
            stat = snapshot.transaction.stat
            if stat(self._table)["entries"] != stat(self._numbers)["entries"]:
                raise IndexUnavailable(str(self._files.folder), "its tables do not agree")

    # Writing

    def add_object(self, name: str, packs: Sequence[PackRows]) -> None:
        """Takes in a committed index object; repeating it changes nothing. Its blobs are known once all are in."""
        with self._lock:
            numbers = self._number(packs)
            entries = sorted_entries(entries_of(pack.rows, number) for pack, number in zip(packs, numbers, strict=True))
            self._put(batches(entries), append=False)
            self._list(name, numbers)

    def build(self, objects: Iterable[tuple[str, Sequence[PackRows]]]) -> None:
        """As add_object for many, into an empty index: everything is sorted first, and appended."""
        with self._lock:
            with self._reading() as snapshot:
                if snapshot.transaction.stat(self._blobs)["entries"]:
                    raise IndexUnavailable(str(self._files.folder), "it is to be built and is not empty")
            sorter = Sorter(self._files.folder)
            try:
                listed: list[tuple[str, list[int]]] = []
                for name, packs in objects:
                    numbers = self._number(packs)
                    for pack, number in zip(packs, numbers, strict=True):
                        sorter.add(entries_of(pack.rows, number))
                    listed.append((name, numbers))
                for entries in sorter.sorted():
                    self._put(batches(entries), append=True)
                for name, numbers in listed:
                    self._list(name, numbers)
            finally:
                sorter.close()

    def add_unlisted(self, packs: Sequence[PackRows]) -> None:
        """Takes in packs that no index object lists, from their own tables: for reading only."""
        with self._lock:
            numbers = self._number(packs)
            entries = sorted_entries(entries_of(pack.rows, number) for pack, number in zip(packs, numbers, strict=True))
            self._put(batches(entries), append=False)

    def drop_object(self, name: str) -> None:
        """Forgets an index object that is no longer listed; its packs stay readable, and known where others list
        them."""
        with self._lock, self._writing() as transaction:
            numbers = transaction.pop(name.encode(), db=self._objects)
            for (number,) in _NUMBER.iter_unpack(numbers or b""):
                self._change(transaction, number, references=-1)

    def set_states(self, states: Mapping[bytes, PackState]) -> None:
        """Marks packs. LIVE takes back DAMAGED and GONE; nothing takes back CONDEMNED. Unknown packs are passed
        over."""
        with self._lock, self._writing() as transaction:
            for pack, state in states.items():
                number = transaction.get(pack, db=self._numbers)
                if number is None:
                    continue
                if state == PackState.LIVE:
                    self._change(transaction, _NUMBER.unpack(number)[0], clear=_DAMAGED | _GONE)
                elif state in _FLAGS:
                    self._change(transaction, _NUMBER.unpack(number)[0], mark=_FLAGS[state])

    def _number(self, packs: Sequence[PackRows]) -> list[int]:
        """The numbers of packs, given to new ones; a new one is listed by nothing yet, so its blobs are not known."""
        numbers: list[int] = []
        with self._writing() as transaction:
            following = transaction.stat(self._table)["entries"]
            for pack in packs:
                number = transaction.get(pack.pack, db=self._numbers)
                if number is None:
                    number = _NUMBER.pack(following)
                    following += 1
                    rows = len(pack.rows) // ROW_BYTES
                    value = _PACK.pack(pack.pack, pack.salt, pack.size_bytes, rows, 0, pack.blob_type, 0)
                    transaction.put(number, value, db=self._table)
                    transaction.put(pack.pack, number, db=self._numbers)
                numbers.append(_NUMBER.unpack(number)[0])
        return numbers

    def _put(self, entries: Iterable[list[tuple[bytes, bytes]]], append: bool) -> None:
        for batch in entries:
            with self._writing() as transaction:
                cursor = transaction.cursor(db=self._blobs)
                _, added = cursor.putmulti(batch, dupdata=False, overwrite=True, append=append)
                if append and added != len(batch):
                    raise IndexUnavailable(str(self._files.folder), "it was not empty when it was built")

    def _list(self, name: str, numbers: Sequence[int]) -> None:
        with self._writing() as transaction:
            if transaction.get(name.encode(), db=self._objects) is not None:
                return
            distinct = sorted(set(numbers))
            transaction.put(name.encode(), b"".join(_NUMBER.pack(number) for number in distinct), db=self._objects)
            for number in distinct:
                self._change(transaction, number, references=1)

    def _change(
        self, transaction: lmdb.Transaction, number: int, references: int = 0, mark: int = 0, clear: int = 0
    ) -> None:
        key = _NUMBER.pack(number)
        found = transaction.get(key, db=self._table)
        if found is None:
            raise IndexUnavailable(str(self._files.folder), f"it names a pack {number} that it does not have")
        pack, salt, size, rows, listed, blob_type, flags = _PACK.unpack(found)
        flags = (flags & ~clear) | mark
        transaction.put(
            key, _PACK.pack(pack, salt, size, rows, max(0, listed + references), blob_type, flags), db=self._table
        )

    # Transactions

    @contextlib.contextmanager
    def _reading(self) -> Iterator[_Snapshot]:
        """A short read. What anybody, in any process, changed since the last one is noticed by a counter."""
        self._check_process()
        with self._translated(), self._environment.begin() as transaction:
            snapshot = _Snapshot(str(self._files.folder), self._table, transaction, self._count(transaction))
            change, packs = self._packs
            if change == snapshot.change:
                snapshot.packs = packs
            else:
                self._packs = (snapshot.change, snapshot.packs)
            yield snapshot

    def _count(self, transaction: lmdb.Transaction) -> int:
        found = transaction.get(b"change", db=self._meta)
        return int(_COUNTER.unpack(found)[0]) if found is not None else 0

    @contextlib.contextmanager
    def _writing(self) -> Iterator[lmdb.Transaction]:
        self._check_process()
        with self._translated(), self._environment.begin(write=True) as transaction:
            yield transaction
            transaction.put(b"change", _COUNTER.pack(self._count(transaction) + 1), db=self._meta)

    def _check_process(self) -> None:
        if os.getpid() != self._process:
            raise RuntimeError("an LMDB environment must not be used in a forked child; open the index there")

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except lmdb.Error as error:
            if os.strerror(errno.ENOSPC) in str(error):
                raise NoSpace("write", f"the index cache in {self._files.folder}", "no space is left there") from error
            raise IndexUnavailable(str(self._files.folder), str(error)) from error


_UNREADABLE: Final = (lmdb.CorruptedError, lmdb.InvalidError, lmdb.PageNotFoundError, lmdb.VersionMismatchError)
"""What LMDB says of a file that is no database (any more). Anything else may pass, or is somebody's open
environment."""

_FLAGS: Final = {PackState.CONDEMNED: _CONDEMNED, PackState.DAMAGED: _DAMAGED, PackState.GONE: _GONE}


def _decode_pack(value: bytes) -> IndexedPack:
    pack, salt, size, rows, listed, blob_type, flags = _PACK.unpack(value)
    if flags & _GONE:
        state = PackState.GONE
    elif flags & _DAMAGED:
        state = PackState.DAMAGED
    elif flags & _CONDEMNED:
        state = PackState.CONDEMNED
    else:
        state = PackState.LIVE if listed else PackState.UNLISTED
    return IndexedPack(pack, salt, size, rows, blob_type, state)


def _environment(folder: Path) -> lmdb.Environment:
    options: dict[str, Any] = {
        "map_size": _MAP_BYTES,
        "max_dbs": 8,
        "max_readers": _READERS,
        "sync": False,
        "metasync": False,
        "readahead": False,
        "mode": 0o600,
    }
    environment = lmdb.open(str(folder), **options)
    environment.reader_check()
    return environment
