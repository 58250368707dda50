"""The cache of blocks on disk: what was put is given or not, and never anything else; it stays within its size."""

from __future__ import annotations

import os
import random
import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest

from imaging.storage.block_cache import BLOCK_BYTES, WAYS, BlockCache

REPOSITORY = bytes(range(16))
LIMIT = 4 * WAYS * BLOCK_BYTES + (64 << 10)
NAME = "packs/ab/abcd"


def opened(folder: Path, repository: bytes = REPOSITORY, limit: int = LIMIT, reserve: int = 0) -> BlockCache:
    cache = BlockCache.open(folder, repository, limit, reserve)
    assert cache is not None
    return cache


def file_of(folder: Path, repository: bytes = REPOSITORY) -> Path:
    return folder / repository.hex()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "chunks"


@pytest.fixture
def cache(folder: Path) -> Iterator[BlockCache]:
    made = opened(folder)
    yield made
    made.close()


def content(number: int, length: int = BLOCK_BYTES) -> bytes:
    return random.Random(number).randbytes(length)


def given(cache: BlockCache, numbers: range) -> list[int]:
    """Which of these blocks are there; each must be the right one."""
    found = []
    for number in numbers:
        data = cache.get(NAME, number)
        if data is not None:
            assert data == content(number)
            found.append(number)
    return found


def test_what_was_put_is_given_by_any_process_later(cache: BlockCache, folder: Path) -> None:
    assert cache.get(NAME, 0) is None
    cache.put(NAME, 0, content(0))
    cache.put(NAME, 1, content(1, 777))
    again = opened(folder)
    assert again.get(NAME, 0) == content(0)
    assert again.get(NAME, 1) == content(1, 777)
    assert again.get(NAME, 2) is None
    assert again.get("packs/ab/abce", 0) is None
    again.close()


def test_it_never_grows_beyond_its_limit_and_goes_on_taking(cache: BlockCache, folder: Path) -> None:
    for number in range(160):
        cache.put(NAME, number, content(number))
        assert cache.get(NAME, number) == content(number), "what came last is there"
    facts = file_of(folder).stat()
    assert facts.st_size <= LIMIT
    assert facts.st_blocks * 512 <= LIMIT
    assert len(given(cache, range(160))) == 4 * WAYS, "every slot is used"


def test_what_is_used_stays_and_what_was_used_the_longest_ago_goes(folder: Path) -> None:
    cache = opened(folder, limit=WAYS * BLOCK_BYTES + (64 << 10))  # one set
    for number in range(WAYS):
        cache.put(NAME, number, content(number))
    assert cache.get(NAME, 0) is not None
    cache.put(NAME, 100, content(100))
    assert given(cache, range(WAYS)) == [0, *range(2, WAYS)]
    cache.close()


def test_what_was_forgotten_is_gone_and_its_place_is_used_first(folder: Path) -> None:
    cache = opened(folder, limit=WAYS * BLOCK_BYTES + (64 << 10))
    for number in range(WAYS):
        cache.put(NAME, number, content(number))
    cache.forget(NAME, 5)
    cache.forget(NAME, 99)
    assert given(cache, range(WAYS)) == [0, 1, 2, 3, 4, 6, 7]
    cache.put(NAME, 8, content(8))
    assert given(cache, range(9)) == [0, 1, 2, 3, 4, 6, 7, 8]
    cache.close()


def test_any_damage_of_the_file_means_that_less_is_there(cache: BlockCache, folder: Path) -> None:
    for number in range(20):
        cache.put(NAME, number, content(number))
    rng = random.Random(3)
    before = len(given(cache, range(20)))
    with file_of(folder).open("r+b", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        spots = [rng.randrange(4096, 8192) for _ in range(40)] + [rng.randrange(8192, size) for _ in range(40)]
        for at in spots:
            file.seek(at)
            (byte,) = file.read(1) or b"\0"
            file.seek(at)
            file.write(bytes([byte ^ 0xFF]))
    assert len(given(cache, range(20))) < before, "the damage was met"
    for number in range(20):
        cache.put(NAME, number, content(number))
        assert cache.get(NAME, number) == content(number)


@pytest.mark.parametrize("length", [0, 100, 4096, 5000, 300_000])
def test_a_file_that_was_cut_off_is_filled_again(cache: BlockCache, folder: Path, length: int) -> None:
    for number in range(20):
        cache.put(NAME, number, content(number))
    os.truncate(file_of(folder), length)
    assert len(given(cache, range(20))) <= 2
    cache.put(NAME, 3, content(3))
    again = opened(folder)  # and one that begins with such a file
    again.put(NAME, 4, content(4))
    assert again.get(NAME, 4) == content(4)
    again.close()


@pytest.mark.parametrize("header", [b"", b"no header at all", secrets.token_bytes(8192)])
def test_what_is_no_cache_is_replaced_by_one(folder: Path, header: bytes) -> None:
    folder.mkdir()
    file_of(folder).write_bytes(header)
    cache = opened(folder)
    cache.put(NAME, 0, content(0))
    assert cache.get(NAME, 0) == content(0)
    cache.close()


def test_another_size_is_another_file_and_the_old_one_gives_its_space_back(cache: BlockCache, folder: Path) -> None:
    cache.put(NAME, 0, content(0))
    larger = opened(folder, limit=2 * LIMIT)
    assert larger.get(NAME, 0) is None
    assert os.fstat(cache._descriptor).st_blocks == 0
    cache.put(NAME, 1, content(1))
    assert os.fstat(cache._descriptor).st_blocks == 0, "who had it open keeps nothing any more"
    assert cache.get(NAME, 1) is None
    larger.put(NAME, 1, content(1))
    assert larger.get(NAME, 1) == content(1)
    larger.close()


def test_the_cache_of_another_repository_goes(cache: BlockCache, folder: Path) -> None:
    cache.put(NAME, 0, content(0))
    other = opened(folder, bytes(16))
    assert [each.name for each in folder.iterdir()] == [bytes(16).hex()]
    assert other.get(NAME, 0) is None
    other.close()


def test_others_have_room_first(folder: Path) -> None:
    facts = os.statvfs(folder.parent)
    cache = opened(folder, reserve=facts.f_blocks * facts.f_frsize)
    cache.put(NAME, 0, content(0))
    assert cache.get(NAME, 0) is None
    assert file_of(folder).stat().st_blocks * 512 <= 16 << 10
    cache.close()


@pytest.mark.parametrize("limit", [0, 4096, WAYS * BLOCK_BYTES])
def test_a_limit_that_has_no_room_for_a_set_means_none(folder: Path, limit: int) -> None:
    assert BlockCache.open(folder, REPOSITORY, limit) is None
    assert not folder.exists()
    cache = opened(folder)
    assert BlockCache.open(folder, REPOSITORY, limit) is None
    assert list(folder.iterdir()) == [], "its space is wanted back"
    cache.close()


def test_a_folder_that_is_none_means_none_and_is_told(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder.write_bytes(b"a file")
    assert BlockCache.open(folder, REPOSITORY, LIMIT) is None
    assert str(folder) in caplog.text


def test_only_its_owner_reads_it(cache: BlockCache, folder: Path) -> None:
    assert file_of(folder).stat().st_mode & 0o777 == 0o600
    assert folder.stat().st_mode & 0o777 == 0o700
