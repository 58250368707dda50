"""Checking packs: their frames and tables, or every blob in them.

Rule: a pack is judged by its own bytes; what is bad in it is told blob by blob where that can be told, so that one
flipped byte costs one chunk and not sixteen megabytes of them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

from imaging.errors import Damaged, ImagingError, NotAuthentic, ObjectMissing, StoreUnavailable, WrongVersion
from imaging.keys import Keys
from imaging.packs import iter_rows, pack_name, parse_pack, read_table
from imaging.places import PackRows, unpack_place
from imaging.sealing import Sealer, open_blob
from imaging.storage.contract import Buffer, Store

_WORKERS_MAX: Final = 4


@dataclass(frozen=True, slots=True)
class PackVerdict:
    """What is wrong with a pack, if anything, and which of its blobs cannot be read: None when that cannot be told."""

    pack: bytes
    size_bytes: int
    problem: ImagingError | None
    bad_ids: frozenset[bytes] | None
    rows: PackRows | None


def check_packs(
    store: Store,
    keys: Keys,
    packs: Mapping[bytes, int],
    whole: Collection[bytes],
    known_rows: Callable[[bytes], PackRows | None],
) -> Iterator[PackVerdict]:
    """A verdict on each pack (hash → size in bytes); those of `whole` are read whole, of the others only the tables.
    `known_rows` is asked for what the index says of a damaged one."""

    def check(pack: bytes, size_bytes: int) -> PackVerdict:
        if pack not in whole:
            return _check_table(store, keys, pack, size_bytes, known_rows)
        return _check_data(store, keys, pack, size_bytes, known_rows)

    workers = min(_WORKERS_MAX, os.cpu_count() or 1)
    with ThreadPoolExecutor(workers, thread_name_prefix="verify") as pool:
        waiting: list[Future[PackVerdict]] = []
        for pack, size_bytes in packs.items():
            waiting.append(pool.submit(check, pack, size_bytes))
            if len(waiting) > 2 * workers:
                yield waiting.pop(0).result()
        for future in waiting:
            yield future.result()


def _check_table(
    store: Store, keys: Keys, pack: bytes, size_bytes: int, known_rows: Callable[[bytes], PackRows | None]
) -> PackVerdict:
    try:
        rows = read_table(store, keys, pack_name(pack), size_bytes)
    except (Damaged, ObjectMissing, StoreUnavailable, WrongVersion) as error:
        # The blobs may be well: the index knows their places. Whether they are, only reading them says; and what may
        # pass is nothing to go by, if it has passed by then.
        problem = None if isinstance(error, StoreUnavailable) else error
        return _check_data(store, keys, pack, size_bytes, known_rows, problem)
    return PackVerdict(pack, size_bytes, None, frozenset(), rows)


def _check_data(
    store: Store,
    keys: Keys,
    pack: bytes,
    size_bytes: int,
    known_rows: Callable[[bytes], PackRows | None],
    problem: ImagingError | None = None,
) -> PackVerdict:
    name = pack_name(pack)
    try:
        data = store.get(name)
    except ObjectMissing as error:
        return PackVerdict(pack, 0, error, None, known_rows(pack))
    except Damaged as error:
        return _check_pieces(store, keys, pack, size_bytes, known_rows, error)
    except StoreUnavailable as error:
        return PackVerdict(pack, size_bytes, error, None, known_rows(pack))
    rows: PackRows | None
    try:
        rows = parse_pack(name, keys, data)
    except (Damaged, NotAuthentic, WrongVersion) as error:
        rows = known_rows(pack)
        problem = problem or error
    if rows is None:
        return PackVerdict(pack, size_bytes, problem, None, None)
    view = memoryview(data)
    bad = frozenset(_bad_blobs(keys, rows, lambda offset, stored: view[offset : offset + stored]))
    if bad and problem is None:
        problem = Damaged(name, f"{len(bad)} of its blobs cannot be opened, though it has the hash that names it")
    return PackVerdict(pack, size_bytes, problem, bad, rows)


def _check_pieces(
    store: Store,
    keys: Keys,
    pack: bytes,
    size_bytes: int,
    known_rows: Callable[[bytes], PackRows | None],
    problem: ImagingError,
) -> PackVerdict:
    """A pack of which a part cannot be read, as of a bad sector: the other blobs can."""
    name = pack_name(pack)
    try:
        rows: PackRows | None = read_table(store, keys, name, size_bytes)
    except (Damaged, ObjectMissing, StoreUnavailable, WrongVersion):
        rows = known_rows(pack)
    if rows is None:
        return PackVerdict(pack, size_bytes, problem, None, None)
    try:
        bad = frozenset(_bad_blobs(keys, rows, lambda offset, stored: store.get(name, offset, stored)))
    except (ObjectMissing, StoreUnavailable):
        return PackVerdict(pack, size_bytes, problem, None, rows)
    return PackVerdict(pack, size_bytes, problem, bad, rows)


def _bad_blobs(keys: Keys, rows: PackRows, read: Callable[[int, int], Buffer]) -> Iterator[bytes]:
    """`read` gives a range of the pack, or what of it is there; Damaged where it cannot."""
    sealer = Sealer(keys, rows.blob_type, rows.salt)
    for identity, place in iter_rows(rows.rows):
        offset, stored, plain_bytes, compressed = unpack_place(place)
        try:
            sealed = read(offset, stored)
            if len(sealed) != stored:
                raise Damaged(pack_name(rows.pack), "it ends before this blob does")
            open_blob(keys, sealer, rows.blob_type, identity, sealed, plain_bytes, compressed)
        except Damaged:
            yield identity
