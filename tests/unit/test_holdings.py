"""Packs as arrays: look-ups, copies of an id, ids that clash, marks, forecasts and plans, against plain dicts."""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from imaging.chunking import Record
from imaging.collection import plan_collection
from imaging.diskmap import Leaf, MapWriter, encode_leaf
from imaging.extents import REGION_BYTES, REGION_PAGES
from imaging.forecasting import Attribution
from imaging.holdings import Flags, Holdings, Trust
from imaging.ledger import Ledger
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


def gather(packs: Iterable[tuple[PackRows, Trust]]) -> Holdings:
    """Each pack in an index object of its own; some of them in an earlier segment of the ledger."""
    ledger = Ledger()
    trust: list[Trust] = []
    for number, (each, trusted) in enumerate(packs):
        ledger.add_object(f"{number}", 0, [each])
        trust.append(trusted)
        if number % 3 == 2:
            ledger.settle()
    ledger.settle()
    return Holdings(ledger, np.array(trust, np.uint8))


def find(holdings: Holdings, ids: Sequence[bytes]) -> list[int | None]:
    """The best row of each id."""
    rows = holdings.ledger.rows_of(b"".join(ids))
    marks = np.full(holdings.row_count, -1)
    known = [(at, row) for at, row in enumerate(rows.tolist()) if row >= 0 and not holdings.nowhere[row]]
    for at, row in known:
        marks[row] = at
    placed = holdings.placed(marks, -1, -2).tolist()
    at_of = {at: row for row, at in enumerate(placed) if at >= 0}
    first = {row: at_of[at] for at, row in known if at in at_of}
    return [first.get(row) for row in rows.tolist()]


def kept(holdings: Holdings) -> list[bool]:
    """The rows that are needed although no point needs anything."""
    return [bool(each) for each in Marker(lambda ids: [], holdings).needed()]


@given(st.lists(st.tuples(st.lists(st.integers(0, 30), max_size=12), st.sampled_from(Trust)), max_size=8))
def test_the_best_place_of_each_id_is_found(packs: list[tuple[list[int], Trust]]) -> None:
    holdings = gather((pack(n, [identity(i) for i in ids]), trust) for n, (ids, trust) in enumerate(packs))
    every = [(each, trust) for ids, trust in packs for each in ids]
    best: dict[int, Trust] = {}
    for each, trust in every:
        best[each] = min(trust, best.get(each, trust))
    copies = Counter(each for each, trust in every if trust is not Trust.UNLISTED)
    doubtful = {each for each in best if copies[each] > 1 and best[each] in (Trust.DAMAGED, Trust.DOOMED)}
    wanted = list(range(32))
    for number, row in zip(wanted, find(holdings, [identity(n) for n in wanted]), strict=True):
        if best.get(number, Trust.UNLISTED) is Trust.UNLISTED:
            assert row is None
        elif number not in doubtful:
            assert row is not None
            assert every[row] == (number, best[number])
    assert kept(holdings) == [each in doubtful and trust < Trust.MISSING for each, trust in every], (
        "where the best place is doubtful, every one that is there is kept"
    )


def test_ids_that_share_their_first_bytes_are_told_apart() -> None:
    one, two, three = (b"\x11" * 8 + letter + b"." * 20 for letter in (b"aaaa", b"bbbb", b"cccc"))
    holdings = gather([(pack(1, [two, identity(5)]), Trust.WELL), (pack(2, [one]), Trust.WELL),
                       (pack(3, [one, two]), Trust.DAMAGED), (pack(4, [one]), Trust.WELL)])  # fmt: skip
    assert find(holdings, [one, two, three, identity(5)]) == [2, 0, None, 1]
    marker = Marker(lambda ids: [], holdings)
    plan = plan_collection(holdings, marker.needed(), pack_bytes=16 * MIB, repack_below=0)
    assert len(plan.dead) == 4


def test_of_copies_in_damaged_packs_none_is_collected_for_another() -> None:
    """Which of them still opens is not known; once there is a copy that is surely good, they go."""
    one = [pack(1, [identity(1)]), pack(2, [identity(1)]), pack(3, [identity(1)])]
    holdings = gather([(one[0], Trust.DOOMED), (one[1], Trust.DAMAGED), (one[2], Trust.DAMAGED)])
    plan = plan_collection(holdings, Marker(lambda ids: [], holdings).needed(), pack_bytes=16 * MIB)
    assert plan.condemned == ()
    holdings = gather([(one[0], Trust.DAMAGED), (one[1], Trust.DAMAGED), (one[2], Trust.WELL)])
    assert plan_collection(holdings, needing(holdings, [1]), pack_bytes=16 * MIB).dead == (one[0].pack, one[1].pack)


def needing(holdings: Holdings, numbers: Sequence[int]) -> Flags:
    marks = np.zeros(holdings.row_count, bool)
    marks[holdings.ledger.rows_of(b"".join(identity(number) for number in numbers))] = True
    return holdings.placed(marks, nothing=False, kept=True)


def test_what_is_needed_moves_with_the_best_place_whatever_the_ledger_met_first() -> None:
    packs = [pack(1, [identity(1), identity(2)]), pack(2, [identity(2)]), pack(3, [identity(2)])]
    for trusts, row in (
        ((Trust.CONDEMNED, Trust.WELL, Trust.OPEN), 2),
        ((Trust.UNLISTED, Trust.OPEN, Trust.CONDEMNED), 3),
        ((Trust.MISSING, Trust.UNLISTED, Trust.UNLISTED), 1),
    ):
        holdings = gather(zip(packs, trusts, strict=True))
        assert np.flatnonzero(needing(holdings, [2])).tolist() == [row]
    holdings = gather((each, Trust.UNLISTED) for each in packs)
    assert holdings.nowhere[:2].tolist() == [True, True]
    assert holdings.packs == ()


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
    rows_needed = marker.needed()
    assert {blob for blob in blobs if rows_needed[row[blob]]} == needed
    attribution = Attribution(forest.fetch, holdings)
    for number, disk in enumerate(disks):
        attribution.add(number, [disk], "a point")
    exclusive, unneeded = attribution.exclusive_bytes(len(disks))
    for number, found in enumerate(exclusive):
        others = set().union(*(forest.needs(each) for at, each in enumerate(disks) if at != number))
        assert found == 1040 * len(forest.needs(disks[number]) - others)
    assert unneeded == 1040 * len(set(blobs) - set().union(*map(forest.needs, disks)))
    plan = plan_collection(holdings, rows_needed, pack_bytes=16 * MIB, repack_below=0.5)
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
