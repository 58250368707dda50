from __future__ import annotations

import struct

import pytest
import zstandard
from blake3 import blake3
from cryptography.hazmat.primitives.ciphers.aead import AESGCMSIV
from hypothesis import given, settings
from hypothesis import strategies as st

from imaging.envelope import FORMAT_VERSION, ObjectType, open_sealed, parse, seal
from imaging.errors import Damaged, NotAuthentic, WrongVersion

KEY = bytes(range(32))
REPOSITORY = bytes(range(100, 116))
NAME = "manifests/aa/0000000001-bb"


def rehashed(data: bytes) -> bytes:
    return data[:-32] + blake3(data[:-32]).digest()


def made_by_hand(plain: bytes, name: str = NAME, kind: int = 4, clear: bytes = b"") -> bytes:
    """An envelope written from docs/format.md alone, around any plaintext."""
    head = b"STRONGRM" + struct.pack("<HBBI", 1, kind, 0, len(clear)) + REPOSITORY + bytes(12)
    head += struct.pack("<I", len(plain) + 16) + clear
    data = head + AESGCMSIV(KEY).encrypt(bytes(12), plain, head + name.encode())
    return data + blake3(data).digest()


@settings(max_examples=60, deadline=None)
@given(body=st.binary(max_size=3000), clear=st.binary(max_size=300), repeat=st.integers(1, 50))
def test_what_was_sealed_opens(body: bytes, clear: bytes, repeat: int) -> None:
    data = seal(ObjectType.INDEX, "index/x", KEY, REPOSITORY, body * repeat, clear)
    found = parse(data, "index/x", ObjectType.INDEX)
    assert (found.clear, found.repository_id, found.type) == (clear, REPOSITORY, ObjectType.INDEX)
    assert open_sealed(found, KEY) == body * repeat


def test_it_opens_what_the_format_page_describes_and_the_page_opens_what_it_seals() -> None:
    assert open_sealed(parse(made_by_hand(b"\0" + struct.pack("<I", 5) + b"hello"), NAME), KEY) == b"hello"
    frame = zstandard.compress(b"hello" * 100)
    assert open_sealed(parse(made_by_hand(b"\1" + struct.pack("<I", 500) + frame), NAME), KEY) == b"hello" * 100

    data = seal(ObjectType.MANIFEST, NAME, KEY, REPOSITORY, b"hello" * 100, b"clear")
    assert data[:12] == b"STRONGRM\x01\x00\x04\x00"
    assert struct.unpack("<I", data[12:16]) == (5,)
    assert data[16:32] == REPOSITORY
    (sealed_bytes,) = struct.unpack("<I", data[44:48])
    assert data[48:53] == b"clear"
    plain = AESGCMSIV(KEY).decrypt(data[32:44], data[53 : 53 + sealed_bytes], data[:53] + NAME.encode())
    assert plain[0] == 1
    assert struct.unpack("<I", plain[1:5]) == (500,)
    assert zstandard.decompress(plain[5:]) == b"hello" * 100
    assert data[53 + sealed_bytes :] == blake3(data[:-32]).digest()


def test_every_flipped_byte_and_every_truncation_is_damage_without_a_key() -> None:
    data = seal(ObjectType.LEASE, "leases/aa/end", KEY, REPOSITORY, b"body", b"clear")
    for at in range(len(data)):
        flipped = bytearray(data)
        flipped[at] ^= 0x10
        with pytest.raises(Damaged) as caught:
            parse(bytes(flipped), "leases/aa/end")
        assert not isinstance(caught.value, NotAuthentic)
    for length in range(len(data)):
        with pytest.raises(Damaged):
            parse(data[:length], "leases/aa/end")


def test_a_forged_trailing_hash_does_not_help() -> None:
    data = seal(ObjectType.LEASE, "leases/aa/end", KEY, REPOSITORY, b"body", b"clear")
    for at in range(16, len(data) - 32):
        if 44 <= at < 48:
            continue  # lengths: covered below
        flipped = bytearray(data)
        flipped[at] ^= 0x10
        with pytest.raises(NotAuthentic):
            open_sealed(parse(rehashed(bytes(flipped)), "leases/aa/end"), KEY)


