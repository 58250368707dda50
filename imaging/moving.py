"""Copying what is needed out of packs that are to go, into new ones.

Rules: a pack is read whole and its hash checked; every blob is opened and its id checked before it is sealed again; a
pack of which anything cannot be read stays where it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from imaging.errors import Damaged, ImagingError, NotAuthentic, ObjectMissing, StoreUnavailable, WrongVersion
from imaging.holdings import Flags
from imaging.keys import Keys
from imaging.packs import PackBuilder, iter_rows, new_room, pack_name, parse_pack
from imaging.places import PackRows, unpack_place
from imaging.sealing import Sealer, open_payload
from imaging.storage.contract import Store


@dataclass(slots=True)
class Moved:
    """`packs` are new and durable; what was needed of each in `emptied` is in them. `failed`: why one stays."""

    packs: list[PackRows] = field(default_factory=list)
    emptied: list[bytes] = field(default_factory=list)
    failed: dict[bytes, ImagingError] = field(default_factory=dict)
    copied_bytes: int = 0


def move(
    store: Store,
    keys: Keys,
    groups: Iterable[Sequence[bytes]],
    needed: Callable[[bytes], Flags],
    *,
    pack_bytes: int,
    advance: Callable[[int], None] = lambda _: None,
) -> Moved:
    """Each group is of packs of one type. `needed` says which rows of a pack are wanted; `advance` is told of bytes
    read. NoSpace, StoreError."""
    moved, room = Moved(), new_room()
    for group in groups:
        builder: PackBuilder | None = None
        complete: list[bytes] = []
        for pack in group:
            try:
                rows, payloads = _read(store, keys, pack, needed(pack))
            except (Damaged, NotAuthentic, ObjectMissing, StoreUnavailable, WrongVersion) as error:
                moved.failed[pack] = error
                continue
            advance(rows.size_bytes)
            for identity, payload, plain_bytes, compressed in payloads:
                if builder is not None and builder.is_full_for(payload):
                    moved.packs.append(_put(store, builder))
                    builder = None
                if builder is None:
                    builder = PackBuilder(keys, rows.blob_type, room)
                moved.copied_bytes += builder.add(identity, payload, plain_bytes, compressed)
                if builder.size_bytes >= pack_bytes:
                    moved.packs.append(_put(store, builder))
                    builder = None
            complete.append(pack)
        if builder is not None:
            moved.packs.append(_put(store, builder))
        moved.emptied += complete
    return moved


def _read(
    store: Store, keys: Keys, pack: bytes, wanted: Flags
) -> tuple[PackRows, list[tuple[bytes, bytes, int, bool]]]:
    """(id, payload, plain length, compressed) of every row that is wanted: all of them, or an error."""
    name = pack_name(pack)
    data = store.get(name)
    rows = parse_pack(name, keys, data)
    entries = iter_rows(rows.rows)
    if len(entries) != len(wanted):
        raise Damaged(name, f"the index says that it holds {len(wanted)} blobs, and it holds {len(entries)}")
    sealer = Sealer(keys, rows.blob_type, rows.salt)
    view = memoryview(data)
    found = []
    for number in np.flatnonzero(wanted).tolist():
        identity, place = entries[number]
        offset, stored, plain_bytes, compressed = unpack_place(place)
        sealed = view[offset : offset + stored]
        payload = open_payload(keys, sealer, rows.blob_type, identity, sealed, plain_bytes, compressed)
        found.append((identity, payload, plain_bytes, compressed))
    return rows, found


def _put(store: Store, builder: PackBuilder) -> PackRows:
    pack, rows = builder.finish()
    store.put(pack_name(rows.pack), [pack])
    return rows
