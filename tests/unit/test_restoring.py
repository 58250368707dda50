"""Writing a disk back: to a blank file, over anything, and what happens when that fails."""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from imaging.convert import check_format, new_file
from imaging.errors import ChunkMissing, TargetFailed, TargetRefused
from imaging.extents import REGION_BYTES, ByteRange
from imaging.ingest import ingest_disk
from imaging.restoring import DiskWriter, RawTarget, Restored
from imaging.storage.contract import Buffer
from tests.unit.memory import KEYS, DictIndex, MemorySource, MemoryStore, reader, writer

MIB = 1 << 20


class Stored:
    """A disk in a repository in memory."""

    def __init__(self, content: bytes) -> None:
        self.store, self.index = MemoryStore(), DictIndex()
        with writer(self.store, self.index) as packs:
            self.root = ingest_disk(MemorySource(content), packs, KEYS, seed=1).root
            packs.flush()
        self.size = len(content)

    def write(self, target: object, *, compare: bool = False) -> Restored:
        blobs = reader(self.store, self.index)
        return DiskWriter(blobs, KEYS, target, compare=compare).write(self.root, self.size)  # type: ignore[arg-type]


class Memory:
    """A target in memory that counts, and fails where it is told to."""

    name, blank = "memory", False

    def __init__(self, content: bytes) -> None:
        self.content = bytearray(content)
        self.written = 0
        self.fail_at: int | None = None

    def read(self, offset: int, length: int) -> bytes:
        return bytes(self.content[offset : offset + length])

    def known_zero(self, start: int, stop: int) -> list[ByteRange]:
        return []

    def write(self, offset: int, data: Buffer) -> None:
        if self.fail_at is not None and offset <= self.fail_at < offset + len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.written += len(data)
        self.content[offset : offset + len(data)] = data

    def zero(self, offset: int, length: int) -> None:
        self.content[offset : offset + length] = bytes(length)


def disk(seed: int, size: int) -> bytes:
    rng = random.Random(seed)
    content = bytearray(size)
    for _ in range(rng.randrange(6)):
        start = rng.randrange(size)
        length = rng.choice((100, 5000, 300_000, MIB))
        content[start : start + length] = rng.randbytes(min(length, size - start))
    return bytes(content)


@contextmanager
def raw(path: Path, content: bytes | None, size: int) -> Iterator[RawTarget]:
    if content is not None:
        path.write_bytes(content)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT)
    try:
        os.ftruncate(descriptor, size)
        with RawTarget(descriptor, str(path), blank=content is None) as target:
            yield target
    finally:
        os.close(descriptor)


sizes = st.sampled_from([1, 4096, 5000, 3 * MIB + 17, REGION_BYTES, REGION_BYTES + 4096, 2 * REGION_BYTES + 777])


@given(size=sizes, seed=st.integers(0, 50), other=st.integers(0, 50), compare=st.booleans(), blank=st.booleans())
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_was_there_the_disk_is_there_afterwards(
    tmp_path: Path, size: int, seed: int, other: int, compare: bool, blank: bool
) -> None:
    content = disk(seed, size)
    path = tmp_path / "target"
    path.unlink(missing_ok=True)
    with raw(path, None if blank else disk(other + 100, size), size) as target:
        done = Stored(content).write(target, compare=compare)
    assert path.read_bytes() == content
    if not blank:
        assert done.written_bytes + done.zeroed_bytes + done.kept_bytes == size


def test_only_what_differs_is_fetched_and_written() -> None:
    content = random.Random(3).randbytes(20 * MIB)
    stored = Stored(content)
    changed = bytearray(content)
    changed[5 * MIB : 5 * MIB + 100] = bytes(100)
    target = Memory(bytes(changed))
    gets = stored.store.gets
    done = stored.write(target, compare=True)
    assert bytes(target.content) == content
    assert target.written == done.written_bytes <= 256 << 10
    assert stored.store.gets - gets < 8


