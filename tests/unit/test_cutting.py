"""Cutting is a pure function of content; re-cutting gives the same records and reads little."""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import given, settings
from hypothesis import strategies as st

from imaging.chunking import (
    CHUNK_PAGES_MAX,
    CHUNK_PAGES_MIN,
    CUT_MODULUS,
    HOLE_PAGES_MIN,
    PageHash,
    Record,
    cut_region,
    zero_pages,
)
from imaging.recutting import RegionPages, recut

MULTIPLIERS = hashlib.shake_256(b"multipliers").digest(8200)
PERMUTATION = hashlib.sha256(b"permutation").digest()


def plain_page_hash(page: bytes) -> int:
    """docs/format.md, section 6, word by word."""
    numbers = np.frombuffer(MULTIPLIERS, "<u8")
    words = np.frombuffer(page.ljust(4096, b"\0"), "<u4")
    total = int(numbers[1024])
    for multiplier, word in zip(numbers[:1024], words, strict=True):
        total = (total + int(multiplier) * int(word)) % 2**64
    block = (total >> 32).to_bytes(4, "little") + bytes(12)
    encryptor = Cipher(algorithms.AES256(PERMUTATION), modes.ECB()).encryptor()
    return int.from_bytes(encryptor.update(block)[:8], "little")


@given(st.integers(0, 2**32), st.integers(1, 70))
@settings(max_examples=20, deadline=None)
def test_page_hash_is_the_documented_one(seed: int, count: int) -> None:
    data = np.random.default_rng(seed).integers(0, 256, count * 4096, dtype=np.uint8)
    pages = data.view(np.uint64).reshape(count, 512)
    flags = PageHash(MULTIPLIERS, PERMUTATION).cut_pages(pages)
    for number in {0, count - 1, count // 2}:
        assert flags[number] == (plain_page_hash(pages[number].tobytes()) % CUT_MODULUS == 0)


def test_zero_pages_sees_a_single_bit() -> None:
    pages = np.zeros((3, 512), np.uint64)
    pages[1, 511] = 1 << 63
    assert zero_pages(pages).tolist() == [True, False, True]


# Contents of pages: 0 is zero, 1 a cut page, anything else a plain page. Runs make holes and long chunks likely.
page_runs = st.lists(st.tuples(st.sampled_from([0, 0, 1, 2, 3, 4, 5]), st.integers(1, 40)), min_size=1, max_size=14)


def contents(description: list[tuple[int, int]]) -> npt.NDArray[np.uint8]:
    return np.array([value for value, length in description for _ in range(length)], np.uint8)


def model(content: npt.NDArray[np.uint8]) -> list[tuple[int, int, bool]]:
    """The rules of the format, page by page, with no cleverness."""
    count = len(content)
    hole = [False] * count
    for page in range(count):
        if content[page] == 0:
            start, stop = page, page
            while start > 0 and content[start - 1] == 0:
                start -= 1
            while stop < count and content[stop] == 0:
                stop += 1
            hole[page] = stop - start >= HOLE_PAGES_MIN or stop == count
    found, start = [], 0
    for page in range(count):
        edge = page + 1 == count or hole[page + 1] != hole[page]
        length = page + 1 - start
        cut = (length >= CHUNK_PAGES_MIN and content[page] == 1) or length == CHUNK_PAGES_MAX
        if edge or (not hole[page] and cut):
            found.append((start, page + 1, not hole[page]))
            start = page + 1
    return found


def as_tuples(records: list[Record]) -> list[tuple[int, int, bool]]:
    return [(r.start, r.stop, r.data) for r in records]


@given(page_runs)
@settings(max_examples=300, deadline=None)
def test_cutting_follows_the_rules(description: list[tuple[int, int]]) -> None:
    content = contents(description)
    assert as_tuples(cut_region(content == 0, content == 1)) == model(content)


changes = st.lists(
    st.tuples(st.integers(0, 559), st.integers(1, 30), st.sampled_from([0, 0, 1, 2, 3])), min_size=1, max_size=6
)


@given(page_runs, changes, st.booleans())
@settings(max_examples=2000, deadline=None)
def test_recutting_equals_cutting(
    description: list[tuple[int, int]], writes: list[tuple[int, int, int]], told_zero: bool
) -> None:
    content = contents(description)
    old = cut_region(content == 0, content == 1)
    dirty = np.zeros(len(content), np.bool_)
    new = content.copy()
    for start, length, value in writes:
        start %= len(content)
        new[start : start + length] = value
        dirty[start : start + length] = True
    pages = RegionPages.unknown(len(content))
    if told_zero:  # allocation may tell what became zero
        for page in np.flatnonzero(dirty & (new == 0)):
            pages.know_zero(int(page), int(page) + 1)
    read: list[int] = []

    def load(ranges: list[tuple[int, int]]) -> None:
        for start, stop in ranges:
            read.extend(range(start, stop))
            pages.zero[start:stop] = new[start:stop] == 0
            pages.cut[start:stop] = new[start:stop] == 1

    records = recut(old, pages, dirty, load)
    assert as_tuples(records) == model(new)
    assert len(read) == len(set(read)), "no page is read twice"
    for record in records:
        if record.data and not pages.loaded[record.start]:
            assert record in old
            assert not dirty[record.start : record.stop].any()


@pytest.mark.parametrize("seed", range(3))
def test_an_isolated_dirty_page_costs_about_26_pages(seed: int) -> None:
    rng = np.random.default_rng(seed)
    total = count = 0
    for _ in range(200):
        content = rng.integers(1, 14, 4096).astype(np.uint8)
        old = cut_region(content == 0, content == 1)
        page = int(rng.integers(4096))
        dirty = np.zeros(4096, np.bool_)
        dirty[page] = True
        content[page] = rng.integers(1, 14)
        pages = RegionPages.unknown(4096)

        def load(ranges: list[tuple[int, int]]) -> None:
            nonlocal total
            for start, stop in ranges:
                total += stop - start
                pages.zero[start:stop] = content[start:stop] == 0  # noqa: B023
                pages.cut[start:stop] = content[start:stop] == 1  # noqa: B023

        assert recut(old, pages, dirty, load) == cut_region(content == 0, content == 1)
        count += 1
    assert 20 < total / count < 32
