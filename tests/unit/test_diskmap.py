"""The disk map against a dictionary, on disks so large and sparse that the tree has three levels."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from itertools import pairwise

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from imaging.chunking import HOLE_PAGES_MIN, Record
from imaging.diskmap import (
    Leaf,
    MapWriter,
    decode_leaf,
    difference,
    encode_leaf,
    find_leaf,
    leaf_ids,
    region_count,
    region_pages,
    root_level,
)
from imaging.errors import Damaged
from imaging.extents import PAGE_BYTES, REGION_BYTES

TIB = 1 << 40
SIZES = (
    0, 1, PAGE_BYTES, PAGE_BYTES + 1, REGION_BYTES - 1, REGION_BYTES, REGION_BYTES + 1, 5 * REGION_BYTES + 999,
    256 * REGION_BYTES, 256 * REGION_BYTES + 1, 300 * REGION_BYTES + 12345,
    65536 * REGION_BYTES, 65536 * REGION_BYTES + 7, 3 * TIB + 4097, 64 * TIB,
)  # fmt: skip


class Nodes:
    """Nodes by the hash of their bytes; counts what is fetched."""

    def __init__(self) -> None:
        self.held: dict[bytes, bytes] = {}
        self.fetched = 0

    def store(self, plain: bytes) -> bytes:
        identity = hashlib.sha256(plain).digest()
        self.held[identity] = plain
        return identity

    def fetch(self, identity: bytes) -> bytes:
        self.fetched += 1
        return self.held[identity]


def chunk_id(content: int, length: int) -> bytes:
    """As real ids do, it tells contents apart, and lengths."""
    return hashlib.sha256(b"%d %d" % (content, length)).digest()


def leaf_of(size: int, region: int, content: dict[int, int]) -> Leaf:
    """A leaf with a chunk of one page for each page of `content`, whole runs of other pages as holes."""
    pages = region_pages(size, region)
    records: list[Record] = []
    ids: list[bytes | None] = []
    page = 0
    for at in [*sorted(content), pages]:
        if at > page:
            records.append(Record(page, at, data=False))
            ids.append(None)
        if at < pages:
            end = min((region * REGION_BYTES) + (at + 1) * PAGE_BYTES, size)
            records.append(Record(at, at + 1, data=True))
            ids.append(chunk_id(content[at], end - region * REGION_BYTES - at * PAGE_BYTES))
        page = at + 1
    return Leaf(tuple(records), tuple(ids))


Model = dict[int, dict[int, int]]
"""Region → page in it → content, for the pages that are not zero."""


def build(nodes: Nodes, size: int, model: Model) -> bytes | None:
    tree = MapWriter(size, nodes.store)
    for region in sorted(model):
        leaf = encode_leaf(leaf_of(size, region, model[region]))
        if leaf is not None:
            tree.add(region, nodes.store(leaf))
    return tree.finish()


def places(size: int) -> st.SearchStrategy[tuple[int, int]]:
    """(region, page), near the edges of nodes as often as anywhere."""
    count = region_count(size)
    near = [
        n for edge in (0, 255, 256, 257, 65535, 65536, 65537, count - 2, count - 1) for n in (edge,) if 0 <= n < count
    ]
    region = st.one_of(st.sampled_from(near), st.integers(0, count - 1))
    return region.flatmap(
        lambda r: st.tuples(
            st.just(r),
            st.one_of(st.just(region_pages(size, r) - 1), st.integers(0, min(40, region_pages(size, r) - 1))),
        )
    )


@st.composite
def disks(draw: Callable[..., int], count: int) -> list[tuple[int, Model]]:
    """Sizes and contents; each disk has most of its content from the one before."""
    found: list[tuple[int, Model]] = []
    written: dict[tuple[int, int], int] = {}
    size = draw(st.sampled_from(SIZES))
    for _ in range(count):
        changes: list[tuple[tuple[int, int], int]] = []
        if size:
            changes = draw(st.lists(st.tuples(places(size), st.integers(0, 3)), max_size=8))  # type: ignore[assignment]
        written |= dict(changes)
        model: Model = {}
        for (region, page), content in written.items():
            if content and region < region_count(size) and page < region_pages(size, region):
                model.setdefault(region, {})[page] = content
        found.append((size, model))
        size = draw(st.one_of(st.just(size), st.sampled_from(SIZES)))
    return found


quick = settings(max_examples=80, deadline=None)


@given(disks(1))
@quick
def test_a_tree_holds_what_was_put_in(made: list[tuple[int, Model]]) -> None:
    ((size, model),) = made
    nodes = Nodes()
    root = build(nodes, size, model)
    expected = {r: nodes.store(encode_leaf(leaf_of(size, r, pages)) or b"") for r, pages in model.items()}
    assert list(leaf_ids(root, size, nodes.fetch)) == sorted(expected.items())
    assert (root is None) == (not model)
    around = {n + d for n in [*model, 0, 255, 256, 65536, region_count(size) - 1] for d in (-1, 0, 1)}
    for region in around & set(range(region_count(size))):
        nodes.fetched = 0
        assert find_leaf(root, size, region, nodes.fetch) == expected.get(region)
        assert nodes.fetched <= root_level(size)
    assert build(Nodes(), size, model) == root, "a pure function of size and content"


def bytes_that_may_differ(old: tuple[int, Model], new: tuple[int, Model]) -> set[tuple[int, int]]:
    """(region, page) of every page of both disks whose content is not the same."""
    shared = min(old[0], new[0])
    found = set()
    for region in old[1].keys() | new[1].keys():
        before, after = old[1].get(region, {}), new[1].get(region, {})
        for page in before.keys() | after.keys():
            if region * REGION_BYTES + page * PAGE_BYTES < shared and before.get(page) != after.get(page):
                found.add((region, page))
    return found


@given(disks(2))
@example([(PAGE_BYTES, {0: {0: 1}}), (REGION_BYTES, {0: {0: 1, 30: 2}})])
@example([(PAGE_BYTES + 1, {0: {1: 1}}), (REGION_BYTES, {0: {1: 1}})])
@quick
def test_a_difference_lists_all_that_differs_and_nothing_far_from_it(made: list[tuple[int, Model]]) -> None:
    old, new = made
    nodes = Nodes()
    roots = [build(nodes, size, model) for size, model in made]
    told = list(difference((roots[0], old[0]), (roots[1], new[0]), nodes.fetch))
    shared, longest = min(old[0], new[0]), max(old[0], new[0])
    for item in told:
        assert 0 <= item.start < item.stop <= longest, "a range of bytes that are there"
    for before, after in pairwise(told):
        assert before.stop <= after.start, "in order, without overlap"
    for region, page in bytes_that_may_differ(old, new):
        start = region * REGION_BYTES + page * PAGE_BYTES
        assert any(item.start <= start and min(start + PAGE_BYTES, shared) <= item.stop for item in told)
    if old[0] != new[0]:
        assert told[-1].stop == longest
        assert sum(max(0, item.stop - max(item.start, shared)) for item in told) == longest - shared
    changed = {region for region, _ in bytes_that_may_differ(old, new)}
    edge = {(shared - 1) // REGION_BYTES} if old[0] != new[0] else set()
    for item in told:
        for region in range(item.start // REGION_BYTES, -(-min(item.stop, shared) // REGION_BYTES)):
            assert region in changed | edge, "what is equal is not listed"


def test_equal_subtrees_are_not_read() -> None:
    nodes = Nodes()
    size = 64 * TIB
    model: Model = {region: {0: 1} for region in range(0, region_count(size), 9973)}
    old = build(nodes, size, model)
    new = build(nodes, size, model | {70_000: {3: 2}})
    nodes.fetched = 0
    told = list(difference((old, size), (new, size), nodes.fetch))
    assert [(item.start, item.stop) for item in told] == [
        (70_000 * REGION_BYTES + 3 * PAGE_BYTES, 70_000 * REGION_BYTES + 4 * PAGE_BYTES)
    ]
    assert nodes.fetched <= 2 * (root_level(size) + 1)
    assert root_level(size) == 3


@given(disks(1), st.data())
@settings(max_examples=60, deadline=None)
def test_a_node_of_another_place_or_size_is_refused(made: list[tuple[int, Model]], data: st.DataObject) -> None:
    """Authentic bytes in the wrong place: never another disk's regions, never an IndexError."""
    ((size, model),) = made
    nodes = Nodes()
    root = build(nodes, size, model)
    if root is None or root_level(size) == 0:
        return
    other = data.draw(st.sampled_from([each for each in SIZES if root_level(each) not in (0, root_level(size))]))
    with pytest.raises(Damaged):
        list(leaf_ids(root, other, nodes.fetch))


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 64)), min_size=1, max_size=60), st.binary(max_size=40))
@quick
def test_leaves_survive_their_bytes_and_damage_does_not(parts: list[tuple[bool, int]], noise: bytes) -> None:
    records: list[Record] = []
    for data, length in parts:
        start = records[-1].stop if records else 0
        data = data or bool(records and not records[-1].data)
        records.append(Record(start, start + (length if data else length + HOLE_PAGES_MIN), data))
    leaf = Leaf(tuple(records), tuple(chunk_id(r.start, 1) if r.data else None for r in records))
    plain = encode_leaf(leaf)
    if not any(record.data for record in records):
        assert plain is None
        return
    assert plain is not None
    pages = records[-1].stop
    assert decode_leaf(plain, pages, "leaf") == leaf
    for bad in (plain[:-1], plain + b"\0", plain[: len(noise)], noise):
        with pytest.raises(Damaged):
            decode_leaf(bad, pages, "leaf")
    for wrong in (pages - 1, pages + 1):
        with pytest.raises(Damaged):
            decode_leaf(plain, wrong, "leaf")
