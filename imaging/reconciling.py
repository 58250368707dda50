"""Bringing the index cache up to date with what the store lists.

Rules: what the repository says of packs (condemned, damaged) is marked before any pack is taken in, so that none is
live in between; index objects are listed before any lease is looked at, and one counts if its lease committed or was
tidied away. A damaged one is passed over and named: what it said is also in its packs' own tables, which are read when
a blob is missing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from imaging.envelope import ObjectType
from imaging.errors import Damaged, ImagingError, NotAuthentic, ObjectMissing, StoreUnavailable, WrongVersion
from imaging.index import ChunkIndex
from imaging.index_objects import decode_index, lease_of
from imaging.keys import Keys
from imaging.leases import Leases
from imaging.objects import SealedObjects
from imaging.packs import listed_packs, pack_name, read_table
from imaging.places import PackRows, PackState
from imaging.storage.contract import Store

_TABLES_AT_ONCE: Final = 64


@dataclass(frozen=True, slots=True)
class Said:
    """What the repository says of packs: those of its condemned list, and those on which there is a verdict."""

    condemned: frozenset[bytes]
    damaged: frozenset[bytes]


@dataclass(frozen=True, slots=True)
class Reconciled:
    """`forgotten` are packs that were dropped, as nothing will need them again."""

    added: int
    dropped: int
    damaged: tuple[ImagingError, ...]
    forgotten: int = 0


def reconcile(index: ChunkIndex, objects: SealedObjects, leases: Leases, said: Said) -> Reconciled:
    """Marks what is said of packs, takes in what is new, forgets what is gone. StoreError, IndexUnavailable."""
    index.check()
    news = index.judge(said.condemned, said.damaged)
    listed = [each.name for each in objects.store.list("index/")]
    gone = index.objects().difference(listed)
    for name in sorted(gone):
        index.drop_object(name)
    damaged: list[ImagingError] = []
    added = 0

    def fresh() -> Iterator[tuple[str, Sequence[PackRows]]]:
        nonlocal added
        present = index.objects()
        for name in listed:
            if name in present:
                continue
            packs = _read(objects, leases, name, damaged)
            if packs is not None:
                added += 1
                yield name, packs

    arriving = fresh()
    if not index.is_empty() or not index.build(arriving, _present(objects.store, listed)):
        for name, packs in arriving:
            index.add_object(name, packs)
    if gone:
        _look_for_adrift(index, objects.store)
    forgotten = index.forget_outlived(said.condemned | said.damaged) if news or gone else 0
    return Reconciled(added, len(gone), tuple(damaged), forgotten)


def _look_for_adrift(index: ChunkIndex, store: Store) -> None:
    """What index objects list no more was condemned once, perhaps by a list that nobody here has seen: where that is
    much, the store is asked what is left of it."""
    adrift = index.adrift()
    if adrift:
        present = listed_packs(store)
        index.set_states({pack: PackState.GONE for pack in adrift if pack not in present})


def _present(store: Store, listed: Sequence[str]) -> frozenset[bytes]:
    """Every pack that is there, looked at after the index objects that may list it; nothing, if there are none."""
    return frozenset(listed_packs(store)) if listed else frozenset()


def _read(objects: SealedObjects, leases: Leases, name: str, damaged: list[ImagingError]) -> list[PackRows] | None:
    lease = lease_of(name)
    if lease is None:
        return None
    try:
        if not leases.standing(lease).counts:
            return None
        return decode_index(objects.read(ObjectType.INDEX, name).body, name)
    except ObjectMissing:
        return None  # removed since it was listed
    except (Damaged, StoreUnavailable, WrongVersion) as error:
        damaged.append(error)
        return None


def read_unlisted_packs(index: ChunkIndex, store: Store, keys: Keys) -> int:
    """Takes in, for reading only, every pack of the store that the index does not have, and takes back of those that
    are there that they are gone; returns how many it took in."""
    found: list[PackRows] = []
    count = 0
    known = index.packs()
    returned: list[bytes] = []
    for pack, size_bytes in listed_packs(store).items():
        if pack in known:
            if known[pack].state is PackState.GONE:
                returned.append(pack)
            continue
        try:
            found.append(read_table(store, keys, pack_name(pack), size_bytes))
        except (Damaged, NotAuthentic, ObjectMissing, StoreUnavailable, WrongVersion):
            continue  # nothing can be read from it; verify names it
        count += 1
        if len(found) == _TABLES_AT_ONCE:
            index.add_unlisted(found)
            found = []
    if found:
        index.add_unlisted(found)
    if returned:
        index.returned(returned)
    return count
