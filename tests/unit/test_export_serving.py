"""What an export answers: reads, extents and complaints, without a server."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imaging import export
from imaging.errors import Damaged, ExportFailed
from imaging.export import Listen
from imaging.extents import Extent
from imaging.serving import DiskService, ServedDisk

SERVED = ServedDisk(Path("/repo"), Path("/key"), Path("/cache"), "0" * 32, "vda")


class Stripes:
    """A disk of runs of zeros and of data, in turn."""

    def __init__(self, lengths: list[int]) -> None:
        self.lengths = lengths
        self.size_bytes = sum(lengths)
        self.broken = False

    def read_into(self, offset: int, buffer: memoryview) -> None:
        if self.broken:
            raise Damaged("blob 00", "it does not authenticate")
        buffer[:] = b"\x01" * len(buffer)

    def extents(self, offset: int, length: int) -> list[Extent]:
        found, position = [], 0
        for number, run in enumerate(self.lengths):
            start, stop = max(position, offset), min(position + run, offset + length)
            if start < stop:
                found.append(Extent(start, stop - start, number % 2 == 0))
            position += run
        return found


@given(st.lists(st.integers(1, 400 << 20), min_size=1, max_size=6), st.data())
def test_extents_follow_each_other_from_the_offset_and_tell_the_truth(lengths: list[int], data: st.DataObject) -> None:
    disk = Stripes(lengths)
    offset = data.draw(st.integers(0, disk.size_bytes - 1))
    length = data.draw(st.integers(1, disk.size_bytes - offset))
    found = DiskService(disk, "d").extents(offset, length, one=False)
    position = offset
    for start, run, zero in found:
        assert start == position
        assert run > 0
        assert all(extent.zero == zero for extent in disk.extents(start, run))
        position += run
    assert offset < position <= offset + length
    assert position == offset + length, "nothing here takes long enough to stop early"


def test_one_extent_when_one_is_asked_for() -> None:
    disk = Stripes([4096, 4096, 4096])
    assert DiskService(disk, "d").extents(0, 12288, one=True) == [(0, 4096, True)]


def test_a_failure_is_eio_and_told_once() -> None:
    disk = Stripes([4096])
    said: list[str] = []
    disk.broken = True
    service = DiskService(disk, "disk vda", said.append)
    for _ in range(3):
        with pytest.raises(OSError) as failed:
            service.read_into(0, memoryview(bytearray(512)))
        assert failed.value.errno == errno.EIO
    assert len(said) == 1
    assert "512 bytes at 0 of disk vda" in said[0]
    assert "does not authenticate" in said[0]


def test_complaints_end_some_time() -> None:
    disk = Stripes([1 << 20])
    said: list[str] = []
    disk.broken = True
    service = DiskService(disk, "d", said.append)
    for offset in range(2000):
        with pytest.raises(OSError):
            service.read_into(offset, memoryview(bytearray(1)))
    assert len(said) == 1000


def test_parameters_survive_the_command_line() -> None:
    given_back = ServedDisk.parse(dict(word.split("=", 1) for word in SERVED.arguments()))
    assert given_back == SERVED


@pytest.mark.parametrize("wrong", [{"point": ""}, {"surprise": "1"}])
def test_parameters_are_checked(wrong: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        ServedDisk.parse(dict(word.split("=", 1) for word in SERVED.arguments()) | wrong)


def test_a_socket_or_loopback_and_nothing_else() -> None:
    socket = export.command(SERVED, Listen(Path("/run/s")), outlives_caller=True)
    assert socket[socket.index("--unix") + 1] == "/run/s"
    assert "--port" not in socket
    assert "--exit-with-parent" not in socket
    network = export.command(SERVED, Listen(Path("/run/s"), port=10809), outlives_caller=False)
    assert network[network.index("--ipaddr") + 1] == "127.0.0.1"
    assert "--exit-with-parent" in network
    assert all("--readonly" in command for command in (socket, network))


def test_a_socket_path_that_no_kernel_takes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportFailed, match="longer than 107 bytes"):
        export.start(SERVED, Listen(tmp_path / ("s" * 120)), outlives_caller=False)


def test_uris_escape_what_they_must() -> None:
    assert Listen(Path("/a b/?#&s")).uri == "nbd+unix:///?socket=/a%20b/%3F%23%26s"
