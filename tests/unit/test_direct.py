"""Direct writes: what they take is right, what they leave is told, and where there are none nothing is lost."""

from __future__ import annotations

import fcntl
import mmap
import os
import random
from pathlib import Path
from typing import Never

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imaging import direct
from imaging.direct import DirectWriter, read_direct
from imaging.restoring import RawTarget
from imaging.storage.contract import Buffer

SIZE = 9 << 20


@given(
    start=st.integers(0, 40).map(lambda n: n * 2048),
    lengths=st.lists(st.sampled_from([1, 4096, 70_000, 65_536, 5 << 20]), min_size=1, max_size=5),
)
@settings(max_examples=25, deadline=None)
def test_a_target_holds_what_was_written(
    tmp_path_factory: pytest.TempPathFactory, start: int, lengths: list[int]
) -> None:
    path = tmp_path_factory.mktemp("direct") / "disk"
    buffers = [random.Random(n).randbytes(length) for n, length in enumerate(lengths)]
    expected = bytearray(start) + b"".join(buffers)
    with path.open("w+b") as file, RawTarget(file.fileno(), "disk", blank=True) as target:
        for number, buffer in enumerate(buffers):
            target.write(start + sum(map(len, buffers[:number])), buffer)
    assert path.read_bytes() == expected


def test_most_of_it_goes_past_the_cache(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    with path.open("w+b") as file:
        os.ftruncate(file.fileno(), SIZE)
        writer = DirectWriter(file.fileno())
        supported = writer.write(0, [bytes(4096)]) == 4096
        if supported:
            assert writer.write(4096, [b"x" * 6000, b"y" * (5 << 20)]) == (6000 + (5 << 20)) // 4096 * 4096
        assert writer.write(1, [bytes(4096)]) == 0
        writer.close()
        writer.close()
        assert writer.write(0, [bytes(4096)]) == 0


def test_without_support_everything_is_written_as_usual(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    real = os.pwrite

    def refuse_direct(descriptor: int, data: Buffer, offset: int) -> int:
        return _refuse() if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_DIRECT else real(descriptor, data, offset)

    monkeypatch.setattr(os, "pwrite", refuse_direct)
    path = tmp_path / "disk"
    with path.open("w+b") as file, RawTarget(file.fileno(), "disk", blank=True) as target:
        target.write(0, b"a" * 10_000)
    assert path.read_bytes() == b"a" * 10_000


def test_what_is_on_a_page_boundary_goes_as_it_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """With a tail that does not fill a page, which is left."""
    room = memoryview(mmap.mmap(-1, SIZE))
    room[:] = random.Random(1).randbytes(SIZE)
    length = SIZE - 1234
    path = tmp_path / "disk"
    pieces: list[int] = []
    real = os.pwrite

    def count(descriptor: int, data: memoryview, offset: int) -> int:
        pieces.append(len(data))
        return real(descriptor, data, offset)

    monkeypatch.setattr(os, "pwrite", count)
    with path.open("w+b") as file:
        writer = DirectWriter(file.fileno())
        written = writer.write(0, [room[:length]])
        writer.close()
    assert written in (0, length // 4096 * 4096)
    assert path.read_bytes() == room[:written]
    assert not written or pieces[0] == written, "not by way of another buffer"


@given(offset=st.integers(0, 3 << 20), length=st.integers(0, 10 << 20))
@settings(max_examples=25, deadline=None)
def test_a_range_is_read_or_a_part_of_its_beginning(
    tmp_path_factory: pytest.TempPathFactory, offset: int, length: int
) -> None:
    path = tmp_path_factory.mktemp("direct") / "object"
    content = random.Random(2).randbytes(SIZE + 1234)
    path.write_bytes(content)
    with path.open("rb") as file:
        found = read_direct(file.fileno(), offset, length)
    assert found in (b"", content[offset : offset + length])


def test_a_read_that_is_refused_reads_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "object"
    path.write_bytes(bytes(SIZE))
    monkeypatch.setattr(os, "preadv", _refuse)
    with path.open("rb") as file:
        assert read_direct(file.fileno(), 0, SIZE) == b""


def _refuse(*_: object) -> Never:
    raise OSError(22, "Invalid argument")


def test_a_fork_parts_nobody_from_what_is_read() -> None:
    """The memory is the same on both sides, so the device cannot fill a page that only the other one has."""
    view = direct._buffer()
    view[0] = 0
    child = os.fork()
    if child == 0:
        view[0] = 7
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert view[0] == 7
