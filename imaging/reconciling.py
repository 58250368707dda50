"""Bringing the index cache up to date with what the store lists.

Rules: index objects are listed before any lease is looked at; one counts if its lease committed or was tidied away. A
damaged one is passed over and named: what it said is also in its packs' own tables, which are read when a blob is
missing.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from imaging.envelope import ObjectType
from imaging.errors import Damaged, ImagingError, NotAuthentic, ObjectMissing, StoreUnavailable, WrongVersion
from imaging.index import ChunkIndex
from imaging.index_objects import decode_index
from imaging.keys import Keys
from imaging.leases import Leases
from imaging.objects import SealedObjects
from imaging.packs import digest_of_name, read_table
from imaging.places import PackRows, PackState
from imaging.storage.contract import Store

_NAME: Final = re.compile(r"index/([0-9a-f]{32})-\d{6}")
_TABLES_AT_ONCE: Final = 64


@dataclass(frozen=True, slots=True)
class Reconciled:
    added: int
    dropped: int
    damaged: tuple[ImagingError, ...]


def reconcile(index: ChunkIndex, objects: SealedObjects, leases: Leases, condemned: frozenset[bytes]) -> Reconciled:
    """Takes in what is new, forgets what is gone, marks what is condemned. StoreError, IndexUnavailable."""
    index.check()
    listed = [each.name for each in objects.store.list("index/")]
    present = index.objects()
    gone = present.difference(listed)
    for name in sorted(gone):
        index.drop_object(name)
    damaged: list[ImagingError] = []
    added = 0

    def fresh() -> Iterator[tuple[str, Sequence[PackRows]]]:
        nonlocal added
        for name in listed:
            if name in present:
                continue
            packs = _read(objects, leases, name, damaged)
            if packs is not None:
                added += 1
                yield name, packs

    if index.counts().blobs:
        for name, packs in fresh():
            index.add_object(name, packs)
    else:
        index.build(fresh())
    if condemned:
        index.set_states(dict.fromkeys(condemned, PackState.CONDEMNED))
    return Reconciled(added, len(gone), tuple(damaged))


def _read(objects: SealedObjects, leases: Leases, name: str, damaged: list[ImagingError]) -> list[PackRows] | None:
    parsed = _NAME.fullmatch(name)
    if parsed is None:
        return None
    try:
        if not leases.standing(parsed[1]).counts:
            return None
        return decode_index(objects.read(ObjectType.INDEX, name).body, name)
    except ObjectMissing:
        return None  # removed since it was listed
    except (Damaged, StoreUnavailable, WrongVersion) as error:
        damaged.append(error)
        return None


def read_unlisted_packs(index: ChunkIndex, store: Store, keys: Keys) -> int:
    """Takes in, for reading only, every pack of the store that the index does not have; returns how many."""
    found: list[PackRows] = []
    count = 0
    known = index.packs().keys()
    for listed in store.list("packs/"):
        digest = digest_of_name(listed.name)
        if digest is None or digest in known:
            continue
        try:
            found.append(read_table(store, keys, listed.name, listed.size_bytes))
        except (Damaged, NotAuthentic, ObjectMissing, StoreUnavailable, WrongVersion):
            continue  # nothing can be read from it; verify names it
        count += 1
        if len(found) == _TABLES_AT_ONCE:
            index.add_unlisted(found)
            found = []
    if found:
        index.add_unlisted(found)
    return count