def test_holes_are_not_written_but_punched(tmp_path: Path) -> None:
    content = bytes(8 * MIB) + random.Random(4).randbytes(MIB) + bytes(8 * MIB)
    with raw(tmp_path / "new", None, len(content)) as target:
        Stored(content).write(target)
    with raw(tmp_path / "old", b"\xff" * len(content), len(content)) as target:
        Stored(content).write(target)
    for name in ("new", "old"):
        assert (tmp_path / name).read_bytes() == content
        assert (tmp_path / name).stat().st_blocks * 512 < 2 * MIB


def test_a_failing_target_ends_it_with_one_error_that_names_it() -> None:
    content = random.Random(5).randbytes(40 * MIB)
    target = Memory(bytes(len(content)))
    target.fail_at = 3 * MIB
    with pytest.raises(TargetFailed) as failed:
        Stored(content).write(target)
    assert "memory" in str(failed.value)
    assert "No space left" in str(failed.value)
    assert "room" in failed.value.hint


def test_a_missing_chunk_is_an_error_and_never_zeros() -> None:
    content = random.Random(6).randbytes(4 * MIB)
    stored = Stored(content)
    lost = next(iter(stored.index.places))
    stored.index.places[lost] = []
    target = Memory(b"\xaa" * len(content))
    with pytest.raises(ChunkMissing):
        stored.write(target)
    for at in range(0, len(content), 4096):
        assert target.content[at : at + 4096] in (content[at : at + 4096], b"\xaa" * 4096)


def half_write(path: Path, *, replace: bool) -> None:
    with new_file(path, replace=replace) as part:
        part.write_bytes(b"half")
        raise RuntimeError


def test_a_new_file_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "x"
    with new_file(target, replace=False) as part:
        part.write_bytes(b"whole")
        assert not target.exists()
    assert target.read_bytes() == b"whole"
    with pytest.raises(RuntimeError):
        half_write(tmp_path / "y", replace=False)
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_an_existing_file_is_kept_or_replaced_at_once(tmp_path: Path) -> None:
    target = tmp_path / "x"
    target.write_bytes(b"old")
    with pytest.raises(TargetRefused), new_file(target, replace=False):
        pytest.fail("never reached")
    with pytest.raises(RuntimeError):
        half_write(target, replace=True)
    assert target.read_bytes() == b"old"
    link = tmp_path / "link"
    link.symlink_to(target)
    with new_file(link, replace=True) as part:
        part.write_bytes(b"new")
    assert link.is_symlink()
    assert target.read_bytes() == b"new"


def test_one_that_came_meanwhile_is_not_overwritten(tmp_path: Path) -> None:
    with pytest.raises(TargetRefused, match="exists already"), ExitStack() as stack:  # noqa: PT012
        stack.enter_context(new_file(tmp_path / "x", replace=False)).write_bytes(b"ours")
        (tmp_path / "x").write_bytes(b"theirs")
    assert (tmp_path / "x").read_bytes() == b"theirs"


def test_two_do_not_write_one_file_and_a_dead_ones_part_is_removed(tmp_path: Path) -> None:
    target = tmp_path / "x"
    target.with_name("x.strongroom-part").write_bytes(b"left by a killed restore")
    with new_file(target, replace=False) as part:
        assert not part.exists()
        part.write_bytes(b"ours")
        with pytest.raises(TargetRefused, match="another restore"), new_file(target, replace=False):
            pytest.fail("never reached")
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


@pytest.mark.parametrize(
    ("image_format", "size", "said"),
    [("vdi", 4096, "not a format"), ("vpc", 3 << 40, "2040 GiB"), ("vhdx", 5000, "whole sectors")],
)
def test_formats_that_cannot_hold_the_disk(image_format: str, size: int, said: str) -> None:
    with pytest.raises(TargetRefused, match=said):
        check_format(image_format, size, Path("/x"))
