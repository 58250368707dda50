"""A raw file read directly is what QEMU would show."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from imaging.errors import ImageUnreadable, SourceError
from imaging.extents import ByteRange, subtract
from imaging.images import serve
from imaging.raw import RawFileSource
from imaging.source import NbdSource, Source

MIB = 1 << 20


def content_of(source: Source) -> bytes:
    buffer = memoryview(bytearray(source.size_bytes))
    half = source.size_bytes // 2
    source.read([(0, buffer[:half]), (half, buffer[half:])])
    return bytes(buffer)


@pytest.mark.parametrize("size", [0, 1, 511, 512, 5 * MIB + 7])
def test_it_is_what_qemu_shows(tmp_path: Path, size: int) -> None:
    path = tmp_path / "disk.raw"
    with path.open("wb") as file:
        file.write(random.Random(size).randbytes(min(size, MIB)))
        file.truncate(size)
    with RawFileSource(path) as source:
        found = content_of(source)
        zero = source.status(0, source.size_bytes).zero
        for hole in zero:
            assert not any(found[hole.start : hole.stop])
        if size > 2 * MIB:
            assert subtract([ByteRange(0, size)], zero)[-1].stop <= 2 * MIB, "the hole at the end is seen"
    with serve(path, "raw", tmp_path) as listen, NbdSource(listen) as server:
        assert found == content_of(server)
        assert source.size_bytes == server.size_bytes


def test_a_file_that_gets_shorter_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "disk.raw"
    path.write_bytes(random.Random(1).randbytes(MIB))
    with RawFileSource(path) as source:
        os.truncate(path, 1000)
        with pytest.raises(SourceError, match="shorter"):
            content_of(source)


def test_what_cannot_be_opened_is_said(tmp_path: Path) -> None:
    with pytest.raises(ImageUnreadable):
        RawFileSource(tmp_path / "nothing")
