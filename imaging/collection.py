"""What a collection would do: decided from what packs hold and which of their rows are needed. Pure.

Rules: a pack goes when nothing in it is needed, or when what is needed has been moved to a new one; only packs that are
well are moved; a pack that an earlier collection condemned is never taken back.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from imaging.holdings import Flags, HeldPack, Holdings, Trust
from imaging.packs import FRAME_BYTES
from imaging.places import ROW_BYTES

SMALL_BYTES = 4 << 20
REPACK_BELOW = 0.6


@dataclass(frozen=True, slots=True)
class CollectionPlan:
    """Packs by their hashes.

    `dead`: nothing in them is needed. `moved`: what is needed in them is copied to new packs, by groups that may share
    one, before they go. `orphans`: in no index object that counts, and seen at the last collection already.
    `gone`: index objects list them, and they are not in the store.
    """

    dead: tuple[bytes, ...]
    moved: tuple[tuple[bytes, ...], ...]
    orphans: tuple[bytes, ...]
    gone: tuple[bytes, ...]
    freed_bytes: int  # what the store shrinks by, once all this was done
    copied_bytes: int
    kept_bytes: int  # all packs that stay, moved content included
    unneeded_bytes: int  # what of that nothing needs, left for a later collection

    @property
    def condemned(self) -> tuple[bytes, ...]:
        return (*self.dead, *(pack for group in self.moved for pack in group), *self.orphans)

    @property
    def empty(self) -> bool:
        return not self.condemned


def plan_collection(
    holdings: Holdings,
    needed: Flags,
    *,
    orphans: Mapping[bytes, int] | None = None,
    series: Mapping[bytes, str] | None = None,
    pack_bytes: int,
    repack_below: float = REPACK_BELOW,
) -> CollectionPlan:
    """`needed` by row; `orphans` with their sizes; `series` says whose a pack is, as far as that is known."""
    dead: list[bytes] = []
    moving: list[_Used] = []
    freed = kept = unneeded = 0
    small: dict[tuple[int, str], list[_Used]] = {}
    owners = series or {}
    for pack, (used, rows) in zip(holdings.packs, holdings.usage(needed), strict=True):
        each = _Used(pack, used, rows, owners.get(pack.pack, ""))
        if pack.trust in (Trust.CONDEMNED, Trust.DOOMED, Trust.MISSING):
            continue
        if pack.trust is Trust.OPEN:
            kept += pack.size_bytes
        elif rows == 0:
            dead.append(pack.pack)
            freed += pack.size_bytes
        elif pack.trust is Trust.WELL and used < repack_below * (pack.size_bytes - _frame(pack.rows)):
            moving.append(each)
        elif pack.trust is Trust.WELL and pack.size_bytes < SMALL_BYTES:
            small.setdefault(each.kind, []).append(each)
        else:
            kept += pack.size_bytes
            unneeded += each.unneeded_bytes
    for some in small.values():
        if len(some) > 1 and sum(each.used_bytes for each in some) >= pack_bytes:
            moving += some
        else:
            kept += sum(each.pack.size_bytes for each in some)
            unneeded += sum(each.unneeded_bytes for each in some)
    groups = _grouped(moving, pack_bytes)
    for group in groups:
        new = sum(each.used_bytes for each in group) + _frame(sum(each.used_rows for each in group))
        kept += new
        freed += sum(each.pack.size_bytes for each in group) - new
    lost = dict(orphans or {})
    return CollectionPlan(
        dead=tuple(dead),
        moved=tuple(tuple(each.pack.pack for each in group) for group in groups),
        orphans=tuple(sorted(lost)),
        gone=tuple(pack.pack for pack in holdings.packs if pack.trust is Trust.MISSING),
        freed_bytes=freed + sum(lost.values()),
        copied_bytes=sum(each.used_bytes for each in moving),
        kept_bytes=kept,
        unneeded_bytes=unneeded,
    )


@dataclass(frozen=True, slots=True)
class _Used:
    """A pack, and what of it is needed."""

    pack: HeldPack
    used_bytes: int
    used_rows: int
    series: str

    @property
    def kind(self) -> tuple[int, str]:
        return self.pack.blob_type, self.series

    @property
    def unneeded_bytes(self) -> int:
        return self.pack.size_bytes - _frame(self.pack.rows) - self.used_bytes


def _frame(rows: int) -> int:
    return FRAME_BYTES + rows * ROW_BYTES


def _grouped(packs: list[_Used], pack_bytes: int) -> list[list[_Used]]:
    """Packs that are moved together: of one type and one series, until they fill a new pack."""
    by_kind: dict[tuple[int, str], list[_Used]] = {}
    for each in packs:
        by_kind.setdefault(each.kind, []).append(each)
    found: list[list[_Used]] = []
    for _, some in sorted(by_kind.items()):
        batch: list[_Used] = []
        for each in some:
            batch.append(each)
            if sum(one.used_bytes for one in batch) >= pack_bytes:
                found.append(batch)
                batch = []
        if batch:
            found.append(batch)
    return found
