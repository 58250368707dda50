"""A raw file read directly is what QEMU would show."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from imaging.errors import ImageUnreadable, SourceError
from imaging.extents import ByteRange, subtract
from imaging.images import serve
from imaging.ingest import ingest_disk
from imaging.raw import RawFileSource
from imaging.source import NbdSource, Source
from tests.unit.memory import KEYS, DictIndex, MemoryStore, writer

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
    source = RawFileSource(path)
    os.truncate(path, 1000)
    with pytest.raises(SourceError, match="shorter"):
        content_of(source)
    with pytest.raises(SourceError, match="shorter"), source:
        pass


def test_a_file_that_got_shorter_has_no_hole_where_its_data_was(tmp_path: Path) -> None:
    path = tmp_path / "disk.raw"
    path.write_bytes(random.Random(1).randbytes(4 * MIB))
    store, index = MemoryStore(), DictIndex()
    with writer(store, index) as packs, RawFileSource(path) as source:
        os.truncate(path, MIB)
        with pytest.raises(SourceError, match="from 4194304 to 1048576 bytes") as caught:
            ingest_disk(source, packs, KEYS)
        assert "again" in caught.value.hint
        os.truncate(path, 4 * MIB)


def test_a_file_that_gets_shorter_after_its_last_answer_is_noticed_at_the_end(tmp_path: Path) -> None:
    """Its holes were asked for while it was whole, and nothing is read where they are."""
    path = tmp_path / "disk.raw"
    path.write_bytes(random.Random(1).randbytes(MIB))
    os.truncate(path, 40 * MIB)
    store, index = MemoryStore(), DictIndex()

    def shrink(_: int) -> None:
        os.truncate(path, 2 * MIB)

    def backup() -> None:
        with RawFileSource(path) as source:
            ingest_disk(source, packs, KEYS, advance=shrink)
            read_through.append(True)

    read_through: list[bool] = []
    with writer(store, index) as packs, pytest.raises(SourceError, match="shorter"):
        backup()
    assert read_through, "it was the end that noticed"


def test_the_end_of_a_file_hides_no_first_error(tmp_path: Path) -> None:
    path = tmp_path / "disk.raw"
    path.write_bytes(bytes(MIB))
    source = RawFileSource(path)
    os.truncate(path, 10)
    with pytest.raises(KeyError, match="first"), source:
        raise KeyError("first")


def test_a_file_that_grows_is_read_as_long_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "disk.raw"
    path.write_bytes(b"x" * MIB)
    with RawFileSource(path) as source:
        os.truncate(path, 2 * MIB)
        assert source.status(0, MIB).zero == []
        assert content_of(source) == b"x" * MIB


def test_what_cannot_be_opened_is_said(tmp_path: Path) -> None:
    with pytest.raises(ImageUnreadable):
        RawFileSource(tmp_path / "nothing")
