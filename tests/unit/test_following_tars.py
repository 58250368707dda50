"""A tar that passes is read for what it lacks, however it comes in pieces; one that is none is refused."""

from __future__ import annotations

import io
import tarfile

import pytest

from appliance.services.files.following import Following, TarUnfit

TOLD = "/etc/pipe: it is a device, a socket or a pipe\n/etc/Grüße: damaged\n"


def tar_of(*members: tuple[str, bytes]) -> bytes:
    """As `tarring` makes them: pax, and a folder first."""
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.type = tarfile.DIRTYPE if name.endswith("/") else tarfile.REGTYPE
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return made.getvalue()


def followed(data: bytes, piece_bytes: int = 1 << 20) -> Following:
    tar = Following()
    for at in range(0, len(data), piece_bytes):
        tar.feed(data[at : at + piece_bytes])
    return tar


@pytest.mark.parametrize("folder", ["etc", "e" * 200, "Grüße", "no \udcff utf-8"])
@pytest.mark.parametrize("piece_bytes", [1, 511, 512, 1000, 1 << 20])
def test_what_a_tar_lacks_is_read_as_it_passes(folder: str, piece_bytes: int) -> None:
    inside = [(f"{folder}/", b""), (f"{folder}/a", b"x" * 700), (f"{folder}/{'b' * 300}", b""), (f"{folder}/c", b"y")]
    data = tar_of(*inside, (f"{folder}-left-out.txt", TOLD.encode()))
    tar = followed(data, piece_bytes)
    assert (tar.ended, tar.left_out) == (True, TOLD.splitlines())
    whole = followed(tar_of(*inside), piece_bytes)
    assert (whole.ended, whole.left_out) == (True, [])


def test_what_it_says_can_be_shown() -> None:
    tar = followed(tar_of(("etc/", b""), ("etc-left-out.txt", b"/etc/a: \x1b[2J\xff\n")))
    assert tar.left_out == [r"/etc/a: \x1b[2J\xff"]


def test_what_a_guest_has_is_never_taken_for_it() -> None:
    """Neither a file of that name within, nor one with the bytes of a tar."""
    inner = tar_of(("etc/", b""), ("etc-left-out.txt", TOLD.encode()))
    tar = followed(tar_of(("etc/", b""), ("etc/etc-left-out.txt", TOLD.encode()), ("etc/inner.tar", inner)), 4096)
    assert (tar.ended, tar.left_out) == (True, [])


def test_a_file_that_is_larger_than_a_plain_header_can_say_is_passed_over() -> None:
    info = tarfile.TarInfo("etc/large")
    info.size = 9 << 30
    header = info.tobuf(tarfile.PAX_FORMAT)
    assert len(header) > 512
    tar = followed(tar_of(("etc/", b""))[:512] + header)
    piece = bytes(1 << 20)
    for _ in range(9 << 10):
        tar.feed(piece)
        assert not tar.ended
    tar.feed(tar_of(("etc-left-out.txt", TOLD.encode())))
    assert (tar.ended, tar.left_out) == (True, TOLD.splitlines())


@pytest.mark.parametrize("cut", [100, 512, 1500, 2048])
def test_one_that_breaks_off_has_not_ended(cut: int) -> None:
    data = tar_of(("etc/", b""), ("etc/a", b"x" * 700))
    assert not followed(data[:cut]).ended


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
