"""A tar that passes is read for what it lacks, however it comes in pieces; one that is none is refused."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator

import pytest

from appliance.services.files.following import Following, TarUnfit
from appliance.services.files.tarring import END_BYTES

TOLD = "/etc/pipe: it is a device, a socket or a pipe\n/etc/Grüße: damaged\n"
END = bytes(END_BYTES)


def members_of(*members: tuple[str, bytes]) -> bytes:
    """As `tarring` makes them: pax, and a folder first."""
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.type = tarfile.DIRTYPE if name.endswith("/") else tarfile.REGTYPE
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
        return made.getvalue()


def tar_of(*members: tuple[str, bytes]) -> bytes:
    return members_of(*members) + END


def followed(data: bytes, piece_bytes: int = 1 << 20) -> list[str]:
    """What it lacks; what comes is what went in. TarUnfit."""
    tar = Following()
    pieces = (data[at : at + piece_bytes] for at in range(0, len(data), piece_bytes))
    assert b"".join(tar.stream(pieces)) == data
    return tar.left_out


@pytest.mark.parametrize("folder", ["etc", "e" * 200, "Grüße", "no \udcff utf-8"])
@pytest.mark.parametrize("piece_bytes", [1, 511, 512, 1000, 1 << 20])
def test_what_a_tar_lacks_is_read_as_it_passes(folder: str, piece_bytes: int) -> None:
    inside = [(f"{folder}/", b""), (f"{folder}/a", b"x" * 700), (f"{folder}/{'b' * 300}", b""), (f"{folder}/c", b"y")]
    data = tar_of(*inside, (f"{folder}-left-out.txt", TOLD.encode()))
    assert followed(data, piece_bytes) == TOLD.splitlines()
    assert followed(tar_of(*inside), piece_bytes) == []


def test_what_it_says_can_be_shown() -> None:
    assert followed(tar_of(("etc/", b""), ("etc-left-out.txt", b"/etc/a: \x1b[2J\xff\n"))) == [r"/etc/a: \x1b[2J\xff"]


def test_what_a_guest_has_is_never_taken_for_it() -> None:
    """Neither a file of that name within, nor one with the bytes of a tar."""
    inner = tar_of(("etc/", b""), ("etc-left-out.txt", TOLD.encode()))
    data = tar_of(("etc/", b""), ("etc/etc-left-out.txt", TOLD.encode()), ("etc/inner.tar", inner))
    assert followed(data, 4096) == []


def test_a_file_that_is_larger_than_a_plain_header_can_say_is_passed_over() -> None:
    info = tarfile.TarInfo("etc/large")
    info.size = 9 << 30
    header = info.tobuf(tarfile.PAX_FORMAT)
    assert len(header) > 512
    given_bytes = 0

    def pieces() -> Iterator[bytes]:
        nonlocal given_bytes
        large = [bytes(1 << 20)] * (9 << 10)
        for each in (members_of(("etc/", b"")) + header, *large, tar_of(("etc-left-out.txt", TOLD.encode()))):
            given_bytes += len(each)
            yield each

    tar, passed_bytes = Following(), 0
    for each in tar.stream(pieces()):
        passed_bytes += len(each)
        assert given_bytes - passed_bytes < 4 << 20, "no more than is being read is kept"
    assert passed_bytes == given_bytes > 9 << 30
    assert tar.left_out == TOLD.splitlines()


@pytest.mark.parametrize("cut", [0, 100, 512, 600, 1024, 1500, 2048, 2048 + 512, 2048 + END_BYTES - 1])
def test_one_that_breaks_off_is_refused(cut: int) -> None:
    data = tar_of(("etc/", b""), ("etc/a", b"x" * 700))
    assert len(data) == 2048 + END_BYTES
    with pytest.raises(TarUnfit):
        followed(data[:cut])


def test_one_that_goes_on_after_its_end_is_refused() -> None:
    with pytest.raises(TarUnfit):
        followed(tar_of(("etc/", b"")) + tar_of(("etc-left-out.txt", TOLD.encode())))


def _header(size: bytes, kind: bytes = tarfile.XHDTYPE) -> bytes:
    block = bytearray(tarfile.TarInfo("x").tobuf(tarfile.USTAR_FORMAT))
    block[124:136], block[156:157], block[148:156] = size, kind, b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


@pytest.mark.parametrize(
    "data",
    [
        b"<html>" * 100,
        _header(b"00000000013\0") + b"999 path=etc" + bytes(501),
        _header(b"00000000013\0") + b"no records  " + bytes(501),
        _header(b"77777777777\0"),  # 8 GiB of what is told of a member
        _header(b"\xff" * 12, tarfile.REGTYPE),  # less than nothing
        _header(b"00000000015\0") + b"13 size=many\n" + bytes(499) + _header(b"00000000000\0", tarfile.REGTYPE),
    ],
)
def test_what_is_no_tar_is_refused(data: bytes) -> None:
    with pytest.raises(TarUnfit):
        followed(data)