@pytest.mark.parametrize("at", [12, 13, 15, 44, 45, 47, 11, 10])
def test_impossible_headers_are_damage(at: int) -> None:
    data = bytearray(seal(ObjectType.LEASE, "leases/aa/end", KEY, REPOSITORY, b"body"))
    data[at] ^= 0x81
    with pytest.raises(Damaged):
        parse(rehashed(bytes(data)), "leases/aa/end", ObjectType.LEASE)


def test_only_an_intact_object_is_of_another_version() -> None:
    data = bytearray(seal(ObjectType.CONFIG, "config", KEY, REPOSITORY, b"body"))
    data[8] = FORMAT_VERSION + 1
    with pytest.raises(Damaged):
        parse(bytes(data), "config")
    with pytest.raises(WrongVersion) as caught:
        parse(rehashed(bytes(data)), "config")
    assert caught.value.found == 2


def test_an_authentic_object_under_another_name_type_or_key_does_not_open() -> None:
    data = seal(ObjectType.MANIFEST, NAME, KEY, REPOSITORY, b"body")
    with pytest.raises(NotAuthentic):
        open_sealed(parse(data, "manifests/aa/0000000002-cc"), KEY)
    with pytest.raises(NotAuthentic):
        open_sealed(parse(data, NAME), bytes(32))
    with pytest.raises(Damaged, match="should be index"):
        parse(data, NAME, ObjectType.INDEX)
    assert open_sealed(parse(data, "elsewhere"), KEY, bound_name=NAME) == b"body"


def test_the_same_body_is_sealed_differently_each_time() -> None:
    assert seal(ObjectType.CLAIM, "x", KEY, REPOSITORY, b"") != seal(ObjectType.CLAIM, "x", KEY, REPOSITORY, b"")


@pytest.mark.parametrize(
    ("plain", "detail"),
    [
        (b"\0" + struct.pack("<I", 4) + b"hello", "states 4 bytes"),
        (b"\2" + struct.pack("<I", 5) + b"hello", "unknown codec"),
        (b"\1" + struct.pack("<I", 5) + b"no frame", "does not decompress"),
        (b"\1" + struct.pack("<I", 600) + zstandard.compress(b"x" * 500), "states 500"),
        (b"\1" + struct.pack("<I", 0xFFFFFFFF) + zstandard.compress(b"x"), "content of"),
        (b"\1" + struct.pack("<I", 500) + zstandard.compress(b"x" * 500) + b"more", "decompress"),
        (b"\1" + struct.pack("<I", 500) + zstandard.compress(b"x" * 500)[:-3], "decompress"),
        (
            b"\1" + struct.pack("<I", 5) + zstandard.ZstdCompressor(write_content_size=False).compress(b"hello"),
            "states",
        ),
    ],
)
def test_an_authentic_content_that_lies_about_itself_is_damage(plain: bytes, detail: str) -> None:
    with pytest.raises(Damaged, match=detail):
        open_sealed(parse(made_by_hand(plain), NAME), KEY)


def test_a_frame_that_declares_much_more_than_it_holds_is_not_decompressed(monkeypatch: pytest.MonkeyPatch) -> None:
    bomb = zstandard.ZstdCompressor(level=19).compress(bytes(256 << 20))
    assert len(bomb) < 32_768

    def never(*_: object, **__: object) -> None:
        raise AssertionError("it was decompressed")

    monkeypatch.setattr("imaging.envelope.zstandard.ZstdDecompressor", never)
    with pytest.raises(Damaged, match="states 268435456 bytes where 100 are due"):
        open_sealed(parse(made_by_hand(b"\1" + struct.pack("<I", 100) + bomb), NAME), KEY)


def test_more_than_an_envelope_holds_is_our_own_mistake() -> None:
    with pytest.raises(ValueError, match="out of bounds"):
        seal(ObjectType.INDEX, "x", KEY, REPOSITORY, b"", clear=b"c" * 65_537)
