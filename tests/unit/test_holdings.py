"""Packs as arrays: look-ups, copies of an id, ids that clash, marks, forecasts and plans, against plain dicts."""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from imaging.chunking import Record
from imaging.collection import plan_collection
from imaging.diskmap import Leaf, MapWriter, encode_leaf
from imaging.extents import REGION_BYTES, REGION_PAGES
from imaging.forecasting import Attribution
from imaging.holdings import Holdings, Trust, gather, prefixes_of
from imaging.marking import Marker
from imaging.places import PackRows, pack_place

MIB = 1 << 20


def identity(number: int) -> bytes:
    return hashlib.sha256(b"%d" % number).digest()


def pack(name: int, ids: Sequence[bytes], length: int = 1000, blob_type: int = 0) -> PackRows:
    rows = b"".join(
        each + pack_place(64 + at * length, length, length, False).to_bytes(8, "little") for at, each in enumerate(ids)
    )
    size = 104 + len(rows) + len(ids) * length
    return PackRows(name.to_bytes(32, "big"), bytes(32), size, blob_type, rows)


def find(holdings: Holdings, ids: Sequence[bytes]) -> list[int | None]:
    found = holdings.find(prefixes_of(b"".join(ids)))
    return [int(row) if there else None for row, there in zip(found.rows, found.there, strict=True)]


@given(st.lists(st.tuples(st.lists(st.integers(0, 30), max_size=12), st.sampled_from(Trust)), max_size=8))
def test_the_best_place_of_each_id_is_found(packs: list[tuple[list[int], Trust]]) -> None:
    holdings = gather((pack(n, [identity(i) for i in ids]), trust) for n, (ids, trust) in enumerate(packs))
    best: dict[int, Trust] = {}
    for ids, trust in packs:
        for each in ids:
            best[each] = min(trust, best.get(each, trust))
    trust_of = [each.trust for each in holdings.packs for _ in range(each.rows)]
    wanted = list(range(32))
    for number, row in zip(wanted, find(holdings, [identity(n) for n in wanted]), strict=True):
        assert (None if row is None else trust_of[row]) == best.get(number)
    every = [(each, trust) for ids, trust in packs for each in ids]
    copies = Counter(each for each, _ in every)
    assert holdings.clashing.tolist() == [
        copies[each] > 1 and best[each] in (Trust.DAMAGED, Trust.DOOMED) and trust != Trust.MISSING
        for each, trust in every
    ], "where the best place is doubtful, every one that is there is kept"


def test_ids_that_share_their_first_bytes_are_both_kept_for_ever() -> None:
    one, two = b"\x11" * 8 + b"a" * 24, b"\x11" * 8 + b"b" * 24
    holdings = gather([(pack(1, [one, identity(5)]), Trust.WELL), (pack(2, [two]), Trust.WELL)])
    assert holdings.clashing.tolist() == [True, False, True]
    marker = Marker(lambda ids: [], holdings)
    plan = plan_collection(holdings, marker.needed, pack_bytes=16 * MIB, repack_below=0)
    assert plan.dead == ()


def test_of_copies_in_damaged_packs_none_is_collected_for_another() -> None:
    """Which of them still opens is not known; once there is a copy that is surely good, they go."""
    one = [pack(1, [identity(1)]), pack(2, [identity(1)]), pack(3, [identity(1)])]
    holdings = gather([(one[0], Trust.DOOMED), (one[1], Trust.DAMAGED), (one[2], Trust.DAMAGED)])
    plan = plan_collection(holdings, Marker(lambda ids: [], holdings).needed, pack_bytes=16 * MIB)
    assert plan.condemned == ()
    holdings = gather([(one[0], Trust.DAMAGED), (one[1], Trust.DAMAGED), (one[2], Trust.WELL)])
    marker = Marker(lambda ids: [], holdings)
    marker.needed[holdings.find(prefixes_of(identity(1))).rows] = True
    assert plan_collection(holdings, marker.needed, pack_bytes=16 * MIB).dead == (one[0].pack, one[1].pack)


def test_an_empty_repository_holds_nothing() -> None:
    holdings = gather([])
    assert find(holdings, [identity(1)]) == [None]
    assert plan_collection(holdings, np.zeros(0, bool), pack_bytes=16 * MIB).empty


# --- disk maps made of numbers ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Disk:
    root: bytes | None
    size_bytes: int


