"""Damage as byte ranges: exact where there is room, never less than what is damaged where there is not, and named."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from imaging.damage import RANGES_MAX, Collector, Damage, told
from imaging.extents import ByteRange, merge

steps = st.lists(st.tuples(st.integers(0, 50), st.integers(1, 50)), min_size=1, max_size=60)


def collect(disk: str, size_bytes: int, hits: Iterable[ByteRange], limit: int = RANGES_MAX) -> Damage:
    collector = Collector(disk, size_bytes, limit)
    for hit in hits:
        collector.add(hit)
    damage = collector.damage()
    assert damage is not None
    return damage


def ranges_of(gaps_and_lengths: list[tuple[int, int]]) -> list[ByteRange]:
    found, at = [], 0
    for gap, length in gaps_and_lengths:
        found.append(ByteRange(at + gap, at + gap + length))
        at += gap + length
    return found


@given(steps)
def test_where_there_is_room_the_ranges_are_exact(made: list[tuple[int, int]]) -> None:
    hits = ranges_of(made)
    damage = collect("vda", 10_000, iter(hits))
    assert list(damage.ranges) == merge(hits)
    assert damage.damaged_bytes == sum(hit.length for hit in hits)
    assert damage.exact
    assert damage.facts()["ranges"] == [[each.start, each.stop] for each in merge(hits)]


@given(steps, st.integers(1, 8))
def test_where_there_is_none_near_ranges_are_taken_together_and_that_is_said(
    made: list[tuple[int, int]], limit: int
) -> None:
    hits = ranges_of(made)
    damage = collect("vda", 10_000, iter(hits), limit)
    merged = merge(hits)
    assert len(damage.ranges) == min(limit, len(merged))
    assert damage.exact == (len(merged) <= limit)
    assert damage.damaged_bytes == sum(hit.length for hit in hits)
    assert all(any(told.start <= hit.start and hit.stop <= told.stop for told in damage.ranges) for hit in hits)
    assert all(before.stop < after.start for before, after in pairwise(damage.ranges))
    assert (damage.ranges[0].start, damage.ranges[-1].stop) == (merged[0].start, merged[-1].stop)


def test_the_widest_gaps_stay() -> None:
    hits = [ByteRange(0, 10), ByteRange(11, 20), ByteRange(500, 510), ByteRange(512, 520), ByteRange(900, 910)]
    damage = collect("vda", 1000, hits, 3)
    assert list(damage.ranges) == [ByteRange(0, 20), ByteRange(500, 520), ByteRange(900, 910)]
    assert list(damage.ranges[1:]) == [ByteRange(500, 520), ByteRange(900, 910)]
    assert damage.ranges[-1] == ByteRange(900, 910)
    assert (damage.damaged_bytes, damage.exact) == (47, False)


def test_nothing_is_no_damage() -> None:
    assert Collector("vda", 4096).damage() is None


def test_what_people_read() -> None:
    assert str(collect("vda", 4096, [ByteRange(0, 4096)])) == "vda: all of its 4096 bytes"
    few = collect("vdb", 1 << 20, [ByteRange(0, 4096), ByteRange(8192, 12288)])
    assert str(few) == "vdb: 8192 of 1048576 bytes, at 0 to 4096, 8192 to 12288"
    many = collect("vdc", 1 << 20, [ByteRange(at, at + 4096) for at in range(0, 65536, 8192)])
    assert str(many).endswith("at 0 to 4096, 8192 to 12288, 16384 to 20480 and in 5 more ranges")
    assert told([few, many]) == f"{few}; {many}"


def test_a_disk_with_more_ranges_than_memory_should_hold_stays_small() -> None:
    hits = (ByteRange(at, at + 4096) for at in range(0, 8192 * 200_000, 8192))
    damage = collect("vda", 1 << 40, hits)
    assert len(damage.ranges) == 10_000
    assert damage.damaged_bytes == 4096 * 200_000
