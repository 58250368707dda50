"""Byte ranges against sets of bytes."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from imaging.extents import ByteRange, align_in, align_out, clip, merge, split, subtract

LIMIT = 120
some = settings(max_examples=200, deadline=None)

loose = st.lists(st.builds(ByteRange, st.integers(0, LIMIT), st.integers(0, LIMIT)), max_size=12)
"""Any order, overlapping, empty, and with the ends exchanged: what merge is for."""


def tidy_of(numbers: list[int]) -> list[ByteRange]:
    """Sorted, apart or touching, not empty: what every other function takes."""
    edges = sorted(set(numbers))
    return [ByteRange(a, b) for a, b in zip(edges[::2], edges[1::2], strict=False)]


tidy = st.one_of(
    st.lists(st.integers(0, LIMIT), max_size=20).map(tidy_of),
    # pieces that touch each other
    st.lists(st.integers(0, LIMIT), max_size=20).map(
        lambda numbers: [
            ByteRange(a, b) for a, b in pairwise(sorted(set(numbers)))
        ]
    ),
)  # fmt: skip


def covered(ranges: Iterable[ByteRange]) -> set[int]:
    return {byte for item in ranges for byte in range(item.start, item.stop)}


def assert_tidy(ranges: list[ByteRange], *, apart: bool = False) -> None:
    for item in ranges:
        assert item.length == item.stop - item.start > 0
    for before, after in pairwise(ranges):
        assert before.stop < after.start if apart else before.stop <= after.start


@given(loose)
@some
def test_merge(ranges: list[ByteRange]) -> None:
    merged = merge(ranges)
    assert_tidy(merged, apart=True)
    assert covered(merged) == covered(ranges)
    assert merge(iter(merged)) == merged


@given(tidy, st.integers(0, LIMIT), st.integers(0, LIMIT))
@some
def test_clip(ranges: list[ByteRange], start: int, stop: int) -> None:
    clipped = clip(ranges, start, stop)
    assert_tidy(clipped)
    assert covered(clipped) == covered(ranges) & set(range(start, stop))


@given(tidy, st.integers(1, 17), st.booleans())
@some
def test_align_out(ranges: list[ByteRange], unit: int, ragged: bool) -> None:
    limit = max((item.stop for item in ranges), default=0) + (0 if ragged else unit)
    aligned = align_out(ranges, unit, limit)
    assert_tidy(aligned, apart=True)
    wanted = {byte for each in covered(ranges) for byte in range(each // unit * unit, each // unit * unit + unit)}
    assert covered(aligned) == {byte for byte in wanted if byte < limit}


@given(tidy, st.integers(1, 17), st.booleans())
@some
def test_align_in(ranges: list[ByteRange], unit: int, ragged: bool) -> None:
    """Only whole units stay, or what reaches the disk's end: nothing is ever called zero that is not said to be."""
    limit = max((item.stop for item in ranges), default=0) + (0 if ragged else unit)
    aligned = align_in(ranges, unit, limit)
    assert_tidy(aligned)
    wanted = set()
    for item in ranges:
        for start in range(0, limit, unit):
            piece = set(range(start, min(start + unit, limit)))
            if piece <= covered([item]):
                wanted |= piece
    assert covered(aligned) == wanted


@given(tidy, tidy)
@some
def test_subtract(ranges: list[ByteRange], holes: list[ByteRange]) -> None:
    left = subtract(ranges, holes)
    assert_tidy(left)
    assert covered(left) == covered(ranges) - covered(holes)
    assert covered(subtract(ranges, left)) == covered(ranges) & covered(holes)


@given(tidy, st.integers(1, 40))
@some
def test_split(ranges: list[ByteRange], length: int) -> None:
    pieces = list(split(ranges, length))
    assert_tidy(pieces)
    assert covered(pieces) == covered(ranges)
    assert all(piece.length <= length for piece in pieces)
    assert len(pieces) == sum(-(-item.length // length) for item in ranges)