class Forest:
    """Disks whose chunks are numbers: one for each quarter of a region."""

    def __init__(self) -> None:
        self.nodes: dict[bytes, bytes] = {}
        self.below: dict[bytes, set[bytes]] = {}

    def store(self, plain: bytes) -> bytes:
        node = hashlib.sha256(plain).digest()
        self.nodes[node] = plain
        return node

    def disk(self, chunks: Sequence[int]) -> Disk:
        size = -(-len(chunks) // 4) * REGION_BYTES
        writer = MapWriter(size, self.store)
        needs = {identity(number) for number in chunks if number}
        for region in range(size // REGION_BYTES):
            four = [*chunks[4 * region : 4 * region + 4], 0, 0, 0][:4]
            records, ids, page = [], [], 0
            for number in four:
                if number:
                    records.append(Record(page, page + 16, True))
                    ids.append(identity(number))
                    page += 16
            records.append(Record(page, REGION_PAGES, False))
            leaf = encode_leaf(Leaf(tuple(records), (*ids, None)))
            if leaf is not None:
                node = self.store(leaf)
                needs.add(node)
                writer.add(region, node)
        before = set(self.nodes)
        root = writer.finish()
        needs |= (set(self.nodes) - before) | ({root} if root else set())
        if root is not None:
            self.below[root] = self.below.get(root, set()) | needs
        return Disk(root, size)

    def needs(self, disk: Disk) -> set[bytes]:
        return self.below[disk.root] if disk.root else set()

    def fetch(self, ids: Sequence[bytes]) -> list[bytes]:
        return [self.nodes[node] for node in ids]


DISKS = st.lists(st.lists(st.integers(0, 12), min_size=1, max_size=24), min_size=1, max_size=5)


@settings(deadline=None)
@given(DISKS, st.randoms(use_true_random=False))
def test_marks_forecasts_and_plans_are_those_of_sets(chunks: list[list[int]], rng: random.Random) -> None:
    forest = Forest()
    disks = [forest.disk(each) for each in chunks]
    blobs = sorted({*forest.nodes, *(identity(number) for number in range(20))})
    rng.shuffle(blobs)
    places = [blobs[at : at + 7] for at in range(0, len(blobs), 7)]
    holdings = gather((pack(number, ids), Trust.WELL) for number, ids in enumerate(places))
    row = dict(zip(blobs, find(holdings, blobs), strict=True))
    keep = [disk for disk in disks if rng.random() < 0.6]
    marker = Marker(forest.fetch, holdings)
    for disk in keep:
        marker.mark([disk], "a point")
    needed = set().union(*(forest.needs(disk) for disk in keep))
    assert {blob for blob in blobs if marker.needed[row[blob]]} == needed
    attribution = Attribution(forest.fetch, holdings)
    for number, disk in enumerate(disks):
        attribution.add(number, [disk], "a point")
    for number, found in enumerate(attribution.exclusive_bytes(len(disks))):
        others = set().union(*(forest.needs(each) for at, each in enumerate(disks) if at != number))
        assert found == 1040 * len(forest.needs(disks[number]) - others)
    assert attribution.unneeded_bytes() == 1040 * len(set(blobs) - set().union(*map(forest.needs, disks)))
    plan = plan_collection(holdings, marker.needed, pack_bytes=16 * MIB, repack_below=0.5)
    assert set(plan.dead) == {n.to_bytes(32, "big") for n, ids in enumerate(places) if not needed & set(ids)}
    sparse = {n.to_bytes(32, "big") for n, ids in enumerate(places) if 0 < len(needed & set(ids)) < 0.5 * len(ids)}
    assert {each for group in plan.moved for each in group} == sparse
    assert plan.kept_bytes + plan.freed_bytes == sum(each.size_bytes for each in holdings.packs)
    assert plan.copied_bytes == 1000 * sum(len(needed & set(places[int.from_bytes(each)])) for each in sparse)


def test_a_pack_of_a_run_that_has_not_ended_is_left_alone() -> None:
    holdings = gather([(pack(1, [identity(1)]), Trust.OPEN), (pack(2, [identity(2)]), Trust.CONDEMNED)])
    plan = plan_collection(holdings, np.zeros(2, bool), orphans={b"o" * 32: 77}, pack_bytes=16 * MIB)
    assert plan.dead == ()
    assert plan.condemned == (b"o" * 32,)
    assert plan.freed_bytes == 77


def test_small_packs_of_one_series_are_merged_once_they_fill_one() -> None:
    packs = [pack(n, [identity(100 * n + i) for i in range(50)], 40_000) for n in range(10)]
    holdings = gather((each, Trust.WELL) for each in packs)
    needed = np.ones(holdings.row_count, bool)
    owners = {each.pack: "ab"[n // 9] for n, each in enumerate(packs)}
    plan = plan_collection(holdings, needed, series=owners, pack_bytes=16 * MIB)
    assert {each for group in plan.moved for each in group} == {each.pack for each in packs[:9]}
    fewer = plan_collection(
        holdings, needed, series={each.pack: each.pack.hex() for each in packs}, pack_bytes=16 * MIB
    )
    assert fewer.empty
